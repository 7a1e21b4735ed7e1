"""The score model on digits: as stored, and trained anew."""

from pathlib import Path

import pytest

from fewstep.report import results
from fewstep.report.results import Line
from tests.system.cli_runs import call

STORED = Path(__file__).resolve().parents[2] / "docs/results/ncsn-digits.json"
FIGURE = "FD-classifier"


def value(line: Line) -> float:
    """Return the distance of a line."""
    figure = line.figure(FIGURE)
    assert figure is not None
    return figure.value


def of(lines: list[Line], model: str, sampler: str, scale: float = 1.0) -> Line:
    """Return the line of a model with this sampler."""
    (found,) = [
        x
        for x in lines
        if (x.model, x.settings["sampler"], x.settings["guidance_scale"])
        == (model, sampler, scale)
    ]
    return found


def test_the_stored_model_is_within_twice_the_shipped_one() -> None:
    lines = results.load(STORED)
    assert {line.images for line in lines} == {2000}
    results.same_protocol(lines)
    ours = of(lines, "digits-ncsn", "annealed-langevin")
    assert ours.nfe == 20 * 5 + 1
    assert ours.settings["snr"] == 0.3454
    for scale in (1.0, 2.0):
        assert value(ours) <= 2 * value(of(lines, "digits", "ddim", scale))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_trained_model_is_within_twice_the_shipped_one(tmp_path, monkeypatch, capsys) -> None:
    """Nightly: the recipe, with annealed Langevin dynamics, against 50 steps of DDIM."""
    pytest.importorskip("torch_fidelity")
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "train", "digits-ncsn", "device=cpu")[0] == 0
    found = []
    for words in (("runs/digits-ncsn",), ("digits", "--sampler", "ddim", "--steps", "50")):
        code, _, err = call(capsys, "evaluate", *words, "-o", "e")
        assert code == 0, err
    for path in Path("e").glob("*.json"):
        found += results.load(path)
    ours = of(found, "digits-ncsn", "annealed-langevin")
    assert value(ours) <= 2 * value(of(found, "digits", "ddim", 2.0))
