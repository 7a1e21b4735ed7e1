"""Row G11: optimizer and moving average, one step of each, against the usual choice.

Ours is the fused AdamW and the moving average of `fewstep.train`; the peer is AdamW as it comes,
with diffusers' EMAModel. Same network (1.6 million parameters), same gradients, one thread, the
two in turn in one process. One timed unit is ten steps. The states of both hold the same
numbers: weights, two moments and an average.
"""

import json
from collections.abc import Callable, Collection

import torch
from torch import nn

from benchmarks import timing
from fewstep.model import parameter_count
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.train.ema import EMA
from fewstep.train.state import adamw

GOAL = 0.30
REPEATS = 10


def small_net() -> nn.Module:
    """Return a U-Net of about 1.6 million parameters."""
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=1, out_channels=1, size=16, width=44, mult=(1, 2), depth=1, attention=(8,),
        heads=2, classes=10, groups=4,
    )  # fmt: skip
    return UNet(config)


def _prepared() -> nn.Module:
    net = small_net()
    for p in net.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return net


def ours() -> Callable[[], None]:
    """Return ten steps of ours."""
    net = _prepared()
    optimizer, ema = adamw(list(net.parameters()), 0.01), EMA(net, 0.999)

    def steps() -> None:
        for _ in range(REPEATS):
            optimizer.step()
            ema.update()

    return steps


def peer() -> Callable[[], None]:
    """Return ten steps of the usual training scripts.

    Raises:
        timing.Skip: diffusers is not installed.
    """
    try:
        from diffusers.training_utils import EMAModel
    except ImportError as e:
        raise timing.Skip(f"diffusers is not installed ({e})") from e
    net = _prepared()
    optimizer, ema = torch.optim.AdamW(net.parameters(), lr=1e-4), EMAModel(net.parameters())

    def steps() -> None:
        for _ in range(REPEATS):
            optimizer.step()
            ema.step(net.parameters())

    return steps


def run(rounds: int = 31, rows: Collection[str] = ("G11",)) -> timing.Row:
    """Measure and return the row; times are milliseconds per step."""
    del rows  # there is one
    with timing.one_thread():
        times = timing.take_turns({"ours": ours(), "peer": peer()}, rounds, 2)
    millis = {name: [s / REPEATS * 1e3 for s in values] for name, values in times.items()}
    net = small_net()
    return timing.row(
        "G11", f"optimizer + EMA step, {parameter_count(net) / 1e6:.2f} M parameters",
        millis["ours"], millis["peer"], "ms", GOAL, tensors=sum(1 for _ in net.parameters()),
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(run()))
