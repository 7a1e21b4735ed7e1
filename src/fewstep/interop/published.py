"""Read the flags that a checkpoint was published with, and map its names.

A program's command line has flags of its own: attention in pixels as text, levels implied by the
image size, the diffusion's settings among the network's. `published_config` translates them to a
configuration; flags that do not describe the network are checked by name and left out.

What the shapes of the weights say (see `shapes`) are flags as well, and some that no command line
has: the channels, the number of classes, the vocabulary.

Inside: `published_config`, `published_names`, `from_published`, `to_published`, `PROGRAMS`;
`check_flags`, `factors` (pixels to downsampling).

Source: the repositories openai/guided-diffusion, openai/improved-diffusion,
openai/consistency_models, openai/glide-text2im (flags and names; no code).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.errors import UsageError, suggest
from fewstep.interop.glide import from_glide, glide_config, glide_names, to_glide
from fewstep.interop.openai import (
    encoder_config,
    encoder_names,
    from_openai,
    to_openai,
    unet_config,
    unet_names,
)
from fewstep.nets.encoder import EncoderConfig
from fewstep.nets.layout import UNetConfig
from fewstep.nets.published import CLASSES, LEVELS
from fewstep.nets.text import TextUNetConfig

ADM = "openai/guided-diffusion"
IMPROVED = "openai/improved-diffusion"
CONSISTENCY = "openai/consistency_models"
GLIDE = "openai/glide-text2im"
PROGRAMS = (ADM, IMPROVED, CONSISTENCY, GLIDE)
"""The programs whose flags are known, by repository."""

Flags = Mapping[str, Any]

# What each command line assumes where a flag is not given.
_ADM: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    # What the shapes say besides; None = as the flags imply.
    "attention_factors": None,
    "conv_resample": True,
    "in_channels": None,
    "num_classes": None,
    "out_channels": None,
}
_CONSISTENCY = _ADM | {"attention_resolutions": "32,16,8"}
_GLIDE = _ADM | {
    "num_channels": 192,
    "num_res_blocks": 3,
    "num_heads": 1,
    "num_head_channels": 64,
    "attention_resolutions": "32,16,8",
    "dropout": 0.1,
    "resblock_updown": True,
    "learn_sigma": True,
    "text_ctx": 128,
    "xf_width": 512,
    "xf_layers": 16,
    "xf_heads": 8,
    "xf_final_ln": True,
    "xf_padding": True,
    "inpaint": False,
    "super_res": False,
    "n_vocab": 50257,
}
_CLASSIFIER = {
    "image_size": 64,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
    "classifier_heads": -1,
    "classifier_head_channels": 64,
    **{name: _ADM[name] for name in ("attention_factors", "channel_mult", "conv_resample")},
    "in_channels": 3,
    "num_classes": CLASSES,
}
# Flags of the diffusion, or of how a network is run, by the kind of their values.
_ASIDE: dict[str, Any] = {
    **dict.fromkeys(("diffusion_steps", "small_size", "steps"), 0),
    **dict.fromkeys(("sigma_max", "sigma_min"), 0.0),
    **dict.fromkeys(("noise_schedule", "timestep_respacing", "training_mode"), ""),
    **dict.fromkeys(("ts", "weight_schedule"), ""),
    **dict.fromkeys(
        (
            "cache_text_emb", "classifier_use_fp16", "predict_xstart", "rescale_learned_sigmas",
            "rescale_timesteps", "sigma_small", "use_checkpoint", "use_fp16", "use_kl",
        ),
        False,
    ),
}  # fmt: skip
_LISTS = ("attention_resolutions", "channel_mult", "classifier_attention_resolutions")
_SAME = (
    "dropout", "num_head_channels", "num_heads", "num_heads_upsample", "num_res_blocks",
    "resblock_updown", "use_scale_shift_norm",
)  # fmt: skip
_TEXT = ("text_ctx", "xf_width", "xf_layers", "xf_heads", "xf_final_ln", "xf_padding")


def published_config(program: str, flags: Flags) -> UNetConfig:
    """Translate the flags of a program's command line into a configuration.

    Args:
        program: one of `PROGRAMS`.
        flags: flag -> value as published, e.g. `num_channels`, `attention_resolutions` as text.
            What is left out has the program's default. `classifier_` flags stand for a classifier,
            `large_size` for an upsampler.

    Returns:
        the configuration: of a classifier (`EncoderConfig`), of a text-conditional network
        (`TextUNetConfig`) or of a U-Net.

    Raises:
        UsageError: if a flag is unknown or its value of another kind.
        ValueError: if the program is unknown, or the network is not one that we build.
    """
    full = check_flags(program, flags)
    if "classifier_pool" in full:
        return _classifier(full)
    if program == GLIDE:
        return _text(full)
    if "large_size" in full:
        size = full["large_size"]
        # An upsampler to 512 pixels has the levels of one to 256.
        full["in_channels"] = full["in_channels"] or 6
        return unet_config(_unet(full, size, min(size, 256)))
    return unet_config(_unet(full, full["image_size"]))


def check_flags(program: str, flags: Flags) -> dict[str, Any]:
    """Return flags with the program's defaults; refuse unknown ones and values of another kind.

    Args:
        program: one of `PROGRAMS`.
        flags: as of `published_config`.

    Raises:
        UsageError: if a flag is unknown or its value of another kind.
        ValueError: if the program is unknown.
    """
    if program not in PROGRAMS:
        raise ValueError(f"unknown program {program!r}; known are {', '.join(PROGRAMS)}")
    if any(name.startswith("classifier_") for name in flags):
        return _complete(flags, _CLASSIFIER)
    if program == GLIDE:
        return _complete(flags, _GLIDE)
    if "large_size" in flags:
        return _complete(flags, _ADM | {"large_size": 256})
    if program in (ADM, IMPROVED):
        return _complete(flags, _ADM)
    # Its attention is a fused kernel that has the new order whatever the flag says.
    return _complete(flags, _CONSISTENCY) | {"use_new_attention_order": True}


def _complete(flags: Flags, defaults: Flags) -> dict[str, Any]:
    """Fill in the defaults; refuse flags that are not known, and values of another kind."""
    known = {**_ASIDE, **defaults}
    for name, value in flags.items():
        if name not in known:
            raise UsageError(
                f"unknown flag {name!r}{suggest(name, known)}; give those of the program's "
                "command line"
            )
        wanted = _wanted(name, value, known[name])
        if wanted:
            raise UsageError(f"flag {name} = {value}: must be {wanted}")
    return {**defaults, **flags}


def _wanted(name: str, value: Any, like: Any) -> str:
    """Return what a flag's value must be if it is not of the kind of `like`, else ""."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(like, bool):
        return "" if value in (True, False) else "True or False"
    if isinstance(like, int):
        return "" if number and isinstance(value, int) else "a whole number"
    if isinstance(like, float):
        return "" if number else "a number"
    if name in _LISTS and value != "":
        good = re.fullmatch(r"(\d*\.?\d+)(,\d*\.?\d+)*", str(value))
        if not (good and all(map(float, str(value).split(",")))):
            return "numbers above 0 such as 32,16,8"
        if name != "channel_mult" and "." in str(value):
            return "whole numbers such as 32,16,8"
    return ""


