"""Distillation as a run: stage after stage, each continued where it was, with its own teacher.

The folder holds `distill.json`, what was asked for and the plan; `stages/N/`, an ordinary training
run for each student of N steps, whose newest checkpoint is that student and the next one's
teacher; and at the end `student/`, the model to keep.
"""

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import guide, sampling, solvers
from fewstep.conditions import Cond
from fewstep.data import Images
from fewstep.denoiser import Denoiser, NetDenoiser
from fewstep.errors import CheckpointError, MemoryShort, ResourceError, UsageError
from fewstep.files import replacing
from fewstep.model import Model
from fewstep.students import make
from fewstep.students.plan import GUIDED, PROGRESSIVE, START, Stage
from fewstep.train import checkpoint, engine
from fewstep.train.config import FitConfig
from fewstep.train.fit import fit
from fewstep.train.log import say

RECORD, STUDENT, STAGES = "distill.json", "student", "stages"
COPIED = 64
"""Images of a copy error."""
_CALLED = ("model", "name")  # what a teacher is called makes no other distillation
_SHORT = (
    "{folder} began with steps that memory could bear: free what other programs hold and give the "
    "same command again, or go on elsewhere, as with --device cpu"
)


@dataclass(frozen=True)
class Asked:
    """What makes a distillation this one.

    Attributes:
        model: what the teacher is called.
        weights: SHA-256 of its weights.
        guidance: scale that goes into the student.
        method: "progressive" or a name in `distill.PRESETS`.
        to: sampling steps of the student.
        seed: of all random numbers.
        data: fingerprint of the training images.
        scales: range of guidance scales that the student is told, or None for `guidance` alone.
        name: what the teacher is called, without where it lies.
    """

    model: str
    weights: str
    guidance: float
    method: str
    to: int
    seed: int
    data: str
    scales: tuple[float, float] | None = None
    name: str = ""


@dataclass(frozen=True)
class Work:
    """A distillation that is planned.

    Attributes:
        asked: what was asked for.
        teacher: the model that is distilled, in evaluation mode, on the device.
        images: to train on.
        stages: the plan.
        out: the folder.
        device: where to train.
    """

    asked: Asked
    teacher: Model
    images: Images
    stages: tuple[Stage, ...]
    out: Path
    device: str = "auto"

    @property
    def times(self) -> Tensor:
        """The grid of the ladder's first teacher, or a fine one, shape (steps + 1,)."""
        first = self.stages[0]
        steps = {PROGRESSIVE: 2 * first.steps, GUIDED: first.steps}.get(first.method, START)
        return make.grid(self.teacher, steps)

    @property
    def ladder(self) -> str:
        """What the students of this distillation have in common, and no others have."""
        asked = {k: v for k, v in dataclasses.asdict(self.asked).items() if k not in _CALLED}
        stages = [{**stage.plain(), "accumulate": 1} for stage in self.stages]
        return hashlib.sha256(json.dumps([asked, stages]).encode()).hexdigest()[:16]

    @property
    def plain(self) -> bool:
        """Whether teacher and students are conditional and know the null condition."""
        bare = self.asked.scales is None and self.asked.guidance == 1
        return bare and self.teacher.denoiser.null is True


@dataclass(frozen=True)
class Rung:
    """A student that is made.

    Attributes:
        stage: how.
        model: the student with its preset and its record, in evaluation mode.
        copied: its copy error, see `apart`.
        seconds: of training in this call.
    """

    stage: Stage
    model: Model
    copied: float
    seconds: float


Shown = Callable[[Stage, int, float], None]
"""shown(stage, step, copied): told of a stage's copy error now and then."""


