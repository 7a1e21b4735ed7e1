"""Turn a published checkpoint into a model of ours.

Inside: `identify` (which published checkpoint it is), `program_of`, `convert` (tensors to a
`Model`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import CheckpointError, UsageError, suggest
from fewstep.interop import catalog, shapes
from fewstep.interop.catalog import CATALOG, Entry
from fewstep.interop.published import (
    ADM,
    CONSISTENCY,
    GLIDE,
    check_flags,
    factors,
    from_published,
    published_config,
    published_names,
)
from fewstep.model import Model, from_description
from fewstep.nets.encoder import EncoderConfig
from fewstep.nets.layout import UNetConfig
from fewstep.nets.published import build
from fewstep.nets.text import TextUNetConfig
from fewstep.train.checkpoint import fill, network

State = Mapping[str, Tensor]
Flags = dict[str, Any]

# What the shapes call otherwise than a classifier's command line.
_CLASSIFIER = {
    "num_channels": "classifier_width",
    "num_res_blocks": "classifier_depth",
    "use_scale_shift_norm": "classifier_use_scale_shift_norm",
    "resblock_updown": "classifier_resblock_updown",
}
_IMAGE = 3  # channels of the images of these programs
_HEADS = ("num_heads", "num_head_channels", "classifier_heads", "classifier_head_channels")


def identify(file: str, state: State) -> str | None:
    """Return the name in the catalog of a checkpoint, or None if it is none of these.

    Args:
        file: its file name, which decides between networks of the same shapes.
        state: its tensors, by name.

    Raises:
        UsageError: several published checkpoints have these shapes, and the name is of none.
    """
    same = [name for name, entry in CATALOG.items() if _fits(entry, state)]
    named = [name for name in same if CATALOG[name].file == file]
    if len(named or same) > 1:
        raise UsageError(
            f"{file}: {len(same)} published checkpoints have these tensors; say which with "
            f"--architecture: {', '.join(same)}"
        )
    return (named or same or [None])[0]


def _fits(entry: Entry, state: State) -> bool:
    """Return whether a published network has exactly these tensors."""
    config = published_config(entry.program, catalog.parsed(entry.flags))
    if set(published_names(config).values()) != set(state):
        return False
    with torch.device("meta"):
        ours = build(config).state_dict()
    theirs = from_published({k: v.to("meta") for k, v in state.items()}, config)
    return all(ours[k].shape == theirs[k].shape for k in ours)


def entry_of(name: str) -> Entry:
    """Return an entry of the catalog.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in CATALOG:
        raise UsageError(
            f"architecture {name!r}: no published checkpoint{suggest(name, CATALOG)}; "
            "fewstep import --list has them all"
        )
    return CATALOG[name]


def program_of(state: State, flags: Flags) -> str:
    """Return the program whose form the tensors have, as far as it can be told.

    Args:
        state: their name -> tensor.
        flags: of the command line.

    Returns:
        guided-diffusion's for improved-diffusion's as well: only their flags differ.

    Raises:
        UsageError: the two would tell this network other numbers for the noise.
    """
    if "token_embedding.weight" in state:
        return GLIDE
    axes = {v.ndim for k, v in state.items() if k.endswith("qkv.weight")}
    if 4 in axes:
        return CONSISTENCY
    if flags.get("diffusion_steps", 1000) != 1000 and "rescale_timesteps" not in flags:
        raise UsageError(
            f"flag diffusion_steps = {flags['diffusion_steps']}: improved-diffusion tells such a "
            "network times of 1000, guided-diffusion those of its steps: give --program, or the "
            "flag rescale_timesteps"
        )
    return ADM


def convert(state: State, program: str, flags: Flags, about: Mapping[str, Any]) -> Model:
    """Return the model of these tensors.

    Args:
        state: their name -> tensor.
        program: the program that runs them (`published.PROGRAMS`).
        flags: of its command line; what the shapes say may be left out.
        about: what the model says of its origin.

    Raises:
        UsageError: flags that are missing, unknown or at odds with the tensors.
        CheckpointError: tensors that are no network of this program.
        NumericError: a weight is not finite.
    """
    config = _config(state, program, flags)
    facts = catalog.described(program, flags, config)
    small = flags.get("small_size")
    facts["about"] = {**about, **({"low_res": small} if small else {})}
    facts["net"] = _net(config)
    model = from_description(facts, empty=True)
    net = network(model)
    own = {f"{'net.' * len(model.inputs)}{k}": v for k, v in _renamed(state, config).items()}
    fill(net, own, Path(str(about.get("file", "weights"))))
    model.denoiser.eval()
    return model


