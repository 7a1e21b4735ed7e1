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
from fewstep.errors import CheckpointError, ResourceError, UsageError
from fewstep.files import replacing
from fewstep.model import Model
from fewstep.students import make
from fewstep.students.plan import GUIDED, PROGRESSIVE, START, Stage
from fewstep.train import checkpoint, engine
from fewstep.train.fit import fit
from fewstep.train.log import say

RECORD, STUDENT, STAGES = "distill.json", "student", "stages"
_COPIED = 64  # images of a copy error
_PACE = 3.0  # seconds that a measurement of speed takes at least


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
    frozen = make.teacher(start, 1.0 if asked.scales else asked.guidance)
    first = name = f"{asked.weights[:16]} guidance {asked.scales or asked.guidance}"
    plain = asked.scales is None and asked.guidance == 1 and start.denoiser.null is True
    for stage in work.stages:
        began = time.monotonic()
        drop = make.DROP if plain else 0.0
        by = make.Taught(frozen, work.times, name, drop, asked.scales)
        found = fit(
            _begin(start, stage, plain, work),
            work.images,
            make.objective(stage, by),
            make.config(stage, asked.seed),
            place(work.out, stage),
            device=work.device,
            on_sample=None if shown is None else _watch(stage, by, shown),
        )
        # apart from the trainer, whose weights the next stage moves on
        taught = dataclasses.replace(found, denoiser=copy.deepcopy(found.denoiser).eval())
        seconds = time.monotonic() - began
        yield Rung(stage, taught, apart(by, taught, stage), seconds)
        start = taught
        frozen = taught.denoiser if asked.scales else make.teacher(taught, 1.0)
        assert isinstance(frozen, Denoiser)
        frozen.requires_grad_(False)
        name = f"{first}, {stage.steps} steps: {digest(taught)}"


def _watch(stage: Stage, by: make.Taught, shown: Shown) -> Callable[[int, Model], None]:
    """Return what `fit` calls with the student as it is."""

    def watch(step: int, found: Model) -> None:
        if step < stage.updates:  # the end is told by the rung
            shown(stage, step, apart(by, found, stage))

    return watch


def _begin(start: Model, stage: Stage, null: bool, work: Work) -> Model:
    """Return a student before its training, with all that it says of itself.

    So that the checkpoints of a stage are students that are sampled as they must be.
    """
    asked = work.asked
    seen = sum(s.images for s in work.stages[: work.stages.index(stage) + 1])
    told = {"guidance": asked.guidance} if asked.scales is None else {"scales": [*asked.scales]}
    origin = {"teacher": asked.name, "teacher_sha256": asked.weights, **told}
    model = make.student(start, stage.method, asked.scales)
    assert isinstance(model.denoiser, NetDenoiser)
    model.denoiser.null = null
    model = dataclasses.replace(model, student=origin)
    preset = make.sampling(model, stage, work.times)
    return make.named(model, stage, preset, {**origin, "images": seen})


@torch.no_grad()
def apart(by: make.Taught, taught: Model, stage: Stage) -> float:
    """Return the copy error of a student, in pixel values of [-1, 1].

    It is the root mean square difference between its images and its teacher's from the same
    noise: in twice the steps, or as many where none are taken away, or for consistency models on
    a fine grid. A student that is told its guidance is looked at with the scale of its preset.

    Args:
        by: what it learns from.
        taught: the student, with its preset.
        stage: its stage.
    """
    device = next(taught.denoiser.parameters()).device
    shape = (_COPIED, *taught.shape)
    cond: Cond = None
    if taught.classes:
        cond = torch.arange(_COPIED, device=device) % len(taught.classes)
    scale, frozen = taught.sampling.guidance_scale, by.teacher
    stride = (len(by.times) - 1) // (2 * stage.steps) if stage.method == PROGRESSIVE else 1
    if stage.method == GUIDED:
        frozen = guide.ClassifierFree(frozen, scale)
    elif by.scales is not None:
        frozen = guide.Taught(frozen, scale)
    theirs = solvers.generate(frozen, shape, by.times[::stride], solvers.DDIM(), cond)
    way = sampling.plan(taught, dataclasses.replace(taught.sampling, clip=False))
    ours = solvers.generate(way.denoiser, shape, way.times, way.solver, cond)
    return float((theirs - ours).square().mean().sqrt())


def pace(
    teacher: Model, guidance: float, images: Images, method: str, device: torch.device
) -> float:
    """Return the seconds that an image takes in training, measured here.

    Args:
        teacher: the model that is distilled, on the device.
        guidance: scale that its predictions get.
        images: to train on.
        method: see `plan.Stage`.
        device: where to train.
    """
    stage = Stage(method, 1, 1000, 64, 1e-4)
    model = make.student(teacher, method)
    assert isinstance(model.denoiser, NetDenoiser)
    net = model.denoiser.net.to(device).train()
    by = make.Taught(make.teacher(teacher, guidance), make.grid(teacher, 2))
    goal = make.objective(stage, by)
    bf16 = engine.pick_precision("auto", device) == "bf16"
    noise = torch.Generator(device).manual_seed(0)
    ids = torch.arange(stage.batch_size).numpy() % len(images)
    x, y = (part.to(device) for part in images.batch(ids))
    cond = y if images.classes else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        done, began = -2, time.monotonic()
        while done < 1 or time.monotonic() - began < _PACE:
            if done == 0:
                began = time.monotonic()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                losses = goal(model.denoiser, x, cond, 0, noise)
            losses.float().mean().backward()
            net.zero_grad(set_to_none=True)
            done += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.monotonic() - began) / (done * stage.batch_size)


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
        [Stage(**stage) for stage in said["stages"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: cannot be read ({e}); choose another -o") from None
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
        if key not in ("model", "name") and before.get(key) != now[key]
    ]
    if differ:
        raise UsageError(
            f"{out} holds another distillation: {'; '.join(differ)}; choose another -o, or give "
            "what it was begun with"
        )
    return tuple(Stage(**stage) for stage in said["stages"])


def record(work: Work, facts: Mapping[str, Any]) -> None:
    """Write down what was asked for, and the plan.

    Raises:
        ResourceError: the disk refuses.
    """
    value = {
        "asked": dataclasses.asdict(work.asked),
        "stages": [stage.plain() for stage in work.stages],
        **facts,
    }
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
