"""What training costs here: all of it is timed, and no plan asks for more memory than there is."""

import dataclasses
import tempfile
import time
from pathlib import Path

import pytest
import torch

from fewstep.data.images import Images
from fewstep.denoiser import NetDenoiser
from fewstep.errors import MemoryShort, ResourceError
from fewstep.students import Asked, Cost, Pace, Stage, Work, budgeted, make, plan, run
from fewstep.train import checkpoint, ema
from tests.train import toy

SLOW = 0.03  # seconds: far more than a step of the toy takes
PATIENCE = 0.05


def work(stages: tuple[Stage, ...] = (), guidance: float = 1.0, out=None, **changes) -> Work:
    model, images = toy.model(), toy.images(200)
    asked = Asked("toy", "0" * 64, guidance, "progressive", 1, 0, images.fingerprint)
    asked = dataclasses.replace(asked, **changes)
    return Work(asked, model, images, stages, out or Path(tempfile.gettempdir(), "none"), "cpu")


def stage(method: str = "progressive", batch: int = 8, steps: int = 2, updates: int = 100):
    return Stage(method, steps, updates, batch, 1e-4)


def slower(monkeypatch, owner, name: str, seconds: float = SLOW) -> None:
    """Let a method take so much longer, whatever the machine does meanwhile."""
    real = getattr(owner, name)

    def slow(*args, **named):
        time.sleep(seconds)
        return real(*args, **named)

    monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(torch.optim.AdamW, "step"), (Images, "batch"), (torch.nn.utils, "clip_grad_norm_"),
     (ema.EMA, "update")],
)  # fmt: skip
def test_every_part_of_a_step_is_timed(monkeypatch, owner, name: str) -> None:
    """Data, clipping, optimizer and average, each slowed down: a step is that much longer."""
    slower(monkeypatch, owner, name)
    assert Pace(work(), PATIENCE).of((stage(),), 0).step >= SLOW


def test_copy_errors_and_checkpoints_are_timed(monkeypatch) -> None:
    """100 updates: 2 checkpoints, a copy error in the middle and one at the end."""
    stages = (stage(),)
    slower(monkeypatch, run, "apart", 2 * SLOW)
    slower(monkeypatch, checkpoint, "write", SLOW)
    monkeypatch.setattr("fewstep.students.pace.FIRST_SAMPLE", 1e9)  # no early one, however slow
    pace = Pace(work(), PATIENCE)
    cost = pace.of(stages, 0)
    assert cost.shown >= 2 * SLOW
    assert cost.saved >= SLOW
    want = 100 * cost.step + 2 * cost.saved + 2 * cost.shown
    assert pace.seconds(stages) == pytest.approx(want)


def test_a_way_of_training_is_timed_once(monkeypatch) -> None:
    """At the batch that it takes; a copy error grows with the steps."""
    tried = []
    real = Pace._timed
    monkeypatch.setattr(
        Pace, "_timed", lambda self, s, i, parts: tried.append(s[i]) or real(self, s, i, parts)
    )
    pace = Pace(work(), 0.001)
    pace.seconds((stage(steps=4), stage(steps=2), stage(steps=1, batch=16)))
    assert [(s.batch_size, s.steps) for s in tried] == [(8, 4), (16, 1)]
    few, many = (pace.of((stage(steps=n),), 0) for n in (1, 4))
    assert many.shown == pytest.approx(4 * few.shown)
    assert many.step == few.step


def test_guidance_is_of_the_first_stage_alone(monkeypatch) -> None:
    """The first teacher is asked twice; the students after it hold the guidance."""
    asked = []
    real = make.teacher
    monkeypatch.setattr(make, "teacher", lambda m, scale: asked.append(scale) or real(m, scale))
    pace = Pace(work(guidance=2.0), 0.0)
    pace.seconds((stage(steps=4), stage(steps=2), stage(steps=1)))
    assert asked[0] == 2.0
    assert asked[-1] == 1.0
    assert len(pace.known) == 2


