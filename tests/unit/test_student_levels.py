"""Where the steps of students begin: consistency levels, and what is asked for beside them."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest

from fewstep import sampling
from fewstep.cli import climb, wished
from fewstep.denoiser import V
from fewstep.errors import UsageError
from fewstep.model import Model, Sampling
from fewstep.process import ALL, EDM, VE, VP, Cosine
from fewstep.students import Asked, Rung, Work, make, plan
from fewstep.students.plan import Stage
from tests.train import toy
from unit.test_students import model

PROCESSES = [*(kind() for kind in ALL), VE(0.0015, 2.0), VE(0.3, 50.0), VE(0.01, 0.5), EDM(0.5)]


def student(steps: int, process=None) -> Model:
    """Return a consistency student of an untrained network."""
    start = model(V, process)
    stage = Stage("ect", steps, 100, 32, 1e-4)
    preset = make.sampling(start, stage, make.grid(start, 32))
    return make.named(make.student(start, "ect"), stage, preset, {})


def ratios(taught: Model, settings: Sampling) -> list[float]:
    """Return the sigma / alpha at which the steps begin."""
    p, times = taught.denoiser.process, sampling.plan(taught, settings).times.tolist()
    return [float(p.sigma(t)) / float(p.alpha(t)) for t in times[:-1]]


# ---------------------------------------------------------------- fewer steps, or others
@pytest.mark.parametrize("process", [Cosine(), EDM(), VP()], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_fewer_steps_begin_at_the_first_levels(process, steps: int) -> None:
    taught = student(4, process)
    own = taught.sampling
    assert own.levels is not None
    settings = sampling.changed(own, {"steps": steps})
    assert settings == dataclasses.replace(own, steps=steps, levels=own.levels[:steps])
    assert ratios(taught, settings) == pytest.approx(list(own.levels[:steps]))


@pytest.mark.parametrize("process", [Cosine(), EDM(), VP()], ids=str)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 5}, r"^steps 5: .*consistency student.* 1\.\.4 .*sample --force"),
        ({"spacing": "karras"}, r"^spacing karras: .*consistency student.* 1\.\.4 .*--force"),
        ({"steps": 2, "spacing": "even"}, r"^spacing even: .* 1\.\.4 .*--force"),
        ({"steps": 9, "spacing": "karras"}, r"^steps 9, spacing karras: .* 1\.\.4 .*--force"),
        ({"sampler": "ddim"}, r"^sampler ddim: .*consistency student"),
        ({"sampler": "heun", "steps": 2}, r"^sampler heun: .*consistency student"),
    ],
)
def test_other_ways_are_refused_and_what_is_allowed_is_said(process, changes, named) -> None:
    taught = student(4, process)
    with pytest.raises(UsageError, match=named) as found:
        sampling.plan(taught, sampling.changed(taught.sampling, changes))
    assert "levels" in str(found.value) or "sampler" in changes
    assert "\n" not in str(found.value)
    free = dataclasses.replace(taught, student={})
    sampling.plan(free, sampling.changed(free.sampling, changes))


def test_levels_of_ones_own_begin_no_higher_than_what_was_trained() -> None:
    taught = student(2)
    assert taught.sampling.levels is not None
    for levels in ((80.0,), (3.0, 1.0, 0.1), (80.0, 9.0, 3.0, 1.0, 0.1)):
        settings = sampling.changed(taught.sampling, {"levels": levels})
        assert ratios(taught, settings) == pytest.approx(list(levels))
    settings = sampling.changed(taught.sampling, {"levels": (100.0, 1.0)})
    with pytest.raises(UsageError, match=r"^level 100: .* 80"):
        sampling.plan(taught, settings)


def test_a_preset_of_another_sampler_has_no_first_levels() -> None:
    own = Sampling("ddim", 3, levels=(9.0, 3.0, 1.0))
    assert sampling.changed(own, {"steps": 2}).levels is None
    few = Sampling("consistency", 3, levels=(9.0, 3.0, 1.0))
    assert sampling.changed(few, {"sampler": "heun", "steps": 2}).levels is None
    assert sampling.changed(few, {"steps": 2, "spacing": "karras"}).levels is None
    assert sampling.changed(few, {"steps": 2, "sampler": "consistency"}).levels == (9.0, 3.0)


@pytest.mark.parametrize(
    ("steps", "want"),
    [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (6, [6, 4, 2, 1]), (8, [8, 4, 2, 1])],
)
def test_the_table_measures_what_fewer_steps_are(steps: int, want: list[int]) -> None:
    """Each power of two and N; each in the very settings that `--steps k` stands for."""
    taught = student(steps)
    rows = climb._ways(Rung(Stage("ect", steps, 100, 32, 1e-4), taught, 0.0, 0.0))
    assert [row.sampling.steps for row in rows] == want
    assert [row.title for row in rows] == [f"ect {k}" for k in want]
    for row in rows:
        assert row.sampling == sampling.changed(taught.sampling, {"steps": row.sampling.steps})


# ---------------------------------------------------------------- the levels of a new student
@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("steps", range(1, 9))
def test_levels_fall_and_lie_in_the_process_and_in_what_is_trained(process, steps: int) -> None:
    taught = student(steps, process)
    levels = taught.sampling.levels
    assert levels is not None
    assert len(levels) == steps
    assert all(a > b for a, b in pairwise(levels))
    least = float(process.sigma(0.0)) / float(process.alpha(0.0))
    assert levels[-1] >= max(0.002, 1.5 * least) * (1 - 1e-9)
    assert ratios(taught, taught.sampling) == pytest.approx(list(levels))
    if steps > 2:  # no gap is a hundred times another
        gaps = [a / b for a, b in pairwise(levels[1:])]
        assert max(gaps) == pytest.approx(min(gaps))
        assert min(gaps) > 1.1


@pytest.mark.parametrize("middle", [0.1, 0.8, 1.4, 10.0])
@pytest.mark.parametrize("steps", range(1, 9))
def test_middles_are_thirds_where_these_do_not_go_too_low(middle: float, steps: int) -> None:
    levels = make.middles(80.0, steps, middle)
    assert levels[0] == 80.0
    assert len(levels) == steps
    assert min(levels) >= 0.002 * (1 - 1e-9)
    if steps > 1:
        assert levels[1] == middle
    if middle / 3 ** (steps - 2) >= 0.002:
        assert levels[1:] == pytest.approx([middle / 3**k for k in range(steps - 1)])


@pytest.mark.parametrize("middle", [1e-4, 0.02, 0.5, 7.0])
def test_a_middle_beyond_its_ends_lies_between_them(middle: float) -> None:
    levels = make.middles(0.5, 3, middle, 0.02)
    assert all(a > b for a, b in pairwise([*levels, 0.019]))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize(("method", "steps"), [("ect", 6), ("ect", 8), ("progressive", 4)])
def test_a_plan_that_is_accepted_can_be_sampled(process, method: str, steps: int) -> None:
    """What `make.planned` lets pass has a grid; `wished.plan` asks it before anything else."""
    make.planned(model(V, process), method, steps)


def test_a_plan_that_cannot_be_sampled_is_refused_before_it_is_timed(monkeypatch) -> None:
    """Levels so near to each other that none lies between them."""
    monkeypatch.setattr("fewstep.students.Pace", lambda *_: pytest.fail("was timed"))
    narrow = model(V, VE(1.0, 1.5))
    with pytest.raises(UsageError, match=r"1\.5"):
        make.planned(narrow, "ect", 3)
    asked = Asked("m", "w", 1.0, "ect", 3, 0, "d")
    wish = wished.Wish(3, "ect", None, None, None, None, None, None, None, 0, "cpu")
    with pytest.raises(UsageError, match=r"1\.5"):
        wished.plan(Work(asked, narrow, toy.images(8), (), Path("none"), "cpu"), wish)


# ---------------------------------------------------------------- which method for how many
@pytest.mark.parametrize("to", [1, 2, 4, 8, 16, 32])
def test_powers_of_two_are_halved_to(to: int) -> None:
    assert plan.method("auto", to) == "progressive"
    assert plan.method("progressive", to) == "progressive"


@pytest.mark.parametrize("to", [3, 5, 6, 7])
def test_other_small_numbers_are_of_consistency_models(to: int) -> None:
    """Whatever is chosen can hold guidance."""
    assert plan.method("auto", to) == "consistency-distillation"
    assert {plan.method("auto", n) for n in (to, 4)} == set(plan.TAUGHT)


@pytest.mark.parametrize("to", [9, 12, 20, 33, 48, 64])
def test_other_large_numbers_are_refused_with_what_is_allowed(to: int) -> None:
    with pytest.raises(UsageError, match=rf"^--to {to}: .*1\.\.8, 16 and 32$"):
        plan.method("auto", to)


@pytest.mark.parametrize("asked", ["consistency", "ect", "ict", "consistency-distillation"])
def test_consistency_models_have_at_most_8_steps(asked: str) -> None:
    for to in range(1, 9):
        assert plan.method(asked, to) == (
            "consistency-distillation" if asked == "consistency" else asked
        )
    for to in (9, 16, 20, 32, 64):
        named = rf"^--to {to}: .* 1\.\.8 .*--method progressive .*16 and 32"
        with pytest.raises(UsageError, match=named):
            plan.method(asked, to)
