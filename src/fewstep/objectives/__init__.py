"""Objectives: from a denoiser and a clean batch to per-sample losses.

objective(denoiser, x0, cond, step, noise) -> losses (B,). `Denoising` covers DDPM, EDM, v and
denoising score matching; `Hybrid` and `Bound` train a learned variance, of which the bound in
bits per dimension is the only judge (`bits_per_dim`); `DenoisingScore` and `SlicedScore` match
scores, by the losses of `score_matching`, which know no process; `times` holds the laws of
training times and `weights` the loss weights.
"""

from fewstep.objectives import score_matching, times, weights
from fewstep.objectives.bound import (
    Bound,
    Chain,
    Hybrid,
    bits_per_dim,
    bound_parts,
    log_likelihood,
)
from fewstep.objectives.classification import Classification, accuracy_by_noise
from fewstep.objectives.denoising import Denoising, Objective, noised
from fewstep.objectives.scores import DenoisingScore, SlicedScore
from fewstep.objectives.times import LossSecondMoment

__all__ = [
    "Bound",
    "Chain",
    "Classification",
    "Denoising",
    "DenoisingScore",
    "Hybrid",
    "LossSecondMoment",
    "Objective",
    "SlicedScore",
    "accuracy_by_noise",
    "bits_per_dim",
    "bound_parts",
    "log_likelihood",
    "noised",
    "score_matching",
    "times",
    "weights",
]
