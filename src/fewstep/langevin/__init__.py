"""Langevin dynamics: sampling with a score alone.

`langevin` walks chains along a score, with the Metropolis correction if the density is known too;
`minibatch_score`, `decaying` and `Moments` make stochastic gradient Langevin dynamics of it.
`annealed` goes down a ladder of noise levels, which `ladder` proposes from data.
"""

from fewstep.langevin import ladder
from fewstep.langevin.annealed import NoisyScore, annealed, epsilon_of, score_of, step_sizes
from fewstep.langevin.chain import Moments, Move, Score, decaying, langevin, minibatch_score

__all__ = [
    "Moments",
    "Move",
    "NoisyScore",
    "Score",
    "annealed",
    "decaying",
    "epsilon_of",
    "ladder",
    "langevin",
    "minibatch_score",
    "score_of",
    "step_sizes",
]
