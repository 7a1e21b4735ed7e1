"""A distillation as a run: whose student a stage is, and when a ladder ends."""

import dataclasses
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fewstep.cli import climb
from fewstep.errors import FewstepError
from fewstep.metrics.figures import Figure
from fewstep.students import Asked, Rung, Stage, Work, run
from fewstep.train import checkpoint
from tests.train import toy

STAGES = (Stage("progressive", 2, 4, 8, 1e-4), Stage("progressive", 1, 4, 8, 1e-4))


def work(out: Path, stages: tuple[Stage, ...] = STAGES) -> Work:
    model, images = toy.model(), toy.images(40)
    asked = Asked("toy", "0" * 64, 1.0, "progressive", 1, 0, images.fingerprint)
    return Work(asked, model, images, stages, out, "cpu")


def test_a_stage_goes_on_with_the_teacher_that_it_had(tmp_path, monkeypatch) -> None:
    """CK12: its teacher is the student before it, by its weights; another one is refused."""
    first, _ = run.rungs(work(tmp_path))
    again, _ = run.rungs(work(tmp_path))
    assert run.digest(again.model) == run.digest(first.model)
    with torch.no_grad():
        next(first.model.denoiser.parameters()).view(-1)[0] += 1e-6
    other = run.digest(first.model)
    assert other != run.digest(again.model)
    kept = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    monkeypatch.setattr(run, "digest", lambda _: other)
    rungs = run.rungs(work(tmp_path))
    next(rungs)
    with pytest.raises(FewstepError, match=rf"2 steps: {other}"):
        next(rungs)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")} == kept


def test_the_students_of_a_distillation_say_which_it_was(tmp_path) -> None:
    """Equal for all of its stages and however they are cut for memory; else another."""
    names = {rung.model.student["ladder"] for rung in run.rungs(work(tmp_path / "a"))}
    assert names == {work(tmp_path).ladder}
    stored = checkpoint.load_model(checkpoint.newest(run.place(tmp_path / "a", STAGES[0])))
    assert stored.student["ladder"] in names
    cut = tuple(Stage(**{**s.plain(), "accumulate": 2}) for s in STAGES)
    assert work(tmp_path, cut).ladder in names
    assert work(tmp_path, STAGES[:1]).ladder not in names


@pytest.mark.parametrize(("scale", "counts"), [(1.0, [50, 8, 4]), (2.0, [50, 8, 4, 2])])
def test_the_table_holds_the_rows_that_students_are_judged_against(
    tmp_path, monkeypatch, scale, counts
) -> None:
    """The teacher in as many steps, and where it is asked twice, in as many evaluations."""
    plan = work(tmp_path)
    plan = dataclasses.replace(plan, asked=dataclasses.replace(plan.asked, guidance=scale))
    asked = []
    monkeypatch.setattr(climb, "_judge", lambda *_: SimpleNamespace(rules=None))
    figures = (Figure("FD-pixels", 1.0, 1.0, 1.0, None, 500),)
    monkeypatch.setattr(climb, "_lines", lambda *_: [SimpleNamespace(figures=figures)])
    monkeypatch.setattr(climb, "found_of", lambda *_: None)
    monkeypatch.setattr(climb, "_items", lambda *args: asked.extend(args[4]) or [])
    monkeypatch.setattr("fewstep.cli.compare.write", lambda *_: None)
    found = SimpleNamespace(model=plan.teacher)
    done = [_rung(plan, steps) for steps in (8, 4)]
    climb._frontier(plan, found, None, done, 20, sampled=False)
    assert [row.sampling.steps for row in asked] == [*counts, 8, 4]
    assert climb.evaluations(plan, tuple(rung.stage for rung in done), 20) == 500 * (
        8 + 4 + (8 + 4)
    ) + 20 * ((2 if scale == 2 else 1) * sum(counts) + 8 + 4)


def _rung(plan: Work, steps: int) -> Rung:
    stage = Stage("progressive", steps, 4, 8, 1e-4)
    model = run.begin(dataclasses.replace(plan, stages=(stage,)), plan.teacher, stage)
    return Rung(stage, model, 0.1, 1.0)


LAST = Stage("progressive", 1, 4, 8, 1e-4)


@pytest.mark.parametrize(
    ("student", "teacher", "worse"),
    [
        ((2.0, 1.9, 2.1), (1.0, 0.9, 1.1), True),
        ((2.0, 1.0, 3.0), (1.0, 0.5, 1.5), False),  # their intervals meet
        ((1.0, 0.9, 1.1), (1.0, 0.9, 1.1), False),
        ((0.5, 0.4, 0.6), (1.0, 0.9, 1.1), False),
        ((1.3, 1.2, 1.4), (1.0, 0.9, 1.1), True),
    ],
)
def test_a_student_is_worse_by_more_than_both_intervals(
    monkeypatch, capsys, student, teacher, worse
) -> None:
    """The last Frechet distance decides, which is that of the classifier's features."""

    def line(told):
        first = Figure("FD-pixels", 9.0 - told[0], 0.0, 99.0, None, 500)
        last = Figure("FD-classifier", *told, None, 500)
        return SimpleNamespace(figures=(first, last, Figure("accuracy", 1.0, 1.0, 1.0, None, 500)))

    plan = work(Path(tempfile.gettempdir(), "none"), (LAST,))
    rung = Rung(LAST, run.begin(plan, plan.teacher, LAST), 0.1, 1.0)
    monkeypatch.setattr(climb, "_items", lambda *_: [SimpleNamespace(nfe=1)])
    monkeypatch.setattr(climb, "_lines", lambda *_: [line(student), line(teacher)])
    found = SimpleNamespace(model=plan.teacher)
    assert climb._worse(plan, found, None, None, rung) is worse
    out, err = capsys.readouterr()
    assert "1 step: copy error 0.1000, FD-classifier" in out
    assert ("stopped: this student is worse" in err) is worse
