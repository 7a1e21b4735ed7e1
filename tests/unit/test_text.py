"""Test the text-conditional U-Net and its transformer."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.conditions import Caption
from fewstep.nets.text import Layer, TextUNet, TextUNetConfig, Transformer
from tests.unit.random_nets import randomise

SMALL = TextUNetConfig(
    size=8,
    width=16,
    mult=(1, 2),
    depth=1,
    attention=(4,),
    heads=2,
    groups=8,
    tokens=12,
    vocab=20,
    context=6,
    text_layers=2,
    text_heads=3,
)


def inputs() -> tuple[Tensor, Tensor, Caption]:
    """Return two images, noise labels and captions of three and six tokens."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (2, 6), generator=g)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]).bool()
    return (
        torch.randn(2, 3, 8, 8, generator=g),
        torch.tensor([3.0, 800.0]),
        Caption(tokens, mask),
    )


@torch.no_grad()
def test_fresh_network_is_zero() -> None:
    """A fresh network outputs exactly 0."""
    x, t, caption = inputs()
    assert torch.equal(TextUNet(SMALL)(x, t, caption), torch.zeros(2, 3, 8, 8))


@torch.no_grad()
def test_fresh_vectors_are_small() -> None:
    """Tokens, positions and padding start as N(0, 0.02^2)."""
    text = Transformer(dataclasses.replace(SMALL, vocab=400, context=100))
    for vectors in (text.table.weight, text.position, text.padding):
        assert float(vectors.std()) == pytest.approx(0.02, rel=0.1)


@torch.no_grad()
def test_padding() -> None:
    """Tokens under a False mask change no bit; the mask and other tokens change the output of
    their own sample.
    """
    net = randomise(TextUNet(SMALL))
    x, t, (tokens, mask) = inputs()
    base = net(x, t, Caption(tokens, mask))
    assert torch.equal(net(x, t, Caption(tokens.where(mask, 19 - tokens), mask)), base)
    shorter = mask.clone()
    shorter[1, 2:] = False
    changed = tokens.clone()
    changed[1, 0] = (tokens[1, 0] + 1) % 20
    for caption in (Caption(tokens, shorter), Caption(changed, mask)):
        out = net(x, t, caption)
        torch.testing.assert_close(out[0], base[0])
        assert (out[1] - base[1]).abs().max() > 1e-4


@torch.no_grad()
def test_null_is_the_empty_caption() -> None:
    """None is all padding, whatever the tokens; a network without padding vectors has no null."""
    net = randomise(TextUNet(SMALL))
    x, t, caption = inputs()
    empty = Caption(caption.tokens, torch.zeros_like(caption.mask))
    assert torch.equal(net(x, t), net(x, t, empty))
    assert (net(x, t) - net(x, t, caption)).abs().max() > 1e-4
    bare = randomise(TextUNet(dataclasses.replace(SMALL, padding=False)))
    with pytest.raises(ValueError, match="no null condition"):
        bare(x, t)
    assert torch.equal(bare(x, t, caption), bare(x, t, empty))


@torch.no_grad()
def test_text_reaches_the_unet_twice() -> None:
    """The pooled text and the tokens each change the output on their own."""
    net = randomise(TextUNet(SMALL))
    x, t, caption = inputs()
    pooled, tokens = net.text(caption)
    base = net.net(x, t, extra=pooled, tokens=tokens)
    assert torch.equal(net(x, t, caption), base)
    for told in (
        {"extra": pooled.flip(0), "tokens": tokens},
        {"extra": pooled, "tokens": -tokens},
    ):
        assert (net.net(x, t, **told) - base).abs().max() > 1e-4
    moved = net.net(x, t, extra=pooled, tokens=tokens.flip(1))
    torch.testing.assert_close(moved, base, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layer() -> None:
    """A layer is the textbook's, normalised before, its heads' q, k, v head by head."""
    torch.manual_seed(0)
    layer, h = Layer(12, 3), torch.randn(2, 5, 12)
    q, k, v = layer.qkv(layer.norm1(h)).unflatten(2, (3, 3, 4)).permute(3, 0, 2, 1, 4)
    mixed = (torch.softmax(q @ k.mT / 2, -1) @ v).transpose(1, 2).flatten(2)
    middle = h + layer.proj(mixed)
    wide = layer.widen(layer.norm2(middle))
    expected = middle + layer.narrow(wide * (1 + torch.erf(wide / 2**0.5)) / 2)
    torch.testing.assert_close(layer(h), expected)


@torch.no_grad()
def test_transformer() -> None:
    """The pooled text is the last position's, every position sees every other, and the outputs
    are normalised if the configuration says so.
    """
    _, _, caption = inputs()
    for norm in (True, False):
        text = Transformer(dataclasses.replace(SMALL, text_norm=norm))
        pooled, tokens = text(caption)
        assert torch.equal(pooled, text.pooled(tokens[:, -1]))
        plain = torch.allclose(tokens, F.layer_norm(tokens, (12,)), atol=1e-3)
        assert plain == norm
        later = caption.tokens.clone()
        later[1, -1] = (later[1, -1] + 1) % 20
        assert (text(Caption(later, caption.mask))[1][1, 0] - tokens[1, 0]).abs().max() > 1e-6


@torch.no_grad()
def test_precision_and_compilation() -> None:
    """One graph; weights in bfloat16 stay within 3e-2 of float32; the output keeps x's type."""
    torch.compiler.reset()
    net = randomise(TextUNet(SMALL))
    x, t, caption = inputs()
    base = net(x, t, caption)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, caption), base, rtol=1e-4, atol=1e-5)
    half = net.to(torch.bfloat16)(x, t, caption)
    assert half.dtype == torch.float32
    assert (half - base).norm() < 3e-2 * base.norm()


def test_bad_captions() -> None:
    """Captions of another length are an error that names the length."""
    x, t, (tokens, mask) = inputs()
    with pytest.raises(ValueError, match=r"tokens has shape \(2, 5\); expected \(B, 6\)"):
        TextUNet(SMALL)(x, t, Caption(tokens[:, :5], mask))
    with pytest.raises(ValueError, match="mask has shape"):
        TextUNet(SMALL)(x, t, Caption(tokens, mask[:, :5]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"context": 0}, "context is 0"),
        ({"text_heads": 5}, "text_heads = 5 does not divide"),
        ({"classes": 2}, "classes must be 0"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str) -> None:
    """Fields that do not fit are refused."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_config_is_json() -> None:
    """A configuration survives strict JSON."""
    fields = json.loads(json.dumps(dataclasses.asdict(SMALL), allow_nan=False))
    assert TextUNetConfig(**fields) == SMALL
