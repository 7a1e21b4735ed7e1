"""Guidance, on densities whose answer is known.

With exact parts, guidance by a classifier of scale 1 is the conditional model, and classifier-free
guidance of any scale is guidance by the classifier. What constant guidance samples is known in
closed form for Gaussians, and it is not the sharpened density.
"""

import math
from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep import guide, solvers
from fewstep.conditions import Cond, classes
from fewstep.denoiser import Denoiser
from fewstep.exact import Gaussian, Mixture
from fewstep.lab import draw
from fewstep.lab.chance import generator
from fewstep.lab.part import Part, most, near
from fewstep.lab.size import Size
from fewstep.prediction import Prediction
from fewstep.process import EDM, Cosine
from fewstep.shapes import Number as Time
from fewstep.solvers import grids

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

THREE = torch.tensor([[0.0, 0.7], [0.61, -0.35], [-0.61, -0.35]], dtype=torch.float64)
"""Centres of three classes."""
WIDE = 0.25
"""Their standard deviation: they overlap."""
SCALES = (0.0, 1.0, 2.0, 4.0)
"""Guidance scales of the clouds."""


class TwoGaussians(Denoiser):
    """Know N(mean, a) for any class and N(0, b) without one, exactly.

    Args:
        mean: of the conditional law.
        a: its variance, > 0.
        b: variance of the unconditional law, > 0.
    """

    def __init__(self, mean: float, a: float, b: float) -> None:
        super().__init__()
        self.process = EDM()
        at = torch.full((1,), mean, dtype=torch.float64)
        self.given = Gaussian(self.process, at, math.sqrt(a))
        self.free = Gaussian(self.process, 0 * at, math.sqrt(b))

    def forward(self, x_t: Tensor, t: Time, cond: Cond = None) -> Prediction:
        """Return the conditional prediction where a class is given."""
        asked = classes(cond)
        if asked is None:
            return self.free(x_t, t)
        x0 = torch.where(asked[:, None] < 0, self.free(x_t, t).x0, self.given(x_t, t).x0)
        return Prediction.from_x0(x_t, *self.levels(x_t, t), x0)


def three_classes() -> Mixture:
    """Return the exact denoiser of three overlapping classes."""
    return Mixture(Cosine(), THREE, WIDE, torch.arange(3))


def classifier_error(seed: int) -> float:
    """Return the largest difference of guidance by a classifier, scale 1, from the condition.

    Args:
        seed: of the points at which it is measured, at ten times.

    Returns:
        difference of the predicted noises, 0 but for rounding.
    """
    exact = three_classes()
    by_classifier = guide.LogProb(guide.Unconditional(exact), exact.log_prob, 1.0)
    return _apart(by_classifier, exact, seed)


def free_error(scale: float, seed: int) -> float:
    """Return the largest difference of classifier-free guidance from the exact classifier's.

    Args:
        scale: of both.
        seed: of the points at which it is measured, at ten times.

    Returns:
        difference of the predicted noises, 0 but for rounding.
    """
    exact = three_classes()
    by_classifier = guide.LogProb(guide.Unconditional(exact), exact.log_prob, scale)
    return _apart(guide.ClassifierFree(exact, scale), by_classifier, seed)


def _apart(one: Denoiser, other: Denoiser, seed: int) -> float:
    """Return the largest difference of two denoisers' predicted noises."""
    x = torch.randn(300, 2, generator=generator(seed, 9), dtype=torch.float64)
    y, worst = torch.arange(300) % 3, 0.0
    for t in torch.linspace(0.1, 1.0, 10).tolist():
        worst = max(worst, float((one(x, t, y).eps - other(x, t, y).eps).abs().max()))
    return worst


def end(mean: float, a: float, b: float, scale: float, steps: int = 400) -> tuple[float, float]:
    """Return mean and variance of what constant guidance samples from two Gaussians.

    The map from noise to sample is linear there, so that two points say all of it.

    Args:
        mean: of the conditional law.
        a: its variance, > 0.
        b: variance of the unconditional law N(0, b), > 0.
        scale: of classifier-free guidance.
        steps: of Heun's method on EDM's grid.

    Returns:
        mean and variance at t = 0, from N(0, 80^2).
    """
    denoiser = guide.ClassifierFree(TwoGaussians(mean, a, b), scale)
    x = torch.tensor([[0.0], [80.0]], dtype=torch.float64)
    times, y = grids.karras(denoiser.process, steps), torch.zeros(2, dtype=torch.long)
    walk = solvers.sample(denoiser, (2, 1), times, solvers.Heun(), y, x=x)
    (last,) = deque(walk, maxlen=1)
    low, high = last.x[:, 0].tolist()
    return low, (high - low) ** 2


