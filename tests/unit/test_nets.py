"""Test the networks: identities, conditioning, layouts, precision, sizes."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets import MLP, NULL, MLPConfig, UNet, UNetConfig, sinusoid
from fewstep.nets.blocks import Attention, Resample, ResBlock, attend, group_norm

SMALL = UNetConfig(
    size=16, width=32, mult=(1, 2), depth=1, attention=(8,), heads=2, classes=5, groups=8
)


def build(config: UNetConfig | MLPConfig = SMALL, seed: int = 0) -> nn.Module:
    """Build a network whose zero-initialised layers are randomised too."""
    torch.manual_seed(seed)
    net = UNet(config) if isinstance(config, UNetConfig) else MLP(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() == 0:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                nn.init.normal_(parameter, std=fan_in**-0.5)
    return net.eval()


def inputs(config: UNetConfig = SMALL, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return images and noise labels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.in_channels, config.size, config.size, generator=g)
    return x, torch.rand(batch, generator=g) * 1000


def distance(a: Tensor, b: Tensor) -> float:
    """Return the relative L2 distance of a from b."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_fresh_network_is_zero() -> None:
    """A fresh network outputs exactly 0, and its last convolution still gets a gradient."""
    net = UNet(SMALL)
    x, t = inputs()
    y = net(x, t, torch.tensor([0, 1, NULL]))
    assert torch.equal(y, torch.zeros_like(y))
    (y - 1).square().mean().backward()
    assert net.head.weight.grad is not None
    assert net.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("scale_shift", [True, False])
@torch.no_grad()
def test_output_depends_on_label_and_class(scale_shift: bool) -> None:
    """With a randomised last convolution the output depends on label and class, per sample."""
    net = build(dataclasses.replace(SMALL, scale_shift=scale_shift))
    x, t = inputs()
    cond = torch.tensor([0, 1, 2])
    base = net(x, t, cond)
    for other in (net(x, t + torch.tensor([0.0, 50.0, 0.0]), cond), net(x, t, cond.roll(1))):
        assert distance(other[1], base[1]) > 1e-3
    only_second = net(x, t + torch.tensor([0.0, 50.0, 0.0]), cond)
    assert distance(only_second[0], base[0]) < 1e-5
    assert distance(only_second[2], base[2]) < 1e-5


@torch.no_grad()
def test_null_is_its_own_row() -> None:
    """None, -1 and the last table row are one condition, and it differs from every class."""
    net = build()
    x, t = inputs(batch=1)
    null = net(x, t)
    assert torch.equal(null, net(x, t, torch.tensor([NULL])))
    for c in range(SMALL.classes):
        assert distance(net(x, t, torch.tensor([c])), null) > 1e-3
    net.label.table.weight[SMALL.classes].add_(1)
    assert distance(net(x, t), null) > 1e-3


@pytest.mark.parametrize("config", [SMALL, MLPConfig(width=16, classes=5)], ids=["unet", "mlp"])
@pytest.mark.parametrize("null", [True, False])
@torch.no_grad()
def test_bad_condition(config: UNetConfig | MLPConfig, null: bool) -> None:
    """A class index that has no row is an error that names the allowed range; -1 is one without a
    null row.
    """
    net = build(dataclasses.replace(config, null=null))
    x = torch.randn((3, 3, 16, 16) if isinstance(config, UNetConfig) else (3, 2))
    t = torch.zeros(3)
    for bad in [5, -2, -7, 1000] + ([] if null else [NULL]):
        with pytest.raises(ValueError, match=r"-1\.\.4" if null else r"0\.\.4.*without the null"):
            net(x, t, torch.tensor([0, bad, 1]))
    if not null:
        with pytest.raises(ValueError, match="without the null"):
            net(x, t)
    with pytest.raises(ValueError, match="cond has shape"):
        net(x, t, torch.tensor([0]))
    unconditional = build(dataclasses.replace(config, classes=0))
    with pytest.raises(ValueError, match="classes = 0"):
        unconditional(x, t, torch.tensor([0, 1, 2]))


