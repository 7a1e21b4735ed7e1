"""The page and its charts: one file, nothing from outside, every number with its interval."""

import base64
import html.parser
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from fewstep.errors import ResourceError, UsageError
from fewstep.metrics.figures import Figure
from fewstep.report import page, sections, spec
from unit import made_lines

pytest.importorskip("matplotlib")

from fewstep.report import chart

EVIL = "<script>alert(1)</script>\"'&$\\x$猫"
VOID = {"meta", "img", "br"}


def whole(lines, figure=None, **change) -> str:
    values = {"facts": {"machine": "x86_64"}, "hints": ["fewstep sample digits"], **change}
    return page.render("title", "lead", sections.measured(lines, figure), **values)


class Check(html.parser.HTMLParser):
    """Count elements, and see that every one that is opened is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.count, self.ids, self.images = [], {}, [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.ids += [v for k, v in attrs if k == "id"]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def cells(text: str) -> str:
    """The page without tags, white space as single blanks."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).replace("&plusmn;", "±")


PAGES = {
    "frontier": made_lines.frontier,
    "talk": made_lines.ddim_table,
    "one": lambda: made_lines.frontier()[:1],
    "foreign": lambda: [made_lines.foreign()],
}


@cache
def made(name: str) -> str:
    """A page of made-up lines; drawing takes its time, so every page is made once."""
    return whole(PAGES[name]())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_refers_to_nothing_outside_itself(name) -> None:
    text = made(name)
    assert re.findall(r"https?://(?!www\.w3\.org/)", text) == []
    links = re.findall(r'(?:src|href|xlink:href)="([^"]*)"', text)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert re.search(r"<script|<link|@import|url\((?!#)", text) is None


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_and_says_what_its_pictures_show(name) -> None:
    found = Check(made(name))
    assert len(set(found.ids)) == len(found.ids)
    assert found.images
    assert all("generated images" in image["alt"] for image in found.images)
    assert found.count["caption"] == found.count["table"]


@pytest.mark.parametrize("name", ["frontier", "talk", "one"])
def test_heads_of_tables_say_what_they_head(name) -> None:
    text = made(name)
    heads = re.findall(r"<th\b[^>]*>", text)
    assert heads
    assert all(re.search(r'scope="(col|row|rowgroup)"', head) for head in heads)
    titles = re.findall(r'<th scope="col" title="([^"]+)">FD-pixels', text)
    if name == "frontier":
        assert titles == [
            "Frechet distance of the pixels features to the reference; lower is better"
        ]


def test_every_number_has_its_interval_and_what_real_images_get() -> None:
    text = cells(made("frontier"))
    assert "DPM-Solver++(2M) 10 10 10 100.0 0.00320 ±0.00032 real 0.00010 0.320 ±0.050" in text
    assert text.count("real 0.250") == 6
    one = cells(made("one"))
    assert "FD-pixels 0.300 0.260 to 0.360 0.250 Frechet distance" in one


def test_the_best_is_marked_with_what_its_interval_does_not_part_from_it() -> None:
    lines = made_lines.frontier()
    text = whole(lines)
    column = re.findall(r'<td class="(best|)">(?:<b>)?(\d\.\d{3})(?:</b>)?[^/]*?0\.050', text)
    fd = column[::2]  # FD and precision have this interval
    assert fd == [("best", "0.300"), ("", "0.460"), ("best", "0.320"), ("", "2.100"),
                  ("", "0.600"), ("", "1.150")]  # fmt: skip


def test_an_early_line_is_no_best_and_is_marked() -> None:
    lines = made_lines.frontier()
    lines[3] = replace(lines[3], figures=made_lines.figures(0.01, 0.98))
    text = whole(lines)
    assert "early, N 250" in text
    row = re.search(r"DDPM 1000.*?</tr>", text, re.DOTALL)
    assert row is not None
    assert "best" not in row[0]


def test_protocols_have_tables_of_their_own_and_are_stated() -> None:
    lines = made_lines.frontier()[:4]
    other = [replace(x, protocol={**x.protocol, "n": 1000, "name": "small-1k"}) for x in lines]
    found = sections.measured([*lines, *other])
    assert [s.title for s in found] == [
        "Protocol small-2k: 2000 images against digits, held out",
        "Protocol small-1k: 1000 images against digits, held out",
    ]
    for section, n in zip(found, (2000, 1000), strict=True):
        text = cells(section.body)
        assert f" n {n} " in text
        assert f" n {3000 - n} " not in text
        assert "Numbers of different ones do not compare" in text
        assert "fingerprint: 3fa9" in text
        assert "weights of digits ab12" in text
        assert section.body.count('<th scope="row">DDIM 50</th>') == 1
    assert sections.measured(lines)[0].title == "Figures"


