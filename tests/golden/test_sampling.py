"""Compare tables, subsets and whole trajectories with the reference programs, driven by the files.

A case is NAME.json (settings) with NAME.safetensors (tensors). The prefix of the name decides what
is built from the settings, with the public API only, and every recorded tensor of results is
compared within the tolerance that the file states. `FEWSTEP_GOLDEN` names another directory.
"""

import json
import math
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep import guide, solvers
from fewstep.conditions import Cond
from fewstep.denoiser import CONSISTENCY, EPS, PARAMS, Denoiser, NetDenoiser
from fewstep.exact import Mixture
from fewstep.labels import index, log_sigma_250
from fewstep.objectives import Chain
from fewstep.prediction import Prediction
from fewstep.process import EDM, Tabulated
from fewstep.solvers import DDIM, DDPM, HeunChurn, Solver, grids

DIRECTORY = Path(os.environ.get("FEWSTEP_GOLDEN") or Path(__file__).parent / "data")
Case = tuple[dict[str, Any], dict[str, Tensor]]


def load(path: Path) -> Case:
    """Return the settings and the tensors of a case."""
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def check(name: str, got: Tensor, want: Tensor, tolerance: str) -> None:
    """Assert max|a - b| <= R max(1, max|b|), with R read from the file's own words."""
    match = re.search(r"<=\s*([0-9.eE+-]+)", tolerance)
    assert match, f"no tolerance in {tolerance!r}"
    assert got.shape == want.shape, name
    error = float((got.double() - want.double()).abs().max())
    limit = float(match.group(1)) * max(1.0, float(want.abs().max()))
    assert error <= limit, f"{name}: {error:.3g} > {limit:.3g}"


class Toy(nn.Module):
    """The closed-form network of the cases: eps = 0.9 tanh(x) + 0.1 sin(t / 100) x.

    With a learned variance the second half of the channels is tanh(x / 2).
    """

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        self.learned = learned

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        del cond
        wave = torch.sin(label / 100).reshape(-1, *(1,) * (x.ndim - 1))
        eps = 0.9 * torch.tanh(x) + 0.1 * wave * x
        return torch.cat([eps, torch.tanh(0.5 * x)], dim=1) if self.learned else eps


TOY = r"eps\(x,t\)=0\.9\*tanh\(x\)\+0\.1\*sin\(t/100\)\*x"


def toy(settings: dict[str, Any], table: Tabulated) -> Denoiser:
    """Return the toy as a denoiser of the table; refuse a case that describes another one."""
    said = settings.get("EPS") or settings["defs"]["EPS"]
    assert re.match(TOY, said), f"another toy network: {said}"
    learned = settings.get("model") == "LEARNED"
    if learned:
        assert "tanh(0.5*x)" in settings["defs"]["LEARNED"]
    return NetDenoiser(Toy(learned), table, EPS, index)


def table_of(settings: dict[str, Any]) -> Tabulated:
    """Return the table that the settings name; 1000 linear betas where they name none."""
    words = str(settings.get("schedule", "linear")).split()[0]
    found = re.search(r"T=(\d+)", str(settings.get("schedule", "")))
    steps = int(settings.get("T") or (found.group(1) if found else 1000))
    return Tabulated(words, steps)


def kept(settings: dict[str, Any], table: Tabulated) -> list[int]:
    """Return the steps that the settings keep; an empty spec keeps all."""
    return grids.respace(table.steps, str(settings["respacing"] or table.steps))


