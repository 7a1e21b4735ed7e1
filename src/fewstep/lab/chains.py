"""Langevin dynamics: the price of a fixed step, and the trap of two modes.

On a Gaussian the variance of a chain with a fixed step is known in closed form. Between two modes
far apart the score does not say how much each weighs: chains stay where they began, unless they
come down a ladder of noise levels.
"""

from collections import deque
from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.exact import Mixture
from fewstep.lab import draw
from fewstep.lab.chance import generator, source
from fewstep.lab.part import Number, Part, between, near
from fewstep.lab.size import Size
from fewstep.langevin import Moments, Move, annealed, ladder, langevin, score_of
from fewstep.process import VE
from fewstep.report import chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MODES = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)
"""Centres of the two modes, each N(., I)."""
WEIGHTS = torch.tensor([0.2, 0.8], dtype=torch.float64)
"""Their weights: the second is the heavy one."""
_VARIANCES = {0.1: 1.02564, 0.5: 1.14286, 1.0: 1.33333}  # 1 / (1 - delta / 4)
_STEPS = 100  # of a chain on a Gaussian, the second half of which is measured
_LEVELS, _EACH = 10, 100  # of the ladder; the plain chains take as many steps


def widened(delta: float, chains: int, seed: int) -> float:
    """Return the variance that Langevin chains with a fixed step have on N(0, 1).

    Args:
        delta: the step size, in (0, 4).
        chains: how many, >= 2.
        seed: of start and noise.

    Returns:
        near 1 / (1 - delta / 4), not 1.
    """
    noise, moments = source(seed, 0), Moments()
    for move in langevin(torch.neg, noise(torch.empty(chains, 1)), repeat(delta, _STEPS), noise):
        if move.index >= _STEPS // 2:
            moments.add(move.x)
    return float(moments.variance)


def diverges(delta: float, seed: int) -> bool:
    """Return whether chains on N(0, 1) with this step leave for infinity within 200 steps."""
    noise = source(seed, 1)
    start = noise(torch.empty(100, 1, dtype=torch.float64))
    (last,) = deque(langevin(torch.neg, start, repeat(delta, 200), noise), maxlen=1)
    return bool(last.x.abs().max() > 1e6)


def plain(chains: int, seed: int) -> Iterator[Move]:
    """Walk chains between the two modes with a fixed step; see `annealed_chains`."""
    score, noise = score_of(two_modes()), source(seed, 2)
    steps = repeat(0.1, _LEVELS * _EACH)
    return langevin(lambda x: score(x, 0.01), _start(chains, seed), steps, noise)


def annealed_chains(chains: int, seed: int) -> Iterator[Move]:
    """Walk chains down a ladder of noise levels between the two modes.

    Args:
        chains: how many.
        seed: of start and noise.

    Returns:
        an iterator of moves, as many as `plain` makes, from the same start.
    """
    sigmas = ladder.geometric(20.0, 0.1, _LEVELS)
    steps = 0.1 * (sigmas**2 + 1) / 1.01
    start = _start(chains, seed)
    return annealed(
        score_of(two_modes()), sigmas, steps, start, source(seed, 2), _EACH, denoise=False
    )


def two_modes() -> Mixture:
    """Return the exact denoiser of the two modes."""
    return Mixture(VE(0.01, 50.0), MODES, 1.0, weights=WEIGHTS)


def heavy(x: Tensor) -> Tensor:
    """Return which chains are in the heavy mode, bool, shape (B,); x of shape (B, 2)."""
    return x.sum(1) > 0


