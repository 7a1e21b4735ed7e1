"""Objectives: from a denoiser and a clean batch to per-sample losses.

objective(denoiser, x0, cond, step, noise) -> losses (B,). `Denoising` covers DDPM, EDM, v and
denoising score matching; `times` holds the laws of training times and `weights` the loss weights.
"""

from fewstep.objectives import times, weights
from fewstep.objectives.denoising import Denoising, Objective, noised

__all__ = ["Denoising", "Objective", "noised", "times", "weights"]
