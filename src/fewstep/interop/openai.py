"""Map the parameters of OpenAI's diffusion U-Nets onto ours, by name.

ADM's networks store the encoder and the decoder as flat lists, each entry a list of parts
(residual block, attention, resampling); the index of a part depends on which parts come before it.
The map is therefore derived from the network's layout, in one place, and it is a bijection:
nothing is renamed by pattern and nothing is skipped. The only difference in shape is that
attention's two linear maps are stored as convolutions of length 1, (out, in, 1).

Inside: `unet_config` (constructor flags to our configuration), `unet_names`, `from_openai`,
`to_openai`.

Source: the repository openai/guided-diffusion (names and flags; no code).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.nets.unet import Cell, UNetConfig, layout

_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "proj": "proj_out"}
_FLAGS = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "image_size": "size",
    "model_channels": "width",
    "channel_mult": "mult",
    "num_res_blocks": "depth",
    "num_heads": "heads",
    "num_head_channels": "head_channels",
    "num_classes": "classes",
    "dropout": "dropout",
    "resblock_updown": "updown",
    "use_scale_shift_norm": "scale_shift",
}
# Constructor defaults of the reference: a flag left out means these, not our own defaults.
_DEFAULTS: dict[str, Any] = {
    "dropout": 0,
    "channel_mult": (1, 2, 4, 8),
    "num_classes": None,
    "num_heads": 1,
    "num_head_channels": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
# Flags that change nothing at these values, and that we do not build at any other. Precision and
# checkpointing are how a network is run, not what it is.
_FIXED: dict[str, tuple[Any, ...]] = {
    "conv_resample": (True,),
    "dims": (2,),
    "num_heads_upsample": (-1,),
    "use_checkpoint": (False, True),
    "use_fp16": (False, True),
}


def unet_config(flags: Mapping[str, Any]) -> UNetConfig:
    """Translate the constructor flags of ADM's `UNetModel` into a configuration.

    Attention is given there as downsampling factors, here in pixels; factors that the network
    never reaches have no effect there and are dropped. The class table has no null row.

    Args:
        flags: the constructor's keyword arguments, e.g. `model_channels`, `channel_mult`.

    Returns:
        The configuration of the same network.

    Raises:
        ValueError: if a flag is unknown, missing or has a value that our U-Net does not build.
    """
    known = {*_FLAGS, *_FIXED, "attention_resolutions", "use_new_attention_order"}
    for name, value in flags.items():
        if name not in known:
            raise ValueError(f"unknown U-Net flag {name!r}; known are {', '.join(sorted(known))}")
        if name in _FIXED and value not in _FIXED[name]:
            allowed = " or ".join(map(str, _FIXED[name]))
            raise ValueError(f"U-Net flag {name} = {value!r} is not supported; only {allowed} is")
    full = {**_DEFAULTS, **flags}
    missing = {*_FLAGS, "attention_resolutions"} - set(full)
    if missing:
        raise ValueError(f"U-Net flags are missing: {', '.join(sorted(missing))}")
    fields = {ours: full[theirs] for theirs, ours in _FLAGS.items()}
    factors = [f for f in full["attention_resolutions"] if f in _reached(fields["mult"])]
    return UNetConfig(
        **{
            **fields,
            "head_channels": None if fields["head_channels"] == -1 else fields["head_channels"],
            "classes": fields["classes"] or 0,
            "attention": tuple(fields["size"] // f for f in factors),
            "attention_order": "new" if full["use_new_attention_order"] else "legacy",
            "null": False,
        }
    )


def _reached(mult: tuple[float, ...]) -> list[int]:
    """List the downsampling factors that a network with these levels has."""
    return [2**level for level in range(len(mult))]


def unet_names(config: UNetConfig) -> dict[str, str]:
    """Map every parameter of our `UNet(config)` to the name ADM gives it.

    Args:
        config: the network's description.

    Returns:
        Our name -> their name, a bijection over all parameters.
    """
    names = _layer("time.0", "time_embed.0") | _layer("time.2", "time_embed.2")
    if config.classes:
        names["label.table.weight"] = "label_emb.weight"
    names |= _layer("stem", "input_blocks.0.0")
    down, up = layout(config)
    for index, cell in enumerate(down):
        names |= _cell(config, cell, f"down.{index}", f"input_blocks.{index + 1}", 0)
    coarse = config.channels[-1]
    middle = Cell(coarse, coarse, attention=True)
    names |= _cell(config, middle, "middle_in", "middle_block", 0)
    names |= _cell(config, Cell(coarse, coarse), "middle_out", "middle_block", 2)
    for index, cell in enumerate(up):
        names |= _cell(config, cell, f"up.{index}", f"output_blocks.{index}", 0)
    return names | _layer("norm", "out.0") | _layer("head", "out.2")


def _layer(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def _block(ours: str, theirs: str, changes_width: bool) -> dict[str, str]:
    parts = {**_BLOCK, "skip": "skip_connection"} if changes_width else _BLOCK
    return {
        k: v for a, b in parts.items() for k, v in _layer(f"{ours}.{a}", f"{theirs}.{b}").items()
    }


def _cell(config: UNetConfig, cell: Cell, ours: str, theirs: str, first: int) -> dict[str, str]:
    """Name the parts of one cell; `first` is the index of its first part in their list."""
    names: dict[str, str] = {}
    if cell.block:
        changes = cell.channels_in != cell.channels_out
        names |= _block(f"{ours}.block", f"{theirs}.{first}", changes)
        first += 1
    if cell.attention:
        for a, b in _ATTENTION.items():
            names |= _layer(f"{ours}.attention.{a}", f"{theirs}.{first}.{b}")
        first += 1
    if cell.direction is not None and config.updown:
        names |= _block(f"{ours}.resample", f"{theirs}.{first}", False)
    elif cell.direction is not None:
        conv = "op" if cell.direction == "down" else "conv"
        names |= _layer(f"{ours}.resample.conv", f"{theirs}.{first}.{conv}")
    return names


def _is_token_map(ours: str) -> bool:
    """Tell whether a parameter is stored there with a trailing dimension of 1."""
    return ours.endswith((".attention.qkv.weight", ".attention.proj.weight"))


def from_openai(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Rename a state of ADM's U-Net for ours; tensors are shared, not copied.

    Args:
        state: their name -> parameter.
        config: the description of the same network.

    Returns:
        A state that `UNet(config).load_state_dict` takes.

    Raises:
        ValueError: if a parameter is missing or left over; the message names the first ones.
    """
    names = unet_names(config)
    missing = [theirs for theirs in names.values() if theirs not in state]
    extra = sorted(set(state) - set(names.values()))
    if missing or extra:
        raise ValueError(
            f"the weights do not fit this U-Net: {len(missing)} missing "
            f"({', '.join(missing[:3])}), "
            f"{len(extra)} left over ({', '.join(extra[:3])}); check the flags"
        )
    return {
        ours: state[theirs].squeeze(-1) if _is_token_map(ours) else state[theirs]
        for ours, theirs in names.items()
    }


def to_openai(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Rename a state of our U-Net for ADM's; the inverse of `from_openai`.

    Args:
        state: our name -> parameter, all of them.
        config: the network's description.

    Returns:
        Their name -> parameter, sharing memory.

    Raises:
        ValueError: if the names are not those of `UNet(config)`.
    """
    names = unet_names(config)
    if set(names) != set(state):
        odd = sorted(set(names) ^ set(state))
        raise ValueError(f"the state is not one of this U-Net: {', '.join(odd[:3])} differ")
    return {
        names[ours]: tensor.unsqueeze(-1) if _is_token_map(ours) else tensor
        for ours, tensor in state.items()
    }
