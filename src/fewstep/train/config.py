"""How to train: the settings of a run, checked once, and the learning rate they give."""

import dataclasses
import math
from typing import Literal, get_args

from fewstep.errors import UsageError
from fewstep.train.engine import Precision

Decay = Literal["cosine", "linear", "constant"]

FREE = frozenset({"steps", "checkpoint_every", "keep", "sample_every", "log_every"})
"""Settings that a continued run may change."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Say how to train.

    Args:
        steps: optimizer steps of the whole run, 1 to 10^8. More than a finished run had extend
            it; a falling rate then rises again, to where it is in a run of that length.
        batch_size: images per optimizer step, over all processes and micro-batches.
        accumulate: micro-batches that a process cuts its share into; more need less memory and
            give the same gradient up to rounding.
        lr: peak learning rate of AdamW, > 0.
        warmup: steps of linear rise to `lr`.
        decay: "cosine" falls to 0 at `steps`, "linear" does so evenly, "constant" stays.
        weight_decay: decoupled decay of weights (not of biases and norms).
        clip: largest norm of the gradient.
        ema_decay: limit of the moving average of the weights.
        precision: "auto" (what the objective needs; else bf16 where the device computes in it,
            see `engine.pick_precision`), "fp32" or "bf16".
        seed: of data order and random numbers, 0 to 2^64 - 1.
        flip: mirror half of the images left to right (wrong for digits and text).
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep: checkpoints kept, >= 2.
        sample_every: steps between calls of on_sample.
        log_every: steps between records of metrics.jsonl.

    Raises:
        UsageError: naming the key, its value and what is allowed.
    """

    steps: int = 10_000
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 100
    decay: Decay = "cosine"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    precision: Precision = "auto"
    seed: int = 0
    flip: bool = False
    checkpoint_every: int = 1000
    keep: int = 3
    sample_every: int = 1000
    log_every: int = 10

    def __post_init__(self) -> None:
        """Check every value."""
        ranges: dict[str, tuple[float, float]] = {
            "steps": (1, 10**8), "batch_size": (1, 10**6), "accumulate": (1, 10**6),
            "lr": (1e-12, 10), "warmup": (0, 10**8), "weight_decay": (0, 10),
            "clip": (1e-12, 1e12), "ema_decay": (0, 1 - 1e-12), "seed": (0, 2**64 - 1),
            "checkpoint_every": (1, 10**8), "keep": (2, 10**6), "sample_every": (1, 10**8),
            "log_every": (1, 10**8),
        }  # fmt: skip
        whole = {f.name for f in dataclasses.fields(self) if f.type is int}
        for key, (low, high) in ranges.items():
            value = getattr(self, key)
            kind = int if key in whole else int | float
            good = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
            if not good:
                word = "an integer" if key in whole else "a number"
                raise UsageError(f"train.{key}={value!r}: must be {word} in {low:g}..{high:g}")
        if self.decay not in get_args(Decay):
            raise UsageError(
                f"train.decay={self.decay!r}: must be one of {', '.join(get_args(Decay))}"
            )


def learning_rate(config: FitConfig, step: int) -> float:
    """Return the rate of optimizer step `step`, 0-based: a function of the step alone.

    It rises as (step + 1) / warmup and then falls as (1 + cos(pi u)) / 2 or 1 - u, u in [0, 1).
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.lr
    u = (step - config.warmup) / max(config.steps - config.warmup, 1)
    if config.decay == "linear":
        return config.lr * (1 - min(u, 1.0))
    return config.lr * (1 + math.cos(math.pi * min(u, 1.0))) / 2
