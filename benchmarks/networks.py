"""Rows G4, G5, S3: a small U-Net, alone, in training and under a sampler.

Both sides have the same architecture, diffusers' UNet2DModel with 32-64-64 channels and one
head of attention at 16x16, 1.62 million parameters, images 3x32x32. The peer runs as it ships:
eager, float32, AdamW as it comes, EMAModel. Ours runs as we advise on a CPU: for sampling
bfloat16 weights and channels last, for training bfloat16 autocast, fused AdamW and our moving
average. Freed memory stays in the process (`tune_cpu`) for both sides, which helps both. These
rows are measured and stated; they are no gate.
"""

import json
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from benchmarks import timing
from fewstep import solvers
from fewstep.denoiser import NetDenoiser
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import Cosine
from fewstep.train.ema import EMA
from fewstep.train.engine import tune_cpu
from fewstep.train.state import adamw

BATCH = 64


def our_net() -> UNet:
    """Return the small U-Net of ours."""
    torch.manual_seed(0)
    config = UNetConfig(
        width=32, mult=(1, 2, 2), depth=2, attention=(16,), heads=1, updown=False,
        scale_shift=False,
    )  # fmt: skip
    net = UNet(config)
    nn.init.normal_(net.head.weight, std=0.02)  # a fresh head is 0, and zeros may be cheaper
    return net


def peer_net() -> Any:
    """Return the small U-Net of diffusers.

    Raises:
        timing.Skip: it is not installed.
    """
    try:
        from diffusers.models import UNet2DModel
    except ImportError as e:
        raise timing.Skip(f"diffusers is not installed ({e})") from e
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(32, 64, 64),
        layers_per_block=2, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _millis(seconds: list[float]) -> list[float]:
    return [s * 1e3 for s in seconds]


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def forward(rounds: int) -> timing.Row:
    """Measure G4."""
    peer, net = peer_net().eval(), our_net().eval()
    count = {"parameters": _parameters(net), "peer_parameters": _parameters(peer)}
    net = net.to(torch.bfloat16).to(memory_format=torch.channels_last)
    x, label = torch.randn(BATCH, 3, 32, 32), torch.full((BATCH,), 500.0)
    last = x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def ours_run() -> None:
        net(last, label)

    @torch.no_grad()
    def peer_run() -> None:
        peer(x, label)

    times = timing.take_turns({"ours": ours_run, "peer": peer_run}, rounds, 2)
    what = "small U-Net forward, batch 64: ours bf16 channels last vs diffusers fp32"
    return timing.row(
        "G4", what, _millis(times["ours"]), _millis(times["peer"]), "ms", 0.50, **count
    )


def train(rounds: int) -> timing.Row:
    """Measure G5."""
    peer, net = peer_net().train(), our_net().train()
    from diffusers.training_utils import EMAModel

    x, target = torch.randn(2, BATCH, 3, 32, 32).unbind()
    label = torch.rand(BATCH) * 999
    ema, optimizer = EMA(net, 0.999), adamw(list(net.parameters()), 0.01)
    peer_ema = EMAModel(peer.parameters())
    peer_optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4)

    def ours_run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x, label)
        nn.functional.mse_loss(out.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    def peer_run() -> None:
        nn.functional.mse_loss(peer(x, label).sample, target).backward()
        peer_optimizer.step()
        peer_optimizer.zero_grad()
        peer_ema.step(peer.parameters())

    times = timing.take_turns({"ours": ours_run, "peer": peer_run}, rounds, 1)
    what = "small U-Net train step, batch 64: ours bf16 + AdamW + EMA vs diffusers fp32"
    return timing.row("G5", what, _millis(times["ours"]), _millis(times["peer"]), "ms", 0.62)


def sampling(rounds: int, steps: int = 50) -> timing.Row:
    """Measure S3: 50 steps of DDIM on one image, over 50 forward passes."""
    net = our_net().eval()
    denoiser = NetDenoiser(net, Cosine())
    times = solvers.grids.uniform(steps)
    x, label = torch.randn(1, 3, 32, 32), torch.full((1,), 500.0)

    def whole() -> None:
        for _ in solvers.sample(denoiser, (1, 3, 32, 32), times, solvers.DDIM(), x=x):
            pass

    @torch.no_grad()
    def bare() -> None:
        for _ in range(steps):
            net(x, label)

    taken = timing.take_turns({"ours": whole, "peer": bare}, rounds, 1)
    what = "50 steps of DDIM on one image, small U-Net, vs its 50 forward passes"
    return timing.row("S3", what, _millis(taken["ours"]), _millis(taken["peer"]), "ms", 1.03)


def run(rounds: int = 7, rows: Collection[str] = ("S3", "G4", "G5")) -> list[timing.Row]:
    """Measure the rows that are asked for."""
    tuned = tune_cpu()
    measures = {
        "S3": lambda: sampling(2 * rounds - 1),
        "G4": lambda: forward(rounds),
        "G5": lambda: train(rounds),
    }
    with timing.one_thread():
        return [line | {"memory_kept": tuned} for line in timing.each(measures, rows)]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
