"""What training costs here: each way of training is tried once, before a plan is kept.

A trial takes the real steps of `train`, at the batch of the plan, on a copy that is thrown away:
data, gradient, clipping, optimizer and average. So it says what a step costs, and shows that it
fits into memory. A copy error and a checkpoint are timed beside it, and a plan pays for all.
"""

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fewstep.errors import MemoryShort, ResourceError
from fewstep.students import run
from fewstep.students.plan import Stage, TooSmall
from fewstep.train import checkpoint, engine
from fewstep.train.fit import FIRST_SAMPLE, begun
from fewstep.train.log import say
from fewstep.train.state import TrainState

_TURNS = 12  # plans that are looked at on the way to one of the right length
_OVER = 1.05  # of a budget, what a plan may take


@dataclass(frozen=True)
class Cost:
    """What a stage costs here.

    Attributes:
        step: seconds of an optimizer step.
        shown: seconds of a copy error.
        saved: seconds of a checkpoint.
        parts: pieces that a batch must be cut into to fit into memory.
    """

    step: float
    shown: float
    saved: float
    parts: int


class Pace:
    """Time the stages of plans; each way of training them once.

    Args:
        work: what is asked for, teacher, images and device; its stages are of no matter.
        patience: seconds that a trial takes at least; 0 only finds out what fits into memory.

    Attributes:
        known: costs, and the steps of the student, by method, batch and whether the teacher is
            one that others are not.
        evaluation: seconds that a network takes to evaluate an image when it samples.
    """

    def __init__(self, work: run.Work, patience: float) -> None:
        self.work, self.patience = work, patience
        self.device = engine.pick_device(work.device)
        self.known: dict[tuple[str, int, bool], tuple[Cost, int]] = {}
        self.evaluation = 0.0

    def of(self, stages: tuple[Stage, ...], i: int) -> Cost:
        """Return what stage i of a plan costs.

        Raises:
            MemoryShort: not even one image at a time can be trained on.
            ResourceError: the disk refuses.
            NumericError: a loss is not finite.
        """
        stage, asked = stages[i], self.work.asked
        own = i == 0 and (asked.guidance != 1 or asked.scales is not None)
        key = (stage.method, stage.batch_size, own)
        if key not in self.known:
            self.known[key] = self._tried(stages, i), stage.steps
        cost, steps = self.known[key]
        return replace(cost, shown=cost.shown * stage.steps / steps)

    def seconds(self, stages: tuple[Stage, ...]) -> float:
        """Return how long a plan takes, with its copy errors and its checkpoints."""
        found = 0.0
        for i, stage in enumerate(stages):
            cost, config = self.of(stages, i), run.config(stage, 0)
            saved = -(-stage.updates // config.checkpoint_every)
            shown = (stage.updates - 1) // config.sample_every + 1
            shown += cost.step * min(config.sample_every, stage.updates) > FIRST_SAMPLE
            found += stage.updates * cost.step + saved * cost.saved + shown * cost.shown
        return found

    def fitted(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return a plan that fits into memory: the same batches, in pieces where they must be.

        A stage that has checkpoints stays as it was begun.

        Raises:
            as `of`.
        """
        found = tuple(
            s
            if checkpoint.listed(run.place(self.work.out, s))
            else replace(s, accumulate=self.of(stages, i).parts)
            for i, s in enumerate(stages)
        )
        cut = [s for s, before in zip(found, stages, strict=True) if s != before]
        for size, parts in dict.fromkeys((s.batch_size, s.accumulate) for s in cut):
            whole = f"memory does not bear {size} images at once"
            say(f"{whole}: taken as {parts} x {size // parts}")
        return found

    def _tried(self, stages: tuple[Stage, ...], i: int) -> Cost:
        """Return what a stage costs, in as few pieces as memory bears."""
        size, parts = stages[i].batch_size, 1
        while True:
            try:
                return self._timed(stages, i, parts)
            except MemoryShort as e:
                more = next((k for k in range(2 * parts, size + 1) if size % k == 0), size)
                if parts == size:
                    raise MemoryShort(
                        f"out of memory: {self.device} does not bear a step of one image; free "
                        "what other programs hold, train elsewhere, as with --device cpu, or give "
                        "a smaller teacher"
                    ) from e
                parts = more
            gc.collect()  # what the error still held
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _timed(self, stages: tuple[Stage, ...], i: int, parts: int) -> Cost:
        """Train a stage for some steps, and time them and what goes with them.

        Raises:
            MemoryShort: it does not fit in so many pieces.
        """
        stage = replace(stages[i], accumulate=parts)
        work = replace(self.work, stages=(*stages[:i], stage, *stages[i + 1 :]))
        cuda = [self.device] if self.device.type == "cuda" else []
        with engine.memory("in a trial"), torch.random.fork_rng(devices=cuda):
            start = work.teacher
            if i:
                start = run.begin(work, start, work.stages[0])
                start.denoiser.eval()
            by = run.lesson(work, start)
            goal, config = run.make.objective(stage, by), run.config(stage, work.asked.seed)
            model = run.begin(work, start, stage)
            stepper, state = begun(model, work.images, goal, config, engine.Alone(self.device))
            signals = engine.Signals()
            done, began = -1, self._now()  # the first makes what later ones find
            while done < 1 or self._now() - began < self.patience:
                began = self._now() if done == 0 else began
                stepper.step(state, model.denoiser, signals)
                state.step %= stage.updates
                done += 1
            step = (self._now() - began) / done
            if not self.patience:
                run.apart(by, state.averaged(), stage)
                return Cost(step, 0.0, 0.0, parts)
            say(f"  {stage.method}: {step:.2g} s for a step of {stage.batch_size} images")
            shown = self._shown(by, state, stage)
            return Cost(step, shown, self._saved(state), parts)

    def _shown(self, by: run.make.Taught, state: TrainState, stage: Stage) -> float:
        """Return the seconds of a copy error, and note those of an evaluation."""
        taught = state.averaged()
        run.apart(by, taught, stage)  # the first finds nothing prepared
        began = self._now()
        run.apart(by, taught, stage)
        seconds = self._now() - began
        count = sum(way.nfe for way in run.walks(by, taught, stage))
        self.evaluation = seconds / (run.COPIED * count)
        return seconds

    def _saved(self, state: TrainState) -> float:
        """Return the seconds of a checkpoint, on the disk of the work."""
        out = Path(self.work.out).absolute()
        ground = next(p for p in (out, *out.parents) if p.is_dir())
        try:
            with tempfile.TemporaryDirectory(prefix=".fewstep-", dir=ground) as place:
                began = self._now()
                checkpoint.write(Path(place) / "trial", state.parts({}), step=state.step)
                return self._now() - began
        except OSError as e:
            raise ResourceError(f"cannot write {self.work.out}: {e.strerror or e}") from e

    def _now(self) -> float:
        """Return the time when the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.monotonic()


def budgeted(
    pace: Pace, stages_of: Callable[[float], tuple[Stage, ...]], budget: float
) -> tuple[Stage, ...]:
    """Return the plan that a budget pays for, with its copy errors and its checkpoints.

    What an image costs depends on the batch, and the batch on how many images there are: so plans
    are made and timed in turn.

    Args:
        pace: what training costs here.
        stages_of: returns the stages of so many training images, or raises `TooSmall`.
        budget: seconds.

    Raises:
        TooSmall: the shortest plan takes longer.
        as `Pace.of`.
    """
    count = 1.0
    try:
        stages = stages_of(count)
    except TooSmall as e:
        count = (1 + 1e-6) / e.share
        stages = stages_of(count)
    least, needed = count, pace.seconds(stages)
    if needed > budget:
        raise TooSmall(budget / needed)
    best, most = stages, needed
    for _ in range(_TURNS):
        count = max(least, count * budget / needed)
        stages = stages_of(count)
        needed = pace.seconds(stages)
        if most < needed <= _OVER * budget:
            best, most = stages, needed
    return best
