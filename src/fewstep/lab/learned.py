"""A small network that learns points in the plane within seconds.

Objective, learning rate and averaging of the weights are those of `fewstep train`; left out is
what makes a run: files, checkpoints, images.
"""

import torch
from torch import Tensor

from fewstep.denoiser import EDM, NetDenoiser
from fewstep.lab.chance import generator
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.objectives import Denoising
from fewstep.objectives.times import LogNormal
from fewstep.objectives.weights import Edm
from fewstep.process import Cosine
from fewstep.train.config import FitConfig, learning_rate
from fewstep.train.ema import EMA


def learn(x0: Tensor, steps: int, seed: int, blur: float = 0.0) -> NetDenoiser:
    """Train a denoiser of points, for the cosine process.

    Args:
        x0: points, shape (n, 2), float32, of standard deviation about 0.5.
        steps: optimizer steps of 256 points, >= 1.
        seed: of weights, batches and noise.
        blur: standard deviation of noise that is added to the points themselves: the data are
            then these points blurred, a density that is known exactly.

    Returns:
        the network with its averaged weights, in evaluation mode.
    """
    own = generator(seed, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # layers draw their weights from the global generator
        net = MLP(MLPConfig(width=64, layers=3))
    with torch.no_grad():
        net.stem.weight.mul_(8)  # points in the plane have finer detail than a fresh layer sees
    denoiser = NetDenoiser(net, Cosine(), EDM)
    config = FitConfig(steps=steps, batch_size=256, lr=5e-3, warmup=min(50, steps // 4))
    objective = Denoising("x0", LogNormal(), Edm(), drop=0.0)  # EDM's: much of it at low noise
    ema = EMA(net, 0.99)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.0, fused=True)
    for step in range(steps):
        rows = torch.randint(len(x0), (config.batch_size,), generator=own)
        x = x0[rows]
        if blur:
            x = x + blur * torch.randn(x.shape, generator=own)
        objective(denoiser, x, None, step, own).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update()
    return NetDenoiser(ema.net, denoiser.process, denoiser.param).requires_grad_(False)
