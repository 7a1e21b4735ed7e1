"""`fewstep lab`: one real run, its page and its numbers, and what is refused."""

import importlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("matplotlib")

from fewstep.lab import parts as laboratory
from fewstep.lab.part import Part, near
from tests.system.cli_runs import call, process, refused
from tests.unit.test_lab_page import Check

KNOWN = {
    "variance on N(0, 1), step 0.5": 1.14286,
    "share in the heavy mode, plain chains": 0.50,
    "variance of N(0, 1) by N(0, 4), scale 2": 0.25,
    "DDIM, deviation left of N(0, 0.25), 10 steps": 0.748,
    "sigma-hat, noise before the end, 10 steps": 32,
    "fresh noise of eta 0.5, of the posterior's": 0.5,
    "order of Heun": 2,
}


class Run(NamedTuple):
    code: int
    out: str
    err: str
    page: str


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("a b")
    words = ("lab", "--quick", "--data", "rings", "-o", "the page.html", "--format", "json")
    with process(*words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        out, err = p.communicate(timeout=150)
    assert sorted(x.name for x in folder.iterdir()) == ["the page.html"], err
    return Run(p.returncode, out, err, (folder / "the page.html").read_text("utf-8"))


def test_every_number_is_reproduced(run) -> None:
    assert run.code == 0, run.err
    answer = json.loads(run.out)
    assert answer["page"] == "the page.html"
    assert answer["data"] == "rings"
    numbers = answer["numbers"]
    assert [n["name"] for n in numbers if not n["reproduced"]] == []
    assert len({n["section"] for n in numbers}) == 6
    wanted = {n["name"]: n["wanted"] for n in numbers}
    assert {name: wanted[name] for name in KNOWN} == KNOWN


def test_what_is_being_done_is_said(run) -> None:
    lines = run.err.splitlines()
    assert [line[:8] for line in lines] == [f"lab {i}/8:" for i in range(1, 9)]
    assert "Langevin" in run.err


def test_the_page_holds_all_sections_and_needs_nothing(run) -> None:
    check = Check(run.page)
    assert len(run.page) < 3e6
    assert len(check.ids) == len(set(check.ids))
    assert all(link.startswith(("#", "data:")) for link in check.links)
    assert re.findall(r"https?://(?!www\.w3\.org/)", run.page) == []
    assert "<script" not in run.page
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", run.page)
    words = ("forward", "score", "Langevin", "Guidance", "DDIM", "solvers")
    assert [f"{i}." for i in range(1, 7)] == [h[:2] for h in headings[:6]]
    assert all(word in h for word, h in zip(words, headings, strict=False))
    manual = (Path(__file__).parents[2] / "docs" / "lab.md").read_text("utf-8")
    assert all(f"| {h[3:]} |" in manual for h in headings[:6])
    assert run.page.count('role="img"') == 6
    assert run.page.count('class="formula"') >= 12


def test_every_function_named_is_there(run) -> None:
    names = re.findall(r"<li><code>(fewstep\.[\w.]+)</code>", run.page)
    assert len(names) > 15
    for name in names:
        found(name)


def found(name: str) -> Any:
    """Return what a dotted name stands for."""
    words = name.split(".")
    for i in range(len(words) - 1, 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(words[:i]))
        except ModuleNotFoundError:
            continue
        for word in words[i:]:
            thing = getattr(thing, word)
        return thing
    raise AssertionError(name)


def made_up(got: float) -> list[Part]:
    part = Part(
        "made up", ("words",), ("x",), ("fewstep.sample",), (near("variance", got, 1.14, 0.02),),
        "a line", lambda drawing: drawing.subplots().plot([0, 1]), (3.0, 2.0),
    )  # fmt: skip
    return [part]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("got", "code"), [(1.15, 0), (2.28, 1)])
def test_the_exit_code_is_the_verdict(folder, monkeypatch, capsys, got, code) -> None:
    monkeypatch.setattr(laboratory, "parts", lambda *_: made_up(got))
    answer = call(capsys, "lab", "--data", "grid")
    lines = answer[1].splitlines()
    assert lines[-2] == "page: lab.html"
    assert lines[-1].startswith("next: ")
    assert lines[-1].endswith("lab --data moons -o moons.html")
    assert ("✗ no" in Path("lab.html").read_text("utf-8")) == bool(code)
    if code:
        refused(answer, 1, "not reproduced: variance: 2.28, must be 1.14 ± 0.02")
    else:
        assert answer[0] == 0
        assert "error" not in answer[2]


def test_a_page_that_is_there_stays(folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(laboratory, "parts", lambda *_: made_up(1.15))
    Path("lab.html").write_text("mine")
    for name in ("lab-2.html", "lab-3.html"):
        answer = call(capsys, "lab", "--data", "grid")
        assert f"page: {name}\n" in answer[1]
        assert "variance" in Path(name).read_text("utf-8")
    assert Path("lab.html").read_text() == "mine"
    assert call(capsys, "lab", "--data", "grid", "-o", "lab.html")[0] == 0
    assert Path("lab.html").read_text("utf-8") != "mine"


def test_bad_places_are_refused_before_any_work(folder, capsys) -> None:
    refused(call(capsys, "lab", "-o", "x.csv"), 2, "x.csv", "must end in .html")
    refused(call(capsys, "lab", "-o", "none/x.html"), 2, "none/x.html", "folder that exists")
    refused(call(capsys, "lab", "-o", ""), 2, "-o", "must end in .html")
    Path("is.html").mkdir()
    refused(call(capsys, "lab", "-o", "is.html"), 2, "is.html", "must be a file")
    refused(call(capsys, "lab", "--format", "xml"), 2, "xml", "json")
    refused(call(capsys, "lab", "--seed", "-1"), 2, "--seed")


def test_bad_points_are_refused(folder, capsys) -> None:
    refused(call(capsys, "lab", "--data", "moon"), 3, "moon", "two-modes, rings, moons")
    rows = [f"{i},{i % 7}\n" for i in range(40)]
    for name, row, said in (
        ("columns.csv", "1,2,3\n", "line 41 has 3 columns"),
        ("nan.csv", "nan,2\n", "row 41 of 41 has a value that is not finite"),
    ):
        Path(name).write_text("".join([*rows, row]))
        refused(call(capsys, "lab", "--data", name), 3, name, said)
    assert not Path("lab.html").exists()
