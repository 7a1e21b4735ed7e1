"""Test the noisy classifier and its pools."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.nets.encoder import POOLS, AttentionPool, EncoderConfig, EncoderUNet
from fewstep.nets.unet import Stage
from tests.unit.random_nets import randomise

SMALL = EncoderConfig(
    out_channels=5,
    size=16,
    width=32,
    mult=(1, 2),
    depth=1,
    attention=(8,),
    head_channels=16,
    groups=8,
)


def inputs(side: int = 16) -> tuple[Tensor, Tensor]:
    """Return two images and their noise labels."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, side, side, generator=g), torch.tensor([3.0, 800.0])


@torch.no_grad()
def test_attention_pool() -> None:
    """The pool is the output of the mean's token in a whole attention over mean and positions."""
    pool = AttentionPool(side=4, channels=16, heads=2, classes=5)
    h = torch.randn(3, 16, 4, 4)
    pixels = h.flatten(2)
    tokens = (torch.cat([pixels.mean(2, keepdim=True), pixels], 2) + pool.position).mT
    q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in pool.qkv(tokens).chunk(3, 2))
    whole = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(pool(h), pool.proj(whole)[:, 0])
    # Without position vectors the order of the positions would not matter; with them it does.
    assert not torch.allclose(pool(h), pool(h.flip(2)), atol=1e-4)
    pool.position.zero_()
    torch.testing.assert_close(pool(h), pool(h.flip(2)))


@pytest.mark.parametrize("pool", ["spatial", "spatial_v2"])
@torch.no_grad()
def test_spatial_pool_reads_every_feature(pool: str) -> None:
    """The first map sees the means after the stem, every stage of the encoder and the middle."""
    config = dataclasses.replace(SMALL, pool=pool)
    net = randomise(EncoderUNet(config))
    means: list[Tensor] = []

    def note(_module: Any, _inputs: Any, out: Tensor) -> None:
        means.append(out.mean((2, 3)))

    for part in (net.stem, *net.down, net.middle_out):
        part.register_forward_hook(note)
    out = net(*inputs())
    h = net.pool.hidden(torch.cat(means, 1))
    if pool == "spatial":
        h = F.relu(h)
    else:
        groups = h.unflatten(1, (config.groups, -1))
        centred = groups - groups.mean(2, keepdim=True)
        normal = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).flatten(1)
        h = F.silu(normal * net.pool.norm.weight + net.pool.norm.bias)
    torch.testing.assert_close(out, net.pool.proj(h), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_adaptive_pool() -> None:
    """A fresh network says nothing; a trained one maps the mean of the activated features."""
    net = EncoderUNet(dataclasses.replace(SMALL, pool="adaptive"))
    x, t = inputs()
    assert torch.equal(net(x, t), torch.zeros(2, 5))
    randomise(net)
    middle: list[Tensor] = []
    net.middle_out.register_forward_hook(lambda _m, _i, out: middle.append(out))
    out = net(x, t)
    mean = F.silu(net.norm(middle[0])).mean((2, 3))
    torch.testing.assert_close(out, net.pool.proj(mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_logits(pool: str) -> None:
    """Logits depend on image and noise label, sample by sample; both memory layouts agree."""
    net = randomise(EncoderUNet(dataclasses.replace(SMALL, pool=pool)))
    x, t = inputs()
    base = net(x, t)
    assert base.shape == (2, 5)
    later = net(x, t + torch.tensor([0.0, 100.0]))
    torch.testing.assert_close(later[0], base[0])
    assert not torch.allclose(later[1], base[1], atol=1e-4)
    laid = net(x.contiguous(memory_format=torch.channels_last), t)
    torch.testing.assert_close(laid, base, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sizes() -> None:
    """Other sizes run unless the pool has one vector a position."""
    for pool in ("adaptive", "spatial", "spatial_v2"):
        net = EncoderUNet(dataclasses.replace(SMALL, pool=pool))
        assert net(*inputs(24)).shape == (2, 5)
    with pytest.raises(ValueError, match="width 16, the size of the training images"):
        EncoderUNet(SMALL)(*inputs(24))
    with pytest.raises(ValueError, match=r"EncoderUNet: x has shape .* multiples of 2"):
        EncoderUNet(SMALL)(*inputs(15))


def test_recomputed_features_change_nothing() -> None:
    """The gradient with respect to the image, which guides, is bit-equal."""
    net = randomise(EncoderUNet(SMALL))
    x, t = inputs()
    slopes = []
    for net.recompute in (False, True):
        noisy = x.clone().requires_grad_()
        slopes += torch.autograd.grad(net(noisy, t).log_softmax(1)[:, 0].sum(), noisy)
    assert torch.equal(*slopes)
    assert sum(isinstance(m, Stage) for m in net.modules()) == 5


@pytest.mark.parametrize("pool", POOLS)
def test_compiles_without_graph_breaks(pool: str) -> None:
    """The forward pass is one graph, features recomputed or not, and gives the same numbers."""
    torch.compiler.reset()
    net = randomise(EncoderUNet(dataclasses.replace(SMALL, pool=pool)))
    x, t = inputs()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for net.recompute in (False, True):
        torch.testing.assert_close(compiled(x, t), net(x, t), rtol=1e-4, atol=1e-5)


def test_config() -> None:
    """A configuration survives JSON, and fields that do not fit are refused."""
    fields = json.loads(json.dumps(dataclasses.asdict(SMALL), allow_nan=False))
    assert EncoderConfig(**fields) == SMALL
    for change, message in (
        ({"pool": "max"}, "allowed are adaptive, attention"),
        ({"classes": 3}, "classes and tokens must be 0"),
        ({"pool": "spatial_v2", "groups": 3, "width": 36, "head_channels": 12}, "2048"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **change)
