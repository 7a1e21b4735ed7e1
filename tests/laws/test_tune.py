"""Laws of the found grids: the cheapest of all ways, cheaper than the usual ones on new noise."""

import itertools
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep import sampling
from fewstep.denoiser import NetDenoiser, V
from fewstep.errors import NumericError, UsageError
from fewstep.exact import DataSet
from fewstep.model import Model, Sampling
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.process import EDM, VE, VP, Cosine, Process, Tabulated
from fewstep.solvers import DDIM, IPNDM, grids, levels
from fewstep.tune import SOLVERS, SPACINGS, Course, costs, nodes, shortest
from laws.cases import generator, largest, mixture, normal, truth, walk

PROCESSES = [Cosine(), VP(), EDM(), Tabulated()]
N = 24  # nodes


def started(p: Process, n: int, seed: int) -> Tensor:
    first = float(levels.listed(p, nodes(p, N))[0])
    return p.prior_std(first) * normal(n, 2, seed=seed)


def nearest(p: Process, times: Tensor, ratios: tuple[float, ...]) -> list[int]:
    """Return the way over the nodes that is nearest to a grid, its first end moved to ours."""
    where = torch.tensor([math.log(r) for r in ratios], dtype=torch.float64)
    way = [0]
    for t in times[1:-1].tolist():
        i = int((where + float(p.logsnr(t)) / 2).abs().argmin())
        way.append(max(i, way[-1] + 1))
    return [*way, len(ratios)]


@pytest.mark.parametrize("k", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_no_other_way_is_cheaper(steps: int, k: float) -> None:
    cost = torch.rand(8, 8, generator=generator(steps), dtype=torch.float64)
    ways = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1)]

    def price(way: tuple[int, ...]) -> float:
        return sum(k**i * float(cost[a, b]) for i, (a, b) in enumerate(pairwise(way)))

    assert tuple(shortest(cost, steps, k)) == min(ways, key=price)


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_the_found_way_is_cheaper_than_the_usual_grids_on_other_noise(p: Process) -> None:
    """It falls, keeps both ends, and costs less than Karras' grid and the even one in log-SNR."""
    ratios = nodes(p, N)
    exact = mixture(p)
    cost = costs(exact, started(p, 64, 1), ratios)
    other = costs(exact, started(p, 64, 2), ratios)
    for steps in (4, 6, 10):
        way = shortest(cost, steps)
        assert (way[0], way[-1], len(way)) == (0, N, steps + 1)
        assert way == sorted(set(way))
        mine = float(sum(other[a, b] for a, b in pairwise(way)))
        for make in (grids.karras, grids.logsnr):
            usual = nearest(p, make(p, steps), ratios)
            assert mine < float(sum(other[a, b] for a, b in pairwise(usual)))


@pytest.mark.parametrize("p", PROCESSES, ids=str)
@pytest.mark.parametrize("steps", [4, 8])
def test_the_found_grid_ends_nearer_to_the_exact_solution(p: Process, steps: int) -> None:
    ratios = nodes(p, N)
    exact = mixture(p)
    way = shortest(costs(exact, started(p, 64, 1), ratios), steps)
    found = levels.listed(p, [ratios[i] for i in way[:-1]])
    x = started(p, 64, 2)
    fine = levels.listed(p, nodes(p, 400))
    want = walk(exact, x, fine, DDIM())
    mine, *usual = (
        float((walk(exact, x, times, DDIM()) - want).norm())
        for times in (found, grids.karras(p, steps), grids.logsnr(p, steps))
    )
    assert mine < min(usual)


@pytest.mark.parametrize("p", [Cosine(), EDM()], ids=str)
def test_a_cost_is_the_distance_from_the_exact_solution(p: Process) -> None:
    """One jump of DDIM from the exact trajectory, against classical Runge-Kutta from its start."""
    ratios = tuple(20 * 0.01 ** (k / 30) for k in range(31))
    times = levels.listed(p, ratios)
    x = 20 * p.alpha(float(times[0])) * normal(16, 2)
    exact = mixture(p)
    cost = costs(exact, x, ratios)
    for i, j in ((0, 5), (0, 15), (8, 20), (20, 30)):
        here = x if i == 0 else truth(exact, x, times[[0, i]], 512)
        jump, _ = DDIM().step(exact, here, float(times[i]), float(times[j]))
        away = jump - truth(exact, x, times[[0, j]], 512)
        want = away.square().mean().sqrt() / p.prior_std(float(times[j]))
        assert float(cost[i, j]) == pytest.approx(float(want), rel=0.01)
    assert torch.equal(cost.isinf(), torch.ones_like(cost).tril().bool())


