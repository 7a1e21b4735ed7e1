"""The denoising objective: label dropout, losses by hand, times and weights."""

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoiser import EPS, NetDenoiser
from fewstep.errors import UsageError
from fewstep.exact import Mixture
from fewstep.objectives import Denoising, noised, times, weights
from fewstep.prediction import VIEWS, Prediction
from fewstep.process import EDM, VP, Cosine, Process, Tabulated


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Ear(nn.Module):
    """Remembers the condition it was given; predicts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: Tensor | None = None

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        self.heard = cond
        return torch.zeros_like(x)


@pytest.mark.parametrize("drop", [0.1, 0.2, 0.5])
def test_the_drop_rate(drop: float) -> None:
    """100,000 samples: within 4 standard errors (false alarm 6e-5), each sample for itself."""
    ear, n = Ear(), 100_000
    cond = torch.arange(n) % 10
    Denoising(drop=drop)(NetDenoiser(ear, VP()), torch.zeros(n, 1), cond, 0, generator())
    assert ear.heard is not None
    gone = ear.heard < 0
    assert abs(float(gone.float().mean()) - drop) < 4 * math.sqrt(drop * (1 - drop) / n)
    assert torch.equal(ear.heard[~gone], cond[~gone])
    assert cond.min() == 0
    hundreds = gone.reshape(-1, 100).float().mean(1)
    assert float(hundreds.std()) == pytest.approx(math.sqrt(drop * (1 - drop) / 100), rel=0.15)


@pytest.mark.parametrize(("drop", "kept"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_drop_rate(drop: float, kept: bool) -> None:
    ear, cond = Ear(), torch.arange(50)
    Denoising(drop=drop)(NetDenoiser(ear, VP()), torch.zeros(50, 1), cond, 0, generator())
    assert ear.heard is not None
    assert bool((ear.heard >= 0).all()) is kept
    assert bool((ear.heard < 0).all()) is not kept


def test_without_classes_nothing_is_dropped() -> None:
    ear = Ear()
    Denoising(drop=1.0)(NetDenoiser(ear, VP()), torch.zeros(5, 1), None, 0, generator())
    assert ear.heard is None


def test_the_simple_loss_by_hand() -> None:
    """A network that says eps = 0: the loss is the mean square of the noise of each sample."""
    d = NetDenoiser(Ear(), VP(), EPS)
    x0 = torch.randn(6, 2, 3, generator=generator(1))
    loss = Denoising("eps", drop=0)(d, x0, None, 0, generator(2))
    g = generator(2)
    t = times.Uniform()(VP(), 6, g)
    want = noised(d, x0, t, g).eps.square().flatten(1).mean(1)
    assert loss.shape == (6,)
    assert torch.allclose(loss, want, rtol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_the_exact_denoiser_has_the_least_loss(view: str) -> None:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    best = Mixture(VP(), means, 0.3)
    other = Mixture(VP(), means * 1.2, 0.3)
    x0 = means[torch.arange(4000) % 2] + 0.3 * torch.randn(
        4000, 2, generator=generator(4), dtype=torch.float64
    )
    objective = Denoising(view, times.Uniform(0.05), drop=0)
    a, b = (objective(d, x0, None, 0, generator(5)).mean() for d in (best, other))
    assert a < b


def test_the_losses_come_from_the_generator_alone() -> None:
    d = NetDenoiser(Ear(), VP())
    x0 = torch.randn(4, 3, generator=generator())
    state = torch.get_rng_state()
    one = Denoising()(d, x0, torch.zeros(4, dtype=torch.long), 0, generator(7))
    two = Denoising()(d, x0, torch.zeros(4, dtype=torch.long), 99, generator(7))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("p", [VP(), Cosine(), Tabulated(steps=40)], ids=str)
def test_uniform_times_are_uniform_and_stratified(p: Process) -> None:
    draws = torch.stack([times.Uniform()(p, 16, generator(k)) for k in range(400)])
    assert draws.shape == (400, 16)
    assert 0 < float(draws.min()) <= float(draws.max()) <= 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.02)
    sorted_ = draws.sort(1).values
    assert float(sorted_.diff(dim=1).max()) < 2 / 16  # no hole in any batch
    assert abs(float(draws[:, 0].mean()) - 0.5) < 4 * 0.29 / 20  # positions are not ordered
    if isinstance(p, Tabulated):
        steps = draws * p.steps
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        assert set(steps.round().int().flatten().tolist()) == set(range(1, 41))


@pytest.mark.parametrize("p", [VP(), EDM(), Cosine(), Tabulated()], ids=str)
def test_lognormal_times_have_edms_law(p: Process) -> None:
    """ln(sigma / alpha) ~ N(-1.2, 1.2^2) within 4.5 standard errors, in float32 as in training."""
    n = 20_000
    t = times.LogNormal()(p, n, generator(3))
    assert t.dtype == torch.float32
    log = -p.logsnr(t.double()) / 2
    assert abs(float(log.mean()) + 1.2) < 4.5 * 1.2 / n**0.5
    assert abs(float(log.std()) - 1.2) < 4.5 * 1.2 / (2 * n) ** 0.5


def test_the_weights() -> None:
    a, s = torch.tensor([[0.8], [0.1]]), torch.tensor([[0.6], [0.9]])
    truth = Prediction(torch.zeros(2, 3), a, s, torch.zeros(2, 3), torch.zeros(2, 3))
    assert weights.One()(truth) == 1.0
    capped = weights.MinSNR(1.0)(truth)
    assert isinstance(capped, Tensor)
    assert capped.flatten().tolist() == pytest.approx([1.0, 1 / 81])
    r = s / a
    edm = weights.Edm()(truth)
    assert isinstance(edm, Tensor)
    assert torch.allclose(edm, (r**2 + 0.25) / (0.5 * r) ** 2)


@pytest.mark.parametrize("weight", [weights.MinSNR(), weights.Edm()], ids=str)
def test_a_weight_of_the_x0_error_wants_the_x0_view(weight: weights.Weight) -> None:
    for view in ("v", "eps", "score"):
        with pytest.raises(UsageError, match=rf"with view {view}.*use view=x0"):
            Denoising(view, weight=weight)
        Denoising(view, weight=weights.One())
    x0 = torch.randn(6, 2, generator=generator(1))
    loss = Denoising("x0", weight=weight, drop=0)(
        NetDenoiser(Ear(), VP()), x0, None, 0, generator()
    )
    assert loss.shape == (6,)
    assert bool(loss.isfinite().all())


def test_refuses_unknown_views_and_rates() -> None:
    with pytest.raises(UsageError, match='view "velocity"'):
        Denoising("velocity")
    for drop in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match=r"drop .*must be a probability in 0\.\.1"):
            Denoising(drop=drop)
    with pytest.raises(ValueError, match="view 'nose'"):
        Prediction(torch.zeros(1), 1.0, 1.0, torch.zeros(1)).view("nose")
