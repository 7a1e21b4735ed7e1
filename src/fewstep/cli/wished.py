"""From what somebody asks of `fewstep distill` to a plan: scales, stages and the folder's name.

What no budget pays for is refused before anything is measured, and a plan knows how many images
there are.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import judged
from fewstep.cli.console import command, note
from fewstep.errors import NumericError, UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.students import Asked, Pace, Stage, Work

BUDGET = 600.0
"""Seconds of training, unless said."""
PATIENCE = 3.0
"""Seconds that a trial of training takes at least, but for small budgets."""
NUMBER = 1000
"""Images that the table is measured on, unless said."""
FAILED = "failed"
"""What a record says, and why, where a distillation ended without a student."""
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
    name = f"{asked.method}-{asked.to}"
    if asked.scales is not None:
        name += f"-s{asked.scales[0]:g}-{asked.scales[1]:g}"
    elif asked.guidance != 1:
        name += f"-s{asked.guidance:g}"
    if found.path.parent.name == "checkpoints":
        return found.path.parent.parent / "students" / name
    return Path("runs") / f"{found.name}-{name}"


def kept(found: "Found", wish: Wish) -> dict[str, Any]:
    """Return what the plan does not say and a continued distillation, or its student, needs."""
    own, how = judged.own(found)
    path = Path(wish.data or "").expanduser()
    if wish.data is None:
        place = own
    else:
        place = str(path.absolute()) if path.exists() else wish.data
        if wish.data != own and path.suffix.lower() in judged.ARRAYS:
            how = {"held_out": 0}  # all of them are trained on, see `judged.reals`
    rest = {"data": place, "read": how, "number": wish.number, "device": wish.device}
    return {"kept": rest, **wish.planned}


def gone_on(said: Mapping[str, Any] | None, out: Path) -> None:
    """Refuse to go on with a distillation that ended without a student.

    Args:
        said: what its folder says, if anything.
        out: the folder.

    Raises:
        NumericError: it did; names the command that begins anew.
    """
    from fewstep.cli.resolve import STUDENT

    if said is not None and said.get(FAILED) and not (out / STUDENT / "manifest.json").is_file():
        raise NumericError(failure(said, out))


def failure(said: Mapping[str, Any], out: Path) -> str:
    """Return what is said of a distillation that ended without a student."""
    return f"{out}: no student was kept: {said[FAILED]}; begin anew: {anew(said, out)}"


def anew(said: Mapping[str, Any], out: Path) -> str:
    """Return the command of a distillation that trains for twice as long, in a folder of its own.

    Args:
        said: what the folder of the first one says.
        out: that folder.
    """
    asked, rest = said["asked"], said.get("kept", {})
    words = _same(said, asked["model"])
    if rest.get("data"):
        words += ["--data", rest["data"]]
    if rest.get("device", "auto") != "auto":
        words += ["--device", rest["device"]]
    if said.get("images"):
        words += ["--images", str(2 * said["images"])]
    else:
        words += ["--budget", f"{2 * (said.get('budget') or BUDGET):g}s"]
    if rest.get("number"):
        words += ["-n", str(rest["number"])]
    names = (out.with_name(f"{out.name}-{k}") for k in itertools.count(2))
    return command("distill", *words, "-o", str(next(p for p in names if not p.exists())))


def elsewhere(said: Mapping[str, Any], out: Path) -> str:
    """Return the command that goes on with a distillation whose teacher lies elsewhere now.

    Args:
        said: what its folder says.
        out: that folder.
    """
    data = said.get("kept", {}).get("data")
    more = ["--data", data] if data else []  # the teacher may say another folder
    return command("distill", *_same(said, "TEACHER"), *more, "-o", str(out))


def _same(said: Mapping[str, Any], model: str) -> list[str]:
    """Return the words that ask for what a folder says, of a teacher."""
    asked = said["asked"]
    words = [model, "--to", str(asked["to"]), "--method", asked["method"]]
    if said.get("start"):
        words += ["--start", str(said["start"])]
    if asked.get("scales") is None:
        words += ["--guidance-scale", f"{asked['guidance']:g}"]
    else:
        words += ["--guidance-range", "{:g}..{:g}".format(*asked["scales"])]
    return words + (["--seed", str(asked["seed"])] if asked["seed"] else [])


def plan(work: "Work", wish: Wish) -> "tuple[Stage, ...]":
    """Return stages for the budget: they were tried here, and fit into memory.

    Args:
        work: all but the stages.
        wish: what was asked for.

    Raises:
        UsageError: the budget is too small; says what would be enough; or as `make.planned`.
        ResourceError: not even one image at a time fits into memory, or the disk refuses.
    """
    from fewstep import students
    from fewstep.students import make
    from fewstep.train.log import clock

    make.planned(work.teacher, work.asked.method, work.asked.to)
    trying = f"trying how fast {work.asked.method} is trained here"
    asked, there, budget = work.asked, len(work.images), wish.budget or BUDGET
    more = ", or give a smaller --start" if wish.start else ""
    if wish.images is not None:
        pace = students.Pace(work, PATIENCE / 10)
        try:
            stages = _stages(asked, wish.images, wish.start, there)
        except students.TooSmall as e:
            least = math.ceil(wish.images / e.share - 1e-6)
            raise UsageError(
                f"--images {wish.images}: too few for one stage; at least {least} would be "
                f"enough{more}"
            ) from None
        note(trying)
    else:
        _stages(asked, 1e12, wish.start)  # what no budget pays for is refused before it is timed
        pace = students.Pace(work, min(PATIENCE, max(0.5, budget / 50)))
        note(trying)
        try:
            stages = students.budgeted(
                pace, lambda n: _stages(asked, n, wish.start, there), budget
            )
        except students.TooSmall as e:
            raise UsageError(
                f"--budget {clock(budget)}: too short for the shortest plan at the speed of this "
                f"machine; {clock(math.ceil(1.1 * budget / e.share))} would be enough{more}"
            ) from None
    stages = pace.fitted(stages)
    _expected(work, stages, pace, wish)
    return stages


def _expected(work: "Work", stages: "tuple[Stage, ...]", pace: "Pace", wish: Wish) -> None:
    """Say how long the whole work will take."""
    from fewstep.cli import climb
    from fewstep.train.log import clock

    seconds = pace.seconds(stages)
    speed = sum(s.images for s in stages) / seconds
    looks = pace.evaluation * climb.evaluations(work, stages, wish.number or NUMBER)
    note(
        f"in all about {clock(math.ceil(seconds))} of training, copy errors and checkpoints "
        f"included ({speed:,.0f} images/s), and about {clock(math.ceil(looks))} of sampling to "
        "measure"
    )


def _stages(
    asked: "Asked", count: float, start: int | None, there: int | None = None
) -> "tuple[Stage, ...]":
    """Return the stages that so many training images pay for, `there` of them different."""
    from fewstep import students

    if asked.method == "progressive":
        guided = asked.scales is not None
        return students.ladder(asked.to, count, start, guided=guided, most=there)
    return students.single(asked.method, asked.to, count, most=there)
