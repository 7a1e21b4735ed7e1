"""Test the translation of published flags and the maps of parameter names."""

import dataclasses
from typing import Any

import pytest
import torch

from fewstep.interop.glide import from_glide, glide_config, to_glide
from fewstep.interop.openai import encoder_config, from_openai, to_openai, unet_config
from fewstep.interop.published import ADM, CONSISTENCY, GLIDE, published_config, to_published
from fewstep.nets import UNet, UNetConfig
from fewstep.nets.encoder import POOLS, EncoderUNet
from fewstep.nets.published import PUBLISHED, build
from fewstep.nets.text import TextUNet

SMALL = UNetConfig(size=16, width=32, mult=(1, 2), depth=1, attention=(8,), classes=5, null=False)


def test_interop_refuses_what_does_not_fit() -> None:
    """Missing and left-over weights, and flags that are not known or not built, are named."""
    config = SMALL
    state = to_openai(UNet(config).state_dict(), config)
    with pytest.raises(ValueError, match=r"1 missing \(out\.2\.bias\), 1 left over \(odd\)"):
        from_openai(
            {k: v for k, v in state.items() if k != "out.2.bias"} | {"odd": torch.ones(1)}, config
        )
    with pytest.raises(ValueError, match="differ"):
        to_openai({}, config)
    flags: dict[str, Any] = {
        "image_size": 16,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [2],
    }
    with pytest.raises(ValueError, match="missing: in_channels, out_channels"):
        unet_config(flags)
    with pytest.raises(ValueError, match="unknown U-Net flag 'wdith'"):
        unet_config({**flags, "wdith": 3})
    with pytest.raises(ValueError, match="dims = 3 is not supported"):
        unet_config({**flags, "dims": 3})


FLAGS: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2],
}
TEXT = {"text_ctx": 4, "xf_width": 8, "xf_layers": 2, "xf_heads": 2, "xf_final_ln": True}


def there_and_back(net: torch.nn.Module, config: Any, to: Any, back: Any) -> dict[str, Any]:
    """Rename a state and back: the same tensors under the same names; return it as renamed."""
    state = net.state_dict()
    theirs = to(state, config)
    again = back(theirs, config)
    assert set(again) == set(state)
    assert all(torch.equal(again[k], v) for k, v in state.items())
    return theirs


@pytest.mark.parametrize("updown", [True, False])
@pytest.mark.parametrize("convolve", [True, False])
def test_resampling_names(updown: bool, convolve: bool) -> None:
    """Only a convolution has names: pooling has none."""
    config = unet_config({**FLAGS, "resblock_updown": updown, "conv_resample": convolve})
    theirs = there_and_back(UNet(config), config, to_openai, from_openai)
    names = [k for k in theirs if ".op." in k or "output_blocks.1.2.conv" in k]
    assert len(names) == (4 if convolve and not updown else 0)


def test_decoder_heads() -> None:
    """Heads of the decoder are read, and refused where they do not divide."""
    flags = {**FLAGS, "num_heads": 2, "num_heads_upsample": 8}
    net = UNet(unet_config(flags))
    assert net.up[0].attention.heads == 8
    assert net.down[-1].attention.heads == net.middle_in.attention.heads == 2
    with pytest.raises(ValueError, match="heads_up = 3 does not divide"):
        unet_config({**flags, "num_heads_upsample": 3})


@pytest.mark.parametrize("pool", POOLS)
def test_classifier_names(pool: str) -> None:
    """Every pool's parameters have names, and the shapes of convolutions of one pixel."""
    config = encoder_config({**FLAGS, "num_head_channels": 16, "pool": pool})
    theirs = there_and_back(EncoderUNet(config), config, to_openai, from_openai)
    shapes = {k: tuple(v.shape) for k, v in theirs.items() if k.startswith("out")}
    expected = {
        "adaptive": {"out.0.weight": (64,), "out.3.weight": (6, 64, 1, 1)},
        "attention": {
            "out.0.weight": (64,),
            "out.2.positional_embedding": (64, 65),
            "out.2.qkv_proj.weight": (192, 64, 1),
            "out.2.c_proj.weight": (6, 64, 1),
        },
        "spatial": {"out.0.weight": (2048, 224), "out.2.weight": (6, 2048)},
        "spatial_v2": {
            "out.0.weight": (2048, 224),
            "out.1.weight": (2048,),
            "out.3.weight": (6, 2048),
        },
    }[pool]
    assert {k: v for k, v in shapes.items() if "bias" not in k} == expected


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_text_names(norm: bool, padding: bool) -> None:
    """The flags of the text path decide which parameters there are."""
    flags = {**FLAGS, **TEXT, "xf_final_ln": norm, "xf_padding": padding}
    config = glide_config({k: v for k, v in flags.items() if k != "image_size"}, vocab=10, size=16)
    theirs = there_and_back(TextUNet(config), config, to_glide, from_glide)
    assert ("final_ln.weight" in theirs) == norm
    assert ("padding_embedding" in theirs) == padding
    assert theirs["middle_block.1.encoder_kv.weight"].shape == (128, 8, 1)


