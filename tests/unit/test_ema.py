"""The moving average against its formula (NU13)."""

import numpy as np
import torch
from torch import nn

from fewstep.train.ema import EMA, decay_at


def test_warm_up():
    assert decay_at(1, 0.999) == 2 / 11
    assert decay_at(90, 0.999) == 0.91
    assert decay_at(10**6, 0.999) == 0.999


def test_closed_form():
    torch.manual_seed(0)
    net = nn.Linear(3, 4, dtype=torch.float64)
    ema = EMA(net, 0.7)
    history = []
    for _ in range(30):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        ema.update()
        history.append(net.weight.detach().numpy().copy())
    # ema_N = sum_k (1 - d_k) prod_{j > k} d_j theta_k, with d_0 = 0: the first is copied
    d = np.array([0.0] + [min(0.7, (1 + n) / (10 + n)) for n in range(1, 30)])
    factors = [(1 - d[k]) * np.prod(d[k + 1 :]) for k in range(30)]
    want = sum(f * w for f, w in zip(factors, history, strict=True))
    assert abs(sum(factors) - 1) < 1e-12
    np.testing.assert_allclose(ema.net.weight.detach().numpy(), want, rtol=1e-12, atol=1e-12)


def test_buffers_are_copied_and_the_network_is_not_touched():
    net = nn.BatchNorm1d(2)
    ema = EMA(net, 0.9)
    for _ in range(3):
        net(torch.randn(8, 2))
        before = [p.clone() for p in net.parameters()]
        ema.update()
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert torch.equal(ema.net.running_mean, net.running_mean)
    assert ema.net.num_batches_tracked == 3
    assert not ema.net.training


def test_a_restored_average_goes_on_bit_for_bit():
    torch.manual_seed(0)
    net = nn.Linear(3, 4)
    ema, other = EMA(net, 0.99), EMA(net, 0.99)
    assert ema.updates == 0

    def move() -> None:
        with torch.no_grad():
            net.weight.add_(torch.randn_like(net.weight))

    for _ in range(7):
        move()
        ema.update()
    other.net.load_state_dict(ema.net.state_dict())
    other.restore(ema.updates)
    for _ in range(7):
        move()
        ema.update()
        other.update()
    assert torch.equal(ema.net.weight, other.net.weight)
