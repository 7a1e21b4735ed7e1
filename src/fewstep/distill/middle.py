"""The middle noise levels of a consistency model: a search for each, one after another.

How good samples of two steps are depends on the level between them: too much noise there forgets
the first step, too little leaves its faults. Nothing says where the best is but the samples.
"""

import math
from collections.abc import Callable

from fewstep.errors import UsageError


def ternary(distance: Callable[[float], float], low: float, high: float, tries: int) -> float:
    """Return the level of least distance that a ternary search over ln(sigma / alpha) finds.

    Each round asks at the two thirds of the bracket and cuts off the third beyond the worse one,
    so that the bracket is (2/3)^(tries / 2) of the first. The least distance lies inside it if
    the distance falls and then rises (is unimodal), which is assumed and not checked; the result
    then lies in it too, as the best of all levels that were asked for. A distance that is itself
    noisy, such as an FID of few images, is told apart only as well as its noise allows.

    For more than two steps, search the levels one at a time from the noisy end, each with those
    found before it fixed.

    Args:
        distance: of the samples of a middle level from the data, such as their FID; any number,
            less is better. It is asked once for each level.
        low: least sigma / alpha to be considered, > 0.
        high: largest, > low.
        tries: calls of `distance` that are allowed, >= 2; of an odd number one is left.

    Returns:
        sigma / alpha, in (low, high).

    Raises:
        UsageError: levels that are not 0 < low < high, fewer than two tries, or a distance that is
            not a number.

    Source: Song et al., "Consistency Models", 2023, section 3 (arXiv 2303.01469): a greedy search,
        one point at a time, under the assumption that the FID is unimodal.
    """
    if not (0 < low < high < math.inf):
        raise UsageError(f"levels {low:g} to {high:g}: must satisfy 0 < low < high")
    if tries < 2:
        raise UsageError(f"tries {tries}: at least 2 levels must be compared")
    asked: dict[float, float] = {}

    def at(u: float) -> float:
        if u not in asked:
            asked[u] = found = float(distance(math.exp(u)))
            if math.isnan(found):
                raise UsageError(f"the distance at the level {math.exp(u):g} is not a number")
        return asked[u]

    left, right = math.log(low), math.log(high)
    for _ in range(tries // 2):
        third = (right - left) / 3
        near, far = left + third, right - third
        if at(near) < at(far):
            right = far
        else:
            left = near
    return math.exp(min(asked, key=asked.__getitem__))
