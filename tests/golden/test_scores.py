"""Compare annealed Langevin dynamics and score matching losses with the reference programs.

Driven by the files, as `test_sampling` is: `FEWSTEP_GOLDEN` names another directory.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.exact import Gaussian
from fewstep.langevin import annealed, score_of, step_sizes
from fewstep.objectives.score_matching import denoising, quadratic, sliced
from fewstep.process import VE
from fewstep.shapes import like
from golden.test_sampling import PATHS, Recorded, check, load

Settings = dict[str, Any]
Tensors = dict[str, Tensor]


def check_annealed(settings: Settings, tensors: Tensors) -> None:
    """NCSNv2's sampler on the exact score of a Gaussian: the chains after every step."""
    found = re.search(r"N\(([\d.]+), ([\d.]+)\^2 I\)", settings["score"])
    assert found, f"another score: {settings['score']}"
    assert "sqrt(2a)" in settings["convention"]
    mean, std = (float(v) for v in found.groups())
    x, sigmas = tensors["x_init"], tensors["sigmas"]
    data = Gaussian(VE(1e-4, 1e4), torch.full(x.shape[1:], mean), std)
    moves = annealed(
        score_of(data),
        sigmas,
        step_sizes(sigmas, float(settings["step_lr"])),
        x,
        Recorded(tensors["noise"]),
        int(settings["n_steps_each"]),
        bool(settings["denoise"]),
    )
    got = torch.stack([move.x for move in moves])
    check("trajectory", got, tensors["trajectory"], settings["tolerance"])


def check_dsm(settings: Settings, tensors: Tensors) -> None:
    """NCSNv2's denoising loss per sample, at given levels and with given noise."""
    found = re.fullmatch(r"s\(x,i\) = (-[\d.]+)\*tanh\(x\)/sigma_i", settings["SCORE"])
    assert found, f"another score: {settings['SCORE']}"
    slope, sigma = float(found.group(1)), tensors["sigmas"][tensors["labels"]]
    losses = denoising(
        lambda x: slope * x.tanh() / like(sigma, x),
        tensors["x_0"],
        sigma,
        tensors["noise"],
        float(settings["anneal_power"]),
    )
    check("per_sample", losses, tensors["per_sample"], settings["tolerance"])
    check("loss", losses.mean(), tensors["loss"], settings["tolerance"])


@torch.no_grad()
def check_sliced(settings: Settings, tensors: Tensors) -> None:
    """The authors' sliced losses: unit projections, and as they are where it is reduced."""
    assert settings["SCORE"] == "s(x)=tanh(xA+b)-x"
    a, b, x, v = (tensors[name] for name in ("A", "b", "x", "projections"))
    for name, way in (("ssm", v / v.norm(dim=-1, keepdim=True)), ("ssm_vr", v)):
        _, curvatures = quadratic(lambda x: (x @ a + b).tanh() - x, x, way)
        loss = sliced(lambda x: (x @ a + b).tanh() - x, x, way, reduced=name == "ssm_vr").mean()
        check(f"{name}.loss", loss, tensors[f"{name}.loss"], settings["tolerance"])
        hessian = curvatures.mean()
        check(f"{name}.hessian", hessian, tensors[f"{name}.hessian"], settings["tolerance"])
        check(f"{name}.square", loss - hessian, tensors[f"{name}.square"], settings["tolerance"])


CHECKS: dict[str, Callable[[Settings, Tensors], None]] = {
    "annealed_langevin": check_annealed,
    "losses_dsm": check_dsm,
    "losses_sliced": check_sliced,
}
CASES = [(prefix, path) for prefix in CHECKS for path in PATHS if path.name.startswith(prefix)]


@pytest.mark.parametrize("prefix", CHECKS)
def test_every_prefix_has_a_case(prefix: str) -> None:
    """Our own directory holds them all; another directory may hold a part."""
    if os.environ.get("FEWSTEP_GOLDEN"):
        pytest.skip("another directory may hold a part of the prefixes")
    assert prefix in {p for p, _ in CASES}, f"no {prefix}*.json"


@pytest.mark.parametrize(("prefix", "path"), CASES, ids=[path.stem for _, path in CASES])
def test_the_reference_program_agrees(prefix: str, path: Path) -> None:
    CHECKS[prefix](*load(path))
