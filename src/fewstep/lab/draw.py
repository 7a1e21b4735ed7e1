"""The brushes of the laboratory: equal axes, clouds of points, densities, paths.

Colours keep apart on light and on dark ground; what has thousands of marks is drawn as pixels
inside the SVG, so that a page stays small.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fewstep.exact import Mixture
from fewstep.report import chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BLUE, RED, GREEN = "#3391d9", *chart.COLOURS[1:3]
"""Of data, of samples, of what is exact; blue is lighter than in charts, for dark pages."""
_CELLS = 90  # of a density, to a side


def panels(drawing: "Drawing", rows: int, columns: int) -> "list[Axes]":
    """Return the panels of an empty drawing, row by row."""
    return list(drawing.subplots(rows, columns, squeeze=False).flat)


def plane(axes: "Axes", reach: float, title: str = "", size: float = 10.5) -> None:
    """Make a panel a piece of the plane, -reach to reach, with equal axes and no ticks."""
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=(), yticks=(), aspect="equal")
    for side in axes.spines.values():
        side.set_visible(True)
        side.set(color=chart.GREY, alpha=0.5, lw=0.6)
    axes.set_title(title, size=size)


def cloud(axes: "Axes", x: Tensor, colour: str = BLUE, size: float = 1.6) -> None:
    """Draw points as pixels; x of shape (n, 2)."""
    axes.scatter(
        x[:, 0].numpy(), x[:, 1].numpy(), s=size, c=colour, alpha=0.55, lw=0, rasterized=True
    )


def shade(denoiser: Mixture, t: float, reach: float) -> Tensor:
    """Return the density of x_t on -reach..reach, over its largest value, shape (rows, columns).

    Args:
        denoiser: an exact one.
        t: the time.
        reach: half the side of the square.
    """
    side = torch.linspace(-reach, reach, _CELLS)
    p = denoiser.log_density(torch.cartesian_prod(side, side), t).exp()
    return (p / p.max()).reshape(_CELLS, _CELLS).T


def density(axes: "Axes", shade: Tensor, reach: float) -> None:
    """Shade a panel by a density as `shade` returns it, shape (n, n), from nothing to blue."""
    from matplotlib.colors import to_rgba

    colours = np.empty((*shade.shape, 4))
    colours[:] = to_rgba(BLUE)
    colours[..., 3] = 0.75 * shade.sqrt().numpy()
    ends = (-reach, reach, -reach, reach)
    axes.imshow(colours, extent=ends, origin="lower", interpolation="none", zorder=0)


def arrows(axes: "Axes", at: Tensor, way: Tensor, colour: str) -> None:
    """Draw arrows at points, both of shape (n, 2), as long as the square root of their size."""
    size = way.norm(dim=1, keepdim=True).clamp_min(1e-12)
    way = way / size.sqrt()
    axes.quiver(
        at[:, 0], at[:, 1], way[:, 0], way[:, 1], color=colour, angles="xy", scale_units="xy",
        scale=float(way.norm(dim=1).max()) / 0.22, width=0.006, headwidth=4, alpha=0.9,
    )  # fmt: skip


def paths(axes: "Axes", walk: Sequence[Tensor], colour: str, mark: str = "") -> None:
    """Draw the ways of points, each entry of the walk of shape (n, 2)."""
    together = torch.stack(list(walk)).numpy()
    for i in range(together.shape[1]):
        axes.plot(
            together[:, i, 0], together[:, i, 1], color=colour, lw=0.9, marker=mark, ms=2.6, mew=0
        )