@torch.no_grad()
def test_one_label_for_the_batch() -> None:
    """A label given once equals the label repeated."""
    net = build()
    x, _ = inputs()
    full = net(x, torch.full((3,), 321.0))
    for label in (torch.tensor(321.0), torch.tensor([321.0])):
        assert distance(net(x, label), full) < 1e-6


def test_sinusoid() -> None:
    """Cosines first, exponent k/half, and float32 whatever the label's type."""
    label = torch.tensor([0.0, 1.0, 999.5], dtype=torch.float64)
    wave = sinusoid(label, 8, period=100.0)
    for k in range(4):
        angle = label * 100.0 ** (-k / 4)
        torch.testing.assert_close(wave[:, k], angle.cos())
        torch.testing.assert_close(wave[:, 4 + k], angle.sin())
    assert sinusoid(label.bfloat16(), 8).dtype == torch.float32
    with pytest.raises(ValueError, match="odd"):
        sinusoid(label, 7)


@torch.no_grad()
def test_the_period_of_the_configuration_is_that_of_the_network() -> None:
    """The label reaches the network as its sinusoid of this period, and as nothing else."""
    x, _ = inputs(batch=1)
    for period in (10000.0, 100.0):
        net = build(dataclasses.replace(SMALL, period=period))
        seen: list[Tensor] = []
        net.time.register_forward_pre_hook(lambda _, told, seen=seen: seen.append(told[0]))
        net(x, torch.tensor([321.0]))
        assert torch.equal(seen[0], sinusoid(torch.tensor([321.0]), SMALL.width, period))


@torch.no_grad()
def test_adaptive_norm_without_embedding_is_plain() -> None:
    """With its embedding layer at zero, an adaptive block equals the additive block."""
    torch.manual_seed(0)
    adaptive = ResBlock(16, 24, 32, groups=8)
    plain = ResBlock(16, 24, 32, groups=8, scale_shift=False)
    nn.init.normal_(adaptive.conv2.weight, std=0.1)
    for block in (adaptive, plain):
        nn.init.zeros_(block.emb.weight)
        nn.init.zeros_(block.emb.bias)
    plain.load_state_dict(
        {k: v for k, v in adaptive.state_dict().items() if not k.startswith("emb")}, strict=False
    )
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 32)
    torch.testing.assert_close(adaptive(x, emb), plain(x, emb), rtol=1e-6, atol=1e-6)
    nn.init.normal_(adaptive.emb.weight)
    assert distance(adaptive(x, emb), plain(x, emb)) > 1e-2


