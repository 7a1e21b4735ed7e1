"""Down the ladder of a distillation: train a student, hold it against its teacher, go on or stop.

Two things are measured between stages: how well a student copies the teacher of twice the steps
from the same noise, and, by the judge of this data, whether it is better than the first teacher
in as many network evaluations; one that is not would be of no use.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fewstep.cli import console, guidance, judged, meter, wished
from fewstep.cli.console import command, count, note, result

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.metrics.figures import Figure
    from fewstep.report.judge import Judge, Reals
    from fewstep.report.results import Line
    from fewstep.report.spec import Row
    from fewstep.report.work import Item
    from fewstep.students import Rung, Stage, Work

RULES = "small-1k"  # the protocol, with other numbers of images
_QUICK = 500  # images by which a student is judged between two stages
_SEEDS = 1_000_000  # of the first of these images
_FINE = 50  # steps of the teacher at its best
_LOW, _TOP, _TRIES = 0.1, 10.0, 8  # where the start of a second step is looked for


def make(work: "Work", found: "Found", reals: "Reals", n: int) -> None:
    """Train stage after stage, hold each student against its teacher, and end with the table.

    A student that is worse than the first teacher in as many evaluations ends the work; the one
    before it is kept.

    Args:
        work: the plan.
        found: the first teacher.
        reals: real images to train on and to judge by.
        n: images that the table is measured on.

    Raises:
        NumericError: even the first student is worse.
    """
    from fewstep import students
    from fewstep.students import run

    quick = _judge(work, reals, _QUICK)
    done: list[Rung] = []
    began, spent, worse = time.monotonic(), 0.0, False
    for rung in students.rungs(work, _shown):
        spent += rung.seconds
        if rung.model.student["kind"] == "consistency" and rung.stage.steps > 1:
            rung = _searched(work, found, reals, quick, rung)
        done.append(rung)
        worse = _worse(work, found, reals, quick, rung)
        if worse:
            break
    kept = done[:-1] if worse else done
    if kept:
        run.keep(work, kept[-1])
    note(f"{spent:.0f} of {time.monotonic() - began:.0f} s were training; now the table")
    _frontier(work, found, reals, done, n, sampled=bool(kept))
    if not kept:
        said = run.planned(work.out)
        assert said is not None
        said[wished.FAILED] = "the first one is worse than its teacher in as many evaluations"
        run.record(work, run.facts(said))
        wished.gone_on(said, work.out)


def evaluations(work: "Work", stages: "tuple[Stage, ...]", n: int) -> int:
    """Return how many times networks are asked for the looks between stages and the table.

    Args:
        work: the plan.
        stages: its stages.
        n: images that the table is measured on.
    """
    doubled, steps = _doubled(work), [stage.steps for stage in stages]
    looks = sum(n + doubled * _equal(work, n) for n in steps)
    if stages[-1].method not in ("progressive", "guided") and steps[-1] > 1:
        looks += _TRIES * steps[-1]  # to find where the second step starts
    table = doubled * sum(_counts(work, steps)) + sum(steps)
    return _QUICK * looks + n * table


def _counts(work: "Work", steps: list[int]) -> list[int]:
    """Return the steps in which the table shows the teacher: its best, and beside each student.

    With as many steps as the student, and where guidance asks the teacher twice at each, with as
    many evaluations, too.
    """
    return sorted({_FINE, *steps, *(_equal(work, n) for n in steps)}, reverse=True)


def _equal(work: "Work", steps: int) -> int:
    """Return the steps in which the teacher is asked as often as a student of so many."""
    return max(1, steps // _doubled(work))


def _doubled(work: "Work") -> int:
    """Return how often the teacher's network is asked at a step."""
    return 2 if guidance.doubled(work.teacher, work.asked.guidance) else 1


def _shown(stage: "Stage", step: int, copied: float) -> None:
    """Say how well a student copies its teacher so far."""
    note(f"  {count(stage.steps, 'step')}, update {step}: copy error {copied:.4f}")


def _judge(work: "Work", reals: "Reals", n: int) -> "Judge":
    rules = judged.rules(RULES, n, None, "fp32")
    return judged.judge(rules, reals, device="cpu", folder=work.out / "eval")


def _items(
    work: "Work",
    found: "Found",
    reals: "Reals",
    judge: "Judge",
    rows: "list[Row]",
    seed: int = _SEEDS,
) -> "list[Item]":
    """Return rows of one model as what is to be measured, by default to choose by."""
    from fewstep.report.work import Item

    subject = judged.subject(found, reals, judge.rules, seed, work.device)
    return [Item.of_row(row, subject, work.out / "eval" / "samples") for row in rows]


def _lines(judge: "Judge", items: "list[Item]") -> "list[Line]":
    """Make and measure items."""
    from fewstep.report.work import Work as Measured

    todo = Measured(judge, items)
    meter.do(todo)
    return [todo.line(item, todo.n) for item in items]


def found_of(work: "Work", rung: "Rung") -> "Found":
    """Return a student as a model that was found."""
    from fewstep.cli.resolve import Found
    from fewstep.students import run

    name = f"{work.asked.method}-{rung.stage.steps}"
    return Found(work.out, name, rung.model, run.digest(rung.model))


