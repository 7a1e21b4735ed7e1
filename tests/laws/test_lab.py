"""The laboratory measures what is known: its numbers against closed forms and published ones."""

import math

import pytest
import torch

from fewstep import lab
from fewstep.lab import chains, diffused, guided, paths, strided
from fewstep.lab.learned import learn
from fewstep.lab.size import QUICK
from fewstep.solvers import DDIM, DDPM, DPMSolverPP, Heun
from laws.cases import largest, normal


@pytest.mark.parametrize(("delta", "variance"), [(0.1, 1.02564), (0.5, 1.14286), (1.0, 1.33333)])
def test_a_chain_with_a_fixed_step_is_too_wide(delta: float, variance: float) -> None:
    assert chains.widened(delta, 30_000, 1) == pytest.approx(variance, rel=0.02)


def test_a_step_of_four_variances_is_the_limit() -> None:
    assert chains.diverges(4.5, 0)
    assert not chains.diverges(3.5, 0)


def test_chains_find_the_weights_of_modes_only_if_annealed() -> None:
    """Annealed ones end on the data blurred by 0.1, too wide by their last step of 0.1."""
    wide = {"plain": 1 / (1 - 0.1 / 4), "annealed": 1.01 / (1 - 0.1 / (4 * 1.01))}
    shares, ends = chains.walked(2000, 1)
    assert shares["plain"][-1] == pytest.approx(0.50, abs=0.03)
    assert 0.72 <= shares["annealed"][-1] <= 0.85
    for name, x in ends.items():
        own = chains.heavy(x)
        assert len(shares[name]) == 100
        assert float(own.double().mean()) == shares[name][-1]
        assert largest(x[own].mean(0), chains.MODES[1]) < 0.3
        assert float(x[own].std(0).mean()) == pytest.approx(wide[name] ** 0.5, rel=0.02)


def test_the_parts_of_guidance_agree() -> None:
    assert guided.classifier_error(1) < 1e-12
    for scale in (0.5, 3.0):
        assert guided.free_error(scale, 1) < 1e-12


@pytest.mark.parametrize(
    ("steps", "variance", "within"), [(400, 0.25015, 5e-6), (32, 0.263, 1e-3)]
)
def test_guided_samples_are_not_of_the_sharpened_density(
    steps: int, variance: float, within: float
) -> None:
    assert guided.end(0.0, 1.0, 4.0, 2.0, steps)[1] == pytest.approx(variance, abs=within)


def test_guidance_of_equal_variances_only_moves_the_mean() -> None:
    """To s m, but for the part 1 / sqrt(1 + 80^2) of the way that the first noise hides."""
    mean, variance = guided.end(1.0, 1.0, 1.0, 3.0)
    assert mean == pytest.approx(3 * (1 - 1 / math.sqrt(1 + 80**2)), abs=1e-3)
    assert variance == pytest.approx(1.0, abs=1e-3)


def test_clouds_of_larger_scales_lie_farther_out() -> None:
    seen = guided.clouds(100, 0)
    assert set(seen) == {0.0, 1.0, 2.0, 4.0}
    heights = [float(x[:, 1].mean()) for x in seen.values()]
    assert heights == sorted(heights)
    assert heights[1] == pytest.approx(0.7, abs=0.1)


def test_ddim_loses_spread() -> None:
    for n, want in {5: 0.539, 10: 0.748, 20: 0.867, 50: 0.945, 100: 0.972, 1000: 0.997}.items():
        assert strided.shrunk(DDIM(), n) == pytest.approx(want, abs=1e-3)


def test_only_sigma_hat_leaves_too_much_noise() -> None:
    for n, want, digit in ((10, 32, 0.5), (20, 17, 0.5), (50, 7.9, 0.05), (100, 4.6, 0.05)):
        assert strided.too_much(DDPM("large"), n) == pytest.approx(want, abs=digit)
    for solver in (DDIM(), DDIM(0.5), DDIM(1.0), DDPM("small")):
        assert strided.too_much(solver, 10) == pytest.approx(1.0, abs=1e-12)