@torch.no_grad()
def test_resampling_blocks() -> None:
    """A fresh down block is 2x2 averaging and a fresh up block is pixel repetition, exactly."""
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 32)
    down = ResBlock(16, 16, 32, groups=8, direction="down")(x, emb)
    up = ResBlock(16, 16, 32, groups=8, direction="up")(x, emb)
    assert torch.equal(down, F.avg_pool2d(x, 2))
    assert torch.equal(up, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert Resample(16, "down")(x, emb).shape == down.shape
    assert Resample(16, "up")(x, emb).shape == up.shape


@torch.no_grad()
def test_attention_orders() -> None:
    """Permuting the rows of qkv turns one layout into the other; without it the outputs differ."""
    torch.manual_seed(0)
    channels, heads = 32, 4
    new, legacy = (Attention(channels, heads, groups=8, order=o) for o in ("new", "legacy"))
    nn.init.normal_(new.proj.weight, std=0.2)
    legacy.load_state_dict(new.state_dict())
    x = torch.randn(2, channels, 6, 6)
    assert distance(legacy(x), new(x)) > 1e-3
    for parameter in (legacy.qkv.weight, legacy.qkv.bias):
        rows = parameter.unflatten(0, (3, heads, channels // heads)).transpose(0, 1)
        parameter.copy_(rows.flatten(0, 2))
    torch.testing.assert_close(legacy(x), new(x), rtol=1e-6, atol=1e-6)


def test_attention_weights_are_softmax() -> None:
    """Attention equals the textbook formula, in float32 and in the bfloat16 path, with its
    gradient.
    """
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 10, 8, requires_grad=True) for _ in range(3))
    expected = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
    (slope,) = torch.autograd.grad(expected.square().sum(), q)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        out = attend(q.to(dtype), k.to(dtype), v.to(dtype))
        assert distance(out, expected) < tolerance
        assert distance(torch.autograd.grad(out.float().square().sum(), q)[0], slope) < tolerance


@pytest.mark.parametrize("groups", [4, 1])
@pytest.mark.parametrize("side", [4, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_group_norm_statistics_are_float32(groups: int, side: int, dtype: torch.dtype) -> None:
    """Group statistics lose nothing to bfloat16 storage, on every code path, with and without
    scale and shift.
    """
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.to(dtype)
    x = (3 + 0.5 * torch.randn(2, 16, side, side)).to(dtype)
    scale, shift = torch.randn(2, 2, 16, 1, 1).to(dtype)
    plain = F.group_norm(x.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps)
    told = plain * (1 + scale.double()) + shift.double()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = x.contiguous(memory_format=layout)
        assert distance(group_norm(norm, laid), plain) < tolerance
        out = group_norm(norm, laid, scale, shift)
        assert distance(out, told) < tolerance
        assert out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("updown", [True, False])
@torch.no_grad()
def test_bfloat16_agrees(updown: bool) -> None:
    """Weights in bfloat16, and autocast, stay within 2e-2 of float32; the output keeps the
    input's type.
    """
    net = build(dataclasses.replace(SMALL, updown=updown))
    x, t = inputs()
    cond = torch.tensor([0, NULL, 4])
    expected = net(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        cast = net(x, t, cond)
    half = net.to(torch.bfloat16).to(memory_format=torch.channels_last)(x, t, cond)
    for out in (cast, half):
        assert out.dtype == torch.float32
        assert 0 < distance(out, expected) < 2e-2


def test_layouts_agree() -> None:
    """channels_last in gives the same numbers and gradients, in and out of no_grad."""
    net = build()
    x, t = inputs()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = x.contiguous(memory_format=layout).requires_grad_()
        out = net.to(memory_format=layout)(laid, t)
        (slope,) = torch.autograd.grad(out.square().sum(), laid)
        with torch.no_grad():
            quick = net(laid, t)
        assert distance(quick, out) < 1e-5
        results.append((out, slope))
    for a, b in zip(*results, strict=True):
        assert distance(a, b) < 1e-5


@torch.no_grad()
def test_sizes() -> None:
    """Any multiples of `factor` run, square or not; other sizes are an error that names the
    nearest.
    """
    net = build(dataclasses.replace(SMALL, mult=(1, 1, 2), attention=()))
    t = torch.zeros(1)
    assert net.factor == 4
    assert net(torch.randn(1, 3, 8, 20), t).shape == (1, 3, 8, 20)
    with pytest.raises(ValueError, match="multiples of 4, nearest allowed: 16 or 20 for 18"):
        net(torch.randn(1, 3, 16, 18), t)
    with pytest.raises(ValueError, match="nearest allowed: 4 for 3"):
        net(torch.randn(1, 3, 3, 16), t)
    with pytest.raises(ValueError, match=r"\(1, 4, 16, 16\)"):
        net(torch.randn(1, 4, 16, 16), t)
    with pytest.raises(ValueError, match="label has shape"):
        net(torch.randn(3, 3, 16, 16), torch.zeros(2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 30, "attention": ()}, "nearest allowed: 24 or 32"),
        ({"size": 4, "attention": ()}, "nearest allowed: 8,"),
        ({"width": 48}, "not a multiple of groups = 32"),
        ({"width": 33, "groups": 1}, "odd"),
        ({"heads": 3}, "heads = 3 does not divide"),
        ({"head_channels": 48}, "head_channels = 48 does not divide"),
        ({"attention": (12,)}, "has the resolutions 32, 16, 8, 4"),
        ({"attention_order": "old"}, "'legacy' and 'new'"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 0}, "depth is 0"),
        ({"mult": ()}, "mult is empty"),
        ({"classes": -1}, "classes is -1"),
        ({"period": 0.5}, "period"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str) -> None:
    """Fields that do not fit are refused with what is allowed."""
    with pytest.raises(ValueError, match=message):
        UNetConfig(**fields)


@pytest.mark.parametrize("config", [UNetConfig(mult=(0.5, 1)), MLPConfig(classes=3)])
def test_config_is_json(config: UNetConfig | MLPConfig) -> None:
    """A configuration survives strict JSON."""
    fields = json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))
    assert type(config)(**fields) == config
    assert hash(type(config)(**fields)) == hash(config)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, updown=False, scale_shift=False),
        dataclasses.replace(SMALL, null=False),
        MLPConfig(width=16, classes=5),
    ],
    ids=["adm", "ddpm", "no-null", "mlp"],
)
@pytest.mark.parametrize("grad", [True, False])
def test_compiles_without_graph_breaks(config: UNetConfig | MLPConfig, grad: bool) -> None:
    """The forward pass is one graph and gives the same numbers."""
    torch.compiler.reset()
    net = build(config)
    x = inputs()[0] if isinstance(config, UNetConfig) else torch.randn(3, 2)
    t = torch.tensor([3.0, 500.0, 999.0])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(grad):
        for cond in (torch.tensor([0, 4, NULL if config.null else 2]), None):
            if cond is not None or config.null:
                assert distance(compiled(x, t, cond), net(x, t, cond)) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_inductor_agrees() -> None:
    """The compiled network gives the same numbers."""
    torch.compiler.reset()
    net = build()
    x, t = inputs()
    cond = torch.tensor([0, 4, NULL])
    assert distance(torch.compile(net, fullgraph=True)(x, t, cond), net(x, t, cond)) < 1e-5


