"""How an edit is done: images in, the walk of each, results, a strip of before and after, a line.

Result i has the seed SEED + i, whatever was made beside it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import console, guidance, made
from fewstep.cli.console import count
from fewstep.cli.edit import way
from fewstep.cli.edit.way import Row, Way
from fewstep.errors import NumericError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.cli.resolve import Found
    from fewstep.conditions import Cond
    from fewstep.edit import Measure, Repeat
    from fewstep.solvers import Noise

STRIP = "-strip"
"""Ending of the name of the picture that shows before and after."""
_LEVELS = 127.5  # grey levels in a difference of 1
_FAR = 2.0  # grey levels: rounding alone is below one
_MOVED = 0.01  # a strength that is moved further is told
_MANY = 40  # steps by which a consistency model completes, as in its program


@dataclass(frozen=True)
class Task:
    """What the user wants of any of these verbs.

    Attributes:
        images: files.
        label: words for classes, or None.
        number: results of an image.
        seed: of the first result.
        changes: to the model's settings.
        out: the .png, or None.
        scale: whole factor of enlargement, None = by size.
        device: its name.
        form: of what is printed.
        mask: a file that is read beside the images, or None.
    """

    images: list[Path]
    label: list[str] | None
    number: int
    seed: int
    changes: dict[str, Any]
    out: str | None
    scale: int | None
    device: str
    form: str
    mask: Path | None = None


@dataclass(frozen=True)
class Given:
    """One image, as the model will meet it.

    Attributes:
        shown: what the strip begins with, each of shape (1, C, H, W), in [-1, 1].
        y: of which a part is known, or the sketch, shape (1, C, H, W), in [-1, 1].
        measure: the projection on what is known; None for a sketch.
        facts: for the file.
    """

    shown: "list[Tensor]"
    y: "Tensor"
    measure: "Measure | None" = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """The walk of `edit.complete`.

    Attributes:
        repeat: walks of each part.
        jump: steps of a part.
    """

    repeat: int
    jump: int

    def check(self, how: Way) -> None:
        """Refuse a jump that changes nothing.

        Raises:
            UsageError: parts that are walked once, or are longer than the way.
        """
        if self.jump > 1 and self.repeat == 1:
            raise UsageError(
                f"--jump {self.jump}: needs --repeat above 1, walks of each part; give --repeat "
                "10, or leave it out"
            )
        most = max(1, self.steps(how) - self._clean(how))
        if self.jump > most:
            raise UsageError(
                f"--jump {self.jump}: {self.steps(how)} steps have parts of 1..{most} (the step "
                "to clean data is not repeated); give more --steps or a smaller --jump"
            )

    def steps(self, how: Way) -> int:
        """Return the steps of the grid."""
        return len(how.plan.times) - 1

    def moves(self, how: Way) -> list[tuple[float, float]]:
        """Return the moves (from, to) of the walk."""
        return self._repeat().path(how.plan.times.tolist(), clean=self._clean(how))

    def walk(
        self, how: Way, given: Given, n: int, noise: "Noise", cond: "Cond"
    ) -> "Iterator[Tensor]":
        """Return the batches of the walk of n results."""
        from fewstep.edit import complete

        p, y, measure = how.plan, given.y.expand(n, -1, -1, -1), given.measure
        assert measure is not None
        repeat = self._repeat()
        return complete(p.denoiser, y, measure, p.times, noise, cond, p.solver, repeat)

    def _clean(self, how: Way) -> bool:
        """Return whether the last step ends at clean data."""
        return float(how.plan.denoiser.process.sigma(float(how.plan.times[-1]))) == 0

    def _repeat(self) -> "Repeat":
        from fewstep.edit import Repeat

        return Repeat(self.repeat, self.jump)


@dataclass(frozen=True)
class Redrawing:
    """The walk of `edit.stroke`.

    Attributes:
        strength: share of noise.
    """

    strength: float

    def check(self, how: Way) -> None:
        """Take any way."""

    def steps(self, how: Way) -> int:
        """Return the steps that are walked."""
        return len(self.moves(how))

    def moves(self, how: Way) -> list[tuple[float, float]]:
        """Return the moves (from, to) of the walk."""
        from fewstep.edit import remaining

        grid = remaining(how.plan.denoiser.process, how.plan.times, self.strength)
        return list(pairwise(grid.tolist()))

    def walk(
        self, how: Way, given: Given, n: int, noise: "Noise", cond: "Cond"
    ) -> "Iterator[Tensor]":
        """Return the batches of the walk of n results."""
        from fewstep.edit import stroke

        p, y = how.plan, given.y.expand(n, -1, -1, -1)
        return stroke(p.denoiser, y, p.times, self.strength, noise, cond, p.solver)


def run(
    verb: str,
    model: str,
    task: Task,
    read: Callable[[Way, Path], Given],
    method: Completion | Redrawing,
) -> None:
    """Make, write and report the results of all images.

    Args:
        verb: of the command.
        model: its word on the command line.
        task: what the user wants.
        read: opens an image.
        method: the walk.

    Raises:
        UsageError: an option or an image that does not fit.
        DataError: an image that cannot be read.
        NumericError: results that are not finite.
    """
    import torch

    inputs = [*task.images, *([] if task.mask is None else [task.mask])]
    found, target = way.begin(model, task.out, inputs)
    scale = way.scale_of(found, task.label, task.changes["guidance_scale"])
    changes = _settled(found, {**task.changes, "guidance_scale": scale}, method)
    how = way.plan(found, changes, task.device)
    rows = way.rows(found, task.label)
    if len(rows) not in (1, len(task.images)):
        raise UsageError(
            f"--label: {len(rows)} classes for {len(task.images)} images; give one, or one of each"
        )
    rows = rows * len(task.images) if len(rows) == 1 else rows
    method, moved = _fitted(how, method)
    method.check(how)
    once = {path: read(how, path) for path in dict.fromkeys(task.images)}
    given = [once[path] for path in task.images]
    results = _results(verb, how, task, list(zip(given, rows, strict=True)), method)
    name = f"{found.name}-{verb}-{task.images[0].stem}"
    file = target or made.free(name if len(given) == 1 else f"{name}-and-{len(given) - 1}", STRIP)
    strip = made.free(f"{file.with_suffix('')}{STRIP}")
    facts = {
        "edit": verb,
        **how.facts,
        "steps": method.steps(how),
        "nfe": _cost(how, method),
        **asdict(method),
        **moved,
        "seed": task.seed,
        "images": [
            {"image": path.name, "label": row[0], **one.facts, **_kept(one, part)}
            for path, row, one, part in zip(task.images, rows, given, results, strict=True)
        ],
    }
    way.save(torch.cat(results), task.number, file, task.scale, facts)
    lines = [torch.cat([*one.shown, part]) for one, part in zip(given, results, strict=True)]
    way.save(torch.cat(lines), len(lines[0]), strip, task.scale, facts)
    if task.form == "json":
        print(json.dumps({**facts, "file": str(file), "strip": str(strip)}))
        return
    _report(f"{file} (before and after: {strip.name})", facts, task.number * len(given))


def _settled(
    found: "Found", changes: dict[str, Any], method: Completion | Redrawing
) -> dict[str, Any]:
    """Return changes with what these verbs have in place of the model's own settings.

    DDIM draws as much fresh noise as DDPM, but for a progressive student, which has its own eta.
    A consistency model, which may be made for one step, completes over the 40 levels of its
    program, as what fits is found on the way; one with levels, from the first of these down.

    Raises:
        UsageError: another spacing than that.
    """
    own = found.model.sampling
    if not way.consistent(found):
        eta = own.eta if _halved(found) else 1.0
        return {**changes, "eta": eta if changes["eta"] is None else changes["eta"]}
    if isinstance(method, Redrawing):
        return changes
    steps, spacing = changes["steps"], changes["spacing"]
    if own.levels is not None:
        if spacing not in (None, "karras"):
            raise UsageError(
                f"--spacing {spacing}: a consistency student goes down Karras' levels from the "
                "highest that it was trained at; leave it out"
            )
        levels = way.down(found, own.levels[0], steps or _MANY)
        return {**changes, "steps": None, "spacing": None, "levels": levels}
    return changes if steps else {**changes, "steps": _MANY, "spacing": spacing or "karras"}


def _halved(found: "Found") -> bool:
    """Return whether the model is a progressive student, which knows its own times alone."""
    return found.model.student.get("kind") == "progressive"


def _fitted(
    how: Way, method: Completion | Redrawing
) -> tuple[Completion | Redrawing, dict[str, Any]]:
    """Return the walk from a time that a progressive student knows, and what was asked for."""
    from fewstep.edit import nearest

    if isinstance(method, Completion) or not _halved(how.found):
        return method, {}
    strength = nearest(how.plan.denoiser.process, how.plan.times, method.strength)
    return Redrawing(strength), {"strength_asked": method.strength}


def _results(
    verb: str,
    how: Way,
    task: Task,
    given: list[tuple[Given, Row]],
    method: Completion | Redrawing,
) -> "list[Tensor]":
    """Return the results of each image, shape (n, C, H, W), with a bar on a terminal."""
    import torch

    from fewstep.edit import within
    from fewstep.solvers import PerImage, image_seeds

    size, steps = made.at_once(how.found.model.shape), max(1, len(method.moves(how)))
    firsts = list(range(0, task.number, size))
    total, done = steps * len(firsts) * len(given), 0
    results: list[Tensor] = []
    with console.bar(verb) as tick:
        for i, (one, (_, cond)) in enumerate(given):
            parts: list[Tensor] = []
            for first in firsts:
                n = min(size, task.number - first)
                noise = PerImage(image_seeds(task.seed, n, i * task.number + first))
                some, x = None if cond is None else cond.expand(n).to(how.place), one.y
                try:
                    for batch in method.walk(how, one, n, noise, some):
                        x, done = batch, done + 1
                        tick(done, total)
                except NumericError as error:
                    raise NumericError(f"{task.images[i]}: {error}; nothing was written") from None
                parts.append(x if one.measure is None else within(x, one.y, one.measure))
            results.append(torch.cat(parts))
    return results


def _cost(how: Way, method: Completion | Redrawing) -> int:
    """Return the network evaluations of one result."""
    import torch

    from fewstep.solvers import nfe

    moves = Counter((t, s) for t, s in method.moves(how) if s < t)
    one = {m: nfe(how.plan.denoiser, torch.tensor(m), how.plan.solver) for m in moves}
    return sum(one[move] * count for move, count in moves.items())


def _kept(given: Given, results: "Tensor") -> dict[str, float]:
    """Return how far what was known is from it in the bytes of the file, in grey levels."""
    from fewstep import sampling

    if given.measure is None:
        return {}
    written = sampling.to_uint8(results) / _LEVELS - 1
    off = float((given.measure(written) - given.measure(given.y)).abs().max()) * _LEVELS
    return {"kept_to": round(off, 3)}


def _report(where: str, facts: dict[str, Any], n: int) -> None:
    """Print what was made, and warn where rounding and clipping changed what was known."""
    from fewstep.solvers import image_seeds

    kept = max((image.get("kept_to", 0.0) for image in facts["images"]), default=0.0)
    if kept > _FAR:
        console.warn(
            f"what was known is off by up to {kept:.1f} grey levels: numbers beyond black and "
            "white were cut off; another --seed, more --steps or --repeat may help"
        )
    asked, strength, instead = facts.get("strength_asked"), facts.get("strength", 0.0), ""
    if asked is not None and abs(asked - strength) > _MOVED:
        instead = (
            f", strength {strength:.3g} in place of {asked:g}, as the student knows no noise "
            "nearer to it"
        )
        if strength in (0, 1):
            what = "the image is forgotten" if strength else "nothing is changed"
            console.warn(
                f"strength {strength:g}: {what}; a student of more steps, or its teacher, knows "
                "the noise between"
            )
    settings, seeds = facts["sampling"], image_seeds(facts["seed"], n)
    eta = f" of eta {settings['eta']:g}" if settings["sampler"] == "ddim" else ""
    console.result(
        f"{where}: {count(n, 'image')}, {settings['sampler']} {count(facts['steps'], 'step')}"
        f"{eta}, {count(facts['nfe'], 'network evaluation')} each, {guidance.shown(facts)}"
        f"{instead}, seeds {seeds[0]}..{seeds[-1]}"
    )
