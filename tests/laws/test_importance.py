"""Laws of importance sampling of t: the same expectation as uniform times, with less variance."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.denoiser import EPS, NetDenoiser
from fewstep.errors import UsageError
from fewstep.objectives import Bound, Denoising, Hybrid, LossSecondMoment
from fewstep.process import Cosine, Tabulated

STEPS = 8
TABLE = torch.tensor([40.0, 3, 1, 0.5, 0.2, 0.1, 0.1, 0], dtype=torch.float64)
"""Losses by step, as skewed as the terms of the bound are."""


def warm(table: Tensor = TABLE, keep: int = 10) -> LossSecondMoment:
    """Return times that have seen every loss of a table `keep` times."""
    times = LossSecondMoment(len(table), keep)
    t = torch.arange(1, len(table) + 1) / len(table)
    for _ in range(keep):
        times.see(t, table)
        times.learn(times.seen())
    return times


def test_the_expectation_is_the_uniform_one() -> None:
    """sum p_t (1 / T p_t) L_t = mean L, exactly, and before the warm-up is over as after it."""
    t = torch.arange(1, STEPS + 1) / STEPS
    for times in (LossSecondMoment(STEPS), warm(keep=9), warm()):
        p = times.probabilities
        assert float(p.sum()) == pytest.approx(1, abs=1e-15)
        got = (p * times.weight(t) * TABLE).sum()
        assert float(got) == pytest.approx(float(TABLE.mean()), abs=1e-14)


def test_the_variance_falls() -> None:
    """Of one reweighted loss, drawn in proportion to itself: nearly none is left."""
    t = torch.arange(1, STEPS + 1) / STEPS

    def variance(times: LossSecondMoment) -> float:
        p, x = times.probabilities, times.weight(t) * TABLE
        return float((p * x**2).sum() - (p * x).sum() ** 2)

    assert variance(warm()) < 0.01 * variance(LossSecondMoment(STEPS))


def test_the_probabilities_are_those_of_the_paper() -> None:
    """Root of the mean square of the last ten losses, and a thousandth of it uniform."""
    times = warm()
    t = torch.full((5,), 2 / STEPS)
    times.see(t, torch.full((5,), 7.0))
    times.learn(times.seen())  # five losses of step 2 are 7 now, five are still 3
    root = TABLE.clone()
    root[1] = math.sqrt((5 * 49 + 5 * 9) / 10)
    want = 0.999 * root / root.sum() + 0.001 / STEPS
    assert torch.allclose(times.probabilities, want, rtol=1e-7, atol=0)


def test_times_are_uniform_until_every_step_has_its_losses() -> None:
    times = LossSecondMoment(STEPS)
    t = torch.arange(1, STEPS) / STEPS  # all but the last
    for _ in range(20):
        times.see(t, TABLE[:-1])
        times.learn(times.seen())
    assert torch.equal(times.probabilities, torch.full((STEPS,), 1 / STEPS).double())


@pytest.mark.parametrize("table", [TABLE, torch.zeros(STEPS)], ids=["skewed", "nothing left"])
def test_the_times_drawn_have_these_probabilities(table: Tensor) -> None:
    """Stratified draws: each count is within one of n p_t, however the strata are rotated."""
    times, n = warm(table), 1000
    for seed in range(5):
        t = times(Tabulated("cosine", STEPS), n, torch.Generator().manual_seed(seed))
        assert t.dtype == torch.float32
        counts = torch.bincount((t * STEPS).round().long() - 1, minlength=STEPS)
        assert float((counts - n * times.probabilities).abs().max()) < 1


def test_what_is_stored_comes_back() -> None:
    times, other = warm(), LossSecondMoment(STEPS)
    other.restore({k: v.clone() for k, v in times.state().items()})
    assert torch.equal(other.probabilities, times.probabilities)
    other.restore(None)
    assert torch.equal(other.probabilities, LossSecondMoment(STEPS).probabilities)
    with pytest.raises(ValueError, match="history"):
        other.restore({"count": times.state()["count"]})
    with pytest.raises(ValueError, match="history"):
        LossSecondMoment(STEPS + 1).restore(times.state())


class Said(torch.nn.Module):
    """Answers with nothing, in twice the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.cat([0.9 * x, self.wide * torch.ones_like(x)], dim=1)


def test_the_bound_is_reweighted_and_remembered() -> None:
    """Under any table the mean loss over all times is that of uniform times: with a network that
    knows the answer in part, and 4096 images to a batch."""
    process = Tabulated("cosine", STEPS)
    x0 = (torch.arange(256) / 127.5 - 1)[torch.arange(4096 * 4) % 256].reshape(4096, 1, 2, 2)
    denoiser = NetDenoiser(Said(), process, EPS)
    steep = warm(TABLE.flip(0) + 1)  # the wrong way round: rare times have large weights
    found = []
    for times in (LossSecondMoment(STEPS), steep):
        goal = Bound(times=times)
        losses = torch.cat([
            goal(denoiser, x0, None, 0, torch.Generator().manual_seed(i)).detach()
            for i in range(8)
        ])  # fmt: skip
        found.append((float(losses.mean()), float(losses.std()) / math.sqrt(len(losses))))
        rows = times.seen()
        assert rows.shape == (8 * 4096, 2)
        want = losses / (STEPS * times.weight((rows[:, 0] + 1) / STEPS))  # bits of the step itself
        assert torch.allclose(rows[:, 1], want.float(), rtol=1e-5)
        assert times.seen().shape == (0, 2)
    (a, a_sd), (b, b_sd) = found
    assert abs(a - b) < 4 * math.hypot(a_sd, b_sd)
    assert math.hypot(a_sd, b_sd) < 0.1 * a


@pytest.mark.parametrize("bad", [
    lambda: LossSecondMoment(1),
    lambda: LossSecondMoment(8, keep=0),
    lambda: LossSecondMoment(8, uniform=0),
    lambda: Denoising(times=LossSecondMoment(8)),
    lambda: Hybrid(times=LossSecondMoment(8)),
])  # fmt: skip
def test_what_it_is_not_for_is_refused(bad) -> None:
    with pytest.raises(UsageError):
        bad()


def test_another_table_is_refused() -> None:
    times = LossSecondMoment(8)
    with pytest.raises(UsageError, match="8 steps"):
        times(Tabulated("cosine", 9), 4, torch.Generator())
    with pytest.raises(UsageError, match="8 steps"):
        times(Cosine(), 4, torch.Generator())
