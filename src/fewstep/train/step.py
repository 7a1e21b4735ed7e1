"""One optimizer step: a batch in, a loss out, and no bad value into the weights."""

import dataclasses
import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from fewstep.data.images import Images
from fewstep.data.stream import Ids, batch_ids, rank_slice
from fewstep.denoiser import Told
from fewstep.errors import NumericError, UsageError
from fewstep.objectives import LossSecondMoment, Objective
from fewstep.train import engine
from fewstep.train.config import FitConfig, learning_rate
from fewstep.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Stepper:
    """Take optimizer steps; hold what stays the same during a run.

    Args:
        images: the training images.
        objective: what the loss is.
        config: how to train.
        procs: the processes that train together.
        device: where this one trains.
        bf16: whether the network computes in bfloat16 (autocast; weights stay float32).
        exact: whether it computes in float32 to its last digits, without a GPU's short cut TF32.

    Raises:
        UsageError: the batch cannot be cut into equal micro-batches.
    """

    images: Images
    objective: Objective
    config: FitConfig
    procs: engine.Processes
    device: torch.device
    bf16: bool
    exact: bool = False

    def __post_init__(self) -> None:
        """Check that the batch can be shared out."""
        size, parts = self.config.batch_size, self.procs.num_processes * self.config.accumulate
        if size % parts:
            near = (size // parts * parts, size // parts * parts + parts)
            raise UsageError(
                f"train.batch_size={size}: must be a multiple of {self.procs.num_processes} "
                f"processes x {self.config.accumulate} micro-batches; nearest: "
                f"{', '.join(str(n) for n in near if n)}"
            )

    def step(
        self, state: TrainState, denoiser: Told, signals: engine.Signals
    ) -> tuple[float, float, int]:
        """Take one step; return loss, norm of the gradient before clipping, signal to obey.

        Raises:
            NumericError: loss or gradient is not finite; nothing was changed.
        """
        share = self.config.batch_size // self.procs.num_processes // self.config.accumulate
        digits = engine.all_digits() if self.exact else nullcontext()
        advice = f"{share} images at a time are too many; raise train.accumulate"
        with engine.memory(advice), digits:
            losses, ids = self._gradient(state.step, denoiser)
        weights = state.net.parameters()
        norm = torch.nn.utils.clip_grad_norm_(weights, self.config.clip)
        told = torch.stack([losses.mean(), norm, losses.new_tensor(float(signals.wanted))])[None]
        told = self.procs.gather(told)  # all ranks stop, or fail, at the same step
        # and all learn the same, though each saw the losses of its own share alone
        learned = state.memory if isinstance(state.memory, LossSecondMoment) else None
        seen = None if learned is None else self.procs.gather(learned.seen())
        # The one sync of a step: a value that is not finite must not reach the weights.
        rows = torch.as_tensor(told).tolist()
        loss, size = math.fsum(row[0] for row in rows) / len(rows), rows[0][1]
        if not (math.isfinite(loss) and math.isfinite(size)):
            state.optimizer.zero_grad(set_to_none=True)
            raise self._not_finite(state.step, (loss, size), losses, ids)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, state.step)
        if learned is not None:
            learned.learn(torch.as_tensor(seen))
        with engine.memory("no room for the optimizer's moments; take a smaller network"):
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update()
        state.step += 1
        return loss, size, int(max(row[2] for row in rows))

    def _gradient(self, step: int, denoiser: Told) -> tuple[Tensor, Ids]:
        """Leave the gradient of the mean loss in the weights; return this rank's losses, ids."""
        seed, rank = self.config.seed, self.procs.process_index
        ids = batch_ids(seed, step, self.config.batch_size, len(self.images))
        ids = rank_slice(ids, rank, self.procs.num_processes)
        losses: list[Tensor] = []
        pieces = np.split(ids, self.config.accumulate)
        for micro, piece in enumerate(pieces):
            mine, dropout = engine.entropy(seed, rank, step, micro)
            torch.manual_seed(dropout)  # dropout layers know only the global generator
            noise = torch.Generator(self.device).manual_seed(mine)
            x, y = (t.to(self.device) for t in self.images.batch(piece))
            if self.config.flip:
                turn = torch.rand(len(x), generator=noise, device=self.device) < 0.5
                x = torch.where(turn[:, None, None, None], x.flip(-1), x)
            waits = micro < len(pieces) - 1 and self.procs.num_processes > 1
            with self.procs.no_sync(denoiser.net) if waits else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    cond = y if self.images.classes else None
                    losses.append(self.objective(denoiser, x, cond, step, noise))
                (losses[-1].float().mean() / len(pieces)).backward()
        return torch.cat(losses).detach().float(), ids

    def _not_finite(
        self, step: int, told: tuple[float, float], losses: Tensor, ids: Ids
    ) -> NumericError:
        """Return the error that stops a run before a bad value reaches its weights."""
        bad = ids[(~torch.isfinite(losses)).cpu().numpy()]
        whose = "samples with such a loss" if len(bad) else "first samples"
        shown = ", ".join(map(str, (bad if len(bad) else ids)[:8]))
        return NumericError(
            f"step {step + 1}: not finite: loss {told[0]}, gradient norm {told[1]}, "
            f"{whose}: {shown}; the weights are untouched and the last checkpoint is good; "
            "lower train.lr or look at these samples"
        )
