"""Row S8: what an evaluation costs beside the network, for every solver that a peer has.

Here the network returns a constant, so that nothing is subtracted: the figure is the whole time
of a run of 50 steps divided by the network's calls, which are counted. It says what the program
of a solver costs from warm caches; `samplers` compares three of them exactly, around a real
network. Against k-diffusion and azula ours answers x0 along EDM's noise levels, as theirs do, and
against diffusers' schedulers it answers eps along DDPM's table. What a scheduler prepares once
for a number of steps is not timed, and noise is drawn for the batch at once, as theirs is, and
not from the generator of each image, which costs about 5 us an image.
"""

import copy
import json
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.samplers import BATCH, STEPS, Constant, Sampler, k_diffusion, noise_level, ours
from fewstep import solvers
from fewstep.denoiser import EPS, X0
from fewstep.labels import index
from fewstep.process import EDM, Tabulated
from fewstep.train.engine import tune_cpu

Make = Callable[[Constant, int], Sampler]
"""From the network and the number of runs to a sampler."""

S = solvers
SINGLE, MULTI, SCHEDULER = 0.40, 0.50, 0.20
"""Goals: of single steps and of multistep methods against k-diffusion, as S1 and S4; against
diffusers, as S2."""


def diffusers(name: str, **settings: Any) -> Make:
    """Return the loop of diffusers' examples around a scheduler."""

    def make(net: Constant, runs: int) -> Sampler:
        import diffusers.schedulers as peers

        rule = getattr(peers, name)(**settings)
        rule.set_timesteps(STEPS)
        fresh = iter([copy.deepcopy(rule) for _ in range(runs)])  # it counts its steps

        @torch.no_grad()
        def run(x: Tensor) -> Tensor:
            mine = next(fresh)
            for t in mine.timesteps:
                x = mine.step(net(mine.scale_model_input(x, t), t), t, x).prev_sample
            return x

        return run

    return make


def k_diffusions(name: str, **settings: Any) -> Make:
    """Return k-diffusion's sampler of that name."""

    def make(net: Constant, runs: int) -> Sampler:
        del runs
        sigmas = (solvers.grids.karras(EDM(), STEPS) * EDM().sigma_max).float()
        return k_diffusion(name, net, sigmas, **settings)

    return make


