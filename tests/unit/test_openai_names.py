"""Test the map between ADM's parameter names and ours, and the published networks' sizes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.interop.openai import from_openai, to_openai, unet_config, unet_names
from fewstep.nets import UNet, UNetConfig

SMALL = UNetConfig(size=16, width=32, mult=(1, 2), depth=1, attention=(8,), classes=5, null=False)
SHARED = Path(os.environ.get("FEWSTEP_SHARED") or Path(__file__).parents[3] / "shared")
CHECKPOINTS = SHARED / "golden" / "checkpoints"

ADM = {"in_channels": 3, "out_channels": 6, "use_scale_shift_norm": True, "resblock_updown": True}
SIX = [1, 1, 2, 2, 4, 4]
PUBLISHED = {
    "imagenet 64": (295_904_454, 64, 192, 3, [1, 2, 3, 4], 1000, {"num_head_channels": 64}),
    "lsun 256": (552_814_086, 256, 256, 2, SIX, None, {"num_head_channels": 64}),
    "imagenet 128": (421_529_606, 128, 256, 2, [1, 1, 2, 3, 4], 1000, {"num_heads": 4}),
    "imagenet 256": (553_838_086, 256, 256, 2, SIX, 1000, {"num_head_channels": 64}),
    "imagenet 512": (558_997_638, 512, 256, 2, [0.5, *SIX], 1000, {"num_head_channels": 64}),
    "64 to 256": (311_795_910, 256, 192, 2, SIX, 1000, {"num_heads": 4, "in_channels": 6}),
    "128 to 512": (
        308_835_270,
        512,
        192,
        2,
        SIX,
        1000,
        {"num_head_channels": 64, "in_channels": 6},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    """The published networks have exactly their published number of parameters."""
    count, size, width, depth, mult, classes, flags = PUBLISHED[name]
    config = unet_config(
        ADM
        | {"image_size": size, "model_channels": width, "num_res_blocks": depth}
        | {"channel_mult": mult, "num_classes": classes}
        | {"attention_resolutions": [size // 32, size // 16, size // 8]}
        | flags
    )
    with torch.device("meta"):
        net = UNet(config)
    assert sum(p.numel() for p in net.parameters()) == count
    names = unet_names(config)
    assert set(names) == set(net.state_dict())
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(
    "name", ["64x64_diffusion", "256x256_diffusion_uncond", "64_256_upsampler"]
)
def test_published_names(name: str) -> None:
    """Names and shapes agree with the inventory of the published file, in both directions."""
    path = CHECKPOINTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no inventory at {path}; set FEWSTEP_SHARED")
    case = json.loads(path.read_text())
    flags = case["published_flags"]
    size = flags.get("image_size") or flags["large_size"]
    config = unet_config(
        ADM
        | {"image_size": size, "model_channels": flags["num_channels"]}
        | {"channel_mult": SIX if size == 256 else [1, 2, 3, 4]}
        | {"num_classes": 1000 if flags["class_cond"] else None}
        | {"in_channels": 6 if "large_size" in flags else 3}
        | {
            "attention_resolutions": [
                size // int(r) for r in flags["attention_resolutions"].split(",")
            ]
        }
        | {k: flags[k] for k in ("num_res_blocks", "num_heads", "num_head_channels") if k in flags}
        | {"use_new_attention_order": flags.get("use_new_attention_order", False)}
    )
    published = {}
    for entry in case["parameters"]:
        key, _, dims = entry.rpartition(":")
        published[key] = torch.empty([int(d) for d in dims.split("x")], device="meta")
    with torch.device("meta"):
        ours = UNet(config).state_dict()
    loaded = from_openai(published, config)
    assert {k: v.shape for k, v in loaded.items()} == {k: v.shape for k, v in ours.items()}
    back = to_openai(ours, config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in published.items()}


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
    with pytest.raises(ValueError, match="conv_resample = False is not supported"):
        unet_config({**flags, "conv_resample": False})
