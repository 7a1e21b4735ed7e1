"""Laws of the search for a middle noise level."""

import math

import pytest

from fewstep.distill import ternary
from fewstep.errors import UsageError

LOW, HIGH = 0.01, 80.0


@pytest.mark.parametrize("tries", [2, 7, 12, 40])
@pytest.mark.parametrize("best", [0.011, 0.8, 1.382, 5.0, 79.0])
@pytest.mark.parametrize(
    "shape",
    [lambda d: d * d, abs, lambda d: math.exp(d) - 2 * d, lambda d: math.sqrt(abs(d)) if d else 0],
    ids=["square", "corner", "uneven", "sharp"],
)
def test_the_best_level_is_as_near_as_the_bracket_is_wide(shape, best, tries):
    """(2/3)^(tries / 2) of ln(HIGH / LOW), with one call for each try, none twice."""
    asked: list[float] = []
    lowest = math.log(2) if shape(1.0) == pytest.approx(math.e - 2) else 0.0

    def distance(level: float) -> float:
        asked.append(level)
        return shape(math.log(level / best) + lowest)

    found = ternary(distance, LOW, HIGH, tries)
    width = (2 / 3) ** (tries // 2) * math.log(HIGH / LOW)
    assert abs(math.log(found / best)) <= width * (1 + 1e-9)
    assert len(asked) == len(set(asked)) == tries // 2 * 2
    assert all(LOW < level < HIGH for level in asked)
    assert found in asked
    assert distance(found) == min(map(distance, asked[:-1]))


def test_thirds_are_of_the_logarithm():
    asked: list[float] = []
    ternary(lambda level: asked.append(level) or level, 1e-3, 1e3, 2)
    assert asked == pytest.approx([0.1, 10.0])


@pytest.mark.parametrize(
    ("low", "high", "tries", "said"),
    [
        (0.0, 1.0, 4, "0 < low < high"),
        (2.0, 1.0, 4, "0 < low < high"),
        (1.0, math.inf, 4, "0 < low < high"),
        (math.nan, 1.0, 4, "0 < low < high"),
        (0.1, 1.0, 1, "at least 2"),
    ],
)
def test_bad_numbers_are_refused(low, high, tries, said):
    with pytest.raises(UsageError, match=said):
        ternary(abs, low, high, tries)


def test_a_distance_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match=r"the distance at the level 0\.2.* is not a number"):
        ternary(lambda level: math.nan, 0.1, 1.0, 4)
