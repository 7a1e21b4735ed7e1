"""Guided distillation: one student says what guidance of any scale makes of its teacher.

The student is told the scale s = 1 + w (`nets.guidance`) and learns

    x0 = x0_uncond + s (x0_cond - x0_uncond)

of its teacher at all noise levels. That halves the cost of a step; steps are halved afterwards, by
`Progressive` with `scales`, whose teacher is this student. Guided images leave the range of the
data; targets are not clipped, or the student would learn another field than the one that is
sampled.
"""

import copy
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep import conditions
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser, NetDenoiser
from fewstep.errors import UsageError
from fewstep.guide.affine import check_null
from fewstep.model import Model, Sampling
from fewstep.nets.extra_inputs import Inpaint, SuperRes
from fewstep.nets.guidance import GuidanceScale
from fewstep.objectives.denoising import noised
from fewstep.objectives.times import LossSecondMoment, Times, Uniform
from fewstep.objectives.weights import TruncatedSNR, Weight
from fewstep.prediction import Prediction
from fewstep.steer import DIALS, REFINING


@dataclass(frozen=True)
class Guided:
    """Measure the error of the student's image against the guided image of the teacher.

    Args:
        teacher: frozen, in evaluation mode, not guided and not clipped; it knows the null
            condition.
        low: least guidance scale to be learned; 1 is the plain conditional model.
        high: largest one, at least `low`; every sample draws its own from [low, high].
        times: the law of the training times.
        weight: factor of the squared error in x0.
        name: says which teacher in the identity of a run.

    Raises:
        UsageError: a teacher that never saw the null condition, scales that are no range, times
            that only `objectives.Bound` can reweight.

    Source: Meng et al., "On Distillation of Guided Diffusion Models", 2022, section 3.1 and
        algorithm 1 (arXiv 2210.03142); their w in [0, 4] is low = 1, high = 5.
    """

    teacher: Denoiser = field(repr=False)
    low: float = 1.0
    high: float = 5.0
    times: Times = field(default_factory=Uniform)
    weight: Weight = field(default_factory=TruncatedSNR)
    name: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        check_scales(self.low, self.high)
        check_null(self.teacher, "guided distillation")
        if isinstance(self.times, LossSecondMoment):
            raise UsageError("importance sampling of the times is for the objective Bound alone")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch.

        Args:
            denoiser: the student, of the teacher's process; it is asked with `conditions.Scaled`.
            x0: clean batch, shape (B, *), in the range of the data.
            cond: class indices, shape (B,), or another condition; none is dropped.
            step: number of the optimizer step; unused here.
            noise: the only source of randomness, on the device of x0.

        Returns:
            shape (B,), in the dtype of x0.

        Raises:
            UsageError: data without a condition, which guidance needs.
        """
        del step
        if cond is None:
            raise UsageError("guided distillation: the data have no condition to guide towards")
        t = self.times(denoiser.process, len(x0), noise)
        scale = drawn(self.low, self.high, x0, noise)
        x_t = noised(denoiser, x0, t, noise).x_t
        with torch.no_grad():
            truth = self.truth(x_t, t, scale, cond)
        error = denoiser(x_t, t, conditions.scaled(cond, scale)).x0 - truth.x0
        return (self.weight(truth) * error.square()).flatten(1).mean(1)

    def truth(self, x_t: Tensor, t: Tensor, scale: Tensor, cond: Cond) -> Prediction:
        """Return the teacher's guided prediction, each sample with its own scale.

        Args:
            x_t: noisy batch, shape (B, *).
            t: shape (B,).
            scale: the exponent s, shape (B,); at 1 the conditional prediction, bit for bit.
            cond: the condition of the B samples.

        Returns:
            the guided point, shape (B, *), not clipped.
        """
        # Two calls, not one of a doubled batch: that rounds otherwise than the branch asked alone.
        uncond = self.teacher(x_t, t, conditions.null(cond))
        return uncond.lerp(self.teacher(x_t, t, cond), scale)


def student(model: Model, low: float = 1.0, high: float = 5.0) -> Model:
    """Return the student of a model before its first step: the same network, told the scale.

    For every scale it says the conditional branch of its teacher. It does not know the null
    condition, which guided distillation does not keep up.

    Args:
        model: the teacher, with classes or of texts; its weights are copied.
        low: least guidance scale that it will be taught.
        high: largest one.

    Returns:
        a model with `scales`; its preset has a scale of them and no refinement of guidance.

    Raises:
        UsageError: scales that are no range, a model without conditions, a noisy classifier, or
            a student already.
    """
    check_scales(low, high)
    if not isinstance(model.denoiser, NetDenoiser):
        raise UsageError("guided distillation: this model is a noisy classifier, which says no x0")
    if not model.classes and model.text is None:
        raise UsageError(
            "guided distillation: this model is unconditional, there is nothing to guide towards"
        )
    if model.scales is not None:
        raise UsageError("guided distillation: this model is told its guidance scale already")
    own = model.denoiser
    # the network alone is copied: parametrisations and labels are known by identity
    net = copy.deepcopy(own.net).requires_grad_(True)
    denoiser = NetDenoiser(net, own.process, own.param, own.label, null=False)
    place: NetDenoiser | Inpaint | SuperRes = denoiser
    while isinstance(place.net, Inpaint | SuperRes):
        place = place.net
    place.net = GuidanceScale(place.net)
    scale = min(max(model.sampling.guidance_scale, low), high)
    idle = REFINING if scale == 1 or not low <= 1 <= high else REFINING[1:]
    unset = {name: getattr(Sampling(), name) for dial in idle for name in DIALS[dial]}
    return replace(
        model,
        denoiser=denoiser,
        sampling=replace(model.sampling, guidance_scale=scale, **unset),
        tuned={},
        student={**model.student, "kind": "guided", "scales": [float(low), float(high)]},
    )


def drawn(low: float, high: float, x0: Tensor, noise: torch.Generator) -> Tensor:
    """Return a guidance scale for each sample, uniform in [low, high].

    Args:
        low: least scale.
        high: largest scale.
        x0: a batch, shape (B, *): says how many, their type and where.
        noise: generator on the device of x0.

    Returns:
        shape (B,), in the dtype of x0, float32 at least.
    """
    wide = torch.promote_types(x0.dtype, torch.float32)
    u = torch.rand(len(x0), generator=noise, device=noise.device, dtype=wide)
    return low + (high - low) * u


def check_scales(low: float, high: float) -> None:
    """Raise UsageError unless two guidance scales are the ends of a range."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(
            f"guidance scales {low:g} to {high:g}: must be finite numbers, the least first"
        )
