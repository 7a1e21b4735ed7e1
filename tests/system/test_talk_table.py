"""The talk's table on the shipped digits model: its shape, as stored and as it comes out here."""

from itertools import pairwise
from pathlib import Path

import pytest

from fewstep.report import results, table
from fewstep.report.spec import ETAS, STEPS
from tests.system.cli_runs import call

STORED = Path(__file__).resolve().parents[2] / "docs/results/ddim-digits.json"
FIGURE = "FD-pixels"


@pytest.fixture(scope="module")
def cells() -> dict:
    found = table.checked(results.load(STORED), FIGURE)
    return {place: line.figure(FIGURE) for place, line in found.items()}


def test_the_stored_table_is_whole(cells) -> None:
    lines = results.load(STORED)
    assert set(cells) == {(eta, s) for eta in ETAS for s in STEPS}
    assert len(cells) == len(lines) == 25
    assert {line.images for line in lines} == {2000}
    assert {line.settings["spacing"] for line in lines} == {"uniform"}
    assert all(line.record["sampled on"] for line in lines)


@pytest.mark.parametrize("s", [10, 20])
def test_at_few_steps_no_fresh_noise_is_best(cells, s) -> None:
    assert cells[ETAS[0], s].value < min(cells[eta, s].value for eta in ETAS[1:])


def test_the_larger_variance_is_worst_by_far_and_needs_its_steps(cells) -> None:
    """Worst at 10 and 20, by a factor of more than two at 10, and falling steeply."""
    hat = [cells["sigma-hat", s] for s in STEPS]
    for s in (10, 20):
        assert all(cells["sigma-hat", s].low > cells[eta, s].high for eta in ETAS[:-1])
    assert hat[0].value > 2 * max(cells[eta, 10].value for eta in ETAS[:-1])
    assert all(b.value <= a.value or b.low <= a.high for a, b in pairwise(hat))
    assert hat[0].low > 2 * hat[2].high
    assert hat[1].low > hat[2].high


def test_more_steps_are_not_worse_without_fresh_noise(cells) -> None:
    """Each step down the row falls, or stays within the intervals."""
    row = [cells[ETAS[0], s] for s in STEPS]
    for a, b in pairwise(row):
        assert b.value <= a.value or b.low <= a.high
    assert row[-1].high < row[0].low


def test_the_shape_comes_out_here(tmp_path, capsys) -> None:
    """Five cells of ten steps, made now; the gaps are many times their intervals."""
    rows = [f"ddim:10:eta={eta}" for eta in ETAS[:-1]] + ["ddpm-large:10"]
    words = ",".join(f"{row}:scale=1:spacing=uniform:process=linear" for row in rows)
    out = tmp_path / "c"
    code, _, err = call(
        capsys, "compare", "digits", "--samplers", words, "-n", "250", "-o", out
    )  # fmt: skip
    assert code == 0, err
    found = [line.figure(FIGURE) for line in results.load(out / "results.json")]
    values = [f.value for f in found]
    assert values[0] < values[-2] < values[-1]
    assert values[0] < values[2]
    assert found[-1].low > 1.5 * max(f.high for f in found[:-1])
