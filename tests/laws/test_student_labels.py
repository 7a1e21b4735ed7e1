"""Laws of what a student is told: teacher, student and target are asked for the same class.

A label that only one of them misses makes a student that confuses "any" with a class; nothing
else in the laws would say so, as exact denoisers of one class look alike.
"""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fewstep.conditions import Cond
from fewstep.denoiser import NetDenoiser
from fewstep.distill import PRESETS, Progressive
from fewstep.objectives import Objective
from fewstep.process import Cosine
from laws.cases import generator, normal

N = 400
GRID = (1.0, 0.75, 0.5, 0.25, 0.0)


class Hears(nn.Module):
    """A network that notes which class it is asked for, and whether it is in training."""

    heard: ClassVar[list[tuple[Tensor, bool]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1).double())

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        del label
        assert isinstance(cond, Tensor)
        self.heard.append((cond, self.training))
        return self.gain * x


def goals(drop: float) -> dict[str, tuple[Objective, int]]:
    """Return each objective, and how often networks are asked."""
    teacher = NetDenoiser(Hears(), Cosine()).eval()
    found = {"progressive": (Progressive(teacher, GRID, drop=drop), 3)}
    for name, preset in PRESETS.items():
        goal = preset(teacher, 80)
        object.__setattr__(goal, "drop", drop)
        found[name] = goal, 4 if goal.teacher is not None else 2  # Heun asks the teacher twice
    return found


def asked(goal: Objective, student: NetDenoiser) -> list[tuple[Tensor, bool]]:
    """Return what is heard in one batch of classes 0 to 4."""
    Hears.heard.clear()
    goal(student, normal(N, 2), torch.arange(N) % 5, 40, generator(1))
    return list(Hears.heard)


@pytest.mark.parametrize("name", goals(0.0))
def test_all_networks_are_asked_for_the_same_classes(name: str) -> None:
    """Half of the labels are left out: 400 fair coins fall within 150 and 250 but once in 2e6."""
    goal, times = goals(0.5)[name]
    heard = [cond for cond, _ in asked(goal, NetDenoiser(Hears(), Cosine()))]
    assert len(heard) == times
    for cond in heard:
        assert torch.equal(cond, heard[0])
    gone = heard[0] == -1
    assert 150 < int(gone.sum()) < 250
    assert torch.equal(heard[0][~gone], (torch.arange(N) % 5)[~gone])


@pytest.mark.parametrize("name", goals(0.0))
def test_no_label_is_left_out_unless_it_is_said(name: str) -> None:
    for cond, _ in asked(goals(0.0)[name][0], NetDenoiser(Hears(), Cosine())):
        assert torch.equal(cond, torch.arange(N) % 5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_both_values_are_of_networks_in_one_mode(name: str, training: bool) -> None:
    """Dropout of the one and not of the other would be a difference that never ends."""
    goal, _ = goals(0.0)[name]
    modes = [mode for _, mode in asked(goal, NetDenoiser(Hears(), Cosine()).train(training))]
    theirs = 2 if goal.teacher is not None else 0
    assert sorted(modes) == sorted([training] * 2 + [False] * theirs)
