"""Teachers and students: what is frozen, what is trained, and what a finished student says.

A student is its teacher's network, read in a way that is regular where few steps go: a network
that says eps, or the image, becomes one that says both (`denoiser.BOTH`), with the other half at
zero. The rest of it, classes and process, is its teacher's.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import sampling as way
from fewstep import steer
from fewstep.denoiser import BOTH, EDM, EPS, X0, Denoiser, NetDenoiser, V
from fewstep.distill import PRESETS, Guided, Progressive
from fewstep.distill import student as told
from fewstep.distill.pairs import bounds
from fewstep.errors import UsageError
from fewstep.model import Model, Sampling
from fewstep.nets.unet import UNet
from fewstep.objectives import Objective
from fewstep.process import Process
from fewstep.solvers import grids
from fewstep.students.plan import GUIDED, PROGRESSIVE, Stage
from fewstep.train.config import FitConfig

HIGH = 80.0
"""Noise level sigma / alpha from which a consistency model starts, or what the process reaches."""
MIDDLE = 0.8
"""Level from which its second step starts until a better one is found."""
FLOOR = 0.002
"""Least level from which a step of a consistency model starts: the least that it is trained at."""
DROP = 0.1
"""Share of labels left out where teacher and student know the null condition."""


def teacher(model: Model, scale: float) -> Denoiser:
    """Return a model's denoiser as a teacher: guided as its preset says, not clipped, frozen.

    Args:
        model: in evaluation mode.
        scale: of classifier-free guidance; 1 = none.

    Raises:
        UsageError: guidance of a model that cannot be guided, or that remembers earlier steps.
    """
    said = steer.dials(model.sampling)
    if scale != 1 and "momentum" in said:
        raise UsageError(
            f"momentum {said['momentum']}: is made of the steps before, which a student does not "
            "take; set sampling.apg_momentum=0 in the model's preset"
        )
    off = () if scale != 1 else steer.REFINING
    unset = {k: v for name in (*off, "threshold") for k, v in steer.dial("", name, "off").items()}
    settings = dataclasses.replace(
        model.sampling, guidance_scale=scale, clip=False, levels=None, **unset
    )
    found = steer.guided(model, settings).eval()
    return found.requires_grad_(False)


def check(
    model: Model, method: str, scale: float, scales: tuple[float, float] | None = None
) -> None:
    """Refuse a teacher that cannot be distilled, before anything is trained.

    Args:
        model: the teacher.
        method: see `plan.Stage`.
        scale: of guidance, that goes into the student.
        scales: of guidance, that the student is told, in place of it.

    Raises:
        UsageError: as `teacher`, `student` and `distill.Guided`.
    """
    if scales is None:
        student(model, method)
        teacher(model, scale)
    else:
        refined = [name for name in steer.dials(model.sampling) if name in steer.REFINING]
        if refined:
            raise UsageError(
                f"--guidance-range: the model's preset refines guidance ({', '.join(refined)}), "
                "and a range is taught plain guidance; take one --guidance-scale"
            )
        student(model, GUIDED, scales)
        Guided(teacher(model, 1.0), *scales)


def student(model: Model, method: str, scales: tuple[float, float] | None = None) -> Model:
    """Return a copy of a model to be trained as a student.

    Args:
        model: the teacher; it is not changed.
        method: see `plan.Stage`.
        scales: of guidance, that a student of the method "guided" is told.

    Raises:
        UsageError: a parametrisation, or a network, that cannot be distilled.
    """
    own = model.denoiser
    assert isinstance(own, NetDenoiser)
    if method == GUIDED and scales is not None:
        return told(student(model, PROGRESSIVE), *scales)
    kept = (V, EDM, BOTH, X0) if method == PROGRESSIVE else (V, EDM, BOTH)
    convert = own.param not in kept
    if convert and own.param not in (EPS, X0):
        raise UsageError(
            f"param {own.param!r}: a network that says this is not distilled by {method}; allowed "
            "are V, EDM, BOTH, EPS and X0"
        )
    if own.param is BOTH:
        net = copy.deepcopy(own.net)
    else:
        net = _reshaped(own.net, model.shape[0], own.param if convert else None)
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    param = BOTH if convert else own.param
    denoiser = NetDenoiser(net, own.process, param, own.label, own.null)
    return dataclasses.replace(model, denoiser=denoiser.requires_grad_(True), tuned={})


def _reshaped(net: nn.Module, channels: int, said: object) -> nn.Module:
    """Return a copy of a network without a learned variance; with both views where `said`."""
    config = getattr(net, "config", None)
    outputs = 2 * channels if said is not None else channels
    own = getattr(config, "out_channels", outputs)
    if said is None and (own == outputs or not isinstance(net, UNet)):
        return copy.deepcopy(net)
    if not isinstance(net, UNet):
        raise UsageError(
            f"a {type(net).__name__} that says {said!r}: only a U-Net is turned into one that "
            "says both"
        )
    with torch.random.fork_rng(devices=[]):
        other = UNet(dataclasses.replace(net.config, out_channels=outputs))
    weights = net.state_dict()
    for name in ("head.weight", "head.bias"):
        first = weights[name][:channels]
        rest = torch.zeros_like(first)
        if said is X0:
            weights[name] = torch.cat([first, rest])
        else:
            weights[name] = first if said is None else torch.cat([rest, first])
    other.load_state_dict(weights)
    return other.to(next(net.parameters()).device)


def spacing(model: Model) -> str:
    """Return the name of the grid of a ladder's first teacher.

    Even in t, the time in which VP processes are made; on those whose noise grows without bound,
    Karras' levels, which are right for them.
    """
    return "karras" if float(model.denoiser.process.alpha(1.0)) == 1.0 else "even"


def grid(model: Model, steps: int) -> Tensor:
    """Return the grid of a ladder's first teacher, shape (steps + 1,), see `spacing`."""
    if spacing(model) == "karras":
        return grids.karras(model.denoiser.process, steps)
    return grids.uniform(steps)


