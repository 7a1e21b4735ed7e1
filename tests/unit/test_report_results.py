"""Results: what is stored is what was measured, and unlike protocols do not meet."""

import copy
import json
import math
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fewstep.errors import DataError, NumericError, ResourceError, UsageError
from fewstep.metrics.figures import Figure
from fewstep.report import results
from fewstep.report.results import Line
from unit import made_lines


@pytest.fixture
def stored(tmp_path) -> Path:
    path = tmp_path / "results.json"
    results.save(path, made_lines.frontier())
    return path


def change(path: Path, edit) -> None:
    """Edit the file and leave its digest as it is."""
    whole = json.loads(path.read_text())
    edit(whole)
    path.write_text(json.dumps(whole))


def sealed(path: Path, edit) -> None:
    """Edit the lines and make the digest fit: what only another program would write."""
    whole = json.loads(path.read_text())
    edit(whole["lines"])
    whole["sha256"] = results._digest(whole["lines"])
    path.write_text(json.dumps(whole))


def test_what_is_read_is_what_was_written(stored) -> None:
    lines = made_lines.frontier()
    assert results.load(stored) == lines
    assert [f.plain() for f in results.load(stored)[0].figures] == [
        f.plain() for f in lines[0].figures
    ]
    assert results.load(stored)[0].pixels is None
    again = stored.with_name("again.json")
    results.save(again, results.load(stored))
    assert again.read_bytes() == stored.read_bytes()


def test_numbers_keep_all_their_digits(tmp_path) -> None:
    odd = Figure("FD-pixels", math.pi, 1 / 3, 1e17 + 2, 5e-324, 7)
    line = replace(made_lines.frontier()[0], figures=(odd,), seconds=0.1 + 0.2)
    results.save(tmp_path / "r.json", [line])
    assert results.load(tmp_path / "r.json") == [line]


def test_tuples_are_lists_from_the_start() -> None:
    """Else a fresh line and a stored one of the same protocol would differ."""
    line = replace(made_lines.frontier()[0], protocol={"n": 2, "sizes": (1, 2), 3: "x"})
    assert line.protocol == {"n": 2, "sizes": [1, 2], "3": "x"}


def test_foreign_images_have_no_cost() -> None:
    line = made_lines.foreign()
    assert (line.rate, line.steps, line.early) == (None, None, False)
    assert made_lines.frontier()[0].rate == pytest.approx(20)
    assert [x.early for x in made_lines.frontier()] == [False, False, False, True, False, False]


def test_every_field_of_a_line_is_stored_or_meant_not_to_be() -> None:
    plain = made_lines.frontier()[0].plain()
    assert set(plain) == {f.name for f in fields(Line)} - {"pixels"}
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda w: w["lines"][0]["figures"][1].update(value=0.01), "changed after it was written"),
        (lambda w: w["lines"][0].update(images=50_000), "changed after it was written"),
        (lambda w: w["lines"].pop(), "changed after it was written"),
        (lambda w: w.pop("sha256"), "changed after it was written"),
        (lambda w: w.update(format=2), "results of format 2, this version reads 1"),
        (lambda w: w.pop("format"), "results of format None"),
        (lambda w: w.update(what="rows"), "no results of fewstep"),
        (lambda w: w.update(lines={}), "changed after it was written"),
    ],
)
def test_refuses_a_file_that_was_changed_or_is_of_another_kind(stored, edit, said) -> None:
    change(stored, edit)
    with pytest.raises(DataError, match=said) as caught:
        results.load(stored)
    assert "\n" not in str(caught.value)
    assert str(stored) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda x: x[1].pop("title"), "line 2: must be an object of title"),
        (lambda x: x[1].update(extra=1), "line 2: must be an object of title"),
        (lambda x: x[0].update(nfe="50"), "line 1: nfe is '50', of the wrong kind"),
        (lambda x: x[0].update(nfe=True), "nfe is True, of the wrong kind"),
        (lambda x: x[0].update(protocol=[]), "protocol is .*wrong kind"),
        (lambda x: x[0]["figures"][0].update(better="up"), "allowed are lower, higher"),
        (lambda x: x[0]["figures"][1].pop("low"), "figure 2: must be an object of name"),
        (lambda x: x.insert(0, 7), "line 1: must be an object"),
        (lambda x: x.clear(), "holds no rows"),
    ],
)
def test_refuses_lines_of_another_layout(stored, edit, said) -> None:
    sealed(stored, edit)
    with pytest.raises(DataError, match=said):
        results.load(stored)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"what": NaN}', '{"what": "x", "what": "y"}', "\udcff", "[" * 99999],
)
def test_refuses_what_is_no_results_file(tmp_path, text) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="results"):
        results.load(path)


def test_a_file_that_says_a_key_twice_is_refused(stored) -> None:
    text = stored.read_text()
    stored.write_text(text.replace('"format": 1,', '"format": 1, "format": 1,', 1))
    with pytest.raises(DataError, match="says a key twice"):
        results.load(stored)


def test_a_missing_file_and_a_folder_are_refused(tmp_path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            results.load(path)


@pytest.mark.parametrize("key", ["value", "low", "high", "real"])
def test_a_figure_that_is_no_number_is_not_stored(tmp_path, key) -> None:
    line = made_lines.frontier()[0]
    bad = replace(line, figures=(replace(line.figures[0], **{key: math.nan}),))
    with pytest.raises(NumericError, match='"DDIM 50": KD-pixels is not finite'):
        results.save(tmp_path / "r.json", [bad])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="no folder of this name elsewhere")
