"""The same network on both sides: ours with the very weights of the peer's.

The peers are diffusers' UNet2DModel and ADM's own U-Net as azula carries it. A pair is only
returned when both answer the same in float32, so that a row on it compares equal work.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from benchmarks import timing
from fewstep.interop.openai import from_openai, unet_config
from fewstep.nets.layout import UNetConfig, layout
from fewstep.nets.unet import UNet

AGREE = 1e-4
Net = TypeVar("Net", bound=nn.Module)
SMALL = UNetConfig(
    width=32, mult=(1, 2, 2), depth=2, attention=(16,), heads=1, updown=False, scale_shift=False
)
"""DDPM's design at 32-64-64 channels, 1.62 million parameters."""
BASE = replace(SMALL, width=128, mult=(1, 2, 2, 2))
"""DDPM's network for CIFAR-10, 35.7 million parameters."""

_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
_OUTSIDE = {
    "time.0": "time_embedding.linear_1",
    "time.2": "time_embedding.linear_2",
    "stem": "conv_in",
    "norm": "conv_norm_out",
    "head": "conv_out",
}


class Pair(NamedTuple):
    """Two networks of one architecture and one set of weights, in evaluation mode.

    Attributes:
        what: it is.
        name: whose the peer is.
        ours: ours.
        peer: the peer's.
        ask: ask(peer, x, label) -> the peer's answer as a tensor.
    """

    what: str
    name: str
    ours: UNet
    peer: nn.Module
    ask: Callable[[Any, Tensor, Tensor], Tensor]


def deviation(got: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Return the largest difference over the largest value, and the ratio of the two rms."""
    error, wanted = got.double() - wanted.double(), wanted.double()
    return (
        float(error.abs().max() / wanted.abs().max()),
        float(error.square().mean().sqrt() / wanted.square().mean().sqrt()),
    )


def noisy(batch: int) -> tuple[Tensor, Tensor]:
    """Return images (batch, 3, 32, 32) of noise and labels (batch,) in [0, 999)."""
    generator = torch.Generator().manual_seed(batch)
    return (
        torch.randn(batch, 3, 32, 32, generator=generator),
        torch.rand(batch, generator=generator) * 999,
    )


def awake(net: Net) -> Net:
    """Give a fresh network weights of which none is 0: zeros may be cheaper and agree with all."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            z = torch.randn(p.shape, generator=generator)
            p.copy_(p + 0.1 * z if p.ndim == 1 else z / p[0].numel() ** 0.5)
    return net.eval()


def _same(pair: Pair) -> Pair:
    x, label = noisy(4)
    with torch.no_grad():
        error, _ = deviation(pair.ours(x, label), pair.ask(pair.peer, x, label))
    if not error <= AGREE:
        raise AssertionError(f"the networks disagree by {error:.1e}: there is nothing to compare")
    return pair


def _cell(theirs: str, index: int) -> dict[str, str]:
    """Name the parts of one cell of ours as diffusers does."""
    parts = {f"block.{a}": f"{theirs}.resnets.{index}.{b}" for a, b in _BLOCK.items()}
    attention = f"{theirs}.attentions.{index}"
    parts |= {"attention.norm": f"{attention}.group_norm", "attention.qkv": f"{attention}.to_"}
    return parts | {"attention.proj": f"{attention}.to_out.0"}


def diffusers_names(config: UNetConfig) -> dict[str, str]:
    """Map every layer of ours that may occur to diffusers' name; "to_" stands for q, k and v."""
    depth, cells = config.depth, dict(_OUTSIDE)
    inside = {"middle_in": _cell("mid_block", 0)}
    inside["middle_out"] = _cell("mid_block", 1)
    for k in range(len(layout(config)[0])):
        level, index = divmod(k, depth + 1)
        inside[f"down.{k}"] = _cell(f"down_blocks.{level}", index)
        cells[f"down.{k}.resample.conv"] = f"down_blocks.{level}.downsamplers.0.conv"
    for k in range(len(layout(config)[1])):
        level, index = divmod(k, depth + 1)
        inside[f"up.{k}"] = _cell(f"up_blocks.{level}", index)
        cells[f"up.{k}.resample.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return cells | {f"{at}.{a}": b for at, parts in inside.items() for a, b in parts.items()}


def _from_diffusers(state: dict[str, Tensor], net: UNet) -> dict[str, Tensor]:
    names, out, used = diffusers_names(net.config), {}, set()
    for name in net.state_dict():
        layer, _, part = name.rpartition(".")
        theirs = names[layer]
        heads = [theirs + one for one in "qkv"] if theirs.endswith("to_") else [theirs]
        out[name] = torch.cat([state[f"{one}.{part}"] for one in heads])
        used |= {f"{one}.{part}" for one in heads}
    if used != set(state):
        raise AssertionError(f"the peer has weights that ours has not: {set(state) - used}")
    return out


def _diffusers(what: str, config: UNetConfig) -> Pair:
    """Build a pair with diffusers' UNet2DModel.

    Raises:
        timing.Skip: it is not installed.
    """
    try:
        from diffusers.models import UNet2DModel
    except ImportError as e:
        raise timing.Skip(f"diffusers is not installed ({e})") from e
    sides = [config.size // 2**level for level in range(len(config.mult))]
    attends = ["Attn" if side in config.attention else "" for side in sides]
    torch.manual_seed(0)
    peer: Any = UNet2DModel(
        sample_size=config.size,
        block_out_channels=config.channels,
        layers_per_block=config.depth,
        attention_head_dim=None,  # one head
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in attends),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(attends)),
    ).eval()
    net = UNet(config).eval()
    net.load_state_dict(_from_diffusers(peer.state_dict(), net))
    return _same(Pair(what, "diffusers", net, peer, lambda peer, x, label: peer(x, label).sample))


def small() -> Pair:
    """Return the pair of `SMALL`."""
    return _diffusers("small U-Net", SMALL)


def base() -> Pair:
    """Return the pair of `BASE`."""
    return _diffusers("base U-Net", BASE)


def adm() -> Pair:
    """Return ADM's design at 32-64-64 channels, 1.92 million parameters.

    Raises:
        timing.Skip: azula is not installed, or carries the network no longer.
    """
    try:
        from azula.plugins.adm._src.unet import UNetModel
    except ImportError as e:
        raise timing.Skip(f"azula with ADM's network is not installed ({e})") from e
    flags = {
        "image_size": 32, "in_channels": 3, "out_channels": 3, "model_channels": 32,
        "channel_mult": (1, 2, 2), "num_res_blocks": 2, "attention_resolutions": (2,),
        "num_heads": 4, "use_scale_shift_norm": True, "resblock_updown": True,
    }  # fmt: skip
    peer = awake(UNetModel(**flags))
    net = UNet(unet_config(flags)).eval()
    net.load_state_dict(from_openai(peer.state_dict(), net.config))
    return _same(Pair("ADM's small U-Net", "ADM", net, peer, lambda peer, *asked: peer(*asked)))