def sampling(model: Model, stage: Stage, times: Tensor) -> Sampling:
    """Return the preset of a student.

    Args:
        model: the student.
        stage: how it was trained.
        times: the grid of the ladder's first teacher; unused for consistency models.
    """
    process, clip = model.denoiser.process, model.sampling.clip
    scale = 1.0 if model.scales is None else model.sampling.guidance_scale
    if stage.method not in (PROGRESSIVE, GUIDED):
        high = bounds(process, 1e-3, HIGH)[1]
        levels = middles(high, stage.steps, floor=floor(process))
        return Sampling("consistency", stage.steps, clip=clip, levels=levels)
    mine = times[:: (len(times) - 1) // stage.steps].tolist()
    if torch.equal(torch.tensor(mine).double(), grids.uniform(stage.steps)):
        return Sampling("ddim", stage.steps, clip=clip, guidance_scale=scale)
    pairs = [process.levels(t) for t in mine[:-1]]
    levels = tuple(float(sigma) / float(alpha) for alpha, sigma in pairs)
    return Sampling("ddim", stage.steps, clip=clip, guidance_scale=scale, levels=levels)


def planned(model: Model, method: str, steps: int) -> None:
    """Refuse a plan whose student could not be sampled, before anything is trained.

    Args:
        model: the teacher.
        method: see `plan.Stage`.
        steps: of the student.

    Raises:
        UsageError: as `student` and `sampling.plan`.
    """
    taught, stage = student(model, method), Stage(method, steps, 1, 1, 1.0)
    preset = sampling(taught, stage, grid(model, 2 * steps))
    way.plan(dataclasses.replace(taught, student={}), preset)


def floor(process: Process) -> float:
    """Return the least level from which a step starts: well above the least of the process."""
    return max(FLOOR, 2 * bounds(process, FLOOR / 2, HIGH)[0])


def middles(
    high: float, steps: int, middle: float = MIDDLE, floor: float = FLOOR
) -> tuple[float, ...]:
    """Return the levels from which the steps of a consistency model start, falling.

    From the highest to `middle` for two steps; further ones lie below it, each a third, or more
    where these would go below `floor`. Where `middle` is not between the ends, or near the lower
    one, the level halfway in ln takes its place.

    >>> middles(80.0, 3)
    (80.0, 0.8, 0.26666666666666666)
    """
    middle = middle if 2 * floor <= middle < high else math.sqrt(floor * high)
    more = steps - 2
    ratio = 3.0 if more < 1 else min(3.0, (middle / floor) ** (1 / more))
    return (high, *(middle / ratio**k for k in range(steps - 1)))


@dataclasses.dataclass(frozen=True)
class Taught:
    """What a stage's student learns from.

    Attributes:
        teacher: frozen.
        times: the grid of the ladder's first teacher, shape (steps + 1,).
        name: says which teacher it is.
        drop: probability that a label is left out.
        scales: of guidance, where teacher and student are told one.
    """

    teacher: Denoiser
    times: Tensor
    name: str = ""
    drop: float = 0.0
    scales: tuple[float, float] | None = None


def objective(stage: Stage, by: Taught) -> Objective:
    """Return what a stage minimises."""
    if stage.method == GUIDED:
        assert by.scales is not None
        return Guided(by.teacher, *by.scales, name=by.name)
    if stage.method == PROGRESSIVE:
        stride = (len(by.times) - 1) // (2 * stage.steps)
        grid = tuple(by.times[::stride].tolist())
        return Progressive(by.teacher, grid, drop=by.drop, name=by.name, scales=by.scales)
    goal = PRESETS[stage.method](by.teacher, stage.updates, by.name)
    return dataclasses.replace(goal, drop=by.drop)


def config(stage: Stage, seed: int) -> FitConfig:
    """Return how a stage is trained: the paper's constant settings, scaled by the budget."""
    progressive = stage.method in (PROGRESSIVE, GUIDED)
    return FitConfig(
        steps=stage.updates,
        batch_size=stage.batch_size,
        lr=stage.lr,
        warmup=min(100, stage.updates // 10),
        decay="linear" if progressive else "cosine",
        weight_decay=0.0,
        clip=1.0 if progressive else 1e6,  # weights of 1 / (u - r) make large gradients
        ema_decay=0.0 if progressive else 0.995,
        seed=seed,
        checkpoint_every=max(50, stage.updates // 10),
        keep=2,
        sample_every=max(50, stage.updates // 4),
    )


def named(model: Model, stage: Stage, preset: Sampling, facts: Mapping[str, Any]) -> Model:
    """Return a student with what it says of itself.

    Args:
        model: the student.
        stage: how it is trained.
        preset: how it is sampled.
        facts: name and weights of the teacher, its guidance, images seen.
    """
    kinds = {PROGRESSIVE: "progressive", GUIDED: "guided"}
    record = {
        "kind": kinds.get(stage.method, "consistency"),
        "method": stage.method,
        "steps": stage.steps,
        **facts,
    }
    about = {k: v for k, v in model.about.items() if k not in ("step", "weights", "recipe")}
    return dataclasses.replace(model, sampling=preset, student=record, about=about)
