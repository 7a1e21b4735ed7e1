"""From what somebody asks of `fewstep distill` to a plan: scales, stages and the folder's name.

What no budget pays for is refused before anything is measured, and a plan knows how many images
there are.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.console import note
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.data import Images
    from fewstep.students import Asked, Stage

BUDGET = 600.0
"""Seconds of training, unless said."""
PLANNED = ("budget", "images", "start")
"""Options that only a new plan asks for."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What was asked for on the command line."""

    to: int | None
    method: str | None
    budget: float | None
    images: int | None
    guidance: float | None
    scales: tuple[float, float] | None
    start: int | None
    data: str | None
    number: int | None
    seed: int
    device: str

    @property
    def planned(self) -> dict[str, Any]:
        """What a plan is made of."""
        return {name: getattr(self, name) for name in PLANNED}


def scales(word: str | None) -> tuple[float, float] | None:
    """Return the scales that --guidance-range says.

    Raises:
        UsageError: they are no range.
    """
    if word is None:
        return None
    low, sign, high = word.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (math.nan, math.nan)
    if not (sign and math.isfinite(sum(ends)) and ends[0] < ends[1]):
        raise UsageError(
            f"--guidance-range {word}: must be LOW..HIGH with LOW < HIGH, such as 1..4"
        )
    return ends


def guidance(found: "Found", way: str, wish: Wish) -> float:
    """Return the guidance that goes into the student, or what its preset is told.

    Raises:
        UsageError: it is asked of a method that has no teacher to guide.
    """
    from fewstep.students.plan import PROGRESSIVE, TAUGHT

    asked = wish.guidance
    own = found.model.sampling.guidance_scale if asked is None else asked
    if wish.scales is not None:
        low, high = wish.scales
        if way != PROGRESSIVE:
            raise UsageError(f"--guidance-range {low:g}..{high:g}: of progressive, not of {way}")
        if asked is not None:
            raise UsageError("--guidance-scale and --guidance-range: give one of them")
        return min(max(own, low), high)
    if way in TAUGHT or own == 1:
        return own
    if asked is not None:
        raise UsageError(
            f"--guidance-scale {asked:g}: {way} learns from the images, which have no guidance; "
            f"leave it out, or take --method {' or '.join(TAUGHT)}"
        )
    note(f"{way} learns from the images: without the guidance scale {own:g} of {found.name}")
    return 1.0


def word_of(found: "Found") -> str:
    """Return the word that finds a model again."""
    from fewstep.cli.resolve import SHIPPED

    return found.name if found.path.parent == SHIPPED else str(found.path.absolute())


def default(found: "Found", asked: "Asked") -> Path:
    """Return the folder of a distillation that was given none."""
    name = f"{'consistency' if asked.method == 'ect' else asked.method}-{asked.to}"
    if asked.scales is not None:
        name += f"-s{asked.scales[0]:g}-{asked.scales[1]:g}"
    elif asked.guidance != 1:
        name += f"-s{asked.guidance:g}"
    if found.path.parent.name == "checkpoints":
        return found.path.parent.parent / "students" / name
    return Path("runs") / f"{found.name}-{name}"


def plan(found: "Found", images: "Images", asked: "Asked", wish: Wish) -> "tuple[Stage, ...]":
    """Return stages for the budget, at the speed that is measured here.

    Raises:
        UsageError: the budget is too small; says what would be enough.
    """
    from fewstep import students
    from fewstep.train import engine
    from fewstep.train.log import clock

    budget, count = wish.budget or BUDGET, float(wish.images or 0)
    if wish.images is None:
        _stages(asked, 1e12, wish.start)  # what no budget pays for is refused before it is timed
        place = engine.pick_device(wish.device)
        with engine.memory("a batch of 64 images is too large for this machine"):
            per_image = students.pace(found.model, asked.guidance, images, asked.method, place)
        count = budget / per_image
        note(f"speed of {asked.method} here: {1 / per_image:,.0f} images/s")
    try:
        return _stages(asked, count, wish.start, len(images))
    except students.TooSmall as e:
        more = ", or give a smaller --start" if wish.start else ""
        if wish.images is not None:
            least = math.ceil(wish.images / e.share - 1e-6)
            raise UsageError(
                f"--images {wish.images}: too few for one stage; at least {least} would be "
                f"enough{more}"
            ) from None
        raise UsageError(
            f"--budget {clock(budget)}: too short for one stage, {count:,.0f} images at the "
            f"speed of this machine; {clock(1.1 * budget / e.share)} would be enough{more}"
        ) from None


def _stages(
    asked: "Asked", count: float, start: int | None, there: int | None = None
) -> "tuple[Stage, ...]":
    """Return the stages that so many training images pay for, `there` of them different."""
    from fewstep import students

    if asked.method == "progressive":
        guided = asked.scales is not None
        return students.ladder(asked.to, count, start, guided=guided, most=there)
    return students.single(asked.method, asked.to, count, most=there)
