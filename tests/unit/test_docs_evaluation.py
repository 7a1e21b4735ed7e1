"""The page about evaluation says what the program does: numbers, protocols, options, files."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from fewstep.cli import compare, evaluate
from fewstep.data.arrays import EXTENSIONS
from fewstep.metrics.copies import SHARE
from fewstep.metrics.reference import FEW
from fewstep.report import spec
from fewstep.report.cells import CHUNK
from fewstep.report.judge import PROTOCOLS
from tools import bias_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
TEXT = PAGE.read_text("utf-8")


def rows(text):
    """Return the cells of the rows of Markdown tables, without rules."""
    found = [
        [c.strip() for c in x.strip("|").split("|")] for x in text.splitlines() if x[:1] == "|"
    ]
    return [row for row in found if not set("".join(row)) <= set("-:")]


def test_the_table_of_the_bias_is_what_the_functions_give():
    pytest.importorskip("torch_fidelity")
    assert bias_table.main(check=True) == 0


def test_another_number_in_the_table_is_seen(tmp_path):
    pytest.importorskip("torch_fidelity")
    page = tmp_path / "page.md"
    page.write_text(TEXT.replace("| 500 | 1.", "| 500 | 2."), "utf-8")
    assert bias_table.main(check=True, page=page) == 1
    assert bias_table.main(check=False, page=page) == 0
    assert page.read_text("utf-8") == TEXT


def test_the_measured_bias_agrees_with_the_law():
    """Both are of the same order in n; the law leaves out terms of d / n = 0.064 at n = 500."""
    table = rows(TEXT.split(bias_table.BEGIN)[1].split(bias_table.END)[0])[1:]
    assert len(table) == len(bias_table.NUMBERS)
    for n, measured, law, _ in table:
        relative = float(measured) / float(law) - 1
        assert abs(relative) < bias_table.WIDTH / int(n.replace(",", "")) + 0.02


@pytest.mark.parametrize("data", spec.PUBLISHED)
def test_the_published_figures_are_those_of_the_report(data):
    part = TEXT.split(f"| {data} | S = 10")[1].split("\n\n")[0]
    table = {row[0]: row[1:] for row in rows("\n" + part.split("\n", 1)[1])}
    assert len(table) == len(spec.ETAS)
    for (eta, s), fid in spec.PUBLISHED[data].items():
        name = eta if eta == "sigma-hat" else f"eta {eta}"
        assert table[name][spec.STEPS.index(s)] == f"{fid:.2f}"


def test_the_protocols_are_those_of_the_program():
    part = TEXT.split("## Protocols")[1].split("\n- ")[0]
    table = {row[0].strip("`"): row[1:4] for row in rows(part)[1:]}
    assert table == {
        p.name: [
            f"{p.n:,}",
            ", ".join(p.extractors),
            {"held_out": "held-out images", "train": "training images"}[p.against],
        ]
        for p in PROTOCOLS.values()
    }


def test_every_option_on_the_page_exists():
    known = {"--nproc-per-node"}
    for module in (evaluate, compare):
        known |= {name for each in get_command(module.app).params for name in each.opts}
    words = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", re.sub(r"\d-[a-z]", "", TEXT)))
    assert {"--protocol", "--shard", "--merge", "--inception", "--preset"} <= words
    assert words - known == {"-m"}


def test_constants_and_formats_on_the_page():
    assert f"below {FEW:,} images" in TEXT
    assert f"chunks of {CHUNK}" in TEXT
    assert f"distance that {100 * SHARE:.0f} % of" in TEXT
    for extension in EXTENSIONS:
        assert f"| `{extension}` |" in TEXT
    assert len(TEXT.splitlines()) <= 250
