"""A grid and a solver for one model at few steps: found from its own trajectories.

The fine trajectory of the sampling ODE says what every jump of one step from a noise level to a
later one would cost. The cheapest way of so many jumps is a problem of shortest paths, solved
exactly by dynamic programming; it takes short steps where the trajectory bends. That way and the
usual grids are then walked by every solver from fresh noise, and the best is the one that ends
nearest to where the ODE itself ends.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep import conditions, sampling, solvers
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import NumericError, UsageError
from fewstep.model import Model, Sampling
from fewstep.process import Process
from fewstep.shapes import divide
from fewstep.solvers import DPMSolverPP, PerImage, image_seeds
from fewstep.solvers.levels import listed

NODES = 60
"""Noise levels that a found grid may stop at."""

FINER = 3
"""Steps of the fine trajectory between two of them."""

COEFFICIENTS = (1.0, 0.95, 1.05)
"""How much more, or less, each later jump counts: a grid is found with each of these."""

SOLVERS = ("ddim", "dpmpp", "dpmpp3", "unipc", "unipc2", "deis", "deis-tab", "ipndm")
"""Samplers that are tried: the deterministic ones of one evaluation a step."""

SPACINGS = ("even", "karras", "logsnr", "ays-sd15")
"""Grids that are tried beside the found ones."""

_TOP = 1000.0  # of the levels, for processes that reach pure noise
_LOW = 0.002
_VALUES = 1 << 18  # pixels of all channels that are followed at once
_FIRST, _STAY = 8, 6  # images that every way is tried on, and ways that are tried on all

Tick = Callable[[int, int], None]
"""tick(done, total): called as the work goes on."""


class Tried(NamedTuple):
    """One way of sampling that was tried.

    Attributes:
        sampling: the settings.
        error: rms difference from the end points of the ODE, in pixel values of [-1, 1].
    """

    sampling: Sampling
    error: float


@dataclass(frozen=True)
class Course:
    """A model's own way from noise to images, to be followed in few steps.

    Attributes:
        model: in evaluation mode.
        preset: how it is sampled; sampler and grid are what is looked for.
        levels: sigma / alpha of the nodes, falling.
        cost: of the jumps between them, shape (M + 1, M + 1); see `costs`.
        noise: of other images, shape (n, *).
        cond: their classes, or None.
        ends: where the ODE takes them, shape (n, *).
    """

    model: Model
    preset: Sampling
    levels: tuple[float, ...]
    cost: Tensor
    noise: Tensor
    cond: Cond
    ends: Tensor

    @classmethod
    def of(
        cls, model: Model, preset: Sampling, n: int = 32, seed: int = 0, tick: Tick | None = None
    ) -> "Course":
        """Follow the fine trajectory of 2 n images, classes in turn.

        Args:
            model: in evaluation mode, on the device that samples.
            preset: its settings; guidance and clipping belong to the ODE.
            n: images that grids are found on, and as many others that ways are tried on.
            seed: image i draws its noise from seed + i.
            tick: told of steps.

        Raises:
            UsageError: settings that this model cannot follow.
            NumericError: an image is not finite.
        """
        denoiser = sampling.plan(model, preset).denoiser
        levels = nodes(denoiser.process)
        device = next(model.denoiser.parameters()).device
        x = PerImage(image_seeds(seed, 2 * n))(torch.empty(2 * n, *model.shape, device=device))
        k = len(model.classes)
        cond = torch.arange(2 * n, device=device) % k if k else None
        start = float(denoiser.process.prior_std(float(listed(denoiser.process, levels)[0])))
        batches = torch.arange(n).split(max(1, _VALUES // x[0].numel()))
        square, ends = torch.zeros(()), []
        done = _each(tick, 2 * len(batches) * (FINER * (NODES - 1) + 1))
        with torch.no_grad():
            for ids in batches:
                for part, rows in enumerate((ids, ids + n)):
                    some = conditions.rows(cond, rows.to(device))
                    if part == 0:
                        found = costs(denoiser, start * x[rows], levels, some, done)
                        square = square + found.square() * len(ids) / n
                    else:
                        ends.append(_fine(denoiser, start * x[rows], levels, some, done)[0][-1])
        end = torch.cat(ends)
        if not end.isfinite().all():
            raise NumericError("an image is not finite; lower the guidance scale of the settings")
        rest = conditions.rows(cond, slice(n, 2 * n))
        return cls(model, preset, levels, square.sqrt(), x[n:], rest, end)

    def ways(self, steps: int) -> list[Sampling]:
        """Return what is tried: every solver on the found grids and on the usual ones.

        Raises:
            UsageError: fewer than 1 or more than `NODES` steps.
        """
        found = [shortest(self.cost, steps, k)[:-1] for k in COEFFICIENTS]
        lists = dict.fromkeys(tuple(self.levels[i] for i in way) for way in found)
        own: list[dict[str, Any]] = [{"levels": x} for x in lists]
        own += [{"levels": None, "spacing": name} for name in SPACINGS]
        base = replace(self.preset, steps=steps, eta=0.0, each=None, snr=None)
        return [replace(base, sampler=name, **grid) for name in SOLVERS for grid in own]

    def error(self, way: Sampling, n: int | None = None) -> float:
        """Return the error of one way on the first n images, infinite where it cannot be gone."""
        try:
            plan, many = sampling.plan(self.model, way), n or len(self.noise)
            return math.sqrt(self._square(plan, many))
        except (UsageError, NumericError):
            return math.inf  # levels beyond the process, no start where they do, or no end

    def _square(self, plan: sampling.Plan, many: int) -> float:
        start, total = plan.denoiser.process.prior_std(float(plan.times[0])), 0.0
        for ids in torch.arange(many).split(max(1, _VALUES // self.noise[0].numel())):
            x = start * self.noise[ids]
            some = conditions.rows(self.cond, ids.to(x.device))
            for step in solvers.sample(
                plan.denoiser, tuple(x.shape), plan.times, plan.solver, some, x=x
            ):
                x = step.x
            total += float((x - self.ends[ids]).double().square().mean()) * len(ids) / many
        return total

    def tried(self, steps: int, tick: Tick | None = None) -> list[Tried]:
        """Return the ways that were tried on all images, best first.

        All are tried on few images, and the best of these on all.

        Raises:
            UsageError: as `ways`.
            NumericError: no way ends in finite images.
        """
        ways, few = self.ways(steps), min(_FIRST, len(self.noise))
        rounds = -(-len(self.noise) // few)  # what one of the last costs
        done = _each(tick, len(ways) + _STAY * rounds)
        first: list[Tried] = []
        for way in ways:
            first.append(Tried(way, self.error(way, few)))
            done()
        last: list[Tried] = []
        for way, _ in sorted(first, key=lambda t: t.error)[:_STAY]:
            last.append(Tried(way, self.error(way)))
            for _ in range(rounds):
                done()
        last.sort(key=lambda t: t.error)
        if math.isinf(last[0].error):
            raise NumericError(
                f"{steps} steps: no solver ends in finite images; lower the guidance scale"
            )
        return last


def _each(tick: Tick | None, total: int) -> Callable[[], None]:
    """Return what is to be called once for each of so many parts of the work."""
    parts = itertools.count(1)

    def done() -> None:
        if tick is not None:
            tick(next(parts), total)

    return done


def nodes(process: Process, n: int = NODES) -> tuple[float, ...]:
    """Return n noise levels sigma / alpha, even in log-SNR, from the noisiest down to 0.002.

    Args:
        process: what it reaches bounds both ends; an end at pure noise is cut at 1000.
        n: at least 2.

    Returns:
        falling, > 0.
    """
    least, most = (float(divide(process.sigma(t), process.alpha(t))) for t in (0.0, 1.0))
    high, low = min(most, _TOP), max(2 * least, _LOW)
    ratios = torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64).exp().tolist()
    # five digits are enough to be read, and rounding must not leave the process
    return tuple(min(float(f"{r:.5g}"), high) for r in ratios)


def costs(
    denoiser: Denoiser,
    x: Tensor,
    levels: Sequence[float],
    cond: Cond = None,
    done: Callable[[], None] | None = None,
) -> Tensor:
    """Return what every jump of one Euler step costs along the fine trajectory.

        c_ij^2 = mean |x_j - (alpha_j x0_i + sigma_j eps_i)|^2 / (alpha_j^2 + sigma_j^2)

    The prediction is that at x_i; the quotient is the variance of noisy data of unit variance, by
    which an error at x_j shrinks about as much as it does on its way to clean data.

    Args:
        denoiser: with its guidance.
        x: the batch at the first level, shape (B, *).
        levels: falling sigma / alpha, M of them; clean data come after the last.
        cond: the condition of the batch, or None.
        done: called after every fine step.

    Returns:
        shape (M + 1, M + 1), float64; infinite where j <= i.

    Source: Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling", 2024,
        section 4.2 (arXiv 2405.11326), there with the distance in x / alpha.
    """
    process = denoiser.process
    times = listed(process, levels)
    points, said = _fine(denoiser, x, levels, cond, done)
    cost = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for j, t in enumerate(times.tolist()):
        alpha, sigma = process.levels(t)
        unit = float(process.prior_std(t))
        for i in range(j):
            away = (said[i].at(alpha, sigma) - points[j]) / unit
            cost[i, j] = float(away.double().square().mean().sqrt())
    return cost


def _fine(
    denoiser: Denoiser,
    x: Tensor,
    levels: Sequence[float],
    cond: Cond,
    done: Callable[[], None] | None = None,
) -> tuple[list[Tensor], list[Any]]:
    """Return the points of the fine trajectory at the levels and clean, and the predictions."""
    logs = [math.log(r) for r in levels]
    between = [
        torch.linspace(a, b, FINER + 1, dtype=torch.float64)[:-1]
        for a, b in itertools.pairwise(logs)
    ]
    finer = torch.cat([*between, torch.tensor(logs[-1:], dtype=torch.float64)]).exp()
    grid = listed(denoiser.process, finer.tolist())
    points, said = [x], []
    for step in solvers.sample(denoiser, tuple(x.shape), grid, DPMSolverPP(3), cond, x=x):
        if step.index % FINER == 0:
            said.append(step.prediction)
        if (step.index + 1) % FINER == 0 or step.index + 1 == step.total:
            points.append(step.x)
        if done is not None:
            done()
    return points, said


def shortest(cost: Tensor, steps: int, coefficient: float = 1.0) -> list[int]:
    """Return the cheapest way from the first node to the last in so many jumps.

    Minimises c_(0 i) + k (c_(i j) + k (c_(j l) + ...)) over all ways, exactly.

    Args:
        cost: of the jump from node i to node j > i, shape (M + 1, M + 1).
        steps: number of jumps, in 1..M.
        coefficient: k, > 0; above 1 later jumps count more.

    Returns:
        steps + 1 rising nodes, from 0 to M.

    Raises:
        UsageError: more jumps than nodes, or none.

    Source: Chen et al., 2024, algorithm 1 (arXiv 2405.11326).
    """
    last = len(cost) - 1
    if not 1 <= steps <= last:
        raise UsageError(f"steps {steps}: a grid is found for 1..{last} steps")
    forward = torch.ones_like(cost).triu(1).bool()
    cost = cost.masked_fill(~forward, math.inf)
    left, choices = cost[:, last], []
    for _ in range(steps - 1):
        whole = cost + coefficient * left
        left, choice = whole.min(1)
        choices.append(choice)
    way = [0]
    for choice in reversed(choices):
        way.append(int(choice[way[-1]]))
    return [*way, last]