def test_text_flags_are_checked() -> None:
    """A missing or unsupported flag of the text path is named."""
    with pytest.raises(ValueError, match="missing: xf_heads"):
        glide_config({k: v for k, v in {**FLAGS, **TEXT}.items() if k != "xf_heads"})
    with pytest.raises(ValueError, match=r"xf_ar = 1\.0"):
        glide_config({**FLAGS, **TEXT, "xf_ar": 1.0})


SCRIPT = {
    "attention_resolutions": "32,16,8",
    "class_cond": True,
    "learn_sigma": True,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "num_channels": 256,
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "diffusion_steps": 1000,
}
UPSAMPLE = {**SCRIPT, "num_channels": 192, "small_size": 64}
IN64 = {**SCRIPT, "image_size": 64, "num_channels": 192, "num_res_blocks": 3}


@pytest.mark.parametrize(
    ("name", "program", "flags"),
    [
        ("adm-imagenet64", ADM, {**IN64, "use_new_attention_order": True, "dropout": 0.1}),
        (
            "adm-imagenet128",
            ADM,
            {**SCRIPT, "image_size": 128, "num_heads": 4, "num_head_channels": -1},
        ),
        ("adm-imagenet256", ADM, {**SCRIPT, "image_size": 256}),
        ("adm-imagenet256-uncond", ADM, {**SCRIPT, "image_size": 256, "class_cond": False}),
        ("adm-imagenet512", ADM, {**SCRIPT, "image_size": 512}),
        ("adm-lsun256", ADM, {**SCRIPT, "image_size": 256, "class_cond": False, "dropout": 0.1}),
        ("adm-upsample-64-256", ADM, {**UPSAMPLE, "large_size": 256, "num_head_channels": -1}),
        ("adm-upsample-128-512", ADM, {**UPSAMPLE, "large_size": 512}),
        ("adm-classifier64", ADM, {"image_size": 64, "classifier_depth": 4}),
        ("adm-classifier128", ADM, {"image_size": 128, "classifier_depth": 2}),
        ("adm-classifier512", ADM, {"image_size": 512, "classifier_pool": "attention"}),
        ("cd-imagenet64", CONSISTENCY, {**IN64, "learn_sigma": False}),
        ("glide-base", GLIDE, {}),
        (
            "glide-upsample-inpaint",
            GLIDE,
            {"image_size": 256, "num_res_blocks": 2, "super_res": True, "inpaint": True},
        ),
    ],
)
def test_published_flags(name: str, program: str, flags: dict[str, Any]) -> None:
    """The flags that a network was published with give the configuration of that name."""
    assert published_config(program, flags) == PUBLISHED[name]


def test_published_flags_are_checked() -> None:
    """Unknown programs, flags and sizes are named, with what is known."""
    with pytest.raises(ValueError, match="unknown program"):
        published_config("openai/jukebox", {})
    with pytest.raises(ValueError, match="unknown flag 'num_chanels'"):
        published_config(ADM, {"num_chanels": 1})
    with pytest.raises(ValueError, match="only for 32, 64, 128, 256, 512"):
        published_config(ADM, {"image_size": 48})
    config = published_config(ADM, {"image_size": 32, "channel_mult": "0.5,1", "num_channels": 64})
    assert config.mult == (0.5, 1)
    assert config.attention == (16,)


def test_consistency_shapes() -> None:
    """The consistency models' program keeps attention's maps as two-dimensional convolutions."""
    config = dataclasses.replace(
        PUBLISHED["cd-imagenet64"], width=32, head_channels=32, classes=3, depth=1
    )
    net = build(config)
    theirs = to_published(CONSISTENCY, net.state_dict(), config)
    assert theirs["middle_block.1.qkv.weight"].shape == (384, 128, 1, 1)
    assert from_openai(theirs, config)["middle_in.attention.qkv.weight"].shape == (384, 128)
