"""Rows D2 to D6: what a step of distillation costs, and what a student of one step saves.

D2, D3, D4 and D6 set a whole optimizer step (`train.step.Stepper`: batch, loss, gradient,
clipping, AdamW, moving average) of a distillation over the arithmetic of it: the same step with
the plain denoising loss, and the forward passes that the distillation makes besides, each of the
network alone, without a gradient. Step and passes are timed in turn in every round and added up,
so that a ratio of 1.00 is a loss that costs nothing beside its networks. D2 is progressive
distillation (two passes of the teacher), D3 easy consistency tuning (one of the student), D4
progressive distillation of a guided teacher (two passes of a doubled batch), D6 consistency
distillation (one of the student, two of the teacher); batches of 64, in the precision that such
training takes on this machine, and two networks: the shipped one of the 8x8 digits, and that of
the recipe "mnist" for 28x28 pixels, with random weights on random images.

D5 is a chunk of 250 digits in the one step of the shipped student, from its settings and seeds to
8-bit pixels, over a thousandth of its teacher's 1000 steps of DDIM, both without guidance. The
long walk is measured by its first steps, five in every round, between which the short one is
taken. What is above 1.00 is what an image costs once and not per step; the shares of the one step
(the network alone, a generator of noise for every image, the plan, the pixels) are measured in
the same turns.
"""

import json
import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import timing
from fewstep import sampling, solvers
from fewstep.cli.resolve import SHIPPED
from fewstep.data import Images
from fewstep.data.digits import digits
from fewstep.denoiser import NetDenoiser
from fewstep.distill import Consistency
from fewstep.model import Model, Sampling
from fewstep.objectives import Denoising, Objective
from fewstep.recipes import build, load, parse
from fewstep.recipes.read import shipped_path
from fewstep.students import Stage, make
from fewstep.train import engine
from fewstep.train.checkpoint import load_model
from fewstep.train.fit import begun

BATCH, CHUNK, STEPS, PIECE = 64, 250, 1000, 5
GOAL, SCALE = 1.10, 2.0
HERE = torch.device("cpu")


class Work(NamedTuple):
    """A teacher, and images like those that it was trained on."""

    what: str
    model: Model
    images: Images


class Lesson(NamedTuple):
    """A way of distilling, as a row measures it.

    Attributes:
        method: see `students.Stage`.
        passes: forward passes beside a plain step, without a gradient.
        said: the same in words.
        scale: of the teacher's guidance, which doubles the batch of a pass.
    """

    method: str
    passes: int
    said: str
    scale: float = 1.0


LESSONS = {
    "D2": Lesson(
        "progressive", 2, "progressive distillation vs a plain step and 2 teacher passes",
    ),
    "D3": Lesson("ect", 1, "easy consistency tuning vs a plain step and 1 student pass"),
    "D4": Lesson(
        "progressive", 2,
        "progressive distillation, guided teacher, vs a plain step and 2 doubled passes", SCALE,
    ),
    "D6": Lesson(
        "consistency-distillation", 3,
        "consistency distillation vs a plain step, 1 student pass and 2 teacher passes",
    ),
}  # fmt: skip


def small() -> Work:
    """Return the shipped model of the digits."""
    return Work("8x8", load_model(SHIPPED / "digits"), digits()[0])


