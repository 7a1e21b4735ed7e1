"""How a model is sampled: from the words of a preset to a guided denoiser, a grid and a solver.

The command line, the training preview and the report all sample through here, so that the same
settings mean the same images everywhere. The settings are names and numbers (`model.Sampling`);
a `Plan` is what they stand for.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.classifier import NoisyClassifier
from fewstep.conditions import Cond
from fewstep.denoiser import CONSISTENCY, Denoiser, NetDenoiser
from fewstep.errors import UsageError, suggest
from fewstep.langevin import ladder
from fewstep.model import Model, Sampling
from fewstep.process import Process, Tabulated
from fewstep.solvers import grids
from fewstep.solvers.levels import ALIGN_YOUR_STEPS, align_your_steps, listed
from fewstep.solvers.named import SAMPLERS
from fewstep.steer import DIALS, REFINING, Steer, Weak, guided

MAX_STEPS = 100_000
"""More sampling steps than this are taken for a slip of the keyboard."""

LANGEVIN = ("each", "snr")
"""Fields of `model.Sampling` for the samplers with Langevin steps alone."""

SPACINGS = (
    "even",
    "karras",
    "logsnr",
    *(f"ays-{name}" for name in ALIGN_YOUR_STEPS),
    *grids.SPACINGS,
)
"""Names of the grids: even in t, in noise level or in log-SNR, the lists of Align Your Steps, or a
subset of the T steps."""


DEFAULTS: Mapping[bool, Mapping[int, tuple[str, str]]] = {
    True: {
        5: ("dpmpp", "ays-sd15"),
        6: ("deis-tab", "ays-sd15"),
        8: ("unipc2", "even"),
        10: ("unipc2", "even"),
        15: ("unipc", "even"),
        20: ("deis", "karras"),
        50: ("deis-tab", "even"),
    },
    False: {
        5: ("ipndm", "ays-sd15"),
        6: ("deis", "ays-sd15"),
        8: ("unipc2", "even"),
        10: ("unipc2", "even"),
        15: ("deis", "karras"),
        20: ("deis", "karras"),
        50: ("unipc", "even"),
    },
}
"""Sampler and spacing by evaluations a guided (True) or plain image is allowed, a guided one
counted once: those of least error in docs/results/solvers.md."""


FEW = 10
"""Presets of fewer steps are those of models that were made for them."""


@dataclass(frozen=True)
class Plan:
    """What a preset stands for.

    Attributes:
        denoiser: the model's, with guidance and clipping around it.
        times: the grid, shape (n + 1,), float64.
        solver: the method.
        nfe: network evaluations per image.
    """

    denoiser: Denoiser
    times: Tensor
    solver: solvers.Solver
    nfe: int


def grid(
    spacing: str, process: Process, steps: int, levels: Sequence[float] | None = None
) -> Tensor:
    """Return the grid of this name, or of these noise levels.

    Args:
        spacing: a name in `SPACINGS`.
        process: turns noise levels into times; its table, or 1000 steps where it has none, is
            what the strided spacings take a subset of.
        steps: number of steps, in 1..`MAX_STEPS`, and in 1..T for a subset of T steps.
        levels: falling sigma / alpha, one to a step, in place of the spacing.

    Returns:
        shape (n + 1,), float64, falling from the noisy end to 0; n is `steps` but for the
        spacings that `grids.strided` names.

    Raises:
        UsageError: unknown spacing, or a number of steps that it or the levels cannot have;
            levels that the process does not reach.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps {steps}: must be a whole number in 1..{MAX_STEPS}")
    if levels is not None:
        times = listed(process, levels)
        if len(times) - 1 != steps:
            raise UsageError(
                f"levels: {len(times) - 1} noise levels are as many steps, not {steps}; give as "
                "many, or leave the steps out"
            )
        return times
    if spacing == "even":
        return grids.uniform(steps)
    if spacing == "karras":
        return grids.karras(process, steps)
    if spacing == "logsnr":
        return grids.logsnr(process, steps)
    if spacing.startswith("ays-") and spacing in SPACINGS:
        return align_your_steps(process, steps, spacing.removeprefix("ays-"))
    if spacing not in grids.SPACINGS:
        raise UsageError(
            f'spacing "{spacing}": allowed are {", ".join(SPACINGS)}{suggest(spacing, SPACINGS)}'
        )
    total = process.steps if isinstance(process, Tabulated) else 1000
    if steps > total:
        raise UsageError(
            f"steps {steps}: must be in 1..{total}, spacing {spacing} takes a subset of {total} "
            "steps; use the spacing even, karras or logsnr for more"
        )
    return grids.strided(steps, spacing, total)