def _start(chains: int, seed: int) -> Tensor:
    """Return starts uniform in (-8, 8)^2, in pairs x, -x: neither mode is favoured by chance."""
    own = generator(seed, 3)
    x = 16 * torch.rand(-(-chains // 2), 2, generator=own, dtype=torch.float64) - 8
    return torch.cat([x, -x])[:chains]


def walked(chains: int, seed: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Return the shares of plain and annealed chains in the heavy mode, and where they end.

    Args:
        chains: how many, >= 1.
        seed: of start and noise.

    Returns:
        by name, the share after every tenth step, and the chains, shape (chains, 2).
    """
    shares, ends = {}, {}
    for name, walk in (("plain", plain), ("annealed", annealed_chains)):
        shares[name] = []
        for move in walk(chains, seed):
            if move.index % 10 == 9:
                shares[name].append(float(heavy(move.x).double().mean()))
            ends[name] = move.x
    return shares, ends


def measure(size: Size, seed: int) -> Part:
    """Return the section about Langevin dynamics.

    Args:
        size: how much work.
        seed: of everything drawn.
    """
    variances = {d: widened(d, size.chains, seed) for d in _VARIANCES}
    found, ends = walked(size.modes, seed)
    share = {name: known[-1] for name, known in found.items()}
    spread = float(ends["annealed"][heavy(ends["annealed"])].std(0).mean())
    numbers: list[Number] = [
        near(f"variance on N(0, 1), step {d:g}", variances[d], v, 0.02 * v)
        for d, v in _VARIANCES.items()
    ]
    numbers += [
        near("step 5 diverges (1 = yes)", float(diverges(5.0, seed)), 1.0, 0.0),
        near("step 3 diverges", float(diverges(3.0, seed)), 0.0, 0.0),
        near("share in the heavy mode, plain chains", share["plain"], 0.50, 0.03),
        between("share in the heavy mode, annealed", share["annealed"], 0.72, 0.85),
        near("deviation within it, annealed", spread, 1.0, 0.06),
    ]

    shade = draw.shade(two_modes(), 0.0, 11.0)

    def picture(drawing: "Drawing") -> None:
        left, right, last = draw.panels(drawing, 1, 3)
        for axes, name in ((left, "plain"), (right, "annealed")):
            draw.plane(axes, 11.0, f"{name}: {100 * share[name]:.0f} % are heavy")
            draw.density(axes, shade, 11.0)
            draw.cloud(axes, ends[name][:1500], draw.RED)
        for name, colour in (("plain", draw.RED), ("annealed", draw.GREEN)):
            last.plot(range(10, 10 * len(found[name]) + 1, 10), found[name], c=colour, label=name)
        last.axhline(float(WEIGHTS[1]), color=chart.GREY, ls=":", label="its weight")
        last.set(ylim=(0.4, 0.9), xticks=(0, 500, 1000), box_aspect=1)
        last.set_title("share in the heavy mode", size=10.5)
        last.legend(fontsize=8)

    return Part(
        "Langevin dynamics, without and with annealing",
        (
            "A chain that follows the score and is shaken samples the density, if its step is "
            "small. With a fixed step of size &delta; it settles on a law that is too wide: "
            "N(0, 1) gets the variance 1 / (1 &minus; &delta;/4), and &delta; above 4 diverges.",
            "The modes in the picture weigh 0.2 and 0.8. The score in the gap between them says "
            "nothing of these weights, so that half the chains, which began nearer to the heavy "
            "mode, end there. Annealed chains start where the noise has merged the modes.",
        ),
        (
            "<i>x</i> &larr; <i>x</i> + &delta;/2 &nabla; log <i>p</i>(<i>x</i>) + "
            "&radic;&delta; <i>z</i>,&ensp; <i>z</i> ~ N(0, I)",
            "variance at the end on N(0, <i>s</i><sup>2</sup>): "
            "<i>s</i><sup>2</sup> / (1 &minus; &delta; / (4 <i>s</i><sup>2</sup>))",
        ),
        (
            "fewstep.langevin.langevin",
            "fewstep.langevin.annealed",
            "fewstep.langevin.ladder.geometric",
            "fewstep.langevin.score_of",
        ),
        tuple(numbers),
        "Two panels with the ends of 1500 chains, which divide equally between the two modes if "
        "plain and find that one is heavier if annealed; a third with the share against steps",
        picture,
        (7.4, 2.9),
    )
