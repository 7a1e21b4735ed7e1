"""Map the parameters of GLIDE's text-conditional U-Nets onto ours, by name.

The U-Net's own names are ADM's (see `openai`), with one more map in every attention; the
transformer's and the token tables stand beside them.

Inside: `glide_config` (constructor flags to our configuration), `glide_names`, `from_glide`,
`to_glide`.

Source: the repository openai/glide-text2im (names and flags; no code).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from fewstep.interop.openai import (
    layer_names,
    pixel_maps,
    rename,
    rename_back,
    unet_config,
    unet_names,
)
from fewstep.nets.text import TextUNetConfig

_FLAGS = {
    "text_ctx": "context",
    "xf_width": "tokens",
    "xf_layers": "text_layers",
    "xf_heads": "text_heads",
    "xf_final_ln": "text_norm",
    "xf_padding": "padding",
}
# Flags that change nothing at these values.
_FIXED: dict[str, tuple[Any, ...]] = {
    "xf_ar": (0.0,),
    "cache_text_emb": (False, True),
    "share_unemb": (False, True),
}
_LAYER = {
    "norm1": "ln_1",
    "qkv": "attn.c_qkv",
    "proj": "attn.c_proj",
    "norm2": "ln_2",
    "widen": "mlp.c_fc",
    "narrow": "mlp.c_proj",
}


def glide_config(flags: Mapping[str, Any], vocab: int = 50257, size: int = 64) -> TextUNetConfig:
    """Translate the constructor flags of GLIDE's `Text2ImUNet` into a configuration.

    Args:
        flags: the constructor's keyword arguments, e.g. `text_ctx`, `model_channels`;
            `in_channels` counts every channel that the first convolution sees.
        vocab: number of the tokenizer's tokens.
        size: side of the training images in pixels, which is no flag there.

    Returns:
        The configuration of the same network.

    Raises:
        ValueError: if a flag is unknown, missing or has a value that our network does not build.
    """
    rest = {"xf_padding": False, **flags}
    missing = [name for name in _FLAGS if name not in rest]
    if missing:
        raise ValueError(f"GLIDE flags are missing: {', '.join(missing)}")
    for name, allowed in _FIXED.items():
        if rest.pop(name, allowed[0]) not in allowed:
            raise ValueError(f"GLIDE flag {name} = {flags[name]!r} is not supported")
    fields = {ours: rest.pop(theirs) for theirs, ours in _FLAGS.items()}
    unet = asdict(unet_config({**rest, "image_size": size}))
    return TextUNetConfig(**{**unet, **fields, "vocab": vocab})


def glide_names(config: TextUNetConfig) -> dict[str, str]:
    """Map every parameter of our `TextUNet(config)` to the name GLIDE gives it.

    Args:
        config: the network's description.

    Returns:
        Our name -> their name, a bijection over all parameters.
    """
    names = {f"net.{ours}": theirs for ours, theirs in unet_names(config).items()}
    names["text.table.weight"] = "token_embedding.weight"
    names["text.position"] = "positional_embedding"
    if config.padding:
        names["text.padding"] = "padding_embedding"
    for index in range(config.text_layers):
        for ours, theirs in _LAYER.items():
            names |= layer_names(
                f"text.layers.{index}.{ours}", f"transformer.resblocks.{index}.{theirs}"
            )
    if config.text_norm:
        names |= layer_names("text.norm", "final_ln")
    return names | layer_names("text.pooled", "transformer_proj")


def _maps(config: TextUNetConfig) -> dict[str, int]:
    return {f"net.{name}": axes for name, axes in pixel_maps(config).items()}


def from_glide(state: Mapping[str, Tensor], config: TextUNetConfig) -> dict[str, Tensor]:
    """Rename a state of GLIDE's network for ours; tensors are shared, not copied.

    Args:
        state: their name -> parameter.
        config: the description of the same network.

    Returns:
        A state that `TextUNet(config)` loads.

    Raises:
        ValueError: if a parameter is missing or left over; the message names the first ones.
    """
    return rename(state, glide_names(config), _maps(config))


def to_glide(state: Mapping[str, Tensor], config: TextUNetConfig) -> dict[str, Tensor]:
    """Rename a state of our `TextUNet` for GLIDE's; the inverse of `from_glide`.

    Args:
        state: our name -> parameter, all of them.
        config: the network's description.

    Returns:
        Their name -> parameter, sharing memory, in their shapes.

    Raises:
        ValueError: if the names are not those of `TextUNet(config)`.
    """
    return rename_back(state, glide_names(config), _maps(config))