def test_what_comes_from_outside_is_escaped() -> None:
    lines = made_lines.frontier()
    evil = {**lines[0].protocol, "name": EVIL, EVIL: EVIL}
    settings = {**lines[0].settings, "sampler": EVIL}
    lines = [
        replace(x, title=f"{EVIL}{i}", group=EVIL, model=EVIL, protocol=evil, settings=settings)
        for i, x in enumerate(lines)
    ]
    lines[1] = replace(lines[1], protocol={**evil, "n": 1})
    parts = [
        *sections.measured(lines),
        page.Section(EVIL, ""),
        sections.confusion(torch.eye(2), [EVIL, "b"]),
        sections.per_class([Figure(f"FD-pixels of {EVIL}", 1, 1, 1)]),
    ]
    text = page.render(EVIL, EVIL, parts, {EVIL: EVIL}, [EVIL])
    assert "<script" not in text
    said = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).split("alert(1)&lt;/script&gt;")
    assert len(said) > 10
    assert all(rest.startswith("&quot;&#x27;&amp;") for rest in said[1:])  # fit for attributes
    Check(text)


def test_pictures_hold_the_same_images_for_every_line() -> None:
    lines = made_lines.frontier()
    text = whole(lines)
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    assert len(found) == len(lines)
    sheet = Image.open(io.BytesIO(base64.b64decode(found[0])))
    assert lines[0].pixels is not None
    assert sheet.getpixel((2, 2)) == int(lines[0].pixels[0, 0, 0, 0])
    bare = [replace(x, pixels=None) for x in lines]
    assert "<img" not in whole(bare)
    assert "<img" not in whole([replace(x, pixels=None) for x in made_lines.ddim_table()])


def test_the_talks_table_stands_beside_the_published_ones() -> None:
    text = made("talk")
    plain = cells(text)
    assert "eta 0.2 11.00 ±0.05 real 0.25 12.00 ±0.05 real 0.25 13.00" in plain
    for data, values in spec.PUBLISHED.items():
        assert f"Published: FID, {data}" in text
        rows = [" ".join(f"{values[eta, s]:.2f}" for s in spec.STEPS) for eta in spec.ETAS]
        assert all(row in plain for row in rows)
    assert "only the shape compares" in plain
    assert len(re.findall(r"<img", text)) == 25
    assert "All figures" in plain


def test_confusion_has_asked_for_in_rows() -> None:
    text = sections.confusion(torch.tensor([[5, 2], [0, 7]]), ["cat", "dog"]).body
    assert re.findall(r'<th scope="row">(\w+)</th>(.*?)</tr>', text)[0][0] == "cat"
    first = re.search(r'<th scope="row">cat</th>(.*?)</tr>', text)
    assert first is not None
    assert re.findall(r">(\d*)</td>", first[1]) == ["5", "2"]
    assert "Rows: the class asked for" in text


def test_of_many_classes_the_worst_are_shown() -> None:
    names = [f"class {i}" for i in range(40)]
    counts = torch.eye(40, dtype=torch.int64) * 9
    counts[3, 17] = 5
    text = cells(sections.confusion(counts, names).body)
    assert "class 3 class 17 5" in text
    figures = [
        Figure(f"FD-pixels of {n}", float(i), i - 0.5, i + 0.5) for i, n in enumerate(names)
    ]
    rows = re.findall(r'scope="row">([^<]+)<', sections.per_class(figures).body)
    assert rows == names[:19:-1]


def test_closest_pairs_stand_side_by_side() -> None:
    made, train = torch.zeros(1, 1, 8, 8).byte(), torch.full((1, 1, 8, 8), 200).byte()
    text = sections.pairs([(17, 203, 1.25)], made, train).body
    assert 'alt="generated image 17 beside training image 203"' in text
    assert "1.25" in text
    found = re.search(r"base64,([^\"]*)", text)
    assert found is not None
    sheet = Image.open(io.BytesIO(base64.b64decode(found[1])))
    assert [sheet.getpixel((x, 3)) for x in (0, sheet.width - 1)] == [0, 200]


def svg(text: str) -> ET.Element:
    return ET.fromstring(text)


def bars(text: str) -> list[float]:
    """Lengths of the vertical bars of a chart, in points."""
    found = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL \1 ([\d.]+) \n"', text)
    return [abs(float(a) - float(b)) for _, a, b in found]


def test_a_chart_has_an_error_bar_for_every_point() -> None:
    lines = made_lines.frontier()
    bare = [
        replace(x, figures=tuple(replace(f, low=f.value, high=f.value) for f in x.figures))
        for x in lines
    ]
    with_bars, without = (chart.chart(x, "FD-pixels") for x in (lines, bare))
    assert sum(b > 0.5 for b in bars(with_bars)) - sum(b > 0.5 for b in bars(without)) == len(
        lines
    )


