"""How a model is sampled: from the words of a preset to a guided denoiser, a grid and a solver.

The command line, the training preview and the report all sample through here, so that the same
settings mean the same images everywhere. The settings are names and numbers (`model.Sampling`);
a `Plan` is what they stand for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.classifier import NoisyClassifier
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError, suggest
from fewstep.langevin import ladder
from fewstep.model import Model, Sampling
from fewstep.process import Process, Tabulated
from fewstep.solvers import grids
from fewstep.steer import DIALS, REFINING, Steer, Weak, guided

MAX_STEPS = 100_000
"""More sampling steps than this are taken for a slip of the keyboard."""

EACH = 5
"""Langevin steps of annealed-langevin at a level of noise, unless said."""

SAMPLERS: Mapping[str, Callable[[float, int], solvers.Solver]] = {
    "ddim": lambda eta, n: solvers.DDIM(eta),
    "ddpm": lambda eta, n: solvers.DDPM("small"),
    "ddpm-large": lambda eta, n: solvers.DDPM("large"),
    "ddpm-learned": lambda eta, n: solvers.DDPM("learned"),
    "euler": lambda eta, n: solvers.Euler(),
    "heun": lambda eta, n: solvers.Heun(),
    "heun-churn": lambda eta, n: solvers.HeunChurn(steps=n),
    "dpmpp": lambda eta, n: solvers.DPMSolverPP(2),
    "dpmpp3": lambda eta, n: solvers.DPMSolverPP(3, steps=n),
    "dpmpp3-legacy": lambda eta, n: solvers.DPMSolverPP(3, legacy=True, steps=n),
    "dpmpp-2s": lambda eta, n: solvers.DPMSolverPP2S(),
    "unipc": lambda eta, n: solvers.UniPC(3, steps=n),
    "unipc2": lambda eta, n: solvers.UniPC(2, steps=n),
    "deis": lambda eta, n: solvers.DEIS(3),
    "ipndm": lambda eta, n: solvers.IPNDM(4),
    "annealed-langevin": lambda eta, n: solvers.PredictorCorrector(None, EACH, rule="level"),
    "predictor-corrector": lambda eta, n: solvers.PredictorCorrector(),
    "predictor-corrector-level": lambda eta, n: solvers.PredictorCorrector(
        snr=0.176, rule="level"
    ),
    "predictor-corrector-ddim": lambda eta, n: solvers.PredictorCorrector(solvers.DDIM()),
}
"""Names of the samplers; each makes a solver from eta and the number of steps. "ddpm-large" is
the talk's sigma-hat, "ddpm-learned" for networks with a learned variance."""

LANGEVIN = ("each", "snr")
"""Fields of `model.Sampling` for the samplers with Langevin steps alone."""

SPACINGS = ("even", "karras", "logsnr", *grids.SPACINGS)
"""Names of the grids: even in t, in noise level or in log-SNR, or a subset of the T steps."""


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


def grid(spacing: str, process: Process, steps: int) -> Tensor:
    """Return the grid of this name.

    Args:
        spacing: a name in `SPACINGS`.
        process: turns noise levels into times; its table, or 1000 steps where it has none, is
            what the strided spacings take a subset of.
        steps: number of steps, in 1..`MAX_STEPS`, and in 1..T for a subset of T steps.

    Returns:
        shape (n + 1,), float64, falling from the noisy end to 0; n is `steps` but for the
        spacings that `grids.strided` names.

    Raises:
        UsageError: unknown spacing, or a number of steps that it cannot have.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps {steps}: must be a whole number in 1..{MAX_STEPS}")
    if spacing == "even":
        return grids.uniform(steps)
    if spacing == "karras":
        return grids.karras(process, steps)
    if spacing == "logsnr":
        return grids.logsnr(process, steps)
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
    denoiser = guided(model, sampling, steer)
    times = grid(sampling.spacing, model.denoiser.process, sampling.steps)
    solver = SAMPLERS[name](sampling.eta, len(times) - 1)
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


def no_denoiser(model: Model) -> UsageError:
    """Return what to raise where a noisy classifier is asked for images."""
    return UsageError(
        f"this model is a noisy classifier of {len(model.classes)} classes: it guides another "
        "model and makes no images itself"
    )


def changed(preset: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """Return settings with the user's changes, and without what they leave no use for.

    Another sampler than ddim has no eta, and each its own Langevin steps or none, which go by the
    ladder where that is another; scale 1 has no refinement of guidance, and what says whether to
    clip means no thresholding, unless the user says so.

    Args:
        preset: the model's own settings.
        changes: fields of `Sampling` to replace.

    >>> changed(Sampling(eta=0.5), {"sampler": "heun"}).eta
    0.0
    """
    values = dict(changes)
    if values.get("sampler", preset.sampler) != "ddim":
        values.setdefault("eta", 0.0)
    if values.get("sampler", preset.sampler) != preset.sampler:
        for name in LANGEVIN:
            values.setdefault(name, None)
    own = {name: getattr(preset, name) for name in ("steps", "spacing", "each")}
    moved = any(values.get(name, value) != value for name, value in own.items())
    if preset.sampler == "annealed-langevin" and moved:
        values.setdefault("snr", None)
    idle = REFINING if values.get("guidance_scale", preset.guidance_scale) == 1 else ()
    for name in (*idle, *(("threshold",) if "clip" in values else ())):
        for field in DIALS[name]:
            values.setdefault(field, getattr(Sampling(), field))
    return replace(preset, **values)


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