class Recorded:
    """Hand out recorded noise, one entry per call."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = iter(noise)

    def __call__(self, x: Tensor) -> Tensor:
        return next(self.noise).to(x)


class Played:
    """A whole run: what the solver made and what it saw, step by step."""

    def __init__(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, solver: Solver, noise: Tensor | None
    ) -> None:
        source = None if noise is None else Recorded(noise)
        steps = solvers.sample(denoiser, tuple(x.shape), times, solver, noise=source, x=x)
        self.steps = list(steps)
        self.x = torch.stack([s.x for s in self.steps])
        self.x0 = torch.stack([s.prediction.x0 for s in self.steps])


def check_schedules(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """NAME.T.betas and NAME.T.alphas_cumprod, float64."""
    for key, want in tensors.items():
        name, steps, what = key.split(".")
        p = Tabulated(name, int(steps))
        got = {"betas": p.beta, "alphas_cumprod": p.alpha_bar}[what]
        check(key, got, want, settings.get("tolerance", "max|a-b| <= 1e-13"))
        if what == "alphas_cumprod":  # what the solvers ask for, at the entries of the table
            t = torch.arange(1, p.steps + 1, dtype=torch.float64) / p.steps
            check(key, p.alpha(t) ** 2, want, "max|a-b| <= 1e-13")
            check(key, p.sigma(t) ** 2, 1 - want, "max|a-b| <= 1e-13")


def check_respacing(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Each key is a spec, its value the kept steps."""
    for spec, want in tensors.items():
        assert grids.respace(int(settings["T"]), spec) == want.tolist(), spec


