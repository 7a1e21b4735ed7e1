"""Map the parameters of OpenAI's diffusion U-Nets and classifiers onto ours, by name.

ADM's networks store the encoder and the decoder as flat lists, each entry a list of parts
(residual block, attention, resampling); the index of a part depends on which parts come before it.
The map is therefore derived from the network's layout, in one place, and it is a bijection:
nothing is renamed by pattern and nothing is skipped. The only difference in shape is that some
linear maps are stored as convolutions of one pixel, with trailing dimensions of 1: attention's as
(out, in, 1), in the consistency models' program as (out, in, 1, 1).

Inside: `unet_config` and `encoder_config` (constructor flags to our configuration), `unet_names`,
`encoder_names`, `from_openai`, `to_openai`; `rename` and `rename_back`, which `glide` shares.

Source: the repositories openai/guided-diffusion and openai/consistency_models (names and flags; no
code).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from fewstep.nets.encoder import EncoderConfig
from fewstep.nets.layout import Cell, UNetConfig, layout

_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "proj": "proj_out"}
_PIXEL_MAPS = tuple(f".attention.{part}.weight" for part in ("qkv", "proj", "text"))
# Layers of each pool of the classifier, and where they stand in the list `out`.
_POOLS = {
    "adaptive": {"norm": "out.0", "pool.proj": "out.3"},
    "attention": {"norm": "out.0", "pool.qkv": "out.2.qkv_proj", "pool.proj": "out.2.c_proj"},
    "spatial": {"pool.hidden": "out.0", "pool.proj": "out.2"},
    "spatial_v2": {"pool.hidden": "out.0", "pool.norm": "out.1", "pool.proj": "out.3"},
}
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
    "conv_resample": "resample_conv",
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
    "conv_resample": True,
    "num_heads_upsample": -1,
}
# Flags that change nothing at these values, and that we do not build at any other. Precision and
# checkpointing are how a network is run, not what it is.
_FIXED: dict[str, tuple[Any, ...]] = {
    "dims": (2,),
    "use_checkpoint": (False, True),
    "use_fp16": (False, True),
}
# Flags that need more than another name.
_OTHER = ("attention_resolutions", "use_new_attention_order", "num_heads_upsample")


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
    known = {*_FLAGS, *_FIXED, *_OTHER}
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
            "heads_up": None if full["num_heads_upsample"] == -1 else full["num_heads_upsample"],
            "classes": fields["classes"] or 0,
            "attention": tuple(fields["size"] // f for f in factors),
            "attention_order": "new" if full["use_new_attention_order"] else "legacy",
            "null": False,
        }
    )


def encoder_config(flags: Mapping[str, Any]) -> EncoderConfig:
    """Translate the constructor flags of ADM's `EncoderUNetModel` into a configuration.

    Args:
        flags: those of `unet_config`, and `pool`.

    Returns:
        The configuration of the same classifier.

    Raises:
        ValueError: as `unet_config`, or if the pool is unknown.
    """
    rest = dict(flags)
    pool = rest.pop("pool", "adaptive")
    return EncoderConfig(**asdict(unet_config(rest)), pool=pool)


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
    names = _encoder_half(config)
    for index, cell in enumerate(layout(config)[1]):
        names |= _cell(config, cell, f"up.{index}", f"output_blocks.{index}", 0)
    return names | layer_names("norm", "out.0") | layer_names("head", "out.2")


def encoder_names(config: EncoderConfig) -> dict[str, str]:
    """Map every parameter of our `EncoderUNet(config)` to the name ADM gives it.

    Args:
        config: the classifier's description.

    Returns:
        Our name -> their name, a bijection over all parameters.
    """
    names = _encoder_half(config)
    for ours, theirs in _POOLS[config.pool].items():
        names |= layer_names(ours, theirs)
    if config.pool == "attention":
        names["pool.position"] = "out.2.positional_embedding"
    return names


def _encoder_half(config: UNetConfig) -> dict[str, str]:
    """Name what the U-Net and the classifier share."""
    names = layer_names("time.0", "time_embed.0") | layer_names("time.2", "time_embed.2")
    if config.classes:
        names["label.table.weight"] = "label_emb.weight"
    names |= layer_names("stem", "input_blocks.0.0")
    for index, cell in enumerate(layout(config)[0]):
        names |= _cell(config, cell, f"down.{index}", f"input_blocks.{index + 1}", 0)
    coarse = config.channels[-1]
    middle = Cell(coarse, coarse, attention=True)
    names |= _cell(config, middle, "middle_in", "middle_block", 0)
    return names | _cell(config, Cell(coarse, coarse), "middle_out", "middle_block", 2)


def layer_names(ours: str, theirs: str) -> dict[str, str]:
    """Map weight and bias of one layer: our name -> their name."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def _block(ours: str, theirs: str, changes_width: bool) -> dict[str, str]:
    parts = {**_BLOCK, "skip": "skip_connection"} if changes_width else _BLOCK
    return {
        k: v
        for a, b in parts.items()
        for k, v in layer_names(f"{ours}.{a}", f"{theirs}.{b}").items()
    }