def _levels(text: str | int, size: int) -> tuple[float, ...]:
    """Read the channels of each level, or take those of the image size."""
    if text:
        parts = str(text).split(",")
        return tuple(float(part) if "." in part else int(part) for part in parts)
    if size not in LEVELS:
        sizes = ", ".join(map(str, LEVELS))
        raise ValueError(f"no channel_mult, and none is known for {size} pixels, only for {sizes}")
    return LEVELS[size]


def factors(text: str | int, size: int) -> list[int]:
    """Turn resolutions in pixels, such as "32,16,8", into downsampling factors; "" = none."""
    return [size // int(part) for part in str(text).split(",") if part]


def _attention(full: Flags, size: int, text: str = "attention_resolutions") -> list[int]:
    """Return the downsampling factors with attention: as seen, or from pixels."""
    if full["attention_factors"] is not None:
        return full["attention_factors"]
    return factors(full[text], size)


def _unet(full: Flags, size: int, levels_of: int | None = None) -> dict[str, Any]:
    """Turn complete flags into the constructor's."""
    return {name: full[name] for name in _SAME} | {
        "image_size": size,
        "in_channels": full["in_channels"] or 3,
        "out_channels": full["out_channels"] or (6 if full["learn_sigma"] else 3),
        "model_channels": full["num_channels"],
        "channel_mult": _levels(full["channel_mult"], levels_of or size),
        "attention_resolutions": _attention(full, size),
        "conv_resample": full["conv_resample"],
        "num_classes": full["num_classes"] or (CLASSES if full["class_cond"] else None),
        "use_new_attention_order": full["use_new_attention_order"],
    }


def _text(full: Flags) -> TextUNetConfig:
    """Build GLIDE's configuration from complete flags."""
    size = full["image_size"]
    flags = _unet(full, size) | {name: full[name] for name in _TEXT}
    if full["in_channels"] is None:
        flags["in_channels"] += 3 * full["super_res"] + 4 * full["inpaint"]
    return glide_config(flags, full["n_vocab"], size)


def _classifier(full: Flags) -> EncoderConfig:
    """Build a classifier's configuration from complete flags."""
    size = full["image_size"]
    return encoder_config(
        {
            "image_size": size,
            "in_channels": full["in_channels"],
            "out_channels": full["num_classes"],
            "model_channels": full["classifier_width"],
            "num_res_blocks": full["classifier_depth"],
            "channel_mult": _levels(full["channel_mult"], size),
            "attention_resolutions": _attention(full, size, "classifier_attention_resolutions"),
            "conv_resample": full["conv_resample"],
            "num_heads": max(full["classifier_heads"], 1),
            "num_head_channels": full["classifier_head_channels"],
            "use_scale_shift_norm": full["classifier_use_scale_shift_norm"],
            "resblock_updown": full["classifier_resblock_updown"],
            "pool": full["classifier_pool"],
        }
    )


def published_names(config: UNetConfig) -> dict[str, str]:
    """Map every parameter of the network to its published name.

    Args:
        config: what `published_config` returns.

    Returns:
        our name -> their name, a bijection over all parameters.
    """
    if isinstance(config, TextUNetConfig):
        return glide_names(config)
    return encoder_names(config) if isinstance(config, EncoderConfig) else unet_names(config)


def from_published(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Rename a published state for ours; tensors are shared, not copied.

    Args:
        state: their name -> parameter.
        config: the description of the same network.

    Returns:
        our name -> parameter, as `nets.published.build(config)` loads it.

    Raises:
        ValueError: if a parameter is missing or left over; the message names the first ones.
    """
    if isinstance(config, TextUNetConfig):
        return from_glide(state, config)
    return from_openai(state, config)


def to_published(
    program: str, state: Mapping[str, Tensor], config: UNetConfig
) -> dict[str, Tensor]:
    """Rename a state of ours for a program; the inverse of `from_published`.

    Args:
        program: one of `PROGRAMS`: the shapes of attention's maps differ.
        state: our name -> parameter, all of them.
        config: the network's description.

    Returns:
        their name -> parameter, sharing memory, in their shapes.

    Raises:
        ValueError: if the names are not those of the network.
    """
    if isinstance(config, TextUNetConfig):
        return to_glide(state, config)
    return to_openai(state, config, axes=2 if program == CONSISTENCY else 1)
