"""What a section of the laboratory holds: a picture, formulas, functions, and numbers to judge."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Number:
    """A number that must be reproduced, and what was measured now.

    Attributes:
        name: what it is.
        got: what was measured.
        low: least value that reproduces it, may be -inf.
        high: largest, may be inf.
        wanted: the value itself, where there is one.
    """

    name: str
    got: float
    low: float
    high: float
    wanted: float | None = None

    @property
    def reproduced(self) -> bool:
        """Whether the measured value lies within the limits; NaN never does."""
        return self.low <= self.got <= self.high

    @property
    def must(self) -> str:
        """The limits in words."""
        if self.wanted is not None:
            within = self.high - self.wanted
            if not within:
                return f"{self.wanted:g}"
            places = 2 - math.floor(math.log10(within))  # a digit more than the limits need
            value = f"{self.wanted:.{places}f}".rstrip("0").rstrip(".")
            return f"{value} \N{PLUS-MINUS SIGN} {within:.2g}"
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        return f"{self.low:g} to {self.high:g}"

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values; what is not finite is None."""
        limits = (self.low, self.high, self.got)
        low, high, got = (x if math.isfinite(x) else None for x in limits)
        return {
            "name": self.name, "measured": got, "wanted": self.wanted, "low": low, "high": high,
            "reproduced": self.reproduced,
        }  # fmt: skip


def near(name: str, got: float, wanted: float, within: float) -> Number:
    """Return a number that must be `wanted`, give or take `within`."""
    return Number(name, got, wanted - within, wanted + within, wanted)


def most(name: str, got: float, high: float) -> Number:
    """Return a number, >= 0, that must be at most `high`."""
    return Number(name, got, -math.inf, high)


def between(name: str, got: float, low: float, high: float) -> Number:
    """Return a number that must lie between two limits."""
    return Number(name, got, low, high)


@dataclass(frozen=True)
class Part:
    """A section.

    Attributes:
        title: its heading.
        words: paragraphs, HTML.
        formulas: HTML, a line each.
        functions: dotted names of what implements the formulas.
        numbers: what must be reproduced.
        alt: the picture in a sentence.
        draw: draws the picture on an empty drawing.
        inches: width and height of the picture.
    """

    title: str
    words: tuple[str, ...]
    formulas: tuple[str, ...]
    functions: tuple[str, ...]
    numbers: tuple[Number, ...]
    alt: str
    draw: "Callable[[Drawing], None]"
    inches: tuple[float, float]