def plan(model: Model, sampling: Sampling, steer: Steer | Weak | None = None) -> Plan:
    """Return what the settings stand for on this model.

    Args:
        model: its denoiser is wrapped, not changed.
        sampling: the settings; `model.sampling` is the preset.
        steer: a noisy classifier, or a weaker model, that guides: see `steer.guided`.

    Returns:
        the guided and clipped denoiser, the grid of shape (n + 1,), the solver and the cost.

    Raises:
        UsageError: a name that is not known, a number that is not allowed, a variance that was not
            learned, or as `steer.guided`.
    """
    name = sampling.sampler
    if name not in SAMPLERS:
        raise UsageError(
            f'sampler "{name}": allowed are {", ".join(SAMPLERS)}{suggest(name, SAMPLERS)}'
        )
    if sampling.eta and name != "ddim":
        raise UsageError(f"eta {sampling.eta:g}: only the sampler ddim has this dial, not {name}")
    if isinstance(model.denoiser, NoisyClassifier):
        raise no_denoiser(model)
    if name == "ddpm-learned" and not model.learned_variance:
        raise UsageError(
            "sampler ddpm-learned: this model has no learned variance (net.learn_variance in its "
            "recipe); take ddpm or ddpm-large"
        )
    model.check(sampling)
    denoiser = guided(model, sampling, steer)
    process = model.denoiser.process
    times = grid(sampling.spacing, process, sampling.steps, sampling.levels)
    solver = SAMPLERS[name](sampling.eta, len(times) - 1)
    if isinstance(solver, solvers.Consistency):
        param = getattr(model.denoiser, "param", None)
        solver = solvers.Consistency(getattr(param, "least", 0.0))
        if sampling.levels is None:
            times = solver.started_above(times, process, partial(grid, sampling.spacing, process))
    solver.check(denoiser.process, times.tolist())
    solver = _stepping(solver, sampling, denoiser.process, times)
    return Plan(denoiser, times, solver, solvers.nfe(denoiser, times, solver))


def _stepping(
    solver: solvers.Solver, sampling: Sampling, process: Process, times: Tensor
) -> solvers.Solver:
    """Return the solver with the Langevin steps of the settings.

    The size of those of annealed Langevin dynamics is by default that of NCSNv2's technique 4 for
    the levels of the grid.
    """
    said = {name: v for name in LANGEVIN if (v := getattr(sampling, name)) is not None}
    if not isinstance(solver, solvers.PredictorCorrector):
        if said:
            have = ", ".join(k for k in SAMPLERS if k.startswith(("annealed", "predictor")))
            raise UsageError(
                f"{' and '.join(said)}: not of the sampler {sampling.sampler}, which takes no "
                f"Langevin steps; {have} do"
            )
        return solver
    solver = replace(solver, **said)
    if solver.predictor is not None or "snr" in said:
        return solver
    pairs = (process.levels(t) for t in times.tolist())
    ratios = [float(sigma / alpha) for alpha, sigma in pairs if sigma > 0]
    if len(ratios) < 2:
        raise UsageError(
            "steps 1: annealed-langevin goes down a ladder of noise levels; take more steps, or "
            "say the size of its steps by snr"
        )
    even = ladder.geometric(ratios[0], ratios[-1], len(ratios))
    return replace(solver, snr=ladder.snr_for(even, solver.each))


def ratios(where: str, word: str, apart: str = ",") -> tuple[float, ...]:
    """Return the noise levels that a word lists, for `Sampling.levels`.

    Args:
        where: what a message begins with, such as "--levels 80,2,0.3".
        word: falling sigma / alpha > 0; a last 0, clean data, may be given.
        apart: what stands between two of them.

    Raises:
        UsageError: not such a word.

    >>> ratios("", "14.6, 2, 0.3, 0")
    (14.6, 2.0, 0.3)
    """
    try:
        found = [float(part) for part in word.split(apart)]
    except ValueError:
        found = []
    found = found[:-1] if found and found[-1] == 0 else found
    falls = all(a > b for a, b in pairwise([math.inf, *found, 0.0]))
    if not (found and falls):
        raise UsageError(
            f"{where}: must be falling noise levels sigma / alpha above 0, such as "
            f"{apart.join(('14.6', '2', '0.3'))}"
        )
    return tuple(found)


def no_denoiser(model: Model) -> UsageError:
    """Return what to raise where a noisy classifier is asked for images."""
    return UsageError(
        f"this model is a noisy classifier of {len(model.classes)} classes: it guides another "
        "model and makes no images itself"
    )


