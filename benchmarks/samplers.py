"""Rows S1, S2, S4: what a step of a sampler costs beside the network.

The network is nearly free (2-D points, batch 1024, an MLP 3-64-64-2), so that what is left of a
step is the sampler's own work:

    overhead = total / steps - forward,

with the forward pass timed in the same round. Every pair starts from the same points on the
same noise levels and asks the same network once per step; the finals must agree to 1e-4, or the
row stops. Ours runs as anyone would run it: `solvers.sample` over a `NetDenoiser`, with its
checks and its `Step` for every step. k-diffusion gets the network bare, answering x0 as it wants
it, without the wrapper that its eps models need, and S1 compares the same: a network that answers
x0. Ours over networks that answer eps and v, against that same figure, is stated beside it.

Subtracting a forward pass ten times as long makes these figures noisy. So each row also states
`bare_ratio`, the quotient of the whole times with a network that returns a constant: nothing is
subtracted there, but the program runs from warm caches, which a real network would empty.
"""

import json
import statistics
import warnings
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from fewstep import solvers
from fewstep.denoiser import EPS, X0, NetDenoiser, Param, V
from fewstep.labels import index
from fewstep.process import EDM, Process, Tabulated
from fewstep.shapes import Number
from fewstep.train.engine import tune_cpu

STEPS, BATCH = 50, 1024
AGREE = 1e-4


Sampler = Callable[[Tensor], Tensor]
"""From the points at the start to the finals."""


class Net(nn.Module):
    """Map points (B, 2) and one label, or one per point, to points."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(std=p.shape[-1] ** -0.5 if p.ndim > 1 else 0.1, generator=generator)
            # noise runs to 80 and labels to 1000: keep silu away from its slow denormal tail
            self.layers[0].weight *= torch.tensor([0.02, 0.02, 1e-3])

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        label = label.to(x.dtype).reshape(-1, 1).expand(len(x), 1)
        return self.layers(torch.cat([x, label], 1))


class Constant(nn.Module):
    """Answer the same points, whatever is asked: what is left is the sampler alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.answer = nn.Buffer(torch.randn(BATCH, 2, generator=generator))
        self.calls = 0

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.answer


def noise_level(process: Process, t: Number) -> Number:
    """Tell the network sigma, as k-diffusion does."""
    return process.sigma(t)


def ours(
    net: nn.Module,
    process: Process,
    param: Param,
    label: Any,
    times: Tensor,
    solver: solvers.Solver,
    noise: solvers.Noise | None = None,
) -> Sampler:
    """Return our sampler: x_T -> x_0."""
    denoiser = NetDenoiser(net, process, param, label)

    def run(x: Tensor) -> Tensor:
        steps = solvers.sample(denoiser, tuple(x.shape), times, solver, x=x, noise=noise)
        return deque(steps, maxlen=1)[0].x

    return run


