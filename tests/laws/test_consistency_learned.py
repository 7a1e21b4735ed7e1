"""Each preset makes of a diffusion model one of a single step, in some hundred updates.

Three modes in the plane, a small network, and the ends of its own trajectories to compare with.
"""

import copy

import pytest
import torch
from torch import Tensor

from fewstep.denoiser import Denoiser, NetDenoiser, V
from fewstep.distill import PRESETS
from fewstep.distill.consistency import times
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.objectives import Denoising, Objective
from fewstep.process import Cosine
from fewstep.solvers import DDIM, generate
from laws.cases import generator

HIGH = 80.0
UPDATES, POINTS = 600, 512
MEANS = torch.tensor([[0.8, 0.0], [-0.6, 0.5], [-0.2, -0.8]])
START = float(times(Cosine(), torch.tensor([HIGH], dtype=torch.float64)))


def taught(net: NetDenoiser, goal: Objective, updates: int, lr: float) -> NetDenoiser:
    """Train a network in place; return it."""
    noise = generator(1)
    adam = torch.optim.Adam(net.parameters(), lr)
    fall = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.01, updates)
    for step in range(updates):
        which = torch.randint(len(MEANS), (256,), generator=noise)
        x0 = MEANS[which] + 0.1 * torch.randn(256, 2, generator=noise)
        adam.zero_grad()
        goal(net, x0, None, step, noise).mean().backward()
        adam.step()
        fall.step()
    return net


@torch.no_grad()
def ends(model: Denoiser, steps: int) -> Tensor:
    """Return where trajectories from the same noise end."""
    grid = torch.linspace(START, 0.0, steps + 1, dtype=torch.float64)
    return generate(model, (POINTS, 2), grid, DDIM(), seed=0)


@pytest.fixture(scope="module")
def diffusion() -> NetDenoiser:
    """A diffusion model of three modes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NetDenoiser(MLP(MLPConfig(width=64)), Cosine(), V)
        return taught(net, Denoising(), 600, 2e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_one_step_comes_near_to_where_many_end(name: str, diffusion: NetDenoiser) -> None:
    """The distance falls to less than 0.7 of what the diffusion model's own one step has.

    It falls to 0.12 to 0.51, and stays at 0.97 in consistency training with the published 150
    levels, and at 0.91 in consistency distillation without its weight.
    """
    teacher = copy.deepcopy(diffusion).requires_grad_(False).eval()
    want = ends(teacher, 256)
    before = (ends(teacher, 1) - want).square().mean().sqrt()
    student = taught(copy.deepcopy(diffusion), PRESETS[name](teacher, UPDATES), UPDATES, 1e-3)
    after = (ends(student, 1) - want).square().mean().sqrt()
    assert float(after / before) < 0.7
