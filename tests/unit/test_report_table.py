"""Tables: every number with its interval and its floor, and never two protocols in a column."""

import re
from dataclasses import replace

import pytest

from fewstep.errors import UsageError
from fewstep.metrics.figures import Figure
from fewstep.report import spec, table
from fewstep.report.results import Line
from unit import made_lines


def other_protocol(lines: list[Line]) -> list[Line]:
    """The same lines, the last of which was measured with other images."""
    values = {**lines[-1].protocol, "n": 1000}
    return [*lines[:-1], replace(lines[-1], protocol=values)]


ALL = [
    lambda lines: table.frontier(lines),
    lambda lines: table.markdown(lines),
    lambda lines: table.ddim_table(lines, "FD-pixels"),
    lambda lines: table.ddim_markdown(lines, "FD-pixels"),
]


@pytest.mark.parametrize("make", ALL)
def test_two_protocols_are_refused(make) -> None:
    lines = made_lines.ddim_table()
    make(lines)
    with pytest.raises(UsageError, match="different protocols: n 2000 and 1000"):
        make(other_protocol(lines))


def test_a_row_of_the_terminal() -> None:
    text = table.frontier(made_lines.frontier())
    row = next(t for t in text if "DPM-Solver" in t).split()
    assert row == [
        "DPM-Solver++(2M)", "10", "10", "10", "100.0", "0.00320", "+-0.00032", "0.320", "+-0.050",
        "0.980", "+-0.010", "0.750", "+-0.050",
    ]  # fmt: skip
    head = text[0].split()
    assert head == ["steps", "NFE", "images/s", "KD-pixels", "FD-pixels", "accuracy",
                    "precision-pixels"]  # fmt: skip
    assert max(len(t) for t in text[:10]) <= table.WIDTH


def test_real_images_are_the_last_rows_one_for_each_n() -> None:
    lines = made_lines.frontier()
    lines[3] = replace(lines[3], figures=made_lines.figures(2.1, 0.98, real=2.0))
    text = table.frontier(lines)
    few = next(t for t in text if "real images, N = 250" in t).split()
    many = next(t for t in text if "real images, N = 2000" in t).split()
    assert few[-4:] == ["0.00010", "2.000", "0.993", "0.820"]
    assert many[-4:] == ["0.00010", "0.250", "0.993", "0.820"]
    single = table.frontier([x for x in lines if not x.early])
    assert any(t.strip().startswith("real images  ") for t in single)


def test_an_early_row_says_so() -> None:
    text = "\n".join(table.frontier(made_lines.frontier()))
    assert "DDPM 1000 (early, N 250)" in text
    assert text.count("(early") == 1
    assert "early: fewer images than the protocol asks for" in text
    full = [x for x in made_lines.frontier() if not x.early]
    assert "early" not in "\n".join(table.frontier(full))


def test_what_does_not_fit_is_named() -> None:
    text = table.frontier(made_lines.frontier(), width=100)
    assert max(len(t) for t in text[:9]) <= 100
    assert "not shown here, in results.json: precision-pixels" in "\n".join(text)
    assert text[0].split()[3:] == ["KD-pixels", "FD-pixels", "accuracy"]


def test_precision_is_not_shown_without_recall() -> None:
    lines = made_lines.frontier()[:2]
    recall = Figure("recall-pixels", 0.7, 0.6, 0.8, 0.8, 897, "higher")
    lines = [replace(x, figures=(*x.figures, recall)) for x in lines]
    heads = {w: table.frontier(lines, w)[0] for w in range(60, 140, 4)}
    assert all(("precision" in h) == ("recall" in h) for h in heads.values())
    assert "recall" in heads[136]
    assert "recall" not in heads[60]


def test_figures_of_the_first_features_come_first_in_their_own_order() -> None:
    """KD before FD where the judge says so; then accuracy."""
    lines = made_lines.frontier()[:1]
    extra = [Figure(n, 1.0, 1.0, 1.0) for n in ("KD-classifier", "FD-classifier", "copy rate")]
    lines = [replace(lines[0], figures=(*lines[0].figures, *extra))]
    pixels, others = ["KD-pixels", "FD-pixels"], ["KD-classifier", "FD-classifier"]
    rest = ["precision-pixels", *others, "copy rate"]
    assert table.ranked(lines) == [*pixels, "accuracy", *rest]
    assert table.ranked(lines, "FD-pixels") == table.ranked(lines)
    rest = [*pixels, "precision-pixels", "copy rate"]
    assert table.ranked(lines, "FD-classifier") == [*others, "accuracy", *rest]


def test_groups_and_models_are_headings() -> None:
    lines = [replace(x, group="slow" if x.nfe > 40 else "fast") for x in made_lines.frontier()]
    lines.sort(key=lambda x: x.group)
    text = table.frontier(lines)
    assert text.index("fast") < text.index("slow") < text.index("real against real")
    two = [lines[0], replace(lines[1], model="other")]
    assert "digits: fast" in table.frontier(two)
    assert "other: fast" in table.frontier(two)


def test_foreign_images_stand_in_the_table_without_cost() -> None:
    row = next(t for t in table.frontier([*made_lines.frontier(), made_lines.foreign()])
               if "folder" in t)  # fmt: skip
    assert row.split()[1:4] == ["-", "-", "-"]
    alone = table.frontier([made_lines.foreign()])
    assert "NFE" not in "\n".join(alone)


