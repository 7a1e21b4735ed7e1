"""Real digits into their noise and back: the error falls with the steps, inverted steps close."""

import json
from itertools import pairwise

import pytest

from fewstep.cli.resolve import find
from tools import roundtrip_table


def test_the_stored_errors_fall_with_the_steps():
    stored = json.loads(roundtrip_table.STORED.read_text("utf-8"))
    assert stored["weights_sha256"] == find("digits").weights
    errors = {row["steps"]: row["flipped"] for row in stored["rows"]}
    assert list(errors) == list(roundtrip_table.PUBLISHED)
    assert all(b < a for a, b in pairwise(errors.values()))
    assert errors[10] < 0.02
    assert errors[100] < 5e-4
    assert all(row["inverted"] < 1e-8 for row in stored["rows"])


def test_one_row_is_what_the_tool_stores():
    """With few images and steps: the order of both ways, and what each costs."""
    denoiser, x = find("digits").model.denoiser, roundtrip_table.images(8)
    row = roundtrip_table.row(denoiser, x, 10, 2)
    assert 1e-4 < row["flipped"] < 0.02
    assert row["inverted"] < 1e-10
    assert row["evaluations"] > 20
    assert 0.05 < row["noise off"] < 0.5


@pytest.mark.slow
def test_errors_fall_with_the_steps():
    denoiser, x = find("digits").model.denoiser, roundtrip_table.images(16)
    rows = [roundtrip_table.row(denoiser, x, steps, 4) for steps in (10, 20, 50, 100)]
    assert all(b["flipped"] < a["flipped"] for a, b in pairwise(rows))
    assert rows[0]["flipped"] < 0.02
    assert rows[-1]["flipped"] < 5e-4
    assert all(row["inverted"] < 1e-9 for row in rows)