def rungs(work: Work, shown: Shown | None = None) -> Iterator[Rung]:
    """Make the students of a plan, one after the other.

    Args:
        work: the plan.
        shown: told of the copy error while a stage is trained.

    Raises:
        as `train.fit`.
    """
    asked, start = work.asked, work.teacher
    first = name = f"{asked.weights[:16]} guidance {asked.scales or asked.guidance}"
    for stage in work.stages:
        began = time.monotonic()
        by = lesson(work, start, name)
        with engine.memory(_SHORT.format(folder=work.out)):
            found = _fitted(work, start, stage, by, shown)
        # apart from the trainer, whose weights the next stage moves on
        taught = dataclasses.replace(found, denoiser=copy.deepcopy(found.denoiser).eval())
        copied = apart(by, taught, stage)
        yield Rung(stage, taught, copied, time.monotonic() - began)
        start, name = taught, f"{first}, {stage.steps} steps: {digest(taught)}"


def _fitted(work: Work, start: Model, stage: Stage, by: make.Taught, shown: Shown | None) -> Model:
    """Train a stage, or go on with it."""
    try:
        return fit(
            begin(work, start, stage),
            work.images,
            make.objective(stage, by),
            config(stage, work.asked.seed),
            place(work.out, stage),
            device=work.device,
            on_sample=None if shown is None else _watch(stage, by, shown),
        )
    except MemoryShort as e:  # its advice is of settings that a plan does not have
        raise MemoryShort(f"out of memory: {_SHORT.format(folder=work.out)}") from e


def lesson(work: Work, start: Model, name: str = "") -> make.Taught:
    """Return what a student learns from: the first teacher, or the student before it.

    Args:
        work: the plan.
        start: one of them; it is frozen.
        name: says which it is.
    """
    asked = work.asked
    if start is work.teacher:
        frozen = make.teacher(start, 1.0 if asked.scales else asked.guidance)
    else:
        frozen = start.denoiser if asked.scales else make.teacher(start, 1.0)
    assert isinstance(frozen, Denoiser)
    frozen.requires_grad_(False)
    return make.Taught(frozen, work.times, name, make.DROP if work.plain else 0.0, asked.scales)


def config(stage: Stage, seed: int) -> FitConfig:
    """Return how a stage is trained, in as many pieces as its memory asks for."""
    return dataclasses.replace(make.config(stage, seed), accumulate=stage.accumulate)


def _watch(stage: Stage, by: make.Taught, shown: Shown) -> Callable[[int, Model], None]:
    """Return what `fit` calls with the student as it is."""

    def watch(step: int, found: Model) -> None:
        if step < stage.updates:  # the end is told by the rung
            shown(stage, step, apart(by, found, stage))

    return watch


def begin(work: Work, start: Model, stage: Stage) -> Model:
    """Return a student before its training, with all that it says of itself.

    So that the checkpoints of a stage are students that are sampled as they must be.

    Args:
        work: the plan.
        start: what it begins as a copy of.
        stage: one of the plan.
    """
    asked = work.asked
    seen = sum(s.images for s in work.stages[: work.stages.index(stage) + 1])
    told = {"guidance": asked.guidance} if asked.scales is None else {"scales": [*asked.scales]}
    origin = {
        "teacher": asked.name,
        "teacher_sha256": asked.weights,
        "ladder": work.ladder,
        **told,
    }
    model = make.student(start, stage.method, asked.scales)
    assert isinstance(model.denoiser, NetDenoiser)
    model.denoiser.null = work.plain
    model = dataclasses.replace(model, student=origin)
    preset = make.sampling(model, stage, work.times)
    return make.named(model, stage, preset, {**origin, "images": seen})


@torch.no_grad()
def apart(by: make.Taught, taught: Model, stage: Stage) -> float:
    """Return the copy error of a student, in pixel values of [-1, 1].

    It is the root mean square difference between its images and its teacher's from the same
    noise: in twice the steps, or as many where none are taken away, or for consistency models,
    of which the first step is looked at (later ones draw noise of their own), on a fine grid.
    A student that is told its guidance is looked at with the scale of its preset.

    Args:
        by: what it learns from.
        taught: the student, with its preset.
        stage: its stage.
    """
    device = next(taught.denoiser.parameters()).device
    shape = (COPIED, *taught.shape)
    cond: Cond = None
    if taught.classes:
        cond = torch.arange(COPIED, device=device) % len(taught.classes)
    # no more at once than is trained on at once, where memory is short
    size = COPIED if stage.accumulate == 1 else stage.batch_size // stage.accumulate
    theirs, ours = (
        solvers.generate(way.denoiser, shape, way.times, way.solver, cond, batch_size=size)
        for way in walks(by, taught, stage)
    )
    return float((theirs - ours).square().mean().sqrt())


