"""Row G11: optimizer and moving average, one step of each, against the usual choice.

Ours is the fused AdamW and the moving average of `fewstep.train`; the peer is AdamW as it comes,
with diffusers' EMAModel. Same network (1.6 million parameters), same gradients, one thread, the
two in turn in one process; the figure is the ratio of the medians.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from fewstep.model import parameter_count
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.train.ema import EMA
from fewstep.train.state import adamw

GOAL = 0.30


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
    """Return our step."""
    net = _prepared()
    optimizer, ema = adamw(list(net.parameters()), 0.01), EMA(net, 0.999)

    def step() -> None:
        optimizer.step()
        ema.update()

    return step


def peer() -> Callable[[], None]:
    """Return the step of the usual training scripts."""
    from diffusers.training_utils import EMAModel

    net = _prepared()
    optimizer, ema = torch.optim.AdamW(net.parameters(), lr=1e-4), EMAModel(net.parameters())

    def step() -> None:
        optimizer.step()
        ema.step(net.parameters())

    return step


def run(rounds: int = 11, repeats: int = 10) -> dict[str, object]:
    """Measure and return the row; times are milliseconds per step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = {"ours": ours(), "peer": peer()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(repeats):
                step()
            if k:  # the first round warms up
                times[name].append((time.perf_counter() - began) / repeats * 1e3)
    torch.set_num_threads(threads)
    mine, other = (statistics.median(times[name]) for name in ("ours", "peer"))
    count = parameter_count(small_net())
    return {
        "row": "G11",
        "what": f"optimizer + EMA step, {count / 1e6:.2f}M parameters, 1 thread",
        "ours": round(mine, 3),
        "peer": round(other, 3),
        "ratio": round(mine / other, 3),
        "goal": GOAL,
        "ok": mine / other <= GOAL,
    }


if __name__ == "__main__":
    print(json.dumps(run()))
