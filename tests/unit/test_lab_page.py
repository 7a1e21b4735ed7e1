"""The page of the laboratory, of made-up sections: verdicts in words, nothing from outside."""

import html.parser
import math
import re

import pytest

pytest.importorskip("matplotlib")

from fewstep.lab import page
from fewstep.lab.part import Number, Part, between, most, near

GOOD = (
    near("variance", 1.142, 1.14286, 0.02),
    most("error", 1e-14, 1e-9),
    between("share", 0.76, 0.72, 0.85),
)
BAD = (
    near("too <large>", 1.17, 1.14286, 0.02),
    most("error", 1e-3, 1e-9),
    between("share", 0.5, 0.72, 0.85),
    near("lost", math.nan, 1.0, 0.5),
)


def part(title: str, numbers: tuple[Number, ...]) -> Part:
    def draw(drawing) -> None:
        drawing.subplots().set_title(title)

    alt, size = 'A "line" that falls', (3.0, 2.0)
    return Part(title, ("words",), ("<i>x</i>",), ("fewstep.sample",), numbers, alt, draw, size)


def made(*parts: Part) -> str:
    return page.page("fewstep lab: made up", parts, {"seed": "0"}, ["fewstep lab --data rings"])


class Check(html.parser.HTMLParser):
    """See that every element that is opened is closed in its place; gather ids and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.gather(attrs)
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.gather(attrs)

    def gather(self, attrs) -> None:
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def rows(text: str) -> list[list[str]]:
    """The cells of the table of each section, without tags."""
    found = re.findall(r"<tr class=\"\w+\">(.*?)</tr>", text)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in found]


def test_a_number_that_is_reproduced_says_so() -> None:
    text = made(part("first", GOOD), part("second", GOOD[:1]))
    assert rows(text)[:3] == [
        ["variance", "1.1429 ± 0.02", "1.142", "✓ yes"],
        ["error", "at most 1e-09", "1e-14", "✓ yes"],
        ["share", "0.72 to 0.85", "0.76", "✓ yes"],
    ]
    assert "4 numbers, all of them reproduced" in text
    assert "3 of 3 numbers reproduced" in text
    assert "Not reproduced" not in text
    assert "✗" not in text


def test_a_number_that_is_not_turns_the_page_red() -> None:
    text = made(part("first", GOOD), part("second", (*GOOD, *BAD)))
    assert "4 of 10 numbers are NOT reproduced" in text
    assert "3 of 7 numbers reproduced" in text
    assert [row[3] for row in rows(text)].count("✗ no") == 4
    assert text.count('<tr class="no">') == 4
    first = text[text.index(">Not reproduced<") : text.index("1. first")]
    assert "too &lt;large&gt;: 1.17, must be 1.1429 ± 0.02" in first
    assert "lost: nan, must be 1 ± 0.5" in first
    check = Check(text)
    assert check.links[0] == "#s2"
    assert re.findall('id="s2">(.*?)<', text) == ["2. second"]


def test_the_page_is_whole_and_needs_nothing() -> None:
    text = made(part("first", GOOD), part("second", BAD))
    check = Check(text)
    assert len(check.ids) == len(set(check.ids))
    assert all(link.startswith(("#", "data:")) for link in check.links)
    assert re.findall(r"https?://(?!www\.w3\.org/)", text) == []
    assert "<script" not in text
    assert text.count('role="img"') == 2
    assert 'aria-label="A &quot;line&quot; that falls"' in text
    assert text.index("1. first") < text.index("2. second")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (near("x", 0, 1.0, 0.0), "1"),
        (near("x", 0, 0.539, 0.001), "0.539 ± 0.001"),
        (near("x", 0, 2.9625, 0.001), "2.9625 ± 0.001"),
        (near("x", 0, 32.0, 0.5), "32 ± 0.5"),
        (near("x", 0, 100.0, 2.0), "100 ± 2"),
        (near("x", 0, 0.5, 1e-9), "0.5 ± 1e-09"),
    ],
)
def test_limits_in_words(number: Number, words: str) -> None:
    assert number.must == words


def test_numbers_are_strict_json() -> None:
    assert BAD[3].plain()["measured"] is None
    assert BAD[3].plain()["reproduced"] is False
    assert GOOD[1].plain() == {
        "name": "error", "measured": 1e-14, "wanted": None, "low": None, "high": 1e-9,
        "reproduced": True,
    }  # fmt: skip
