"""From a budget of time to the stages of a distillation.

A plan is made once, from the speed that was measured, and kept with the run: the same command
continues the same plan, whatever the machine does meanwhile.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.distill import PRESETS, halved
from fewstep.errors import UsageError, suggest

PROGRESSIVE, GUIDED, TRAJECTORY = "progressive", "guided", "consistency-distillation"
METHODS = ("auto", PROGRESSIVE, "consistency", *PRESETS)
"""What may be asked for: "consistency" is consistency distillation; "auto" is progressive
distillation, and "consistency" where halving does not end at so few steps: of all ways these two
were nearest to the data for the same training, and hold guidance (docs/distillation.md)."""

START = 32
"""Steps of the first teacher of a ladder, where the budget allows: more than its student needs."""
LEAST = 100
"""Optimizer steps that a stage needs to be worth its name."""
ENOUGH = 800
"""Optimizer steps from which on a budget rather buys larger batches."""
BATCHES = (512, 256, 128, 64, 32)
HALVED = tuple(2**k for k in range(6))
TAUGHT = (PROGRESSIVE, TRAJECTORY)
"""Methods that ask a teacher, whose guidance they can put into the student; the others learn from
the images, which have none."""
MOST = 8
"""Steps of a consistency model, at most: further ones gain nothing."""
LATE = 2
"""Students of so few steps get twice the updates: their step is the longest (section 4 of the
paper has 100 thousand for the last two stages and 50 for the others)."""
_LR = {
    PROGRESSIVE: 4e-4,  # over the steps of the student, see `rate`
    GUIDED: 3e-4,
    TRAJECTORY: 4e-4,
    "consistency-training": 4e-4,
    "ict": 3e-4,
    "ect": 3e-4,
}
"""Peak learning rates for networks of a million parameters, which bear more than those of the
papers, fifty times as large: 5e-5 for progressive distillation, 1e-4 for iCT and ECT."""
_MOST_LR = 3e-4
"""That of a ladder at most."""


@dataclass(frozen=True)
class Stage:
    """One training of a student.

    Attributes:
        method: "progressive", "guided" (the first stage of guided distillation, which takes no
            steps away) or a name in `distill.PRESETS`.
        steps: sampling steps of the student.
        updates: optimizer steps.
        batch_size: images of each.
        lr: peak learning rate.
        accumulate: pieces that a batch is cut into where memory does not bear it whole.
    """

    method: str
    steps: int
    updates: int
    batch_size: int
    lr: float
    accumulate: int = 1

    @property
    def images(self) -> int:
        """Images seen."""
        return self.updates * self.batch_size

    def plain(self) -> dict[str, Any]:
        """Return the stage as JSON values."""
        return asdict(self)


def method(asked: str, to: int) -> str:
    """Return "progressive" or the name of a preset.

    Args:
        asked: a name in `METHODS`.
        to: sampling steps of the student.

    Raises:
        UsageError: no such method, or a number of steps that it does not reach.
    """
    if asked not in METHODS:
        raise UsageError(
            f"--method {asked}: allowed are {', '.join(METHODS)}{suggest(asked, METHODS)}"
        )
    found, large = asked, " and ".join(str(n) for n in HALVED if n > MOST)
    if asked == "auto":
        found = PROGRESSIVE if to in HALVED else "consistency"
    if asked == "auto" and to not in HALVED and to > MOST:
        raise UsageError(f"--to {to}: allowed are 1..{MOST}, {large}")
    if found == PROGRESSIVE and to not in HALVED:
        other = ", or --method consistency" if to <= MOST else ""
        raise UsageError(
            f"--to {to}: the halving of progressive distillation ends at "
            f"{', '.join(map(str, HALVED[:-1]))} or {HALVED[-1]} steps; take one of these{other}"
        )
    if found != PROGRESSIVE and to > MOST:
        raise UsageError(
            f"--to {to}: more than {MOST} steps of a consistency model gain nothing; take "
            f"1..{MOST} of --method {asked}, or --method {PROGRESSIVE} for {large}"
        )
    return TRAJECTORY if found == "consistency" else found


def ladder(
    to: int,
    images: float,
    start: int | None = None,
    *,
    guided: bool = False,
    most: int | None = None,
) -> tuple[Stage, ...]:
    """Return the stages of progressive distillation.

    Args:
        to: sampling steps of the last student, a power of two.
        images: how many training images the budget buys.
        start: steps of the first teacher, or None for what the budget bears: `START` and less.
        guided: whether a stage of guided distillation goes first, which makes that teacher.
        most: images that there are, so that no batch is larger.

    Returns:
        a stage for each halving, with equally many images but for those of `LATE` steps and that
        of guided distillation, which have twice as many.

    Raises:
        UsageError: the budget is too small for one stage, or `start` is not halved to `to`.
    """
    starts = [start] if start is not None else _starts(to)
    for first in starts:
        if first <= to:
            raise UsageError(f"--start {first}: must be above --to {to}, to be halved")
        try:
            counts = halved(first, to)[1:]
        except UsageError:
            raise UsageError(
                f"--start {first}: is not halved to {to}; allowed are {2 * to} steps, {4 * to}, "
                f"{8 * to}, ..."
            ) from None
        ways = [PROGRESSIVE] * len(counts)
        shares = [2.0 if n <= LATE else 1.0 for n in counts]
        if guided:
            ways, counts, shares = [GUIDED, *ways], [first, *counts], [2.0, *shares]
        each, needed = images / sum(shares), LEAST * _least(most)
        if first == starts[-1] and each * min(shares) < needed:
            raise TooSmall(each * min(shares) / needed)
        if each >= needed or first == starts[-1]:
            return tuple(
                _stage(way, n, share * each, most)
                for way, n, share in zip(ways, counts, shares, strict=True)
            )
    raise AssertionError("no start")  # the last one always returns or raises


def single(name: str, to: int, images: float, *, most: int | None = None) -> tuple[Stage, ...]:
    """Return the one stage of a consistency model.

    Args:
        name: in `distill.PRESETS`.
        to: sampling steps it is saved with.
        images: how many training images the budget buys.
        most: images that there are, so that no batch is larger.

    Raises:
        UsageError: the budget is too small.
    """
    return (_stage(name, to, images, most),)


class TooSmall(UsageError):
    """Report a budget that does not pay for one stage.

    Attributes:
        share: of what would be enough, in (0, 1).
    """

    def __init__(self, share: float) -> None:
        super().__init__(
            f"the budget pays for {100 * share:.0f} % of what the shortest stages need"
        )
        self.share = share


def _starts(to: int) -> list[int]:
    """Return what a ladder may start from, the best first."""
    most = max(START, 2 * to)
    return [to << k for k in range(int(math.log2(most / to)), 0, -1)]


def _least(most: int | None) -> int:
    """Return the smallest batch where there are `most` images."""
    return BATCHES[-1] if most is None else min(BATCHES[-1], most)


def _stage(name: str, steps: int, images: float, most: int | None = None) -> Stage:
    """Return a stage of so many images: as large a batch as leaves enough updates."""
    fits = [b for b in BATCHES if most is None or b <= most]
    batch = next((b for b in fits if images / b >= ENOUGH), _least(most))
    updates = round(images / batch)
    if updates < LEAST:
        raise TooSmall(images / batch / LEAST)
    return Stage(name, steps, updates, batch, rate(name, steps))


def rate(name: str, steps: int) -> float:
    """Return the peak learning rate of a stage: in a ladder, in proportion to the student's step.

    Early students begin so near to what they are to learn that a higher rate leads them away from
    it: on MNIST, 120 updates to 16 steps leave a copy error of 0.024 at 3e-5 and of 0.083 at 3e-4,
    where there is one of 0.037 without any training; on digits, 400 updates to 4 steps leave 0.020
    at 1e-4 and 0.023 at 3e-4, to 1 step 0.084 and 0.066.

    Args:
        name: the method, see `Stage`.
        steps: of the student.
    """
    if name == PROGRESSIVE:
        return min(_MOST_LR, _LR[PROGRESSIVE] / steps)
    return _LR[name]
