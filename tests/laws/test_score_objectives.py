"""Laws of the objectives that match scores, on exact denoisers and through the networks."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.conditions import Cond
from fewstep.denoiser import EPS, Denoiser, NetDenoiser
from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.objectives import (
    Denoising,
    DenoisingScore,
    LossSecondMoment,
    Objective,
    SlicedScore,
)
from fewstep.objectives.times import Ladder
from fewstep.prediction import Prediction
from fewstep.process import VE, Cosine, Process
from fewstep.shapes import Number
from laws.cases import PROCESSES, generator, largest, normal

VE_10 = VE(0.1, 10.0)


class Linear(Denoiser):
    """The score -B x_t of one level, B a parameter."""

    def __init__(self, process: Process, b: Tensor) -> None:
        super().__init__()
        self.process, self.b = process, nn.Parameter(b)

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        alpha, sigma = self.levels(x_t, t)
        return Prediction.from_score(x_t, alpha, sigma, -x_t @ self.b.T)


def test_the_levels_are_those_of_the_ladder_and_equally_likely():
    """t = i / (L - 1): the geometric ladder with both ends, each level n / L times."""
    t = Ladder(5)(VE_10, 1000, generator())
    levels, counts = t.unique(return_counts=True)
    assert largest(levels, torch.tensor([0, 0.25, 0.5, 0.75, 1.0])) == 0
    assert int((counts - 200).abs().max()) <= 1
    ratios = VE_10.sigma(levels.double())
    assert largest(ratios[1:] / ratios[:-1], 100**0.25) < 1e-12
    assert set(Ladder(1)(VE_10, 7, generator()).tolist()) == {0.0}


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_ncsns_objective_is_half_the_simple_one_in_eps(p: Process):
    """|sigma s + n|^2 / (2 D) with the score of unit-signal data, from the same draws."""
    denoiser, x0 = Gaussian(p, torch.zeros(2, 3, dtype=torch.float64), 0.7), normal(8, 2, 3)
    want = Denoising("eps", drop=0.0)(denoiser, x0, None, 0, generator(1)) / 2
    got = DenoisingScore(drop=0.0)(denoiser, x0, None, 0, generator(1))
    assert largest(got, want) < 1e-6 * float(want.max())


def test_the_weight_is_a_power_of_the_level():
    denoiser, x0 = Gaussian(VE_10, torch.zeros(3, dtype=torch.float64), 0.7), normal(8, 3)
    two, zero = (
        DenoisingScore(Ladder(4), power, 0.0)(denoiser, x0, None, 0, generator(1))
        for power in (2.0, 0.0)
    )
    t = Ladder(4)(VE_10, 8, generator(1))
    assert largest(zero * VE_10.sigma(t) ** 2 / two, 1.0) < 1e-6


@pytest.mark.parametrize(
    "goal",
    [
        DenoisingScore(Ladder(1), drop=0.0),
        SlicedScore(Ladder(1), drop=0.0),
        SlicedScore(Ladder(1), "gaussian", drop=0.0),
        SlicedScore(Ladder(1), "unit", reduced=False, drop=0.0),
        SlicedScore(Ladder(1), "sphere", count=3, reduced=False, drop=0.0),
    ],
    ids=repr,
)
def test_the_exact_score_of_blurred_data_is_the_minimum(goal: Objective):
    """Data of covariance S: B = (S + sigma^2 I)^-1. The gradient of another B does not vanish."""
    p = VE(0.5, 10.0)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 1.3]]).double()
    exact = (root @ root.T + p.sigma_min**2 * torch.eye(3)).inverse()
    n = 40
    pulls: list[list[Tensor]] = [[], []]
    for k in range(n):
        x0 = normal(2000, 3, seed=k) @ root.T
        for pull, b in zip(pulls, (exact, 1.2 * exact), strict=True):
            model = Linear(p, b.clone())
            goal(model, x0, None, 0, generator(1000 + k)).mean().backward()
            assert model.b.grad is not None
            pull.append(model.b.grad)
    off = [torch.stack(pull) for pull in pulls]
    worst = [float((g.mean(0) / (g.std(0) / n**0.5)).abs().max()) for g in off]
    assert worst[0] < 4.5
    assert worst[1] > 10


def unet(**changes: object) -> UNet:
    """Return a small network with attention, in float64, whose zero layers are filled."""
    values = {
        "in_channels": 1, "out_channels": 1, "size": 4, "width": 4, "mult": (1, 2), "depth": 1,
        "attention": (2, 4), "heads": 2, "groups": 2, "classes": 3, "updown": True, **changes,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = UNet(UNetConfig(**values)).double()  # pyright: ignore[reportArgumentType] -- a table
        for p in net.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.1)
    return net


def mlp() -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = MLP(MLPConfig(dim=3, width=8, layers=2, classes=3)).double()
        nn.init.normal_(net.head.weight)
    return net


@pytest.mark.parametrize("kind", ["mlp", "unet", "bf16"])
def test_sliced_losses_have_gradients_in_the_networks(kind: str):
    """Against finite differences along a random direction: the derivative of a derivative."""
    net = mlp() if kind == "mlp" else unet()
    denoiser = NetDenoiser(net, VE_10, EPS)
    x0 = 0.5 * normal(6, 3) if kind == "mlp" else 0.5 * normal(6, 1, 4, 4)
    goal, y = SlicedScore(Ladder(3), drop=0.3), torch.arange(6) % 3
    if kind == "bf16":
        denoiser, x0 = denoiser.float(), x0.float()

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            return goal(denoiser, x0, y, 0, generator(2)).mean()

    loss().backward()
    weights = list(net.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weights)
    if kind == "bf16":
        return
    ways = [normal(*p.shape, seed=k) for k, p in enumerate(weights)]
    slope = sum(float((p.grad * w).sum()) for p, w in zip(weights, ways, strict=True))
    values, h = [], 1e-5
    for sign in (1, -2):
        with torch.no_grad():
            for p, w in zip(weights, ways, strict=True):
                p += sign * h * w
        values.append(float(loss().detach()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_labels_are_dropped_as_said():
    """With drop 1 the network never hears of a class."""
    heard: list[Tensor] = []

    class Listening(Linear):
        def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
            assert isinstance(cond, Tensor)
            heard.append(cond)
            return super().forward(x_t, t, cond)

    denoiser = Listening(VE_10, torch.eye(3).double())
    for goal in (DenoisingScore(drop=1.0), SlicedScore(drop=1.0), SlicedScore(drop=0.0)):
        goal(denoiser, normal(4, 3), torch.tensor([0, 1, 2, 0]), 0, generator())
    assert [c.tolist() for c in heard] == [[-1] * 4, [-1] * 4, [0, 1, 2, 0]]


def test_what_cannot_be_matched_is_refused():
    for make in (
        lambda: Ladder(0),
        lambda: SlicedScore(law="unit"),
        lambda: DenoisingScore(drop=1.5),
        lambda: SlicedScore(drop=-0.1),
        lambda: DenoisingScore(LossSecondMoment(4)),
    ):
        with pytest.raises(UsageError):
            make()
    denoiser = Gaussian(Cosine(), torch.zeros(3, dtype=torch.float64), 0.7)
    with pytest.raises(UsageError, match="take the process VE"):
        DenoisingScore(Ladder(4))(denoiser, normal(8, 3), None, 0, generator())