def test_a_trial_leaves_everything_as_it_was(tmp_path) -> None:
    """The teacher's weights, the caller's random numbers, and no file."""
    plan_ = work((stage(), stage("progressive", 8, 1)), out=tmp_path / "out")
    before = {k: v.clone() for k, v in plan_.teacher.net.state_dict().items()}
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    Pace(plan_, 0.0).seconds(plan_.stages)
    assert torch.equal(torch.rand(3), want)
    assert all(torch.equal(v, before[k]) for k, v in plan_.teacher.net.state_dict().items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "ways"),
    [({}, [("guided", 4), ("progressive", 2), ("progressive", 1)]), (None, [("ect", 2)]),
     (None, [("consistency-distillation", 2)])],
)  # fmt: skip
def test_all_methods_are_timed(asked, ways) -> None:
    changes = {"scales": (1.0, 3.0)} if asked is not None else {"method": ways[0][0]}
    stages = tuple(stage(method, 8, steps) for method, steps in ways)
    pace = Pace(work(**changes), 0.001)
    assert pace.seconds(stages) > 0
    assert pace.evaluation > 0


@pytest.mark.parametrize(
    "asked", [{}, {"guidance": 2.0}, {"scales": (1.0, 3.0)}, {"method": "ect"}]
)
def test_an_evaluation_is_one_of_a_network(monkeypatch, asked) -> None:
    """A copy error that takes as long as all that it evaluates gives the time of one."""
    ways = {"scales": [("guided", 4), ("progressive", 2)], "method": [("ect", 2)]}
    of = next((k for k in ways if k in asked), "")
    stages = tuple(stage(m, 8, n) for m, n in ways.get(of, [("progressive", 2)]))
    clock = [0.0]
    real = NetDenoiser.forward

    def forward(self, x_t, t, cond=None):
        clock[0] += len(x_t)
        return real(self, x_t, t, cond)

    monkeypatch.setattr(NetDenoiser, "forward", forward)
    monkeypatch.setattr(Pace, "_now", lambda _: clock[0])
    for i in range(len(stages)):
        pace = Pace(work(**asked), 0.001)
        pace.of(stages, i)
        assert pace.evaluation == pytest.approx(1.0)


def test_to_find_out_what_fits_takes_no_time(monkeypatch, tmp_path) -> None:
    """A plan that goes on is tried for its memory: one copy error, no checkpoint."""
    shown = []
    monkeypatch.setattr(run, "apart", lambda *_: shown.append(1) or 0.0)
    monkeypatch.setattr(checkpoint, "write", lambda *_, **__: pytest.fail("was written"))
    stages = (stage(),)
    assert Pace(work(out=tmp_path / "x"), 0.0).fitted(stages) == stages
    assert shown == [1]


def test_a_checkpoint_is_tried_in_the_folder_that_is_there(monkeypatch, tmp_path) -> None:
    """What lies above it may refuse."""
    tried = []
    real = checkpoint.write
    monkeypatch.setattr(
        checkpoint, "write", lambda p, *a, **k: tried.append(p.parent.parent) or real(p, *a, **k)
    )
    Pace(work(out=tmp_path), 0.001).of((stage(),), 0)
    Pace(work(out=tmp_path / "not" / "there"), 0.001).of((stage(),), 0)
    assert tried == [tmp_path, tmp_path]
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- memory
def narrow(monkeypatch, most: int) -> list[int]:
    """Let memory end above so many images at once; return what was asked for."""
    sizes: list[int] = []
    real = Images.batch

    def batch(self, ids):
        sizes.append(len(ids))
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, ids)

    monkeypatch.setattr(Images, "batch", batch)
    return sizes


def test_a_batch_too_large_for_memory_is_cut(monkeypatch, capsys) -> None:
    """The same batch, in as many pieces as it takes; said in one line."""
    sizes = narrow(monkeypatch, 50)
    stages = (stage(batch=128), stage(batch=32, steps=1))
    fitted = Pace(work(), 0.0).fitted(stages)
    assert [s.accumulate for s in fitted] == [4, 1]
    assert [dataclasses.replace(s, accumulate=1) for s in fitted] == list(stages)
    assert sizes[:3] == [128, 64, 32]
    said = capsys.readouterr().err.splitlines()
    assert said == ["memory does not bear 128 images at once: taken as 4 x 32"]