def _net(config: UNetConfig) -> dict[str, Any]:
    """Return a network's part of a description."""
    from dataclasses import asdict

    reads, classifies = isinstance(config, TextUNetConfig), isinstance(config, EncoderConfig)
    name = "TextUNet" if reads else "EncoderUNet" if classifies else "UNet"
    return {"name": name, **asdict(config)}


def _renamed(state: State, config: UNetConfig) -> dict[str, Tensor]:
    """Return the tensors under our names."""
    try:
        return from_published(state, config)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _config(state: State, program: str, flags: Flags) -> UNetConfig:
    """Return the network that shapes and flags describe together, the shapes checked."""
    check_flags(program, flags)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        candidates = shapes.seen(found)
    except ValueError as error:
        raise CheckpointError(f"unknown architecture: {error}") from None
    refused: list[str] = []
    for candidate in candidates:
        theirs = candidate
        if "classifier_pool" in candidate:
            theirs = {_CLASSIFIER.get(k, k): v for k, v in candidate.items()}
        _said(program, theirs, flags)
        try:
            config = published_config(program, {**flags, **theirs})
        except UsageError:
            raise
        except ValueError as error:
            refused.append(str(error))
            continue
        if set(published_names(config).values()) == set(state):
            return config
        refused.append("the names of its tensors are those of no such network")
    raise CheckpointError(f"unknown architecture: {refused[0]}")


def _said(program: str, theirs: Flags, flags: Flags) -> None:
    """Refuse flags that say too little, or something else than the tensors."""
    classifies = "classifier_pool" in theirs
    for name, value in {**theirs, **_implied(theirs, classifies)}.items():
        given = flags.get(name, value)
        if name == "channel_mult" and given:
            given = ",".join(f"{float(part):g}" for part in str(given).split(","))
        if given != value and given != "":
            raise UsageError(f"flag {name} = {flags[name]}: the tensors say {value}")
    if "large_size" in flags and theirs["in_channels"] == _IMAGE:
        raise UsageError(
            f"flag large_size = {flags['large_size']}: the tensors are of no upsampler; give "
            "image_size"
        )
    _attends(theirs, flags, "classifier_" * classifies + "attention_resolutions")
    size = {"image_size", "large_size"} & set(flags)
    if not size and (program != GLIDE or _implied(theirs, classifies)["super_res"]):
        raise UsageError(
            "the size of the images cannot be told from the tensors: give --flags 'image_size=N', "
            "or large_size=N for an upsampler, and what else the training was told, such as "
            "noise_schedule, diffusion_steps"
        )
    if not classifies and program != GLIDE and not set(_HEADS) & set(flags):
        raise UsageError(
            "the number of attention heads cannot be told from the tensors: give --flags "
            "'num_heads=N' or 'num_head_channels=N', as in the training"
        )


def _implied(theirs: Flags, classifies: bool) -> Flags:
    """Return the flags that numbers of channels mean."""
    if classifies:
        return {}
    extra = theirs["in_channels"] - _IMAGE
    return {
        "learn_sigma": theirs.get("out_channels") == 2 * _IMAGE,
        "class_cond": "num_classes" in theirs,
        "super_res": extra in (_IMAGE, 2 * _IMAGE + 1),
        "inpaint": extra in (_IMAGE + 1, 2 * _IMAGE + 1),
    }


def _attends(theirs: Flags, flags: Flags, name: str) -> None:
    """Refuse resolutions with attention that are not those of the tensors."""
    size = flags.get("large_size", flags.get("image_size"))
    if name not in flags or size is None:
        return
    reached = [2**level for level in range(len(theirs["channel_mult"].split(",")))]
    if set(factors(flags[name], size)) & set(reached) != set(theirs["attention_factors"]):
        seen = ", ".join(f"{size // factor}" for factor in theirs["attention_factors"])
        raise UsageError(
            f"flag {name} = {flags[name]}: the tensors have attention at {seen or 'none'}, with "
            f"images of {size} pixels"
        )
