"""Rows S5, S6, S7: what classifier-free guidance costs over the same work without it.

The network is the small U-Net of `networks` with ten classes, in float32. The conditional and the
unconditional branch are one call with a doubled batch or two calls, and the guidance chooses by
the number of images (`guide.affine.branches`); each row states both ways beside the chosen one.
S7 is DDIM over ten steps of which three are guided, against ten steps without guidance, and stops
unless the network was asked about exactly 1.3 times the images.
"""

import dataclasses
import json
from collections.abc import Collection

import torch
from torch import Tensor, nn

from benchmarks import pairs, timing
from fewstep import guide, solvers
from fewstep.denoiser import Denoiser, NetDenoiser
from fewstep.nets.unet import UNet
from fewstep.process import Cosine
from fewstep.train.engine import tune_cpu

CLASSES, SCALE = 10, 2.0
STEPS, GUIDED = 10, 3


class Counted(nn.Module):
    """Count the images that a network is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        self.images += len(x)
        return self.net(x, label, cond)


def denoiser() -> NetDenoiser:
    """Return a denoiser with classes and the null condition."""
    config = dataclasses.replace(pairs.SMALL, classes=CLASSES)
    return NetDenoiser(pairs.awake(UNet(config)), Cosine())


def _asked(one: Denoiser, x: Tensor, cond: Tensor) -> timing.Side:
    @torch.no_grad()
    def run() -> None:
        one(x, 0.5, cond)

    return run


def _millis(seconds: list[float]) -> list[float]:
    return [s * 1e3 for s in seconds]


def one_call(name: str, batch: int, goal: float, rounds: int) -> timing.Row:
    """Measure S5 or S6: one guided prediction over one unguided."""
    plain = denoiser()
    x, cond = pairs.noisy(batch)[0], torch.arange(batch) % CLASSES
    null = torch.full_like(cond, -1)
    twice = _asked(plain, torch.cat([x, x]), torch.cat([null, cond]))
    first, second = _asked(plain, x, null), _asked(plain, x, cond)
    sides = {
        "ours": _asked(guide.ClassifierFree(plain, SCALE), x, cond),
        "plain": second,
        "doubled": twice,
        "two calls": lambda: (first(), second()),
    }
    times = timing.take_turns(sides, rounds, 2)
    what = f"one guided prediction, small U-Net, batch {batch}, vs one unguided"
    return timing.row(
        name, what, _millis(times["ours"]), _millis(times["plain"]), "ms", goal,
        doubled_ratio=timing.ratio(times["doubled"], times["plain"]),
        two_calls_ratio=timing.ratio(times["two calls"], times["plain"]),
    )  # fmt: skip


def in_part(rounds: int, batch: int = 8) -> timing.Row:
    """Measure S7: guidance at three of ten steps over no guidance."""
    plain = denoiser()
    plain.net = counted = Counted(plain.net)
    times = solvers.grids.uniform(STEPS)
    ratio = [float(plain.process.sigma(float(t)) / plain.process.alpha(float(t))) for t in times]
    first = (STEPS - GUIDED) // 2
    low, high = ratio[first + GUIDED], ratio[first]  # steps start at the noisier end
    interval = guide.Interval(guide.ClassifierFree(plain, SCALE), plain, low, high)
    x, cond = pairs.noisy(batch)[0], torch.arange(batch) % CLASSES

    def side(one: Denoiser, images: int) -> timing.Side:
        def run() -> None:
            counted.images = 0
            for _ in solvers.sample(one, tuple(x.shape), times, solvers.DDIM(), x=x, cond=cond):
                pass
            if counted.images != images:
                raise AssertionError(f"{counted.images} images were asked about, not {images}")

        return run

    sides = {
        "ours": side(interval, batch * (STEPS + GUIDED)),
        "peer": side(plain, batch * STEPS),
    }
    taken = timing.take_turns(sides, rounds, 1)
    what = f"{STEPS} steps of DDIM, {GUIDED} of them guided, small U-Net, batch {batch}, vs none"
    return timing.row("S7", what, _millis(taken["ours"]), _millis(taken["peer"]), "ms", 1.35)


def run(rounds: int = 7, rows: Collection[str] = ("S5", "S6", "S7")) -> list[timing.Row]:
    """Measure the rows that are asked for."""
    tuned = tune_cpu()
    measures = {
        "S5": lambda: one_call("S5", 1, 1.55, 5 * rounds),
        "S6": lambda: one_call("S6", 64, 2.02, rounds),
        "S7": lambda: in_part(rounds),
    }
    with timing.one_thread():
        return [line | {"memory_kept": tuned} for line in timing.each(measures, rows)]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
