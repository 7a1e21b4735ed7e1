"""What the page on guidance says of the stored sweep is so."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from fewstep.metrics.figures import Figure
from fewstep.report import results, sweep

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCALES = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]


@pytest.fixture(scope="module")
def lines() -> list:
    return results.load(DOCS / "results/guidance-digits.json")


def test_a_model_without_labels_is_steered() -> None:
    """Chance at scale 0, what was asked for from 2 on, as the page says."""
    lines = results.load(DOCS / "results/guidance-unlabelled.json")
    shares = [line.figure("accuracy").value for line in lines]
    assert shares[0] < 0.15
    assert all(share >= 0.95 for share in shares[2:])
    said = (DOCS / "guidance.md").read_text("utf-8")
    assert f"{shares[2]:.3f} of its images at scale 2 and in {shares[3]:.3f} at 4" in said


@pytest.fixture(scope="module")
def curves(lines):
    """{figure: (of classifier-free guidance, of the classifier)}, each {scale: figure}."""
    found = sweep.curves(lines).values()

    def of(name: str) -> tuple[dict[float, Figure], ...]:
        return tuple({s: line.figure(name) for s, line in members} for members in found)

    return {name.partition("-")[0]: of(name) for name in sweep.columns(lines, "FD-pixels")[:4]}


def test_the_stored_sweep_is_whole(lines, curves) -> None:
    assert sweep.is_sweep(lines)
    assert len(lines) == 12
    assert set(curves) == {"FD", "precision", "recall", "accuracy"}
    assert all(list(one) == SCALES for both in curves.values() for one in both)
    assert {line.images for line in lines} == {2000}
    assert [line.nfe for line in lines] == [20, 40, 20, 40, 40, 40, *[20] * 6]
    assert len({line.settings["classifier"]["weights_sha256"] for line in lines[6:]}) == 1
    results.same_protocol(lines)


def test_both_begin_at_the_same_images(curves) -> None:
    for free, judged in curves.values():
        assert free[0.0] == judged[0.0]


def test_the_classifier_needs_more_scale_for_the_same_accuracy(curves) -> None:
    free, judged = curves["accuracy"]
    assert free[0.0].value < 0.13
    assert judged[1.0].high < 0.85 < free[1.0].low
    assert judged[2.0].high < free[1.0].low
    assert judged[4.0].high > free[1.0].low


def test_more_scale_is_less_variety(lines, curves) -> None:
    for recall in curves["recall"]:
        after = [recall[s].value for s in SCALES[2:]]
        assert all(b < a for a, b in pairwise(after))
        assert recall[8.0].high < recall[1.0].low
    free, judged = curves["precision"]
    assert free[8.0].high < free[1.0].low
    assert judged[8.0].low > judged[1.0].high
    distance, _ = curves["FD"]
    assert distance[8.0].value > 6 * distance[1.0].value
    score = lines[4].figure("score-classifier")
    assert lines[4].title == "scale 4"
    assert score.low > score.real


def test_the_plain_model_is_best_here_and_the_classifier_the_gentler(curves) -> None:
    free, judged = curves["FD"]
    assert min((f.value, s) for s, f in free.items())[1] == 1.0
    assert free[1.0].value < min(f.value for f in judged.values())
    for s in (4.0, 8.0):
        assert judged[s].high < free[s].low


def test_for_the_same_recall_the_precision_is_higher(curves) -> None:
    (free, judged), (one, other) = curves["recall"], curves["precision"]
    assert round(free[2.0].value, 3) == round(judged[8.0].value, 3)
    assert one[2.0].low > other[8.0].value


def test_the_numbers_of_the_page_are_stored(lines) -> None:
    """Each decimal number of the last section stands in a table."""
    pages = [DOCS / f"results/guidance-{name}.md" for name in ("digits", "unlabelled")]
    section = (DOCS / "guidance.md").read_text("utf-8").partition("measured\n")[2]
    said = re.findall(r"\b\d\.\d{2,3}\b", section)
    assert len(said) > 10
    tables = "".join(page.read_text("utf-8").partition("results:")[2] for page in pages)
    known = re.findall(r"\b\d\.\d+\b", tables)
    assert set(said) <= set(known)


@pytest.mark.parametrize("page", ["guidance.md", "results/guidance-digits.md"])
def test_links_point_to_files(page) -> None:
    path = DOCS / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_the_page_names_every_dial_and_option() -> None:
    from typer.main import get_command

    from fewstep.cli import compare, sample
    from fewstep.report.spec import KEYS
    from fewstep.steer import DIALS

    text = (DOCS / "guidance.md").read_text("utf-8")
    for name in (*DIALS, "weak"):
        assert name in KEYS
        assert f"`{name}=" in text
    known = {
        option
        for app in (compare.app, sample.app)
        for p in get_command(app).params
        for option in p.opts
    }
    for option in re.findall(r"--[a-z][a-z-]+", text):
        assert option in known, option
