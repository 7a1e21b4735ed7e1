"""The training loop: batches in, averaged weights out.

One optimizer step takes `batch_size` images over all processes and micro-batches. Learning rate,
image ids and random numbers are pure functions of the step, so a run that was killed and started
again ends with the same bits as one that was not (on a CPU with the same number of threads). The
loop does not know what it trains: the objective says what the loss is.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from fewstep.data.images import Images, check_classes
from fewstep.errors import CheckpointError
from fewstep.model import Model
from fewstep.objectives import LossSecondMoment, Objective
from fewstep.train import checkpoint, engine, log
from fewstep.train.config import FREE, FitConfig, learning_rate
from fewstep.train.state import STATE, TrainState, check_identity, identity, renewed, with_net
from fewstep.train.step import Stepper

FIRST_SAMPLE = 20.0
"""Seconds after which the first samples are shown, whatever the cadence says."""

OnSample = Callable[[int, Model], None]
"""on_sample(step, model): show the averaged model; it may draw any random numbers."""


def fit(
    model: Model,
    images: Images,
    objective: Objective,
    config: FitConfig,
    out: Path | str,
    *,
    device: str = "auto",
    on_sample: OnSample | None = None,
) -> Model:
    """Train a model; on a run folder that holds checkpoints, continue.

    Args:
        model: its network is trained in place (raw weights).
        images: training images, with the classes of the model.
        objective: objective(denoiser, x0, cond, step, noise) -> losses (B,).
        config: how to train.
        out: the run folder; checkpoints and metrics.jsonl go there.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        on_sample: called in the first minute, every `sample_every` steps and at the end.

    Returns:
        the model with the averaged weights.

    Raises:
        UsageError: `out` holds another run or another trainer, or the batch cannot be divided.
        DataError: the classes of the images are not those of the model.
        CheckpointError: the run has checkpoints and none is whole.
        NumericError: the loss or gradient is not finite; the weights are untouched.
        ResourceError: no disk space, permission or memory.
        Preempted, Interrupted: told to stop by a signal; saved after the current step.
    """
    out, place = Path(out), engine.pick_device(device)
    check_classes(model.classes, images.classes, images.name)
    with ExitStack() as stack:
        procs = engine.accelerator(place)
        place = procs.device
        stepper, state = begun(model, images, objective, config, procs)
        if procs.is_main_process:
            stack.enter_context(engine.locked(out))
            checkpoint.sweep(out)
        procs.wait_for_everyone()
        cuda = [place] if place.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))  # leave the caller's numbers
        loop = _Loop(stepper, config, out, procs.is_main_process)
        loop.resume(state)
        if state.step < config.steps:
            loop.run(state, on_sample)
        return state.averaged()


def begun(
    model: Model,
    images: Images,
    objective: Objective,
    config: FitConfig,
    procs: engine.Processes,
) -> tuple[Stepper, TrainState]:
    """Return what takes the steps of a run, and the run before its first step.

    Args:
        model: its network is trained in place (raw weights).
        images: training images, with the classes of the model.
        objective: see `fit`.
        config: how to train.
        procs: the processes that train together.

    Raises:
        UsageError: the batch cannot be divided.
    """
    place = procs.device
    own = getattr(objective, "precision", "auto")  # some lose their signal in bf16
    wanted = own if config.precision == "auto" else config.precision
    bf16 = engine.pick_precision(wanted, place) == "bf16"
    stepper = Stepper(images, objective, config, procs, place, bf16, exact=own == "fp32")
    times = getattr(objective, "times", None)
    learned = times if isinstance(times, LossSecondMoment) else None
    memory = getattr(objective, "memory", learned)
    return stepper, TrainState(model, config.weight_decay, config.ema_decay, place, memory)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """Hold what stays the same during a run."""

    stepper: Stepper
    config: FitConfig
    out: Path
    main: bool

    def identity(self, state: TrainState) -> dict[str, object]:
        """Return what this run is; a checkpoint of another run is refused."""
        settings = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in FREE}
        return identity(state.model, self.stepper.images, self.stepper.objective, settings)

    def resume(self, state: TrainState) -> None:
        """Load the newest whole checkpoint, if there is any."""
        say = log.say if self.main else None
        newest = checkpoint.newest(self.out, say)
        if newest is not None:
            files = checkpoint.load(newest)
            stored = files.json(STATE).get("run")
            if not isinstance(stored, dict):
                raise CheckpointError(f"{newest / STATE}: no run in it; not a training checkpoint")
            check_classes(stored["classes"], self.stepper.images.classes, self.stepper.images.name)
            check_identity(renewed(stored), self.identity(state), str(self.out))
            state.restore(files)
        if self.main:
            log.truncate(self.out / "metrics.jsonl", state.step)

    def run(self, state: TrainState, on_sample: OnSample | None) -> None:
        """Take the steps that are left."""
        denoiser, procs = state.model.denoiser, self.stepper.procs
        if procs.num_processes > 1:  # DistributedDataParallel goes around the network only
            denoiser = with_net(denoiser, procs.prepare_model(state.net))
        main, start, began = self.main, state.step, time.monotonic()
        sampled = start > 0
        metrics = log.Metrics(self.out / "metrics.jsonl")
        total, size = self.config.steps, self.config.batch_size
        with engine.Signals() as signals, log.Progress(total, start, size, show=main) as progress:
            progress.say(f"{self.out}: steps {start} to {total} on {self.stepper.device}")
            while state.step < total:
                loss, norm, signal = self.stepper.step(state, denoiser, signals)
                step, seconds = state.step, time.monotonic() - began
                progress.update(step, loss)
                if main and (step % self.config.log_every == 0 or step in (1, total)):
                    rate = (step - start) * size / seconds
                    lr = learning_rate(self.config, step - 1)
                    metrics.write(
                        {"step": step, "loss": loss, "grad_norm": norm, "lr": lr}
                        | {"images_per_second": round(rate, 1), "seconds": round(seconds, 3)}
                    )
                last = step == total
                if main and (last or signal or step % self.config.checkpoint_every == 0):
                    self.save(state)
                if signal and not last:
                    procs.wait_for_everyone()  # a rank that left early would end the others
                    raise engine.stopped(signal, step, self.out)
                early = not sampled and seconds > FIRST_SAMPLE
                if last or early or step % self.config.sample_every == 0:
                    sampled = True
                    if main and on_sample is not None:
                        on_sample(step, state.averaged())
            progress.say(f"{self.out}: done, {total} steps")

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, then drop the oldest."""
        parts = state.parts(self.identity(state))
        checkpoint.write(checkpoint.place(self.out, state.step), parts, step=state.step)
        checkpoint.retain(self.out, self.config.keep)