def large() -> Work:
    """Return the network for 28x28 pixels, with weights as they are drawn."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1000, 1, 28, 28), dtype=np.uint8)
    labels = np.arange(len(pixels), dtype=np.int64) % 10
    images = Images.of(pixels, labels, [str(k) for k in range(10)], "noise")
    return Work("28x28", build(parse(load(shipped_path("mnist"))), images).model, images)


def _millis(seconds: list[float]) -> list[float]:
    return [s * 1e3 for s in seconds]


def _step(work: Work, goal: Objective, stage: Stage, precision: engine.Precision) -> timing.Side:
    """Return what takes an optimizer step, as `fit` does."""
    config = replace(make.config(stage, 0), precision=precision)
    model = make.student(work.model, stage.method)
    stepper, state = begun(model, work.images, goal, config, engine.Alone(HERE))
    return partial(stepper.step, state, model.denoiser, engine.Signals())


def _forward(work: Work, batch: int, train: bool, precision: engine.Precision) -> timing.Side:
    """Return what asks the network of a teacher, or of a student in training, once."""
    model = make.student(work.model, "ect") if train else work.model
    assert isinstance(model.denoiser, NetDenoiser)
    net = model.denoiser.net.train(train)
    x, cond = torch.randn(batch, *work.model.shape), torch.arange(batch) % 10
    label = torch.rand(batch) * 999
    bf16 = precision == "bf16"

    @torch.no_grad()
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            net(x, label, cond)

    return run


def _precision(lesson: Lesson) -> engine.Precision:
    """Return the precision that the training of a row takes here."""
    wanted = "auto" if lesson.method == "progressive" else Consistency.precision
    return engine.pick_precision(wanted, HERE)


def sides(name: str, work: Work) -> dict[str, timing.Side]:
    """Return the three sides of a row of `LESSONS`: "forward" counts as often as it says."""
    lesson = LESSONS[name]
    stage = Stage(lesson.method, 4, 100_000, BATCH, 1e-5)
    by = make.teacher(work.model, lesson.scale)
    goal = make.objective(stage, make.Taught(by, make.grid(work.model, 8), drop=make.DROP))
    of = _precision(lesson)
    size = BATCH if lesson.scale == 1 else 2 * BATCH
    return {
        "ours": _step(work, goal, stage, of),
        "plain": _step(work, Denoising(drop=make.DROP), stage, of),
        "forward": _forward(work, size, lesson.method == "ect", of),
    }


def step(name: str, work: Work, rounds: int) -> timing.Row:
    """Measure a row of `LESSONS` with a network."""
    lesson = LESSONS[name]
    taken = {k: _millis(v) for k, v in timing.take_turns(sides(name, work), rounds).items()}
    both = zip(taken["plain"], taken["forward"], strict=True)
    what = f"training step, {work.what} pixels, batch {BATCH}: {lesson.said}"
    return timing.row(
        name, what, taken["ours"], [a + lesson.passes * b for a, b in both], "ms", GOAL,
        plain=statistics.median(taken["plain"]), forward=statistics.median(taken["forward"]),
        precision=_precision(lesson),
    )  # fmt: skip


def _walk(model: Model, settings: Sampling, cond: Tensor) -> Iterator[solvers.Step]:
    plan = sampling.plan(model, settings)
    shape = (CHUNK, *model.shape)
    noise = solvers.PerImage(solvers.image_seeds(0, CHUNK))
    return solvers.sample(plan.denoiser, shape, plan.times, plan.solver, cond, noise=noise)


def one_step(rounds: int) -> timing.Row:
    """Measure D5."""
    model, teacher = load_model(SHIPPED / "digits-1step"), small().model
    assert isinstance(model.denoiser, NetDenoiser)
    assert model.sampling == Sampling("ddim", 1)
    net, cond = model.denoiser.net, torch.arange(CHUNK) % 10
    x, label = torch.randn(CHUNK, *model.shape), torch.full((1,), 999.0)

    def short() -> None:
        (last,) = _walk(model, model.sampling, cond)
        sampling.to_uint8(last.x)

    long = _walk(teacher, Sampling("ddim", STEPS), cond)
    empty = torch.empty_like(x)
    parts: dict[str, Callable[[], object]] = {
        "network": torch.no_grad()(partial(net, x, label, cond)),
        "noise": lambda: solvers.PerImage(solvers.image_seeds(0, CHUNK))(empty),
        "plan": lambda: sampling.plan(model, model.sampling),
        "pixels": lambda: sampling.to_uint8(x),
    }
    first = timing.take_turns({"first": short}, 1, 0)["first"][0]
    sides = {"short": short, "long": lambda: list(islice(long, PIECE)), **parts}
    taken = timing.take_turns(sides, rounds, 1)
    peer = [s * 1e3 / PIECE for s in taken["long"]]
    ours = _millis(taken["short"])
    shares = {k: timing.ratio(taken[k], taken["short"]) for k in parts}
    faster = STEPS / timing.ratio(ours, peer)
    said = ", ".join(f"{k} {v:.1%}" for k, v in shares.items())
    what = f"{CHUNK} digits by the 1-step student vs a thousandth of the {STEPS}-step teacher: "
    return timing.row(
        "D5", f"{what}{faster:.0f} times as fast ({said})", ours, peer, "ms", 1.15,
        faster=faster, shares=shares, first_call=first * 1e3,
        images_per_second=CHUNK * 1e3 / statistics.median(ours),
    )  # fmt: skip


def run(
    rounds: int = 13, rows: Collection[str] = ("D2", "D3", "D4", "D5", "D6")
) -> list[timing.Row]:
    """Measure the rows that are asked for."""
    tuned = engine.tune_cpu()

    def steps(name: str) -> list[timing.Row]:
        few = max(2, rounds // 4)
        return [step(name, small(), rounds), step(name, large(), few)]

    measures = {
        "D2": lambda: steps("D2"),
        "D3": lambda: steps("D3"),
        "D4": lambda: step("D4", small(), rounds),
        "D5": lambda: one_step(rounds),
        "D6": lambda: steps("D6"),
    }
    with timing.one_thread():
        return [line | {"memory_kept": tuned} for line in timing.each(measures, rows)]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