@pytest.mark.parametrize(("low", "high"), [(0.40, 0.47), (0.45, 0.55)])
def test_a_wider_interval_is_a_longer_bar(low, high) -> None:
    """On either side; the other lines keep the axis as it is."""

    def drawn(*ends: float) -> list[float]:
        lines = made_lines.frontier()
        lines[1] = replace(lines[1], figures=(Figure("FD-pixels", 0.46, *ends, 0.25, 897),))
        return sorted(bars(chart.chart(lines, "FD-pixels")))

    before, after = drawn(0.45, 0.47), drawn(low, high)
    assert len(before) == len(after)
    assert sum(after) > sum(before) + 5


def test_a_chart_names_its_series_and_what_real_images_get() -> None:
    text = chart.chart(made_lines.frontier(), "FD-pixels")
    words = [
        "".join(e.itertext()).strip() for e in svg(text).iter("{http://www.w3.org/2000/svg}text")
    ]
    for word in (
        "DDIM",
        "DPM-Solver++(2M)",
        "DDPM (early)",
        "DDIM, guidance scales",
        "real images",
        "network evaluations per image",
        "FD-pixels (lower is better)",
        "1000",
    ):
        assert word in words
    assert {"2", "4"} <= set(words)  # the scales
    assert svg(text).get("role") == "img"
    assert "FD-pixels" in str(svg(text).get("aria-label"))


def test_the_talks_chart_has_a_curve_for_each_eta_and_the_published_ones() -> None:
    text = chart.chart(made_lines.ddim_table(), "FD-pixels")
    for eta in ("eta 0", "eta 0.2", "eta 0.5", "eta 1", "sigma-hat", "real images"):
        assert f">{eta}<" in text
    assert "Published, CIFAR-10: only the shape compares" in text
    assert text.count("#8c8c8c; stroke-width: 0.9") == 5


def test_a_chart_on_a_page_takes_the_colour_of_the_text() -> None:
    lines = made_lines.frontier()
    assert "currentColor" in chart.chart(lines, "FD-pixels", chart.WIDE)
    own = chart.chart(lines, "FD-pixels")
    assert "currentColor" not in own
    assert "fill: #ffffff" in own
    assert own == chart.chart(lines, "FD-pixels")  # the same bytes every time


def test_charts_refuse_two_protocols_and_unknown_figures(tmp_path) -> None:
    lines = made_lines.frontier()
    mixed = [*lines, replace(lines[0], protocol={**lines[0].protocol, "n": 1000})]
    with pytest.raises(UsageError, match="n 2000 and 1000"):
        chart.chart(mixed, "FD-pixels")
    with pytest.raises(UsageError, match=r'figure "FD-pixel": .*did you mean "FD-pixels"'):
        chart.png(lines, "FD-pixel", tmp_path / "x.png")


def test_a_png_is_written_whole_or_not_at_all(tmp_path) -> None:
    chart.png(made_lines.frontier(), "FD-pixels", tmp_path / "frontier.png")
    with Image.open(tmp_path / "frontier.png") as image:
        assert image.size == (1440, 704)
    assert [p.name for p in tmp_path.iterdir()] == ["frontier.png"]
    with pytest.raises(ResourceError, match="cannot write"):
        chart.png(made_lines.frontier(), "FD-pixels", tmp_path / "none" / "x.png")


def test_a_negative_distance_is_drawn_too() -> None:
    """The kernel distance is unbiased, so it may be below zero."""
    low = Figure("KD-pixels", -0.001, -0.002, 0.0, 0.0001, 897)
    lines = made_lines.frontier()[:3]
    lines[0] = replace(lines[0], figures=(low, *lines[0].figures[1:]))
    assert svg(chart.chart(lines, "KD-pixels")) is not None
    assert "-0.00100" in whole(lines, "KD-pixels")


def test_without_costs_there_is_nothing_to_draw() -> None:
    with pytest.raises(UsageError, match="FD-pixels: no line has a cost to draw it against"):
        chart.chart([made_lines.foreign()], "FD-pixels")


def test_one_cost_is_no_chart() -> None:
    lines = made_lines.frontier()
    assert chart.drawable(lines, "FD-pixels")
    assert not chart.drawable(lines[:1], "FD-pixels")
    assert not chart.drawable([made_lines.foreign()] * 2, "FD-pixels")
    assert "<svg" not in made("one")
    assert made("frontier").count("<svg") == 2  # for a wide screen and for a phone
