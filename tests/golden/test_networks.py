"""Compare the networks with outputs of the reference programs, for every case in the golden
directory whose name starts with one of `BUILD`.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.conditions import Caption, Known, LowRes
from fewstep.interop.glide import from_glide, glide_config, to_glide
from fewstep.interop.openai import encoder_config, from_openai, to_openai, unet_config
from fewstep.nets import UNet
from fewstep.nets.encoder import EncoderUNet
from fewstep.nets.extra_inputs import Inpaint, SuperRes
from fewstep.nets.text import TextUNet

DEFAULT = Path(__file__).parent / "data"
DIRECTORY = Path(os.environ.get("FEWSTEP_GOLDEN") or DEFAULT)
State = dict[str, Tensor]


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


def load(net: nn.Module, theirs: State, ours: State, back: Callable[..., State]) -> None:
    """Load `ours`, and check that the way back gives `theirs`, every name and every number."""
    net.load_state_dict(ours)
    again = back(net.state_dict(), net.config)
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(torch.equal(again[k], v) for k, v in theirs.items())


def channels(case: dict[str, Any], given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the flags with `in_channels` of the first convolution, the further images counted."""
    image = case["config"]["in_channels"]
    total = image * (1 + ("low_res" in given))
    if "inpaint_mask" in given:
        total += image + 1
    return case["config"] | {"in_channels": total}


def images(net: nn.Module, given: Mapping[str, Tensor], inner: Any) -> tuple[nn.Module, Any]:
    """Wrap the network and its condition for the further images that are given."""
    if "low_res" in given:
        net, inner = SuperRes(net), LowRes(given["low_res"], inner)
    if "inpaint_mask" in given:
        net = Inpaint(net, given["inpaint_image"].shape[1])
        inner = Known(given["inpaint_image"], given["inpaint_mask"], inner)
    return net, inner


def adm(case: dict[str, Any], given: Mapping[str, Tensor]) -> tuple[nn.Module, Any]:
    """Build ADM's U-Net, with or without a low-resolution image."""
    config, state = unet_config(channels(case, given)), fill(case["weights"])
    net = UNet(config)
    load(net, state, from_openai(state, config), to_openai)
    return images(net, given, given.get("y"))


def glide(case: dict[str, Any], given: Mapping[str, Tensor]) -> tuple[nn.Module, Any]:
    """Build GLIDE's network with its wrappers."""
    size = given["x"].shape[-1]
    config = glide_config(channels(case, given), case["n_vocab"], size)
    state = fill(case["weights"])
    net = TextUNet(config)
    load(net, state, from_glide(state, config), to_glide)
    tokens = given["tokens"]
    mask = given.get("mask", torch.ones_like(tokens, dtype=torch.bool))
    return images(net, given, Caption(tokens, mask))


def classifier(case: dict[str, Any], given: Mapping[str, Tensor]) -> tuple[nn.Module, Any]:
    """Build ADM's classifier; the classes are no input of it."""
    del given
    config, state = encoder_config(case["config"]), fill(case["weights"])
    net = EncoderUNet(config)
    load(net, state, from_openai(state, config), to_openai)
    return net, None


BUILD: Mapping[str, Callable[..., tuple[nn.Module, Any]]] = {
    "adm_unet_": adm,
    "adm_superres_": adm,
    "adm_classifier_": classifier,
    "glide_": glide,
}
CASES = {prefix: sorted(DIRECTORY.glob(f"{prefix}*.json")) for prefix in BUILD}


def run(net: nn.Module, given: Mapping[str, Tensor], cond: Any) -> State:
    """Return every output that a case may name."""
    if not isinstance(net, EncoderUNet):
        with torch.no_grad():
            return {"out": net(given["x"], given["t"], cond)}
    x = given["x"].clone().requires_grad_()
    logits = net(x, given["t"])
    chosen = logits.log_softmax(1).gather(1, given["y"][:, None])
    (slope,) = torch.autograd.grad(chosen.sum(), x)
    return {"out.logits": logits.detach(), "out.grad_log_prob": slope}


@pytest.mark.parametrize("prefix", CASES)
def test_cases_exist(prefix: str) -> None:
    """The golden directory holds cases of every prefix: an empty one would pass silently."""
    if DIRECTORY != DEFAULT and not CASES[prefix]:
        pytest.skip(f"no {prefix}*.json in {DIRECTORY}")
    assert CASES[prefix], f"no {prefix}*.json in {DIRECTORY}"


@pytest.mark.parametrize(
    ("prefix", "path"),
    [pytest.param(k, path, id=path.stem) for k, paths in CASES.items() for path in paths],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_network(prefix: str, path: Path, layout: torch.memory_format) -> None:
    """The network built from the flags and loaded with the reference's weights gives the
    reference's outputs.
    """
    case = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    given = {k.removeprefix("in."): v for k, v in tensors.items() if k.startswith("in.")}
    net, cond = BUILD[prefix](case, given)
    net = net.eval().to(memory_format=layout)
    given["x"] = given["x"].contiguous(memory_format=layout)
    outputs = run(net, given, cond)
    expected = {k: v for k, v in tensors.items() if k.startswith("out")}
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        assert outputs[name].shape == value.shape
        error = (outputs[name] - value).abs().max().item()
        assert error <= bound(case["tolerance"], value), f"{name}: error {error:.3g}"