def test_dropout() -> None:
    """Dropout acts in training only."""
    net = build(dataclasses.replace(SMALL, dropout=0.5))
    x, t = inputs()
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert distance(net(x, t), net(x, t)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mlp(dtype: torch.dtype) -> None:
    """A fresh MLP is zero; a randomised one depends on point, label and class, and its gradient
    is right.
    """
    config = MLPConfig(width=16, layers=2, classes=3)
    x = torch.randn(4, 2, dtype=dtype)
    t = torch.tensor([1.0, 20.0, 300.0, 999.0], dtype=dtype)
    cond = torch.tensor([0, 1, 2, NULL])
    assert MLP(config).to(dtype)(x, t, cond).abs().max() == 0
    net = build(config).to(dtype)
    base = net(x, t, cond)
    assert base.dtype == dtype
    for other in (net(x + 0.1, t, cond), net(x, t + 5, cond), net(x, t, cond.roll(1)), net(x, t)):
        assert distance(other, base) > 1e-3
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda a, b: net(a, b, cond), (x.requires_grad_(), t))
    with pytest.raises(ValueError, match=r"expected \(B, 2\)"):
        net(torch.randn(4, 3), t)
    with pytest.raises(ValueError, match="odd"):
        MLPConfig(width=15)


def test_unet_gradient() -> None:
    """The gradient with respect to the image is right in float64 (every block in its path)."""
    config = UNetConfig(1, 1, 4, 4, (1, 2), 1, (2,), heads=1, classes=2, groups=2)
    net = build(config).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([10.0, 700.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: net(a, t, torch.tensor([1, NULL])), (x,))