def test_a_figure_without_interval_or_floor_is_shown_bare() -> None:
    assert table.shown(Figure("FD-pixels", 1.5, 1.5, 1.5), 2) == "1.50"
    assert table.shown(Figure("FD-pixels", 1.5, 1.4, 1.7), 2) == "1.50 +-0.15"
    assert table.real_range([None, Figure("x", 1, 1, 1)], 2) == "-"
    assert table.real_range([Figure("x", 1, 1, 1, 0.25), Figure("x", 1, 1, 1, 0.5)], 2) == (
        "0.25 to 0.50"
    )


@pytest.mark.parametrize(
    ("values", "places"),
    [([367.43, 3.17], 2), ([0.29, 1.5], 3), ([0.00012], 5), ([0.0], 3), ([], 3)],
)
def test_decimals_follow_the_smallest_figure(values, places) -> None:
    assert table.places(Figure("x", v, v, v) for v in values) == places


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [
        ("FID", "FD", "inception"), ("KID", "KD", "inception"), ("IS", "score", "inception"),
        ("FD-pixels", "FD", "pixels"), ("KD-my-net", "KD", "my-net"),
        ("precision", "precision", "real"), ("diversity-classifier", "diversity", "varied"),
        ("copy rate", "copy", "training"), ("else", "", "else"),
    ],
)  # fmt: skip
def test_names_of_figures(name, kind, word) -> None:
    assert table.kind(name) == kind
    assert word in table.explain(name)


def test_markdown_has_all_figures_and_escapes() -> None:
    lines = [replace(made_lines.frontier()[0], title="a|b"), made_lines.frontier()[1]]
    text = table.markdown(lines)
    assert "| a\\|b | 50 | 50 | 20.0 | 0.00300 ±0.00030 | 0.300 ±0.050 |" in text
    assert "precision-pixels" in text
    rows = [t for t in text.splitlines() if t.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "real images" in text


def test_the_talks_table_puts_every_cell_in_its_place() -> None:
    text = table.ddim_table(made_lines.ddim_table(), "FD-pixels")
    at = next(i for i, t in enumerate(text) if "S = 10 " in t)
    assert re.findall(r"S = (\d+)", text[at]) == ["10", "20", "50", "100", "1000"]
    for i, eta in enumerate(spec.ETAS):
        row = text[at + 1 + i]
        assert row.split()[0] in ("eta", "sigma-hat")
        assert eta in row
        numbers = re.findall(r"(\d+\.\d+) \+-0\.05", row)
        assert [float(x) for x in numbers] == [10.0 * i + j + 1 for j in range(5)]


def test_the_published_figures_stand_by_with_their_source() -> None:
    text = "\n".join(table.ddim_table(made_lines.ddim_table(), "FD-pixels"))
    marked = table.ddim_markdown(made_lines.ddim_table(), "FD-pixels")
    for page in (text, marked):
        for data, values in spec.PUBLISHED.items():
            assert f"{data}, FID" in page
            assert all(f"{value:.2f}" in page for value in values.values())
        for words in (
            "only the",
            "other data",
            "clipped in the rows of sigma-hat alone",
            spec.SOURCE,
            "real images: 0.25",
        ):
            assert words in page
    row = next(t for t in text.splitlines() if "367.43" in t)
    assert re.findall(r"\d+\.\d\d", row) == [
        "367.43", "133.37", "32.72", "9.99", "3.17", "299.71", "183.83", "71.71", "45.20", "3.26"
    ]  # fmt: skip


def test_missing_and_early_cells_are_marked() -> None:
    lines = made_lines.ddim_table()
    lines[1] = replace(lines[1], images=250)
    text = table.ddim_table([lines[0], lines[1], *lines[3:]], "FD-pixels")
    row = next(t for t in text if t.startswith("  eta 0 "))
    assert "2.00 +-0.05 early" in row
    assert " -  " in row
    assert any("early: fewer" in t for t in text)


def test_the_talks_table_is_of_one_model_and_one_line_to_a_cell() -> None:
    lines = made_lines.ddim_table()
    twice = [*lines, replace(lines[3], title="again")]
    with pytest.raises(UsageError, match=r'"eta 0, S = 100" and "again".* one line to a place'):
        table.ddim_table(twice)
    mixed = [*lines[:-1], replace(lines[-1], weights="cd")]
    with pytest.raises(UsageError, match="must be of one model"):
        table.ddim_table(mixed)
    guided = {**lines[-1].settings, "guidance_scale": 2.0}
    with pytest.raises(UsageError, match="differ in eta and S alone"):
        table.ddim_table([*lines[:-1], replace(lines[-1], settings=guided)])
    with pytest.raises(UsageError, match=r'figure "FD-pixel": .*did you mean "FD-pixels"'):
        table.ddim_table(lines, "FD-pixel")
    with pytest.raises(UsageError, match="no line belongs to the ddim-table"):
        table.ddim_table([made_lines.foreign()])


def test_what_is_a_ddim_table() -> None:
    lines = made_lines.ddim_table()
    assert table.is_ddim_table(lines)
    assert table.is_ddim_table(lines[:7])
    assert not table.is_ddim_table(lines[:5])  # one eta alone
    assert not table.is_ddim_table(made_lines.frontier())
    assert not table.is_ddim_table([*lines, made_lines.foreign()])
    assert not table.is_ddim_table([*lines, lines[0]])
    assert not table.is_ddim_table([*lines[:-1], replace(lines[-1], model="other")])
    assert not table.is_ddim_table([])