def check_traj(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """guided-diffusion's DDIM and DDPM: the state and the (clipped) x0 after every step."""
    guidance = settings.get("guidance")
    p = table_of(settings)
    denoiser = toy(settings, p)
    if settings["clip_denoised"]:
        denoiser = guide.Clamp(denoiser)
    push = None
    if guidance:
        said = settings["defs"]["COND"]
        found = re.search(r"grad log p\(y\|x\) = (-[\d.]+)\*\(x-([\d.]+)\)", said)
        assert found, f"another gradient: {said}"
        slope, centre = float(found.group(1)), float(found.group(2))
        shifted = guide.LogProb(
            denoiser, lambda x, t, y: (slope / 2 * (x - centre) ** 2).flatten(1).sum(1), 1.0
        )
        if guidance.startswith("condition_score"):
            denoiser = shifted  # the program shifts eps after clipping, hence the order
        else:
            assert guidance.startswith("condition_mean"), f"another guidance: {guidance}"
            push = shifted.gradient
    if settings["kind"] == "ddim":
        solver: Solver = DDIM(float(settings["eta"]))
    else:
        named = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED_RANGE": "learned"}
        solver = DDPM(named[settings["variance"]], push)
    times = grids.from_indices(kept(settings, p), p.steps)
    cond = torch.zeros(len(tensors["x_T"]), dtype=torch.long) if guidance else None
    x = tensors["x_T"]
    source = Recorded(tensors["noise"])
    steps = list(solvers.sample(denoiser, tuple(x.shape), times, solver, cond, noise=source, x=x))
    got = {
        "samples": torch.stack([s.x for s in steps]),
        "pred_x0": torch.stack([s.prediction.x0 for s in steps]),
    }
    for name in sorted(set(got) & set(tensors)):
        check(name, got[name], tensors[name], settings["tolerance"])
    assert "samples" in tensors


def check_authors(
    settings: dict[str, Any], tensors: dict[str, Tensor], solver: Solver, spacing: str
) -> None:
    """The DDIM authors' program: samples[0] is x_T; repeated indices are steps of no length."""
    p = table_of(settings)
    denoiser = toy(settings, p)
    if settings.get("clip_x0"):
        denoiser = guide.Clamp(denoiser)
    visited = sorted(tensors["timesteps"].tolist(), reverse=True)
    moves = [k for k, (i, j) in enumerate(pairwise([*visited, -1])) if i != j]
    if len(moves) < len(visited):
        with pytest.warns(UserWarning, match="quadratic spacing"):
            times = grids.strided(int(settings["S"]), spacing, p.steps)
    else:
        times = grids.strided(int(settings["S"]), spacing, p.steps)
    rising = [visited[k] for k in reversed(moves)]
    assert torch.equal(times, grids.from_indices(rising, p.steps)), "the subset of steps"
    run = Played(denoiser, tensors["x_T"], times, solver, tensors["noise"][moves])
    check("x_T", tensors["x_T"], tensors["samples"][0], settings["tolerance"])
    arrived = [k + 1 for k in moves]
    check("samples", run.x, tensors["samples"][arrived], settings["tolerance"])
    check("pred_x0", run.x0, tensors["pred_x0"][moves], settings["tolerance"])


def check_ddim(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The authors' DDIM over eta, uniform and quadratic subsets."""
    spacing = {"uniform": "uniform", "quad": "quadratic"}[settings["skip"]]
    check_authors(settings, tensors, DDIM(float(settings["eta"])), spacing)


def check_sigma_hat(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The authors' DDPM with the large variance of the thinned chain, uniform subset."""
    assert "sigma_hat" in settings["variance"]
    check_authors(settings, tensors, DDPM("large"), "uniform")


def check_encode(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """guided-diffusion's reverse DDIM: the flipped grid, from the least noisy index up.

    The program takes the given image for x at the first kept index, and after the last one it
    steps to alpha-bar = 0, where nothing is left but the predicted noise.
    """
    p = table_of(settings)
    denoiser = toy(settings, p)
    if settings["clip_denoised"]:
        denoiser = guide.Clamp(denoiser)
    times = grids.from_indices(kept(settings, p), p.steps)[:-1].flip(0)
    run = Played(denoiser, tensors["x_0"], times, DDIM(), None)
    end = denoiser(run.x[-1], float(times[-1])).eps
    check(
        "trajectory", torch.cat([run.x, end[None]]), tensors["trajectory"], settings["tolerance"]
    )


def check_losses(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """guided-diffusion's losses per sample, for given indices and noise.

    SCHEDULE.LOSS.VARIANCE.TERM: mse, vb in bits per dimension, and the loss that they make.
    """
    named = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED_RANGE": "learned"}
    x0, noise = tensors["x_0"], tensors["noise"]
    for key, want in tensors.items():
        if "." not in key:
            continue
        schedule, kind, variance, term = key.split(".")
        p = Tabulated(schedule, 1000)
        t = (tensors["t"].double() + 1) / p.steps
        said = {**settings, "model": "LEARNED" if variance == "LEARNED_RANGE" else "EPS"}
        denoiser = toy(said, p)
        alpha, sigma = (c.to(x0.dtype) for c in denoiser.levels(x0, t))
        truth = Prediction(alpha * x0 + sigma * noise, alpha, sigma, x0, noise)
        guess = denoiser(truth.x_t, t)
        chain = Chain.of(p, named[variance], approximate=True)
        mse = (guess.eps - noise).square().flatten(1).mean(1)
        bits = chain.term(p, guess, truth, t)
        # the programs scale the rescaled losses by T, and the hybrid's bound by T / 1000
        whole = {
            "MSE": mse, "KL": bits, "RESCALED_KL": chain.steps * bits,
            "RESCALED_MSE": mse + chain.steps / 1000 * bits,
        }  # fmt: skip
        rescaled = chain.steps / 1000 * bits
        got = {"loss": whole[kind], "mse": mse, "vb": rescaled}[term]
        check(key, got, want, settings["tolerance"])


def check_heun(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """EDM's sampler, with and without churn, on an exact mixture, float64."""
    given = dict(settings["settings"])
    churn = [float(given.pop(f"S_{n}", d)) for n, d in (("churn", 0), ("min", 0))]
    churn += [float(given.pop(f"S_{n}", d)) for n, d in (("max", math.inf), ("noise", 1))]
    high = float(given.pop("sigma_max", 80.0))
    p = EDM(high)
    times = grids.karras(
        p,
        int(given.pop("num_steps", 18)),
        low=float(given.pop("sigma_min", 0.002)),
        high=high,
        rho=float(given.pop("rho", 7.0)),
    )
    assert not given, f"settings that this test does not know: {sorted(given)}"
    unit = tensors["x_T_unit"]
    solver = HeunChurn(churn[0], len(times) - 1, *churn[1:])
    means = tensors["gmm.mu"].reshape(-1, *unit.shape[1:])
    denoiser = Mixture(p, means, tensors["gmm.s"], weights=tensors["gmm.pi"])
    run = Played(
        denoiser, unit * high, times, solver, tensors["noise"] if solver.stochastic else None
    )
    check("out", run.x[-1], tensors["out"], settings["tolerance"])


class Waves(nn.Module):
    """The closed-form network F = 0.7 tanh(x) + 0.2 sin(label / 50) x of the consistency cases."""

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        del cond
        return 0.7 * x.tanh() + 0.2 * torch.sin(label / 50)[:, None, None, None] * x


def check_preconditioning(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """How consistency models and their teachers are read, and their grids of noise levels."""
    p, tolerance = EDM(float(settings["sigma_max"])), settings["tolerance"]
    x, sigma = tensors["x"].double(), tensors["sigma"].double()
    for name in ("edm", "consistency"):
        net = NetDenoiser(Waves(), p, PARAMS[name.upper()], log_sigma_250)
        denoised = net(x, sigma / p.sigma_max).x0
        check(name, denoised, tensors[f"{name}.denoised"], tolerance)
    for key, want in tensors.items():
        if key.startswith("karras_sigmas."):
            n = int(key.rpartition(".")[2])
            times = grids.karras(p, n, low=float(settings["sigma_min"]))
            check(key, p.sigma(times), want, tolerance)


def check_consistency(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Multistep sampling: `ts` picks the levels of a Karras grid, of which the last is the end."""
    p, noise = EDM(), tensors["noise"]
    levels = grids.karras(p, int(settings["steps"]))
    times = torch.cat([levels[settings["ts"][:-1]], levels[-1:]])
    assert settings["ts"][-1] == len(levels) - 2, "no jump to the least level"
    denoiser = guide.Clamp(NetDenoiser(Waves(), p, CONSISTENCY, log_sigma_250))
    solver, fresh = solvers.Consistency(0.002), noise[1 : len(times) - 1]
    run = Played(denoiser, 80 * noise[0], times, solver, fresh)
    check("out", run.x[-1], tensors["out"], settings["tolerance"])


Check = Callable[[dict[str, Any], dict[str, Tensor]], None]
CHECKS: dict[str, Check] = {
    "schedules": check_schedules,
    "respacing": check_respacing,
    "traj_ddim": check_traj,
    "traj_ddpm": check_traj,
    "ddim_uniform_": check_ddim,
    "ddim_quad_": check_ddim,
    "ddpm_sigma_hat": check_sigma_hat,
    "ddim_encode": check_encode,
    "losses_ddpm": check_losses,
    "edm_heun": check_heun,
    "consistency_preconditioning": check_preconditioning,
    "consistency_sample_": check_consistency,
}
# Prefixes of the reference programs that other modules compare, or that nothing offers yet.
ELSEWHERE = (
    "adm_",
    "annealed_langevin",
    "edm_ablation_",
    "glide_",
    "losses_consistency",
    "losses_dsm",
    "losses_sliced",
)
PATHS = sorted(DIRECTORY.glob("*.json"))
CASES = [(prefix, path) for prefix in CHECKS for path in PATHS if path.name.startswith(prefix)]


@pytest.mark.parametrize("prefix", CHECKS)
def test_every_prefix_has_a_case(prefix: str) -> None:
    """Our own directory holds them all; another directory may hold a part."""
    if os.environ.get("FEWSTEP_GOLDEN"):
        pytest.skip("another directory may hold a part of the prefixes")
    assert prefix in {p for p, _ in CASES}, f"no {prefix}*.json in {DIRECTORY}"


def test_every_case_has_a_reader() -> None:
    known = (*CHECKS, *ELSEWHERE)
    assert [p.name for p in PATHS if not p.name.startswith(known)] == []
    assert PATHS, f"no case in {DIRECTORY}"


@pytest.mark.parametrize(("prefix", "path"), CASES, ids=[path.stem for _, path in CASES])
def test_the_reference_program_agrees(prefix: str, path: Path) -> None:
    CHECKS[prefix](*load(path))
