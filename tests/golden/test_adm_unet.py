"""Compare the U-Net with outputs of the reference program, for every `adm_unet_*` case in the
golden directory.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.interop.openai import from_openai, to_openai, unet_config
from fewstep.nets import UNet

PREFIX = "adm_unet_"
DEFAULT = Path(__file__).parent / "data"
DIRECTORY = Path(os.environ.get("FEWSTEP_GOLDEN") or DEFAULT)
CASES = sorted(DIRECTORY.glob(f"{PREFIX}*.json"))


def fill(weights: dict[str, Any]) -> dict[str, Tensor]:
    """Make the weights of a case by its rule (see `rule` in the file), and check its two
    checksums.
    """
    rng = np.random.default_rng(weights["seed"])
    state: dict[str, Tensor] = {}
    total = total_abs = 0.0
    for entry in weights["parameters"]:
        name, _, dims = entry.rpartition(":")
        shape = tuple(int(d) for d in dims.split("x"))
        z = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            value = z / np.sqrt(np.prod(shape[1:]))
        else:
            value = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        value = value.astype(np.float32)
        state[name] = torch.from_numpy(value)
        total += float(value.sum(dtype=np.float64))
        total_abs += float(np.abs(value).sum(dtype=np.float64))
    assert total == pytest.approx(weights["checksum_sum"], rel=1e-6, abs=1e-3)
    assert total_abs == pytest.approx(weights["checksum_abs"], rel=1e-6)
    return state


def bound(tolerance: str, expected: Tensor) -> float:
    """Read `max|a-b| <= R * max(1, max|b|)`, or a bare number, as an absolute bound."""
    match = re.search(r"<=\s*([0-9.eE+-]+)", tolerance)
    number = float(match.group(1) if match else tolerance)
    return number * max(1.0, expected.abs().max().item())


def test_cases_exist() -> None:
    """The golden directory holds cases of this prefix: an empty one would pass silently."""
    assert CASES, f"no {PREFIX}*.json in {DIRECTORY}"


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_adm_unet(path: Path, layout: torch.memory_format) -> None:
    """The network built from the flags and loaded with the reference's weights gives the
    reference's output.
    """
    case = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    config = unet_config(case["config"])
    state = fill(case["weights"])
    net = UNet(config).eval()
    net.load_state_dict(from_openai(state, config))
    back = to_openai(net.state_dict(), config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}

    net = net.to(memory_format=layout)
    with torch.no_grad():
        out = net(
            tensors["in.x"].contiguous(memory_format=layout), tensors["in.t"], tensors.get("in.y")
        )
    expected = tensors["out"]
    assert out.shape == expected.shape
    error = (out - expected).abs().max().item()
    assert error <= bound(case["tolerance"], expected), f"error {error:.3g}"