def test_eta_is_the_share_of_the_posteriors_deviation() -> None:
    """The slides' sigma^2 = eta beta~ would give sqrt(eta), 0.707 for a half."""
    for eta in (0.0, 0.2, 0.5, 1.0):
        assert strided.fresh(eta) == pytest.approx(eta, abs=1e-12)


def test_ddim_halves_its_distance_from_the_flow() -> None:
    errors = strided.ode_errors(QUICK, 2)
    assert list(errors) == [10, 20, 50, 100]
    assert errors[10] < 0.3
    assert 1.6 < errors[10] / errors[20] < 2.4
    assert 1.6 < errors[50] / errors[100] < 2.4


def test_solvers_have_their_orders() -> None:
    found = paths.orders()
    for name, want in {"DDIM": 1, "Heun": 2, "DPM-Solver++(2M)": 2, "UniPC": 3}.items():
        assert found[name] == pytest.approx(want, abs=0.2)


@pytest.mark.parametrize(("n", "want"), [(8, 1.394), (18, 1.055), (40, 1.0098)])
def test_heun_is_too_wide_on_edms_grid(n: int, want: float) -> None:
    assert paths.deviation_left(Heun(), n) == pytest.approx(want, abs=6e-4)


def test_a_race_keeps_to_its_budgets_and_ends_near_the_exact_way() -> None:
    """Of 64 walks each method is better in 10 evaluations than in 5; of 8 not always."""
    x0 = lab.standard(lab.points("rings", 100))
    truth, ways, errors = paths.race(diffused.exact(x0, 100), normal(64, 2), 100)
    assert all(len(way) - 1 <= budget for (_, budget), way in ways.items())
    assert [len(ways["Heun", n]) - 1 for n in (5, 10)] == [3, 5]  # 5 and 9 evaluations
    for (name, budget), way in ways.items():
        assert torch.equal(way[0], truth[0])
        assert errors[name, budget] == pytest.approx(
            float((way[-1] - truth[-1]).square().sum(1).mean().sqrt())
        )
        assert errors[name, 10] < errors[name, 5]
    assert paths.steps_for(DPMSolverPP(2), 7) == 7


@pytest.mark.parametrize("count", [20, 3000])
def test_the_forward_process_of_few_points_too(count: int) -> None:
    part = diffused.forward(lab.standard(lab.points("rings", count, 4)), QUICK, 4)
    assert [n.got for n in part.numbers if not n.reproduced] == []


def test_noise_does_not_know_the_data() -> None:
    """One seed serves everything: the points, and the noise that is added to them."""
    for seed in range(4):
        x0 = lab.standard(lab.points("moons", 8000, seed))
        part = diffused.forward(x0, QUICK, seed)
        assert all(n.reproduced for n in part.numbers), seed


def test_the_exact_score_is_that_of_the_density_and_has_a_loss() -> None:
    x0 = lab.standard(lab.points("moons", 200))
    assert diffused.autograd_error(diffused.exact(x0, 200), 0.5, 0) < 1e-10
    assert diffused.floor_of_the_loss(100_000, 1) == pytest.approx(0.2, rel=0.02)


def test_a_network_learns_the_score_within_seconds() -> None:
    x0 = lab.standard(lab.points("two-modes", 4000))
    truth = diffused.exact(x0, 1000)
    state = torch.get_rng_state()
    nets = [learn(x0, 200, 1, diffused.BLUR), learn(x0, 2, 1, diffused.BLUR)]
    assert torch.equal(torch.get_rng_state(), state)
    good, bad = (diffused.relative_error(net, truth, 0.5, 0) for net in nets)
    assert good < 0.05
    assert bad > 0.1


def test_a_training_is_decided_by_its_seed() -> None:
    x0 = lab.standard(lab.points("grid", 100))
    weights = []
    for seed in (1, 1, 2):
        torch.rand(1)  # the caller's own random numbers do not matter
        weights.append(learn(x0, 3, seed).net.state_dict()["stem.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