def test_a_disk_that_refuses_is_one_line(tmp_path) -> None:
    with pytest.raises(ResourceError, match="cannot write"):
        results.save(tmp_path / "none" / "r.json", made_lines.frontier())


def edits(values: dict, path: tuple = ()) -> list[tuple]:
    """Every leaf of a nested dict, as the keys that lead to it."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += edits(value, (*path, key))
        else:
            found.append((*path, key))
    return found


@pytest.mark.parametrize("path", edits(made_lines.PROTOCOL), ids=".".join)
def test_one_field_of_the_protocol_is_enough_to_refuse(path) -> None:
    lines = made_lines.frontier()
    other = copy.deepcopy(lines[2].protocol)
    inner = other
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = inner[path[-1]] + (1 if isinstance(inner[path[-1]], int) else "x")
    lines[2] = replace(lines[2], protocol=other)
    with pytest.raises(UsageError) as caught:
        results.same_protocol(lines)
    said = str(caught.value)
    for part in ('"DDIM 50"', '"DPM-Solver++(2M) 10"', ".".join(path), "under one protocol"):
        assert part in said
    assert "\n" not in said


def test_a_field_that_only_one_has_is_a_difference() -> None:
    lines = made_lines.frontier()
    lines[1] = replace(lines[1], protocol={**lines[1].protocol, "precision": "bf16"})
    with pytest.raises(UsageError, match="precision absent and bf16"):
        results.same_protocol(lines)


def test_lines_of_one_protocol_pass_whatever_else_differs() -> None:
    lines = made_lines.frontier()
    lines[1] = replace(lines[1], weights="x", record={"machine": "other"}, images=250)
    results.same_protocol(lines)
    results.same_protocol([])


def test_a_difference_names_field_and_both_values() -> None:
    a, b = {"n": 1000, "r": {"hash": "a" * 64}}, {"n": 2000, "r": {"hash": "a" * 63 + "b"}}
    first, second = results.difference(a, b)
    assert first == "n 1000 and 2000"
    assert second == f"r.hash {'a' * 64} and {'a' * 63}b"  # cut, both would look the same
    assert results.difference({"h": "a" * 64}, {"h": "b" * 64}) == [
        "h aaaaaaaaaaaa.. and bbbbbbbbbbbb.."
    ]
    assert results.difference(a, copy.deepcopy(a)) == []
    assert results.difference({"x": True}, {"x": 1}) == ["x True and 1"]


def test_many_differences_are_counted() -> None:
    lines = made_lines.frontier()[:2]
    lines[1] = replace(lines[1], protocol={"n": 2000} | {f"p{i}": i for i in range(9)})
    with pytest.raises(UsageError, match=r"and \d+ more; evaluate both"):
        results.same_protocol(lines)


def test_lines_are_grouped_by_protocol() -> None:
    lines = made_lines.frontier()
    other = [replace(x, protocol={**x.protocol, "n": 1000}) for x in lines[:2]]
    groups = results.by_protocol([lines[0], other[0], lines[1], other[1]])
    assert [len(g) for g in groups] == [2, 2]
    assert groups == [lines[:2], other]


def _students(ladder: str, *steps: int, teacher: str = "digits") -> list[results.Line]:
    """Return lines of the students of one distillation."""
    plain = made_lines.frontier()[0]
    return [
        replace(
            plain, title=f"progressive {n}", model=f"progressive-{n}", nfe=n,
            weights=f"{ladder}{n:02d}" * 8, settings={**plain.settings, "steps": n},
            record={**plain.record, "student": {"teacher": teacher, "ladder": ladder * 4}},
        )
        for n in steps
    ]  # fmt: skip


def test_students_of_one_distillation_have_one_name() -> None:
    teacher, *ladder = made_lines.frontier()[0], *_students("0a1b", 8, 4, 2)
    names = [line.model for line in results.named([teacher, *ladder])]
    assert names == ["digits", *["students of digits"] * 3]
    assert [line.title for line in results.named(ladder)] == [
        f"progressive {n}" for n in (8, 4, 2)
    ]


def test_a_student_alone_keeps_its_name_in_all_ways_of_sampling_it() -> None:
    one, *_ = _students("0a1b", 2)
    ways = [one, replace(one, title="progressive 1", nfe=1)]
    assert results.named(ways) == ways


def test_two_distillations_of_one_teacher_are_told_apart() -> None:
    lines = [
        *_students("0a1b", 8, 4),
        *_students("9f8e", 8, 4),
        *_students("7777", 2, 1, teacher="x"),
    ]
    names = [line.model for line in results.named(lines)]
    first, second = "students of digits (0a1b0a1b)", "students of digits (9f8e9f8e)"
    assert names == [first, first, second, second, "students of x", "students of x"]


def test_columns_are_named_in_order_of_appearance() -> None:
    lines = made_lines.frontier()[:2]
    lines[0] = replace(lines[0], figures=lines[0].figures[1:2])
    assert results.columns(lines) == ["FD-pixels", "KD-pixels", "precision-pixels", "accuracy"]
    assert lines[0].figure("accuracy") is None


def test_committed_results_name_no_place_on_a_machine(root) -> None:
    """What one measured is for others: names of data, not where they lay."""
    found = {
        str(path.relative_to(root)): match
        for folder in ("docs", "models", "src")
        for path in (root / folder).rglob("*.json")
        if (match := re.findall(r"[^\w.](/[\w.-]+(?:/[\w. -]+)+)", path.read_text()))
    }
    assert found == {}