def k_diffusion(name: str, net: nn.Module, sigmas: Tensor, **settings: float) -> Sampler:
    """Return k-diffusion's sampler of that name.

    Raises:
        timing.Skip: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from k_diffusion import sampling
        except ImportError as e:
            raise timing.Skip(f"k-diffusion is not installed ({e})") from e
    loop = getattr(sampling, f"sample_{name}")
    return lambda x: loop(net, x, sigmas, disable=True, **settings)


def diffusers_ddim(net: nn.Module, kept: list[int]) -> Sampler:
    """Return diffusers' DDIM, the loop of its examples.

    Raises:
        timing.Skip: it is not installed.
    """
    try:
        from diffusers.schedulers import DDIMScheduler
    except ImportError as e:
        raise timing.Skip(f"diffusers is not installed ({e})") from e
    rule = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    rule.set_timesteps(len(kept))
    assert rule.timesteps.tolist() == kept[::-1]

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        for t in rule.timesteps:
            x = rule.step(net(x, t), t, x).prev_sample
        return x

    return run


def _same(x: Tensor, one: Sampler, other: Sampler) -> float:
    """Return the largest difference of two samplers relative to the largest value."""
    a, b = one(x), other(x)
    error = float((a - b).abs().max() / b.abs().max())
    if not error <= AGREE:
        raise AssertionError(f"the sides disagree by {error:.1e}: there is nothing to compare")
    return error


def _forward(net: nn.Module) -> timing.Side:
    x, label = torch.randn(BATCH, 2), torch.full((BATCH,), 500.0)

    @torch.no_grad()
    def run() -> None:
        for _ in range(STEPS):
            net(x, label)

    return run


def _bare(one: Sampler, other: Sampler, rounds: int) -> float:
    """Return the quotient of the whole times; the networks inside are constants."""
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(1))
    times = timing.take_turns({"ours": lambda: one(x), "peer": lambda: other(x)}, rounds, 3)
    return timing.ratio(times["ours"], times["peer"])


def _overheads(
    sides: dict[str, timing.Side], net: nn.Module, rounds: int
) -> dict[str, list[float]]:
    """Return microseconds per step beside the network, per round; "forward" is the network."""
    forward = _forward(net)
    times = timing.take_turns({"forward": forward, **sides, "again": forward}, rounds, 3)
    base = [(a + b) / 2 for a, b in zip(times["forward"], times.pop("again"), strict=True)]
    scale = 1e6 / STEPS
    out = {
        name: [(total - f) * scale for total, f in zip(times[name], base, strict=True)]
        for name in sides
    }
    return out | {"forward": [f * scale for f in base]}


def exploding(rounds: int) -> list[timing.Row]:
    """Measure S1 and S4 on the noise levels of EDM."""
    net, process = Net().eval(), EDM(80.0)
    times = solvers.grids.karras(process, STEPS)
    sigmas = (times * process.sigma_max).float()
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    ddim, multistep = solvers.DDIM(), solvers.DPMSolverPP(2)
    one = {"x0": ours(net, process, X0, noise_level, times, ddim)}
    one["dpmpp"] = ours(net, process, X0, noise_level, times, multistep)
    one["k_euler"] = k_diffusion("euler", net, sigmas)
    one["k_dpmpp"] = k_diffusion("dpmpp_2m", net, sigmas)
    agree = _same(x, one["x0"], one["k_euler"]), _same(x, one["dpmpp"], one["k_dpmpp"])
    for param in (EPS, V):
        one[repr(param)] = ours(net, process, param, noise_level, times, ddim)
    cost = _overheads({k: lambda f=f: f(x) for k, f in one.items()}, net, rounds)
    free = Constant()
    bare = _bare(
        ours(free, process, X0, noise_level, times, ddim),
        k_diffusion("euler", free, sigmas),
        rounds,
    )
    bare_2m = _bare(
        ours(free, process, X0, noise_level, times, multistep),
        k_diffusion("dpmpp_2m", free, sigmas),
        rounds,
    )
    forward, what = statistics.median(cost["forward"]), "overhead per step of "
    first = timing.row(
        "S1", what + "DDIM, ours vs k-diffusion sample_euler", cost["x0"], cost["k_euler"], "us",
        0.40, forward_us=forward, difference=agree[0], bare_ratio=bare,
        eps_ratio=timing.ratio(cost["EPS"], cost["k_euler"]),
        v_ratio=timing.ratio(cost["V"], cost["k_euler"]),
    )  # fmt: skip
    return [
        first,
        timing.row(
            "S4", what + "DPM-Solver++ 2M, ours vs k-diffusion", cost["dpmpp"], cost["k_dpmpp"],
            "us", 0.50, forward_us=forward, difference=agree[1], bare_ratio=bare_2m,
        ),
    ]  # fmt: skip


def preserving(rounds: int) -> timing.Row:
    """Measure S2 on DDPM's table, with a network that answers eps."""
    net, kept = Net().eval(), list(range(0, 1000, 1000 // STEPS))
    times = solvers.grids.from_indices(kept)
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(1))
    mine = ours(net, Tabulated(), EPS, index, times, solvers.DDIM())
    peer = diffusers_ddim(net, kept)
    agree = _same(x, mine, peer)
    cost = _overheads({"ours": lambda: mine(x), "peer": lambda: peer(x)}, net, rounds)
    free = Constant()
    bare = _bare(
        ours(free, Tabulated(), EPS, index, times, solvers.DDIM()),
        diffusers_ddim(free, kept),
        rounds,
    )
    return timing.row(
        "S2", "overhead per step of DDIM, ours vs diffusers DDIMScheduler", cost["ours"],
        cost["peer"], "us", 0.20, forward_us=statistics.median(cost["forward"]), difference=agree,
        bare_ratio=bare,
    )  # fmt: skip


def run(rounds: int = 101, rows: Collection[str] = ("S1", "S2")) -> list[timing.Row]:
    """Measure the rows that are asked for; S1 and S4 come together."""
    tune_cpu()  # for both sides: page faults of the network would drown what is measured
    pair = rows if "S1" in rows or "S4" not in rows else [*rows, "S1"]

    def both() -> list[timing.Row]:
        try:
            return exploding(rounds)
        except timing.Skip as e:
            return [timing.skipped(name, str(e)) for name in ("S1", "S4")]

    measures = {"S1": both, "S2": lambda: preserving(rounds)}
    with timing.one_thread():
        return timing.each(measures, pair)


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