def _cell(config: UNetConfig, cell: Cell, ours: str, theirs: str, first: int) -> dict[str, str]:
    """Name the parts of one cell; `first` is the index of its first part in their list."""
    names: dict[str, str] = {}
    if cell.block:
        changes = cell.channels_in != cell.channels_out
        names |= _block(f"{ours}.block", f"{theirs}.{first}", changes)
        first += 1
    if cell.attention:
        parts = _ATTENTION | ({"text": "encoder_kv"} if config.tokens else {})
        for a, b in parts.items():
            names |= layer_names(f"{ours}.attention.{a}", f"{theirs}.{first}.{b}")
        first += 1
    if cell.direction is not None and config.updown:
        names |= _block(f"{ours}.resample", f"{theirs}.{first}", False)
    elif cell.direction is not None and config.resample_conv:
        conv = "op" if cell.direction == "down" else "conv"
        names |= layer_names(f"{ours}.resample.conv", f"{theirs}.{first}.{conv}")
    return names


def pixel_maps(config: UNetConfig, axes: int = 1) -> dict[str, int]:
    """List our linear maps that are stored there as convolutions of one pixel.

    Args:
        config: the description of a U-Net or a classifier.
        axes: trailing dimensions of attention's, see `to_openai`.

    Returns:
        Our name -> number of trailing dimensions of 1.
    """
    maps = {name: axes for name in _names(config) if name.endswith(_PIXEL_MAPS)}
    if isinstance(config, EncoderConfig) and config.pool == "attention":
        maps |= {"pool.qkv.weight": 1, "pool.proj.weight": 1}
    if isinstance(config, EncoderConfig) and config.pool == "adaptive":
        maps["pool.proj.weight"] = 2
    return maps


def rename(
    state: Mapping[str, Tensor], names: Mapping[str, str], maps: Mapping[str, int]
) -> dict[str, Tensor]:
    """Rename a state of theirs for ours; tensors are shared, not copied.

    Args:
        state: their name -> parameter.
        names: our name -> their name.
        maps: our names of the convolutions of one pixel (`pixel_maps`).

    Returns:
        Our name -> parameter; the one-pixel convolutions have shape (out, in), the others theirs.

    Raises:
        ValueError: if a parameter is missing or left over; the message names the first ones.
    """
    missing = [theirs for theirs in names.values() if theirs not in state]
    extra = sorted(set(state) - set(names.values()))
    if missing or extra:
        raise ValueError(
            f"the weights do not fit this network: {len(missing)} missing "
            f"({', '.join(missing[:3])}), "
            f"{len(extra)} left over ({', '.join(extra[:3])}); check the flags"
        )
    return {
        ours: state[theirs].flatten(1) if ours in maps else state[theirs]
        for ours, theirs in names.items()
    }


def rename_back(
    state: Mapping[str, Tensor], names: Mapping[str, str], maps: Mapping[str, int]
) -> dict[str, Tensor]:
    """Rename a state of ours for theirs; the inverse of `rename`.

    Args:
        state: our name -> parameter, all of them.
        names: our name -> their name.
        maps: our names of the convolutions of one pixel, with their trailing dimensions.

    Returns:
        Their name -> parameter, sharing memory; one-pixel convolutions are (out, in, 1, ...).

    Raises:
        ValueError: if the names are not those of the network.
    """
    if set(names) != set(state):
        odd = sorted(set(names) ^ set(state))
        raise ValueError(f"the state is not one of this network: {', '.join(odd[:3])} differ")
    return {
        names[ours]: tensor.view(*tensor.shape, *[1] * maps.get(ours, 0))
        for ours, tensor in state.items()
    }


def from_openai(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Rename a state of ADM's networks for ours; tensors are shared, not copied.

    Args:
        state: their name -> parameter.
        config: the description of the same network, a classifier if it is an `EncoderConfig`.

    Returns:
        A state that `UNet(config)` or `EncoderUNet(config)` loads.

    Raises:
        ValueError: if a parameter is missing or left over; the message names the first ones.
    """
    return rename(state, _names(config), pixel_maps(config))


def to_openai(state: Mapping[str, Tensor], config: UNetConfig, axes: int = 1) -> dict[str, Tensor]:
    """Rename a state of ours for ADM's networks; the inverse of `from_openai`.

    Args:
        state: our name -> parameter, all of them.
        config: the network's description.
        axes: trailing dimensions of attention's maps there: 1 in guided-diffusion, 2 in
            consistency_models.

    Returns:
        Their name -> parameter, sharing memory, in their shapes.

    Raises:
        ValueError: if the names are not those of the network.
    """
    return rename_back(state, _names(config), pixel_maps(config, axes))


def _names(config: UNetConfig) -> dict[str, str]:
    """Name the parameters of the network that the configuration describes."""
    if isinstance(config, EncoderConfig):
        return encoder_names(config)
    return unet_names(config)