def row_of(rung: "Rung", group: str = "") -> "Row":
    """Return the way in which a student is sampled, as a row of a table."""
    from fewstep.report.spec import Row

    s = rung.model.sampling
    return Row(f"{rung.stage.method} {s.steps}", s, group)


def _taught(work: "Work", steps: int) -> "Row":
    """Return the first teacher in so many steps of DDIM, as a row."""
    from fewstep import sampling
    from fewstep.report.spec import Row
    from fewstep.students import make

    changes: dict[str, Any] = {"sampler": "ddim", "eta": 0.0, "steps": steps}
    changes |= {"spacing": make.spacing(work.teacher), "guidance_scale": work.asked.guidance}
    return Row(f"DDIM {steps}", sampling.changed(work.teacher.sampling, changes), "teacher")


def _worse(work: "Work", found: "Found", reals: "Reals", judge: "Judge", rung: "Rung") -> bool:
    """Print a rung; say whether the student is worse than the teacher at as many evaluations.

    Worse means by more than both intervals.
    """
    theirs = _items(work, found, reals, judge, [_taught(work, _equal(work, rung.stage.steps))])
    ours = _items(work, found_of(work, rung), reals, judge, [row_of(rung)])
    student, teacher = _lines(judge, [*ours, *theirs])
    a, b = _telling(student), _telling(teacher)
    what = f"{count(theirs[0].nfe, 'evaluation')} of the teacher"
    result(
        f"{count(rung.stage.steps, 'step')}: copy error {rung.copied:.4f}, "
        f"{a.name} {a.value:.3g}; {what}: {b.value:.3g} ({_QUICK} images)"
    )
    worse = a.low > b.high
    if worse:
        console.warn(
            f"stopped: this student is worse than its teacher in as many evaluations "
            f"({a.name} {a.value:.3g} against {b.value:.3g}); more --budget may help, or another "
            "--method"
        )
    return worse


def _telling(line: "Line") -> "Figure":
    """Return the distance to real images that tells most: that of the classifier's features."""
    return [f for f in line.figures if f.name.startswith("FD-")][-1]


def _searched(
    work: "Work", found: "Found", reals: "Reals", judge: "Judge", rung: "Rung"
) -> "Rung":
    """Return a consistency student of several steps with the middle level that suits it best."""
    from fewstep.distill import ternary
    from fewstep.students import make

    own, floor = rung.model.sampling, make.floor(rung.model.denoiser.process)
    assert own.levels is not None
    high = own.levels[0]
    low, top = max(_LOW, 2 * floor), min(_TOP, high / 2)
    if low >= top:
        return rung

    def at(level: float) -> "Rung":
        preset = replace(own, levels=make.middles(high, own.steps, level, floor))
        return replace(rung, model=replace(rung.model, sampling=preset))

    def distance(level: float) -> float:
        place = found_of(work, rung)
        (line,) = _lines(judge, _items(work, place, reals, judge, [row_of(at(level))]))
        figure = _telling(line)
        note(f"  second step from sigma / alpha = {level:.3g}: {figure.name} {figure.value:.3g}")
        return figure.value

    note(f"looking for the level from which the second step starts best, in {_TRIES} tries")
    best = ternary(distance, low, top, _TRIES)
    note(f"the second step starts at sigma / alpha = {best:.3g}")
    return at(best)


def _ways(rung: "Rung") -> "list[Row]":
    """Return the ways of sampling a student: a consistency model in 1, 2, 4, ... steps, too."""
    from fewstep import sampling
    from fewstep.report.spec import Row

    whole = row_of(rung)
    own = whole.sampling
    if rung.model.student["kind"] != "consistency" or own.levels is None:
        return [whole]
    halves = [2**k for k in range(own.steps.bit_length()) if 2**k < own.steps]
    fewer = [
        Row(f"{rung.stage.method} {k}", sampling.changed(own, {"steps": k}), whole.group)
        for k in halves
    ]
    return [whole, *reversed(fewer)]


def _frontier(
    work: "Work", found: "Found", reals: "Reals", done: "list[Rung]", n: int, *, sampled: bool
) -> None:
    """Measure teacher and students under one protocol; print and write the table.

    Args:
        work: the plan.
        found: the first teacher.
        reals: real images to judge by.
        done: the students.
        n: images of each row.
        sampled: whether one was kept that can be sampled.
    """
    from fewstep.cli import compare

    judge = _judge(work, reals, n)
    counts = _counts(work, [w.sampling.steps for r in done for w in _ways(r)])
    # other seeds than before: what is chosen by is not what is shown
    items = _items(work, found, reals, judge, [_taught(work, n) for n in counts], 0)
    for rung in done:
        items += _items(work, found_of(work, rung), reals, judge, _ways(rung), 0)
    lines = _lines(judge, items)
    label = [f"--label={found.model.classes[0]}"] if found.model.classes else []
    next_ = [command("sample", str(work.out), *label, "-n", "16")] if sampled else []
    compare.write(lines, work.out, next_, _telling(lines[0]).name)
