"""What a training run consists of at one moment, and how it is stored.

The whole state is four things: raw weights, their moving average, AdamW's two moments, and the
step; and a fifth where the objective has a memory, as one that learns at which times the loss is
or follows the student with an average of its own. Everything else (learning
rate, order of the data, every random number) is a pure function of the step, so nothing else is
stored and a resumed run is bit-exact on a CPU.

Inside: `TrainState`; `identity` and `check_identity`, by which a run knows its own.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from fewstep.data.images import Images
from fewstep.denoiser import Told
from fewstep.errors import CheckpointError, UsageError
from fewstep.model import Model, from_description
from fewstep.train.checkpoint import MODEL, TRAINING, WEIGHTS, Checkpoint, Part, fill, network
from fewstep.train.ema import EMA

TRAIN, STATE = TRAINING
_T = TypeVar("_T", bound=Told)
_MOMENTS = ("exp_avg", "exp_avg_sq")
NAMED = ("about", "sampling", "tuned", "student")
"""What a model says of itself that makes no other training; teachers are in the objective."""


class Memory(Protocol):
    """What an objective keeps from step to step."""

    def state(self) -> Mapping[str, Tensor]:
        """Return it as tensors."""
        ...

    def restore(self, stored: Mapping[str, Tensor] | None) -> None:
        """Take what `state` returned, or forget everything; ValueError where it does not fit."""
        ...


class TrainState:
    """Hold the weights, their average and the optimizer of a run.

    Args:
        model: its network is trained in place.
        weight_decay: AdamW's decoupled decay, >= 0; biases and norms (fewer than two
            dimensions) are not decayed.
        ema_decay: limit of the moving average, in [0, 1).
        device: where to train.
        memory: what the objective learns or follows as it goes, which begins anew, or None.

    Attributes:
        step: optimizer steps done.
        net: the raw network.
        ema: its moving average.
        optimizer: fused AdamW.
    """

    def __init__(
        self,
        model: Model,
        weight_decay: float,
        ema_decay: float,
        device: torch.device,
        memory: Memory | None = None,
    ) -> None:
        self.model, self.step, self.memory = model, 0, memory
        if memory is not None:
            memory.restore(None)
        self.net = network(model).to(device).train()
        self.ema = EMA(self.net, ema_decay)
        self._named = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        self.optimizer = adamw(list(self._named.values()), weight_decay)

    def averaged(self) -> Model:
        """Return the model with the averaged weights (shared, not copied)."""
        about = {**self.model.about, "step": self.step, "weights": "ema"}
        denoiser = with_net(self.model.denoiser, self.ema.net)
        return dataclasses.replace(self.model, denoiser=denoiser.eval(), about=about)

    def parts(self, run: Mapping[str, Any]) -> dict[str, Part]:
        """Return the files of a checkpoint; `run` is the run's identity."""
        raw = {f"raw.{k}": v for k, v in self.net.state_dict().items()}
        moments = {
            f"optimizer.{kind}.{name}": self.optimizer.state[p][kind]
            for name, p in self._named.items()
            for kind in _MOMENTS
            if p in self.optimizer.state
        }
        memory = {} if self.memory is None else self.memory.state()
        memory = {f"memory.{k}": v for k, v in memory.items()}
        return {
            MODEL: self.averaged().describe(),
            WEIGHTS: self.ema.net.state_dict(),
            TRAIN: {**raw, **moments, **memory},
            STATE: {"step": self.step, "ema_updates": self.ema.updates, "run": dict(run)},
        }

    def restore(self, files: Checkpoint) -> Self:
        """Take every value from a checkpoint, bit for bit.

        Raises:
            CheckpointError: a part is missing or does not fit.
        """
        state, stored = files.json(STATE), files.tensors(TRAIN)
        fill(self.net, _under("raw.", stored), files.path / TRAIN)
        fill(self.ema.net, files.tensors(WEIGHTS), files.path / WEIGHTS)
        self.ema.restore(state["ema_updates"])
        self.step = state["step"]
        if self.memory is not None:
            try:
                # its name was "times" when training times were all that could learn
                self.memory.restore(_under("memory.", stored) or _under("times.", stored))
            except ValueError as e:
                raise CheckpointError(f"{files.path / TRAIN}: {e}") from e
        for name, p in self._named.items():
            moments = {k: stored.get(f"optimizer.{k}.{name}") for k in _MOMENTS}
            if all(m is None for m in moments.values()):
                continue  # a frozen or unused parameter has no moments
            self.optimizer.state[p] = {"step": torch.tensor(float(self.step), device=p.device)}
            for kind, value in moments.items():
                if value is None or value.shape != p.shape:
                    raise CheckpointError(f"{files.path / TRAIN}: {kind} of {name} does not fit")
                # The fused kernel walks parameter and moment together: same strides are needed.
                own = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.optimizer.state[p][kind] = own.copy_(value)
        return self


def adamw(weights: Sequence[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW in one kernel for all tensors, a quarter of the default's time on a CPU.

    Args:
        weights: what to train; those with fewer than two dimensions are not decayed.
        weight_decay: decoupled decay of the others, >= 0.

    Source: Loshchilov and Hutter, 2019, algorithm 2 (arXiv 1711.05101).
    """
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)


def with_net(denoiser: _T, net: nn.Module) -> _T:
    """Return the same denoiser or classifier around another network (a copy of the shell)."""
    twin = copy.copy(denoiser)
    twin._modules = {**denoiser._modules, "net": net}
    return twin


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def identity(
    model: Model, images: Images, objective: object, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what makes a run this run: network, process, data, objective and settings."""
    described = model.describe()
    run = {
        "model": {k: v for k, v in described.items() if k not in NAMED},
        "classes": list(images.classes),
        "data": images.fingerprint,
        "objective": re.sub(r" at 0x[0-9a-f]+", "", repr(objective)),
        "train": dict(settings),
    }
    return json.loads(json.dumps(run))  # as a file gives it back: a tuple becomes a list


def renewed(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored identity with the defaults of fields that are younger than it.

    Args:
        run: what `identity` returned, maybe in an earlier version.
    """
    try:
        whole = from_description(run["model"], empty=True).describe()
    except (UsageError, KeyError, TypeError, ValueError):
        return dict(run)  # the comparison will say what is wrong with it
    model = {key: value for key, value in whole.items() if key in run["model"]}
    return {**run, "model": json.loads(json.dumps(model))}


def check_identity(stored: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise unless a checkpoint belongs to this run.

    Raises:
        UsageError: listing every setting that differs, old -> new.
    """
    before, after = dict(_flat(stored)), dict(_flat(now))
    differ = [
        f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differ:
        more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
        raise UsageError(
            f"{where} holds another run: {'; '.join(differ[:5])}{more}; only steps, device and "
            "the cadence may change; choose another `out` or restore the settings"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings with dotted names."""
    leaves: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        leaves += _flat(item, f"{name}.") if isinstance(item, Mapping) else [(name, item)]
    return leaves
