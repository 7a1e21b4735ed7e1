"""Rows G1 to G5, G9, S3: a U-Net alone, in training and under a sampler.

Both sides are one architecture with the same weights and answer the same in float32 (`pairs`
makes sure of it): diffusers' UNet2DModel as DDPM's network for CIFAR-10 ("base", 35.7 million
parameters) and at 32-64-64 channels ("small", 1.62 million), and ADM's own U-Net at 32-64-64
channels (1.92 million), images 3x32x32. The peer runs as it ships, eager and in float32, with
AdamW as it comes and EMAModel; in G3 it gets the flags of ours. Ours runs as we advise on a CPU:
for sampling channels last, bfloat16 weights except where a row says float32; for training
bfloat16 autocast, fused AdamW and our moving average, with freed memory kept (`tune_cpu`). A peer
as it ships does not have that, so it runs in a process of its own (`shipped`); in G3, G5 and S3
both sides have it. A row with bfloat16 says how far its answer is from that of float32. These
rows are measured and stated; they are no gate.
"""

import copy
import json
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks import pairs, timing
from benchmarks.shipped import Shipped
from fewstep import solvers
from fewstep.denoiser import NetDenoiser
from fewstep.nets.unet import UNet
from fewstep.process import Cosine
from fewstep.train.ema import EMA
from fewstep.train.engine import tune_cpu
from fewstep.train.state import adamw

BATCH, BASE_BATCH = 64, 8
Net = TypeVar("Net", bound=nn.Module)
Asked = Callable[[], Tensor]


def _millis(seconds: list[float]) -> list[float]:
    return [s * 1e3 for s in seconds]


def _last(net: Net, dtype: torch.dtype = torch.bfloat16) -> Net:
    """Return a copy in channels last, of that type."""
    return copy.deepcopy(net).to(dtype).to(memory_format=torch.channels_last)


def _asked(net: Callable[..., Tensor], x: Tensor, label: Tensor) -> Asked:
    @torch.no_grad()
    def run() -> Tensor:
        return net(x, label)

    return run


def _apart(got: Asked, wanted: Asked) -> tuple[str, dict[str, float]]:
    """Say how far bfloat16's answer is from that of float32, as text and as keys."""
    most, rms = pairs.deviation(got(), wanted())
    text = f"; bf16 is off by {rms:.1%} rms, {most:.1%} at most"
    return text, {"bf16_max": most, "bf16_rms": rms}


def _forward(name: str, goal: float, kind: str, rounds: int) -> timing.Row:
    """Measure one forward pass at batch 64, ours in bfloat16, the peer in float32."""
    pair: pairs.Pair = getattr(pairs, kind)()
    x, label = pairs.noisy(BATCH)
    last = x.contiguous(memory_format=torch.channels_last)
    mine = _asked(_last(pair.ours), last, label)
    text, apart = _apart(mine, _asked(pair.ours, x, label))
    theirs = Shipped(kind, BATCH)
    times = timing.take_turns({"ours": mine, "peer": theirs}, rounds, 2)
    theirs.close()
    what = f"{pair.what} forward, batch {BATCH}: ours bf16 channels last vs {pair.name} fp32"
    ours, peer = _millis(times["ours"]), _millis(times["peer"])
    return timing.row(name, what + text, ours, peer, "ms", goal, **apart)


def base(rounds: int) -> list[timing.Row]:
    """Measure G1, G2 and G3 in the same rounds."""
    pair = pairs.base()
    x, label = pairs.noisy(BASE_BATCH)
    last = x.contiguous(memory_format=torch.channels_last)
    bf16 = _asked(_last(pair.ours), last, label)
    fp32 = _asked(_last(pair.ours, torch.float32), last, label)
    sides: dict[str, timing.Side] = {
        "bf16": bf16,
        "fp32": fp32,
        "peer": (shipped := Shipped("base", BASE_BATCH)),
        "tuned": _asked(partial(pair.ask, _last(pair.peer)), last.bfloat16(), label),
    }
    text, apart = _apart(bf16, fp32)
    times = {k: _millis(v) for k, v in timing.take_turns(sides, rounds, 2).items()}
    shipped.close()
    what = f"{pair.what} forward, batch {BASE_BATCH}: ours "

    def row(name: str, said: str, ours: str, peer: str, goal: float) -> timing.Row:
        more = apart if ours == "bf16" else {}
        return timing.row(name, what + said, times[ours], times[peer], "ms", goal, **more)

    tuned = f"bf16 channels last vs diffusers bf16 channels last{text}"
    return [
        row("G1", f"bf16 channels last vs diffusers fp32{text}", "bf16", "peer", 0.55),
        row("G2", "fp32 channels last vs diffusers fp32", "fp32", "peer", 0.97),
        row("G3", tuned, "bf16", "tuned", 1.00),
    ]


def train(rounds: int) -> timing.Row:
    """Measure G5."""
    pair = pairs.small()
    net, peer = pair.ours.train(), pair.peer.train()
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

    def slope(bf16: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = net(x, label)
        loss = nn.functional.mse_loss(out.float(), target)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    most, rms = pairs.deviation(slope(True), slope(False))

    def peer_run() -> None:
        nn.functional.mse_loss(pair.ask(peer, x, label), target).backward()
        peer_optimizer.step()
        peer_optimizer.zero_grad()
        peer_ema.step(peer.parameters())

    times = timing.take_turns({"ours": ours_run, "peer": peer_run}, rounds, 1)
    what = "small U-Net train step, batch 64: ours bf16 + AdamW + EMA vs diffusers fp32"
    what += f"; bf16 gradients are off by {rms:.1%} rms, {most:.1%} at most"
    return timing.row(
        "G5", what, _millis(times["ours"]), _millis(times["peer"]), "ms", 0.62,
        bf16_max=most, bf16_rms=rms,
    )  # fmt: skip


def sampling(rounds: int, steps: int = 50) -> timing.Row:
    """Measure S3: 50 steps of DDIM on one image, over 50 forward passes."""
    net = pairs.awake(UNet(pairs.SMALL))
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


def run(
    rounds: int = 7, rows: Collection[str] = ("G1", "S3", "G4", "G5", "G9")
) -> list[timing.Row]:
    """Measure the rows that are asked for; G1, G2 and G3 come together."""
    tuned = tune_cpu()
    if {"G2", "G3"} & set(rows):
        rows = [*rows, "G1"]

    def three() -> list[timing.Row]:
        try:
            return base(rounds)
        except timing.Skip as e:
            return [timing.skipped(name, str(e)) for name in ("G1", "G2", "G3")]

    measures = {
        "S3": lambda: sampling(2 * rounds - 1),
        "G1": three,
        "G4": lambda: _forward("G4", 0.50, "small", rounds),
        "G5": lambda: train(rounds),
        "G9": lambda: _forward("G9", 0.50, "adm", rounds),
    }
    with timing.one_thread():
        return [line | {"memory_kept": tuned} for line in timing.each(measures, rows)]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
