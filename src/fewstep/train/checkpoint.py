"""Models on disk and the checkpoints of a run.

A model is a sealed directory (see `sealed`) of two files: model.json, from which the network is
built, and weights.safetensors, the weights to sample with, which are the moving average of
training. A checkpoint of a run, RUN/checkpoints/step-00001500, is a model with two files more,
train.safetensors (raw weights and optimizer) and state.json, so everything that opens a model
opens a checkpoint.

Inside: `save_model` and `load_model`; `newest`, `retain` and `sweep` for a run; `write`, `verify`
and `load` of any sealed directory are passed on from `sealed`.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.errors import CheckpointError, NumericError, UsageError
from fewstep.model import Model, Sampling, from_description
from fewstep.train import sealed
from fewstep.train.sealed import STEP, Checkpoint, Part, aside, load, verify, write

__all__ = [
    "PICKLES",
    "Checkpoint",
    "Part",
    "listed",
    "load",
    "load_model",
    "newest",
    "place",
    "refuse_pickle",
    "retain",
    "save_model",
    "sweep",
    "tuned",
    "verify",
    "write",
]

MODEL, WEIGHTS = "model.json", "weights.safetensors"
TRAINING = ("train.safetensors", "state.json")
"""What a checkpoint of a run has beside the model."""
PICKLES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"})
"""Endings of files that may run code when they are opened."""


def save_model(
    model: Model, directory: Path | str, *, extra: Mapping[str, Part] | None = None
) -> None:
    """Save a model: what it is and the weights it samples with.

    Args:
        model: its denoiser must hold a network (`denoiser.net`).
        directory: a free name or an earlier model.
        extra: more files, such as a card (text).

    Raises:
        NumericError: a weight is not finite.
        UsageError: the place is taken by something else.
        ResourceError: the disk refuses.
    """
    sealed.sweep(Path(directory).parent)
    write(directory, {**model_parts(model), **(extra or {})}, step=model.about.get("step"))


def model_parts(model: Model) -> dict[str, Part]:
    """Return the two files of a model."""
    return {MODEL: model.describe(), WEIGHTS: network(model).state_dict()}


def tuned(directory: Path | str, found: Mapping[int, Sampling], target: Path | str) -> None:
    """Write a model or a checkpoint with more presets by number of steps, all else byte by byte.

    Args:
        directory: where it lies.
        found: the presets, added to those it has.
        target: the same place, or a free one, where only the model goes.

    Raises:
        CheckpointError: a file is missing or damaged.
        UsageError: the target is taken by something else.
        ResourceError: the disk refuses.
    """
    files = load(directory)
    described = files.json(MODEL)
    more = {str(n): sampling.plain() for n, sampling in sorted(found.items())}
    parts: dict[str, Part] = {
        name: files.raw(name)
        for name in files.files
        if name not in TRAINING or Path(target).resolve() == Path(directory).resolve()
    }
    parts[MODEL] = {**described, "tuned": {**described.get("tuned", {}), **more}}
    write(target, parts, step=files.step)


def load_model(directory: Path | str) -> Model:
    """Open a model or a checkpoint: verify every byte, build the network, load the weights.

    Raises:
        UsageError: a pickle file was given; they are never loaded.
        CheckpointError: a file is missing, damaged or does not fit the network.
        NumericError: a weight is not finite.
    """
    path = Path(directory)
    refuse_pickle(path)
    if path.is_file():
        raise CheckpointError(f"{path}: a file; give the folder that holds {sealed.MANIFEST}")
    files = load(path)
    try:
        model = from_description(files.json(MODEL), empty=True)
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path / MODEL}: cannot build this model: {e}") from e
    fill(network(model), files.tensors(WEIGHTS), path / WEIGHTS)
    model.denoiser.eval()
    return model


def refuse_pickle(path: Path) -> None:
    """Raise if the name is that of a pickle, before anything is read.

    Raises:
        UsageError: it is; it may run code when it is opened.
    """
    if path.suffix.lower() in PICKLES:
        raise UsageError(
            f"{path}: {path.suffix} files may run code when opened and are never loaded; "
            "convert it to a model folder (safetensors and JSON) first"
        )


def network(model: Model) -> nn.Module:
    """Return the network of a model."""
    return model.denoiser.net


def fill(net: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy tensors into a network; every name and shape must fit, every value be finite.

    Raises:
        CheckpointError: listing the first five names that are missing, unexpected or misshaped.
        NumericError: a value is NaN or infinite.
    """
    own = net.state_dict()
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    wrong = {
        "missing": own.keys() - tensors.keys(),
        "unexpected": tensors.keys() - own.keys(),
        "other shape": shapes,
    }
    said = [f"{len(v)} {k}: {_first(v)}" for k, v in wrong.items() if v]
    if said:
        raise CheckpointError(f"{where}: does not fit the network: {'; '.join(said)}")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NumericError(f"{where}: tensor {name!r} holds NaN or infinity; not loaded")
    with torch.no_grad():
        for name, tensor in own.items():  # copy_ keeps the memory layout of the network
            tensor.copy_(tensors[name])


def _first(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def place(run: Path | str, step: int) -> Path:
    """Return where the checkpoint of a step lies: RUN/checkpoints/step-00001500."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def listed(run: Path | str) -> list[Path]:
    """Return the checkpoints of a run, good or not, newest first by step."""
    folder = Path(run) / "checkpoints"
    steps = [p for p in folder.iterdir() if STEP.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(steps, key=lambda p: int(p.name[5:]), reverse=True)


def newest(run: Path | str, report: Callable[[str], None] | None = None) -> Path | None:
    """Return the newest checkpoint that is whole, or None where there is none at all.

    Args:
        run: the run folder.
        report: called with one line for every broken checkpoint that is passed over.

    Raises:
        CheckpointError: there are checkpoints and none is whole; each with its reason.
    """
    broken: list[str] = []
    for path in listed(run):
        try:
            verify(path)
        except CheckpointError as e:
            broken.append(str(e))
            if report is not None:
                report(f"skipping a broken checkpoint: {e}")
        else:
            return path
    if broken:
        raise CheckpointError(f"{run}: no checkpoint is whole: {'; '.join(broken)}")
    return None


def check_keep(keep: int) -> int:
    """Return `keep`; at least two, so that one broken checkpoint never costs the run."""
    if keep < 2:
        raise UsageError(f"keep={keep}: at least 2 checkpoints are kept")
    return keep


def retain(run: Path | str, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints; call it after a write, not before."""
    whole, keep = 0, check_keep(keep)
    for path in listed(run):
        if whole >= keep:
            trash = aside("trash", path)
            os.replace(path, trash)  # gone in one step: no half-deleted checkpoint is seen
            shutil.rmtree(trash, ignore_errors=True)
            continue
        with suppress(CheckpointError):
            verify(path, hashes=False)
            whole += 1


def sweep(run: Path | str) -> list[str]:
    """Remove what dead processes of this host left in the checkpoint folder; return the names.

    The staging folders of living processes and of other hosts stay. A checkpoint that was being
    replaced when its process died is put back.
    """
    return sealed.sweep(Path(run) / "checkpoints")