def test_one_point_costs_nothing() -> None:
    p = Cosine()
    cost = costs(DataSet(p, normal(1, 2)), started(p, 4, 0), nodes(p, N))
    assert largest(cost[cost.isfinite()]) < 1e-9


def test_the_nodes_stay_inside_the_process() -> None:
    for p in (*PROCESSES, VE(0.01, 50.0), Tabulated("cosine"), Tabulated(zero_terminal_snr=True)):
        ratios = nodes(p)
        assert len(levels.listed(p, ratios)) == len(ratios) + 1
        most = p.sigma(1.0) / max(p.alpha(1.0), 1e-12)
        assert ratios[0] == pytest.approx(min(most, 1000.0), rel=1e-4)


def toy() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = MLP(MLPConfig(dim=2, width=16, layers=2, classes=2))
        for weights in net.parameters():
            weights.data.normal_(0, 0.3)
    net.requires_grad_(False)
    return Model(NetDenoiser(net.eval(), Cosine(), V), (2,), ("a", "b"))


def test_what_is_tried_and_in_which_order() -> None:
    """Every solver on every grid; the best first; each error can be had again by sampling."""
    model, preset = toy(), Sampling(clip=False, guidance_scale=2.0)
    ticks: list[tuple[int, int]] = []
    course = Course.of(model, preset, n=6, tick=lambda *t: ticks.append(t))
    assert [a for a, _ in ticks] == list(range(1, ticks[0][1] + 1))
    ways = course.ways(4)
    assert {w.sampler for w in ways} == set(SOLVERS)
    assert {w.spacing for w in ways if w.levels is None} == set(SPACINGS)
    assert all(w.guidance_scale == 2 and w.steps == 4 for w in ways)
    ticks.clear()
    tried = course.tried(4, lambda *t: ticks.append(t))
    assert [a for a, _ in ticks] == list(range(1, ticks[0][1] + 1))
    errors = [t.error for t in tried]
    assert errors == sorted(errors)
    assert errors[0] == min(course.error(w, 6) for w in ways)
    best = tried[0].sampling
    cond = (torch.arange(6) + 6) % 2
    *_, last = sampling.walk(model, best, cond, 6, seed=6)
    slow = sampling.changed(preset, {"steps": 500, "sampler": "dpmpp"})
    *_, fine = sampling.walk(model, slow, cond, 6, seed=6)
    again = float((last.x - fine.x).square().mean().sqrt())
    assert again == pytest.approx(errors[0], rel=0.05)


def test_what_cannot_be_gone_is_not_taken() -> None:
    """A table without signal at its end: few solvers start there; the found levels begin below."""
    net = toy().denoiser.net
    blind = NetDenoiser(net, Tabulated("cosine", zero_terminal_snr=True), V)
    course = Course.of(replace(toy(), denoiser=blind), Sampling(clip=False), n=4)
    assert math.isinf(course.error(Sampling("ipndm", 4, clip=False)))
    assert math.isfinite(course.tried(4)[0].error)


def test_the_settings_of_langevin_steps_are_left_behind() -> None:
    """Other samplers would refuse them."""
    langevin = Sampling("predictor-corrector", 9, clip=False, each=2, snr=0.1)
    best = Course.of(toy(), langevin, n=4).tried(4)[0]
    assert math.isfinite(best.error)
    assert (best.sampling.each, best.sampling.snr) == (None, None)


def test_what_diverges_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One solver that ends in no finite images is passed over; if all do, it is said."""
    course, step = Course.of(toy(), Sampling(clip=False), n=4), IPNDM.step
    monkeypatch.setattr(IPNDM, "step", lambda *a, **k: (step(*a, **k)[0] * math.nan, None))
    assert math.isinf(course.error(Sampling("ipndm", 4, clip=False)))
    assert math.isfinite(course.tried(4)[0].error)
    monkeypatch.setattr(Course, "error", lambda *_: math.inf)
    with pytest.raises(NumericError, match="4 steps: no solver ends in finite images"):
        course.tried(4)


def test_what_is_refused() -> None:
    for steps in (0, 8):
        with pytest.raises(UsageError, match=r"a grid is found for 1\.\.7 steps"):
            shortest(torch.rand(8, 8), steps)