def changed(preset: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """Return settings with the user's changes, and without what they leave no use for.

    Another sampler than ddim has no eta, and each its own Langevin steps or none, which go by the
    ladder where that is another; scale 1 has no refinement of guidance, what says whether to clip
    means no thresholding, and another grid is not that of the preset's noise levels, unless the
    user says so. Fewer steps of the sampler consistency begin at the first of its levels.

    Args:
        preset: the model's own settings.
        changes: fields of `Sampling` to replace.

    Raises:
        UsageError: both a spacing and levels.

    >>> changed(Sampling(eta=0.5), {"sampler": "heun"}).eta
    0.0
    """
    values = dict(changes)
    if values.get("sampler", preset.sampler) != "ddim":
        values.setdefault("eta", 0.0)
    if values.get("levels") is not None:
        if "spacing" in values:
            raise UsageError(f"levels and spacing {values['spacing']}: give one of them")
        values.setdefault("steps", len(values["levels"]))
    elif "spacing" in values or values.get("steps", preset.steps) != preset.steps:
        values.setdefault("levels", _first(preset, values))
    if values.get("sampler", preset.sampler) != preset.sampler:
        for name in LANGEVIN:
            values.setdefault(name, None)
    own = {name: getattr(preset, name) for name in ("steps", "spacing", "levels", "each")}
    moved = any(values.get(name, value) != value for name, value in own.items())
    if preset.sampler == "annealed-langevin" and moved:
        values.setdefault("snr", None)
    idle = REFINING if values.get("guidance_scale", preset.guidance_scale) == 1 else ()
    for name in (*idle, *(("threshold",) if "clip" in values else ())):
        for field in DIALS[name]:
            values.setdefault(field, getattr(Sampling(), field))
    return replace(preset, **values)


def _first(preset: Sampling, values: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the levels that are left of a consistency model's where fewer steps are asked for.

    None where there are none, or others are meant.
    """
    samplers = {preset.sampler, values.get("sampler", preset.sampler)}
    steps, own = values.get("steps", preset.steps), preset.levels or ()
    kept = samplers == {"consistency"} and "spacing" not in values and steps < len(own)
    return own[:steps] if kept else None


def for_steps(
    model: Model, asked: Mapping[str, Any], *, guided: bool
) -> tuple[dict[str, Any], str]:
    """Return changes with sampler and grid for a number of steps, where that alone is said.

    A preset that `tune` found for so many steps comes first, guided for guided sampling. Else, for
    another number than the preset's, it is the best of `DEFAULTS` at the nearest. Nothing is
    taken for fewer than 3 steps, far from all that was measured; for a preset that draws noise;
    for models that were made for few steps and follow no ODE, which are students, consistency
    models and presets of fewer than `FEW` steps; and for processes on which the solver cannot
    start.

    Args:
        model: has the preset and the tuned ones.
        asked: the user's changes, fields of `Sampling`.
        guided: whether guidance is on.

    Returns:
        the changes, and in words what was taken and why; "" where nothing was.
    """
    steps, own = asked.get("steps"), model.sampling
    if steps is None or {"sampler", "spacing", "levels", "eta"} & asked.keys():
        return dict(asked), ""
    found = model.tuned.get(steps)
    if found is not None and (found.guidance_scale not in (0, 1)) == guided:
        places = {"levels": found.levels} if found.levels else {"spacing": found.spacing}
        where = "noise levels" if found.levels else f"the spacing {found.spacing}, both"
        why = f"sampler {found.sampler} on {where} found for this model"
        if found.sampler != "consistency":  # whose levels are found from samples
            why += f" by fewstep tune at guidance scale {found.guidance_scale:g}"
        own_way = {"sampler": found.sampler, "eta": found.eta, **places}
        return {**asked, **own_way}, f"{steps} steps: {why}"
    solver = SAMPLERS[own.sampler](own.eta, own.steps) if own.sampler in SAMPLERS else None
    consistent = isinstance(model.denoiser, NetDenoiser) and model.denoiser.param is CONSISTENCY
    made_for_few = consistent or own.steps < FEW or bool(model.student)
    if steps in (1, 2, own.steps) or made_for_few or solver is None or solver.stochastic:
        return dict(asked), ""
    budget = min(DEFAULTS[guided], key=lambda n: abs(math.log(n / steps)))
    sampler, spacing = DEFAULTS[guided][budget]
    process = model.denoiser.process
    try:
        SAMPLERS[sampler](0.0, steps).check(process, grid(spacing, process, steps).tolist())
    except UsageError:
        return dict(asked), ""
    why = (
        f"{steps} steps: sampler {sampler}, spacing {spacing}, of least error at {budget} "
        f"{'guided ' if guided else ''}evaluations (docs/results/solvers.md); --sampler "
        f"{own.sampler} for the model's own"
    )
    return {**asked, "sampler": sampler, "spacing": spacing}, why


def walk(
    model: Model,
    sampling: Sampling,
    cond: Cond | list[int],
    n: int,
    seed: int = 0,
    steer: Steer | Weak | None = None,
) -> Iterator[solvers.Step]:
    """Yield the steps of one batch.

    Args:
        model: in evaluation mode.
        sampling: the settings.
        cond: the condition of the n images on any device, a list of n class indices, or None.
        n: number of images.
        seed: image i draws its noise from seed + i.
        steer: a noisy classifier, or a weaker model, that guides.

    Returns:
        an iterator of `solvers.Step`, one per step; `.x` of shape (n, C, H, W).

    Raises:
        UsageError: as `plan`.
    """
    p = plan(model, sampling, steer)
    told = torch.tensor(cond) if isinstance(cond, list) else cond
    return solvers.sample(p.denoiser, (n, *model.shape), p.times, p.solver, told, seed)


def to_uint8(x: Tensor) -> Tensor:
    """Return pixels 0..255 of images in [-1, 1], rounded to the nearest, shape of x, uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
