"""The forward process and the score field: what noise makes of the data, and the way back.

The data are points blurred a little, a density whose score is known exactly at every noise level;
the same points, blurred as much, train the network that is compared with it.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.denoiser import NetDenoiser
from fewstep.exact import Gaussian, Mixture
from fewstep.lab import draw
from fewstep.lab.chance import generator
from fewstep.lab.part import Part, most, near
from fewstep.lab.sets import STD
from fewstep.lab.size import Size
from fewstep.objectives import score_matching
from fewstep.objectives.denoising import noised
from fewstep.process import VE, Cosine

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

BLUR = 0.05
"""Standard deviation of the blur of the data, whose own is 0.5."""
TIMES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
"""Times at which the forward process is shown."""
RATIOS = (0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0)
"""Noise levels sigma / alpha at which the learned score is judged."""
JUDGED, DRAWN = 0.5, 0.2
"""That at which the error has a limit, noise as large as the data, and that of the picture."""
REACH = 2.2  # of the panels


def exact(x0: Tensor, kept: int) -> Mixture:
    """Return the exact denoiser of points blurred by `BLUR`, in float64.

    Args:
        x0: shape (n, 2); the first `kept` of them stand for all.
        kept: number of points, >= 1: each call compares a batch with all of them.
    """
    return Mixture(Cosine(), x0[:kept].double(), BLUR)


def noisy(denoiser: Mixture | NetDenoiser, x0: Tensor, t: float, own: torch.Generator) -> Tensor:
    """Return x_t of points, by the function that training uses; x0 of shape (n, 2)."""
    return noised(denoiser, x0, torch.full((len(x0),), t), own).x_t


def forward(x0: Tensor, size: Size, seed: int) -> Part:
    """Return the section about the forward process.

    Args:
        x0: the data, shape (n, 2), of standard deviation `STD`.
        size: how much work.
        seed: of the noise.
    """
    own = generator(seed, 4)
    process, truth = Cosine(), exact(x0, 1)
    many = x0[torch.randint(len(x0), (size.points,), generator=own)] if len(x0) < 4000 else x0
    many = many * (STD / many.std(0).square().mean().sqrt())
    seen = {t: noisy(truth, many, t, own) for t in TIMES}
    found = {t: float(x.var(0).mean().sqrt()) for t, x in seen.items()}
    numbers = []
    for t in TIMES:
        alpha, sigma = process.levels(t)
        want = math.sqrt((alpha * STD) ** 2 + sigma**2)
        numbers.append(near(f"standard deviation at t = {t:g}", found[t], want, 0.02 * want))
    overlap = [float((seen[t] * many).sum() / many.square().sum()) for t in TIMES]
    apart = max(abs(a - float(process.alpha(t))) for a, t in zip(overlap, TIMES, strict=True))
    numbers.append(most("signal left in x_t, largest distance from alpha", apart, 0.05))

    def picture(drawing: "Drawing") -> None:
        for axes, t in zip(draw.panels(drawing, 2, 3), TIMES, strict=True):
            draw.plane(axes, REACH, f"t = {t:g}: std {found[t]:.3f}")
            draw.cloud(axes, seen[t][:2000], size=2.2)

    return Part(
        "The forward process: data become noise",
        (
            f"The data are scaled to standard deviation {STD:g}, one factor for both axes. "
            "Signal shrinks, noise grows; the standard deviation of the mixture is known at "
            "every time, whatever the data are.",
        ),
        (
            "<i>x<sub>t</sub></i> = &alpha;<sub><i>t</i></sub> <i>x</i><sub>0</sub> + "
            "&sigma;<sub><i>t</i></sub> &epsilon;,&ensp; &epsilon; ~ N(0, I)",
            f"std(<i>x<sub>t</sub></i>) = &radic;(&alpha;<sub><i>t</i></sub><sup>2</sup> "
            f"{STD:g}<sup>2</sup> + &sigma;<sub><i>t</i></sub><sup>2</sup>)",
        ),
        ("fewstep.objectives.denoising.noised", "fewstep.process.Cosine"),
        tuple(numbers),
        "Six panels with 2000 points each, from the data to a round cloud of noise",
        picture,
        (7.4, 5.2),
    )


def relative_error(learned: NetDenoiser, truth: Mixture, ratio: float, seed: int) -> float:
    """Return E|s_learned - s|^2 / E|s|^2 at one noise level.

    Args:
        learned: a trained denoiser.
        truth: the exact one of the same data and process.
        ratio: sigma / alpha, > 0.
        seed: of the points at which it is measured.
    """
    own = generator(seed, 5)
    t = float(truth.process.time(-2 * math.log(ratio)))
    rows = torch.randint(len(truth.means), (1000,), generator=own)
    x0 = truth.means[rows].float()
    x0 = x0 + BLUR * torch.randn(x0.shape, generator=own)
    x_t = noisy(learned, x0, t, own)
    with torch.no_grad():
        want, got = truth(x_t.double(), t).score, learned(x_t, t).score
    return float((got - want).square().sum() / want.square().sum())


def autograd_error(truth: Mixture, ratio: float, seed: int) -> float:
    """Return the largest difference of the exact score from the gradient of the log density.

    Args:
        truth: an exact denoiser.
        ratio: sigma / alpha, > 0.
        seed: of the points at which it is measured.
    """
    own = generator(seed, 6)
    t = float(truth.process.time(-2 * math.log(ratio)))
    x = torch.randn(200, 2, generator=own, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(truth.log_density(x, t).sum(), x)
    return float((truth(x.detach(), t).score - slope).abs().max())


def floor_of_the_loss(n: int, seed: int) -> float:
    """Return the loss of the exact score: data N(0, 0.5^2 I) in the plane, noise of 1.

    Args:
        n: samples, >= 1.
        seed: of data and noise.

    Returns:
        near 0.1 D = 0.2, the part of the noise that nobody can know, and not 0.
    """
    own = generator(seed, 7)
    x0, eps = (torch.randn(n, 2, generator=own) for _ in range(2))
    process = VE(0.01, 50.0)
    truth, t = Gaussian(process, torch.zeros(2), 0.5), float(process.time(0.0))
    losses = score_matching.denoising(lambda x: truth(x, t).score, 0.5 * x0, 1.0, eps)
    return float(losses.mean())


def score(x0: Tensor, learned: NetDenoiser, size: Size, seed: int) -> Part:
    """Return the section about the score field.

    Args:
        x0: the data, shape (n, 2), of standard deviation `STD`.
        learned: the network trained on them with the blur `BLUR`.
        size: how much work.
        seed: of the points at which it is measured.
    """
    truth = exact(x0, 10 * size.kept)
    errors = {ratio: relative_error(learned, truth, ratio, seed) for ratio in RATIOS}
    t = float(truth.process.time(-2 * math.log(DRAWN)))
    numbers = (
        most("exact score against automatic differentiation",
             autograd_error(exact(x0, size.kept), JUDGED, seed), 1e-8),
        most(f"relative error of the learned score, noise {JUDGED:g}", errors[JUDGED],
             size.learned),
        near("least loss, data N(0, 0.25 I), noise 1", floor_of_the_loss(100_000, seed),
             0.2, 0.004),
    )  # fmt: skip

    shade = draw.shade(exact(x0, size.kept), t, 1.7)

    def picture(drawing: "Drawing") -> None:
        left, right = draw.panels(drawing, 1, 2)
        side = torch.linspace(-1.5, 1.5, 15)
        at = torch.cartesian_prod(side, side)
        for axes, denoiser, colour, name in (
            (left, truth, draw.GREEN, f"exact score, noise {DRAWN:g}"),
            (right, learned, draw.RED, f"learned: {100 * errors[DRAWN]:.2g} % off"),
        ):
            draw.plane(axes, 1.7, name)
            draw.density(axes, shade, 1.7)
            with torch.no_grad():
                draw.arrows(axes, at, denoiser(at, t).score, colour)

    shown = ", ".join(f"{100 * e:.2g} % at {ratio:g}" for ratio, e in errors.items())
    return Part(
        "The score: the way back to the data",
        (
            "The score is the gradient of the log density of noisy data. The data here are "
            f"points blurred by {BLUR:g}, so that the exact score is known. The network was "
            "shown nothing but noisy points and asked what noise is in them.",
            "Its error depends on the noise sigma / alpha (the share of the squared length of "
            f"the score): {shown}. Little noise is the hardest: there the field has the finest "
            "detail. Even the exact score has a loss above 0.",
        ),
        (
            "&nabla; log <i>q</i>(<i>x<sub>t</sub></i>) = "
            "&minus; E[&epsilon; | <i>x<sub>t</sub></i>] / &sigma;<sub><i>t</i></sub>",
            "least loss for N(0, <i>s</i><sup>2</sup>I): &frac12; <i>D s</i><sup>2</sup> / "
            "(<i>s</i><sup>2</sup> + &sigma;<sup>2</sup>)",
        ),
        (
            "fewstep.prediction.Prediction.score",
            "fewstep.exact.Mixture",
            "fewstep.objectives.Denoising",
            "fewstep.objectives.score_matching.denoising",
        ),
        numbers,
        "Two panels with the density of the noisy data and arrows towards it: the exact score, "
        "and what the network learned",
        picture,
        (7.4, 3.9),
    )
