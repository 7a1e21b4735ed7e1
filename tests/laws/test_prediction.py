"""Laws of a prediction: four views of one point on the line, and losses between two points."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoiser import PARAMS, NetDenoiser, _Edm
from fewstep.exact import DataSet, Gaussian
from fewstep.labels import LABELS
from fewstep.objectives import Denoising, noised
from fewstep.prediction import VIEWS, Prediction
from fewstep.process import EDM, VP, Cosine, Process, Tabulated
from laws.cases import PROCESSES, generator, largest, mixture, normal

B = 64
every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)
MAKE = {
    "x0": Prediction.from_x0,
    "eps": Prediction.from_eps,
    "v": Prediction.from_v,
    "score": Prediction.from_score,
}


def point(p: Process) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t, times and classes where alpha and sigma are both well away from 0."""
    t = p.time(torch.linspace(6, -6, B, dtype=torch.float64))
    scale = (p.alpha(t) ** 2 + p.sigma(t) ** 2).sqrt()
    y = torch.randint(0, 2, (B,), generator=generator(1))
    return normal(B, 2) * 2 * scale[:, None], t, y


@every_process
def test_every_prediction_lies_on_the_line(p: Process) -> None:
    x_t, t, y = point(p)
    q = mixture(p)(x_t, t, y)
    assert largest(q.alpha * q.x0 + q.sigma * q.eps, x_t) < 1e-12 * float(x_t.abs().max())


@every_process
@pytest.mark.parametrize("have", VIEWS)
@pytest.mark.parametrize("want", VIEWS)
def test_views_round_trip(p: Process, have: str, want: str) -> None:
    x_t, t, y = point(p)
    q = mixture(p)(x_t, t, y)
    there = MAKE[have](x_t, q.alpha, q.sigma, q.view(have))
    back = MAKE[want](x_t, q.alpha, q.sigma, there.view(want))
    for view in VIEWS:
        size = q.view(view).abs().max()
        assert float((back.view(view) - q.view(view)).abs().max() / size) < 1e-11


@every_process
def test_the_views_are_what_the_papers_call_them(p: Process) -> None:
    x_t, t, y = point(p)
    q = mixture(p)(x_t, t, y)
    assert largest(q.score, -q.eps / q.sigma) < 1e-10
    assert largest(q.v, q.alpha * q.eps - q.sigma * q.x0) < 1e-10 * float(q.v.abs().max())


@every_process
def test_the_score_is_the_gradient_of_the_log_density(p: Process) -> None:
    """The exact mixture against automatic differentiation of its own log-density."""
    x_t, t, y = point(p)
    exact = mixture(p)
    for cond in (None, y):
        x = x_t.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(exact.log_density(x, t, cond).sum(), x)
        score = exact(x_t, t, cond).score
        assert float(((score - gradient) / (1 + gradient.abs())).abs().max()) < 1e-10


def test_exact_denoisers_agree_with_each_other() -> None:
    """One Gaussian by its formula, and a data set by the softmax of distances."""
    p = Cosine()
    x_t, t, _ = point(p)
    a, s = p.alpha(t)[:, None], p.sigma(t)[:, None]
    mean, std = torch.tensor([0.3, -1.0], dtype=torch.float64), 0.5
    want = mean + a * std**2 / (a**2 * std**2 + s**2) * (x_t - a * mean)
    assert largest(Gaussian(p, mean, std)(x_t, t).x0, want) < 1e-12
    points = normal(7, 2, seed=3)
    weights = (-((x_t[:, None] - a[..., None] * points) ** 2).sum(-1) / (2 * s**2)).softmax(1)
    assert largest(DataSet(p, points)(x_t, t).x0, weights @ points) < 1e-10


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_edm_is_minus_v_for_unit_data(sigma: float) -> None:
    """F = -v when sigma_data = 1 and alpha^2 + sigma^2 = 1, and EDM's table in its own frame."""
    x_t, out = normal(B, 2), normal(B, 2, seed=2)
    alpha, s = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
    edm, v = _Edm(1.0).read(x_t, alpha, s, out), Prediction.from_v(x_t, alpha, s, -out)
    assert max(largest(edm.x0, v.x0), largest(edm.eps, v.eps)) < 1e-12
    # alpha = 1: c_skip, c_out and c_in of the paper
    d = 0.5
    c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / (sigma**2 + d**2) ** 0.5
    q = PARAMS["EDM"].read(x_t, 1.0, sigma, out)
    assert largest(q.x0, c_skip * x_t + c_out * out) < 1e-12
    assert largest(q.eps, (x_t - q.x0) / sigma) < 1e-12
    assert PARAMS["EDM"].scale(1.0, sigma) == pytest.approx((sigma**2 + d**2) ** -0.5, rel=1e-14)


def test_a_consistency_model_is_the_identity_where_it_ends() -> None:
    """f(x, sigma_min) = x whatever the network says; EDM's reading is not."""
    x_t, out = normal(B, 2), 10 * normal(B, 2, seed=2)
    for alpha in (1.0, 0.4):
        got = PARAMS["CONSISTENCY"].read(x_t, alpha, 0.002 * alpha, out)
        assert largest(alpha * got.x0, x_t) < 1e-14
    assert largest(PARAMS["EDM"].read(x_t, 1.0, 0.002, out).x0, x_t) > 1e-3