def azula(name: str) -> Make:
    """Return azula's sampler of that name."""

    def make(net: Constant, runs: int) -> Sampler:
        del runs
        from azula import denoise, noise
        from azula import sample as peers

        class Bare(denoise.Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule = noise.VESchedule(0.002, 80.0)

            def forward(self, x_t: Tensor, t: Tensor) -> denoise.DiracPosterior:
                return denoise.DiracPosterior(net(x_t, t))

        sampler = getattr(peers, name)(Bare(), steps=STEPS, silent=True)
        return torch.no_grad()(sampler)

    return make


PEERS: tuple[tuple[str, solvers.Solver, dict[str, tuple[Make, float]]], ...] = (
    ("DDIM", S.DDIM(), {
        "diffusers DDIMScheduler": (diffusers("DDIMScheduler"), SCHEDULER),
        "azula DDIMSampler": (azula("DDIMSampler"), SINGLE),
    }),
    ("DDPM", S.DDPM("small"), {
        "diffusers DDPMScheduler": (diffusers("DDPMScheduler"), SCHEDULER),
        "k-diffusion euler_ancestral": (k_diffusions("euler_ancestral"), SINGLE),
        "azula DDPMSampler": (azula("DDPMSampler"), SINGLE),
    }),
    ("Euler", S.Euler(), {
        "diffusers EulerDiscrete": (diffusers("EulerDiscreteScheduler"), SCHEDULER),
        "k-diffusion euler": (k_diffusions("euler"), SINGLE),
        "azula EulerSampler": (azula("EulerSampler"), SINGLE),
    }),
    ("Heun", S.Heun(), {
        "diffusers HeunDiscrete": (diffusers("HeunDiscreteScheduler"), SCHEDULER),
        "k-diffusion heun": (k_diffusions("heun"), SINGLE),
        "azula HeunSampler": (azula("HeunSampler"), SINGLE),
    }),
    ("Heun with churn", S.HeunChurn(steps=STEPS), {
        "k-diffusion heun, s_churn 40": (k_diffusions("heun", s_churn=40.0), SINGLE),
    }),
    ("DPM-Solver++ 2M", S.DPMSolverPP(2), {
        "diffusers DPMSolverMultistep 2": (diffusers("DPMSolverMultistepScheduler"), SCHEDULER),
        "k-diffusion dpmpp_2m": (k_diffusions("dpmpp_2m"), MULTI),
        "azula REABSampler": (azula("REABSampler"), MULTI),
    }),
    ("DPM-Solver++ 3M", S.DPMSolverPP(3, steps=STEPS), {
        "diffusers DPMSolverMultistep 3": (
            diffusers("DPMSolverMultistepScheduler", solver_order=3), SCHEDULER
        ),
    }),
    ("DPM-Solver++ 2S", S.DPMSolverPP2S(), {
        "diffusers DPMSolverSinglestep 2": (diffusers("DPMSolverSinglestepScheduler"), SCHEDULER),
        "k-diffusion dpmpp_2s_ancestral, eta 0": (
            k_diffusions("dpmpp_2s_ancestral", eta=0.0), SINGLE
        ),
    }),
    ("UniPC 3", S.UniPC(3, steps=STEPS), {
        "diffusers UniPCMultistep 3": (
            diffusers("UniPCMultistepScheduler", solver_order=3), SCHEDULER
        ),
    }),
    ("DEIS 3", S.DEIS(3), {
        "diffusers DEISMultistep 3": (
            diffusers("DEISMultistepScheduler", solver_order=3), SCHEDULER
        ),
    }),
    ("iPNDM 4", S.IPNDM(4), {
        "diffusers IPNDM": (diffusers("IPNDMScheduler"), SCHEDULER),
        "k-diffusion lms": (k_diffusions("lms"), MULTI),
    }),
)  # fmt: skip


def _exploding(net: Constant, solver: solvers.Solver) -> Sampler:
    """Return ours along EDM's noise levels, over a network that answers x0."""
    times = solvers.grids.karras(EDM(), STEPS)
    return ours(net, EDM(), X0, noise_level, times, solver, torch.randn_like)


def _preserving(net: Constant, solver: solvers.Solver) -> Sampler:
    """Return ours along DDPM's table, over a network that answers eps."""
    times = solvers.grids.from_indices(list(range(0, 1000, 1000 // STEPS)))
    return ours(net, Tabulated(), EPS, index, times, solver, torch.randn_like)


def compare(name: str, solver: solvers.Solver, peer: str, rounds: int) -> timing.Row:
    """Measure one solver against one peer."""
    make, goal = next(each[2] for each in PEERS if each[0] == name)[peer]
    net, x = Constant(), 10 * torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = make(net, rounds + 4)
        except ImportError as e:
            raise timing.Skip(f"{name} against {peer} ({e})") from e
        mine = (_preserving if peer.startswith("diffusers") else _exploding)(net, solver)
        calls = []
        for side in (mine, theirs):
            net.calls = 0
            side(x)
            calls.append(net.calls)
        times = timing.take_turns({"ours": lambda: mine(x), "peer": lambda: theirs(x)}, rounds, 3)
    per = {
        side: [1e6 * t / n for t in times[side]]
        for side, n in zip(("ours", "peer"), calls, strict=True)
    }
    return timing.row(
        "S8", f"per evaluation: {name}, ours vs {peer}", per["ours"], per["peer"], "us", goal,
        evaluations=calls,
    )  # fmt: skip


def run(rounds: int = 51, rows: Collection[str] = ("S8",)) -> list[timing.Row]:
    """Measure every solver against each of its peers."""
    if "S8" not in rows:
        return []
    tune_cpu()
    lines: list[timing.Row] = []
    with timing.one_thread():
        for name, solver, peers in PEERS:
            for peer in peers:
                try:
                    lines.append(compare(name, solver, peer, rounds))
                except timing.Skip as e:
                    lines.append(timing.skipped("S8", str(e)))
    return lines


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
