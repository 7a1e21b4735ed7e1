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
from fewstep.process import VE
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


CHECKS: dict[str, Callable[[Settings, Tensors], None]] = {
    "annealed_langevin": check_annealed,
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