def clouds(n: int, seed: int) -> dict[float, Tensor]:
    """Return n samples of class 0 for each scale in `SCALES`, shape (n, 2), of the same seeds."""
    y, times = torch.zeros(n, dtype=torch.long), grids.uniform(50)
    return {
        scale: solvers.generate(
            guide.ClassifierFree(three_classes(), scale), (n, 2), times, solvers.DDIM(), y, seed, n
        )
        for scale in SCALES
    }


def measure(size: Size, seed: int) -> Part:
    """Return the section about guidance.

    Args:
        size: how much work.
        seed: of everything drawn.
    """
    seen = clouds(size.cloud, seed)
    _, narrow = end(0.0, 1.0, 4.0, 2.0)
    moved, kept = end(1.0, 1.0, 1.0, 3.0)
    numbers = (
        most("classifier, scale 1, against the condition", classifier_error(seed), 1e-9),
        most("classifier-free against classifier, scale 3", free_error(3.0, seed), 1e-9),
        near("variance of N(0, 1) by N(0, 4), scale 2", narrow, 0.25, 0.25 * 0.005),
        near("the same in 32 steps of Heun", end(0.0, 1.0, 4.0, 2.0, 32)[1], 0.263, 0.001),
        # from N(0, 80^2), which still lacks 1 / sqrt(1 + 80^2) of the way to 3
        near("mean of N(1, 1) by N(0, 1), scale 3", moved, 2.9625, 0.001),
        near("variance of the same", kept, 1.0, 0.005),
    )
    shade = draw.shade(three_classes(), 0.0, 1.8)

    def picture(drawing: "Drawing") -> None:
        *places, last, spare = draw.panels(drawing, 2, 3)
        for axes, scale in zip(places, SCALES, strict=True):
            draw.plane(axes, 1.8, f"class 0, scale {scale:g}")
            draw.density(axes, shade, 1.8)
            draw.cloud(axes, seen[scale], draw.RED, 3.0)
        _curves(last, narrow)
        spare.axis("off")
        spare.legend(*last.get_legend_handles_labels(), loc="center", fontsize=10)

    return Part(
        "Guidance: harder than the condition",
        (
            "Guidance moves the prediction along the difference between knowing the class and "
            "not knowing it. Three overlapping classes, shaded, are sampled with the class at "
            "the top: scale 0 ignores it, 1 is the conditional density, more than 1 goes past.",
            "Guided steps of scale <i>s</i> do <em>not</em> sample the sharpened density "
            "<i>p</i>(<i>x</i>) <i>p</i>(<i>y</i>|<i>x</i>)<sup><i>s</i></sup>: for the Gaussians "
            "N(0, 1) and N(0, 4) with <i>s</i> = 2 they end at variance 0.25, where the sharpened "
            "density has 0.571. Equal variances only move the mean past that of the class.",
        ),
        (
            "classifier: &epsilon; = &epsilon;(<i>x<sub>t</sub></i>) &minus; <i>s</i> "
            "&sigma;<sub><i>t</i></sub> &nabla; log <i>p</i>(<i>y</i> | <i>x<sub>t</sub></i>)",
            "classifier-free: &epsilon; = &epsilon;(<i>x<sub>t</sub></i>) + <i>s</i> "
            "(&epsilon;(<i>x<sub>t</sub></i>, <i>y</i>) &minus; &epsilon;(<i>x<sub>t</sub></i>))",
            "sampled from N(0, <i>a</i>) guided by N(0, <i>b</i>): "
            "N(0, <i>a<sup>s</sup> b</i><sup>1&minus;<i>s</i></sup>)",
        ),
        (
            "fewstep.guide.LogProb",
            "fewstep.guide.ClassifierFree",
            "fewstep.guide.Unconditional",
            "fewstep.solvers.Heun",
        ),
        numbers,
        "Four clouds of guided samples that move away from the other classes as the scale "
        "grows, and three bell curves: the class, the sharpened density, what is sampled",
        picture,
        (7.4, 5.2),
    )


def _curves(axes: "Axes", narrow: float) -> None:
    """Draw the class N(0, 1), its sharpened density and what guidance of scale 2 samples."""
    x = torch.linspace(-3, 3, 200)
    for variance, colour, style, name in (
        (1.0, draw.BLUE, "-", "the class N(0, 1)"),
        (1 / (2 / 1 - 1 / 4), draw.GREEN, "--", "sharpened, 0.571"),
        (narrow, draw.RED, "-", f"sampled, {narrow:.3f}"),
    ):
        curve = (-(x**2) / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)
        axes.plot(x, curve, color=colour, ls=style, lw=1.6, label=name)
    axes.set(yticks=(), box_aspect=1)
    axes.set_title("variances, scale 2", size=10.5)