@pytest.mark.parametrize("steps", [1000, 4000])
def test_labels_of_published_networks(steps: int) -> None:
    """The index counts from 0 to T - 1, or as if T were 1000; 250 ln sigma is 1000 x EDM."""
    p, t = Tabulated("cosine", steps), torch.tensor([1 / steps, 0.5, 1.0], dtype=torch.float64)
    want = torch.tensor([0, steps / 2 - 1, steps - 1], dtype=torch.float64)
    assert largest(LABELS["index"](p, t), want) < 1e-9
    assert largest(LABELS["index_of_thousand"](p, t), want * 1000 / steps) < 1e-9
    edm = EDM()
    assert largest(LABELS["log_sigma_250"](edm, t), 250 * (80 * t).log()) < 1e-9
    assert (
        largest(LABELS["log_sigma_250"](edm, t), 1000 * LABELS["quarter_log_sigma"](edm, t)) < 1e-9
    )
    with pytest.raises(ValueError, match="no table"):
        LABELS["index_of_thousand"](edm, t)


class Oracle(nn.Module):
    """Answers with a fixed tensor and remembers what it was shown."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        self.seen = [x, label]
        return self.out


# eps and score say nothing of x0 where there is no signal: that pair is refused (unit tests).
PAIRS = [
    (name, p)
    for p in PROCESSES
    for name in sorted(PARAMS)
    if not (getattr(p, "zero_terminal_snr", False) and name in ("EPS", "SCORE"))
]


@pytest.mark.parametrize(("name", "p"), PAIRS, ids=str)
def test_a_perfect_network_in_any_parametrisation_is_the_exact_denoiser(
    name: str, p: Process
) -> None:
    """Hand each parametrisation its own perfect target: the prediction must come out exact."""
    x_t, t, y = point(p)
    q = mixture(p)(x_t, t, y)
    r = (q.sigma**2 + 0.25 * q.alpha**2).sqrt()
    scaled = {"EDM": 0.0, "CONSISTENCY": 0.002}
    if name in scaled:
        d = q.sigma - scaled[name] * q.alpha
        keep = q.alpha * 0.25 / (d**2 + 0.25 * q.alpha**2)
        target = (q.x0 - keep * x_t) * r / (d * 0.5)
    elif name == "BOTH":
        target = torch.cat([q.x0, q.eps], dim=1)
    else:
        target = q.view(name.lower())
    net = Oracle(target)
    label = LABELS["angle"]
    got = NetDenoiser(net, p, PARAMS[name], label)(x_t, t, y)
    assert largest(got.x0, q.x0) < 1e-9 * float(1 + q.x0.abs().max())
    assert float(((got.eps - q.eps) / (1 + q.eps.abs())).abs().max()) < 1e-9
    assert largest(net.seen[0], x_t / r if name in scaled else x_t) < 1e-12
    assert bool((net.seen[1].diff() > 0).all())
    assert 0 <= float(net.seen[1].min()) <= float(net.seen[1].max()) <= 1000


@every_process
@pytest.mark.parametrize("view", VIEWS)
def test_a_loss_in_another_view_is_the_x0_loss_reweighted(p: Process, view: str) -> None:
    """||view error||^2 = k ||x0 error||^2, k = SNR (eps), SNR / sigma^2 (score), ... (v)."""
    _, t, _ = point(p)
    truth = noised(mixture(p), normal(B, 2, seed=5), t, generator(6))
    guess = mixture(p)(truth.x_t, t)
    a, s = truth.alpha, truth.sigma
    factor = {
        "x0": torch.ones_like(a),
        "eps": (a / s) ** 2,
        "score": (a / s**2) ** 2,
        "v": ((a**2 + s**2) / s) ** 2,
    }[view]
    error = (guess.view(view) - truth.view(view)) ** 2
    want = factor * (guess.x0 - truth.x0) ** 2
    assert float(((error - want).abs() / (1 + want)).max()) < 1e-9


def test_objectives_in_views_are_the_same_objective_on_a_circle() -> None:
    """Denoising("eps") = SNR Denoising("x0") and "v" = (SNR + 1) "x0", for the same draws."""

    class Fixed:
        def __call__(self, process: Process, n: int, noise: torch.Generator) -> Tensor:
            return torch.full((n,), 0.4, dtype=torch.float64)

    p, x0 = VP(), normal(8, 2)
    loss = {
        view: Denoising(view, Fixed(), drop=0)(mixture(p), x0, None, 0, generator(3))
        for view in VIEWS
    }
    snr = (p.alpha(0.4) / p.sigma(0.4)) ** 2
    assert largest(loss["eps"], snr * loss["x0"]) < 1e-12
    assert largest(loss["v"], (snr + 1) * loss["x0"]) < 1e-12
    assert largest(loss["score"] * p.sigma(0.4) ** 2, loss["eps"]) < 1e-12