def walks(by: make.Taught, taught: Model, stage: Stage) -> tuple[sampling.Plan, sampling.Plan]:
    """Return how a teacher and its student are sampled for a copy error, see `apart`.

    Args:
        by: what the student learns from.
        taught: the student, with its preset.
        stage: its stage.
    """
    scale, frozen = taught.sampling.guidance_scale, by.teacher
    stride = (len(by.times) - 1) // (2 * stage.steps) if stage.method == PROGRESSIVE else 1
    if stage.method == GUIDED:
        frozen = guide.ClassifierFree(frozen, scale)
    elif by.scales is not None:
        frozen = guide.Taught(frozen, scale)
    times, solver = by.times[::stride], solvers.DDIM()
    theirs = sampling.Plan(frozen, times, solver, solvers.nfe(frozen, times, solver))
    once = {"steps": 1} if taught.sampling.sampler == "consistency" else {}
    ours = sampling.changed(taught.sampling, {**once, "clip": False})
    return theirs, sampling.plan(taught, ours)


def place(out: Path, stage: Stage) -> Path:
    """Return the run folder of a stage."""
    return out / STAGES / (stage.method if stage.method == GUIDED else str(stage.steps))


def digest(model: Model) -> str:
    """Return the first characters of a SHA-256 of a model's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(checkpoint.network(model).state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def planned(out: Path) -> dict[str, Any] | None:
    """Return what a folder says of its distillation, or None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text("utf-8"))
        if said["asked"].get("scales") is not None:
            said["asked"]["scales"] = tuple(said["asked"]["scales"])
        Asked(**said["asked"])
        for stage in said["stages"]:
            plan = Stage(**stage)
            counts = (plan.steps, plan.updates, plan.batch_size, plan.accumulate)
            if not all(isinstance(n, int) and n > 0 for n in counts):
                raise ValueError(f"a stage of {counts}: whole numbers above 0 are allowed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"{path}: cannot be read ({e}); put it back as it was, or choose another -o"
        ) from None
    return said


def same(said: Mapping[str, Any], asked: Asked, out: Path) -> tuple[Stage, ...]:
    """Return the plan of a folder if it is of what is asked for.

    Raises:
        UsageError: it is another; names what differs, old -> new.
    """
    before, now = said["asked"], dataclasses.asdict(asked)
    differ = [
        f"{key} {_short(before.get(key))} -> {_short(now[key])}"
        for key in now
        if key not in _CALLED and before.get(key) != now[key]
    ]
    if differ:
        raise UsageError(
            f"{out} holds another distillation: {'; '.join(differ)}; choose another -o, or give "
            "what it was begun with"
        )
    return tuple(Stage(**stage) for stage in said["stages"])


def plain(work: Work) -> dict[str, Any]:
    """Return what was asked for, and the plan, as values of `planned`."""
    stages = [stage.plain() for stage in work.stages]
    return {"asked": dataclasses.asdict(work.asked), "stages": stages}


def facts(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says beside what was asked for and the plan."""
    return {k: v for k, v in said.items() if k not in ("asked", "stages")}


def record(work: Work, facts: Mapping[str, Any]) -> None:
    """Write down what was asked for, and the plan.

    Raises:
        ResourceError: the disk refuses.
    """
    value = {**plain(work), **facts}
    try:
        work.out.mkdir(parents=True, exist_ok=True)
        with replacing(work.out / RECORD, sync=True) as aside:
            aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as e:
        raise ResourceError(f"cannot write {work.out}: {e.strerror or e}") from e


def keep(work: Work, rung: Rung) -> Path:
    """Save a student as the model to keep; return its folder.

    Raises:
        ResourceError: the disk refuses.
    """
    path = work.out / STUDENT
    checkpoint.save_model(rung.model, path)
    say(f"{path}: a {rung.stage.steps}-step student")
    return path


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