def test_a_batch_that_is_no_power_of_two(monkeypatch) -> None:
    narrow(monkeypatch, 10)
    (fitted,) = Pace(work(), 0.0).fitted((stage(batch=27),))
    assert (fitted.batch_size, fitted.accumulate) == (27, 3)


def test_not_even_one_image_fits(monkeypatch) -> None:
    """The advice is something that `distill` can follow."""
    narrow(monkeypatch, 0)
    with pytest.raises(ResourceError, match=r"out of memory: .*--device cpu") as found:
        Pace(work(), 0.0).fitted((stage(batch=8),))
    assert "accumulate" not in str(found.value)


def test_no_room_for_the_optimizer(monkeypatch) -> None:
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(MemoryShort, match="--device cpu"):
        Pace(work(), 0.0).fitted((stage(batch=8),))


def test_an_error_that_is_not_of_memory_is_left_alone(monkeypatch) -> None:
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(RuntimeError, match="something else"):
        Pace(work(), 0.0).fitted((stage(batch=8),))


def test_a_stage_in_pieces_is_trained_in_pieces(monkeypatch, tmp_path) -> None:
    """By `rungs`, and its copy errors take no more at once than its training."""
    sizes = narrow(monkeypatch, 2)
    one = dataclasses.replace(stage(batch=8, updates=2), accumulate=4)
    walks = []
    real = run.solvers.generate
    monkeypatch.setattr(
        run.solvers, "generate", lambda *a, **k: walks.append(k["batch_size"]) or real(*a, **k)
    )
    (rung,) = run.rungs(work((one,), out=tmp_path))
    assert set(sizes) == {2}
    assert set(walks) == {2}
    assert rung.stage is one


def test_memory_that_ends_later_is_told_with_advice_of_distill(monkeypatch, tmp_path) -> None:
    narrow(monkeypatch, 2)
    with pytest.raises(MemoryShort, match=r"same command again.*--device cpu") as found:
        list(run.rungs(work((stage(),), out=tmp_path)))
    assert "accumulate" not in str(found.value)


# ---------------------------------------------------------------- a budget
class Linear(Pace):
    """A machine whose steps take so much for each image, and so much beside."""

    def __init__(self, per_image: float, fixed: float = 0.0, shown: float = 0.0) -> None:
        super().__init__(work(), 0.0)
        self.rates = per_image, fixed, shown

    def of(self, stages, i):
        each, fixed, shown = self.rates
        return Cost(fixed + each * stages[i].batch_size, shown * stages[i].steps, 0.01, 1)


@pytest.mark.parametrize("budget", [40.0, 90.0, 600.0, 7200.0])
@pytest.mark.parametrize("rates", [(1e-3, 0.0, 0.0), (1e-4, 0.01, 0.0), (1e-4, 0.005, 0.02)])
@pytest.mark.parametrize("told", [False, True], ids=["", "told"])
@pytest.mark.parametrize("to", [1, 4])
def test_a_plan_takes_what_its_budget_says(budget: float, rates, to: int, told: bool) -> None:
    """Whatever a step costs at which batch, and however much its copy errors do."""
    pace = Linear(*rates)
    stages = budgeted(pace, lambda n: plan.ladder(to, n, guided=told), budget)
    assert 0.85 * budget <= pace.seconds(stages) <= 1.05 * budget


def test_a_budget_below_the_shortest_plan() -> None:
    pace = Linear(1e-3)
    with pytest.raises(plan.TooSmall) as found:
        budgeted(pace, lambda n: plan.ladder(4, n), 1.0)
    enough = 1.001 / found.value.share
    assert pace.seconds(budgeted(pace, lambda n: plan.ladder(4, n), enough)) <= 1.05 * enough


@pytest.mark.parametrize("budget", [20.0, 60.0, 200.0])
def test_a_plan_is_never_longer_than_its_budget(budget: float) -> None:
    """Where large batches are ten times as dear, plans jump; the longest that fits is taken."""

    class Jumps(Linear):
        def of(self, stages, i):
            dear = 10 if stages[i].batch_size > 32 else 1
            return Cost(self.rates[0] * dear * stages[i].batch_size, 0.0, 0.01, 1)

    pace = Jumps(2e-4)
    stages = budgeted(pace, lambda n: plan.ladder(4, n, 8), budget)
    assert pace.seconds(stages) <= 1.05 * budget
