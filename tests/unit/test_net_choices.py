"""Test the choices of the U-Net that its paper ablates, and how a network is run."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets import UNet, UNetConfig
from fewstep.nets.blocks import Attention, Resample, ResBlock, attend, split_heads
from fewstep.nets.encoder import AttentionPool
from fewstep.nets.published import PUBLISHED, build
from fewstep.nets.unet import Stage
from tests.unit.random_nets import randomise

SMALL = UNetConfig(
    size=16, width=32, mult=(1, 2), depth=1, attention=(8,), heads=2, classes=5, groups=8
)


@torch.no_grad()
def test_rescaled_residuals() -> None:
    """A fresh block or attention is its input over sqrt(2); a trained one the plain one's output
    over sqrt(2), at every resampling.
    """
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 32)
    for direction in (None, "up", "down"):
        plain = ResBlock(16, 16, 32, groups=8, direction=direction)
        scaled = ResBlock(16, 16, 32, groups=8, direction=direction, rescale=True)
        torch.testing.assert_close(scaled(x, emb), plain(x, emb) / 2**0.5)
        randomise(plain)
        scaled.load_state_dict(plain.state_dict())
        torch.testing.assert_close(scaled(x, emb), plain(x, emb) / 2**0.5)
    plain, scaled = (Attention(16, 2, groups=8, rescale=r) for r in (False, True))
    torch.testing.assert_close(scaled(x), x / 2**0.5)
    scaled.load_state_dict(randomise(plain).state_dict())
    torch.testing.assert_close(scaled(x), plain(x) / 2**0.5)


def test_rescale_reaches_every_block() -> None:
    """The field of the configuration sets every residual sum of the network."""
    for rescale in (True, False):
        net = UNet(dataclasses.replace(SMALL, rescale=rescale))
        sums = [m for m in net.modules() if isinstance(m, (ResBlock, Attention))]
        assert sums
        assert all(m.rescale == rescale for m in sums)


@torch.no_grad()
def test_parameter_free_resampling() -> None:
    """Without a convolution the resampling is 2x2 averaging and repetition, with no parameters."""
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 32)
    down, up = Resample(16, "down", convolve=False), Resample(16, "up", convolve=False)
    assert not list(down.parameters()) + list(up.parameters())
    assert torch.equal(down(x, emb), F.avg_pool2d(x, 2))
    assert torch.equal(up(x, emb), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    net = UNet(dataclasses.replace(SMALL, updown=False, resample_conv=False))
    assert net(torch.randn(1, 3, 16, 16), torch.zeros(1)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_features_change_nothing(dropout: float) -> None:
    """Outputs and gradients are bit-equal; each stage runs twice in training, once without
    gradients; configuration and weights do not know it.
    """
    config = dataclasses.replace(SMALL, dropout=dropout)
    net = randomise(UNet(config)).train()
    x, t, cond = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0]), torch.tensor([1, -1])
    runs: list[int] = []
    for stage in (m for m in net.modules() if isinstance(m, Stage)):
        stage.register_forward_pre_hook(lambda *_: runs.append(1))
    results = []
    for net.recompute in (False, True):
        runs.clear()
        net.zero_grad()
        torch.manual_seed(0)
        out = net(x, t, cond)
        out.square().sum().backward()
        grads = [p.grad.clone() for p in net.parameters()]
        results.append((out, grads, len(runs)))
    (a, a_grads, once), (b, b_grads, twice) = results
    assert torch.equal(a, b)
    assert all(torch.equal(p, q) for p, q in zip(a_grads, b_grads, strict=True))
    assert twice == 2 * once > 0
    runs.clear()
    with torch.no_grad():
        net(x, t, cond)
    assert len(runs) == once
    assert net.config == config
    assert set(net.state_dict()) == set(UNet(config).state_dict())


@torch.no_grad()
def test_dropout_stands_before_the_last_convolution() -> None:
    """It drops what silu returned, and never the skip connection."""
    block = ResBlock(16, 16, 32, groups=8, dropout=0.25)
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 32)
    assert torch.equal(block.train()(x, emb), x)  # fresh: the branch is silent
    seen: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for mode in (False, True):
        block.train(mode)(x, emb)
    whole, some = seen
    kept = some != 0
    assert 0.7 < float(kept.double().mean()) < 0.8
    torch.testing.assert_close(some[kept], whole[kept] / 0.75)


def test_attention_of_the_published_network_for_64_pixels() -> None:
    """22 attentions at 32, 16 and 8 pixels, of 6, 9 and 12 heads of 64 channels."""
    with torch.device("meta"):
        net = build(PUBLISHED["adm-imagenet64"])
    parts = [m for m in net.modules() if isinstance(m, Attention)]
    assert len(parts) == 22
    assert {m.heads: m.norm.num_channels for m in parts} == {6: 384, 9: 576, 12: 768}


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_the_pool_of_every_published_classifier_reads_8_by_8_positions(size: int) -> None:
    with torch.device("meta"):
        pool = build(PUBLISHED[f"adm-classifier{size}"]).pool
    assert pool.position.shape == (512, 65)
    assert pool.heads == 8


@torch.no_grad()
def test_fresh_position_vectors_have_unit_length() -> None:
    """N(0, 1 / channels): of the size of one token's mean square, not of its sum."""
    pool = AttentionPool(side=8, channels=256, heads=4, classes=3)
    assert float(pool.position.std()) == pytest.approx(1 / 16, rel=0.05)


def text_attention(order: str) -> tuple[Attention, Tensor, Tensor]:
    """Return an attention that reads text, pixels and tokens."""
    torch.manual_seed(0)
    block = randomise(Attention(16, 2, groups=8, order=order, tokens=6))
    return block, torch.randn(2, 16, 4, 4), torch.randn(2, 5, 6)


@pytest.mark.parametrize("order", ["legacy", "new"])
@torch.no_grad()
def test_text_joins_one_softmax(order: str) -> None:
    """Attention with text is the textbook formula over text and pixels together, head by head."""
    block, x, tokens = text_attention(order)
    pixels = block.norm(x).flatten(2).transpose(1, 2)
    qkv, kv = block.qkv(pixels), block.text(tokens)
    outs = []
    for head in range(2):
        # Rows of head h: [h, part, d] in the legacy order, [part, h, d] in the new one.
        def rows(flat: Tensor, part: int, parts: int, head: int = head) -> Tensor:
            start = (head * parts + part if order == "legacy" else part * 2 + head) * 8
            return flat[:, :, start : start + 8]

        q = rows(qkv, 0, 3)
        k = torch.cat([rows(kv, 0, 2), rows(qkv, 1, 3)], 1)
        v = torch.cat([rows(kv, 1, 2), rows(qkv, 2, 3)], 1)
        outs.append(torch.softmax(q @ k.mT / 8**0.5, -1) @ v)
    expected = x + block.proj(torch.cat(outs, 2)).mT.reshape(x.shape)
    torch.testing.assert_close(block(x, tokens), expected)


@torch.no_grad()
def test_text_of_zero_still_takes_its_share() -> None:
    """Keys and values of zero are not the absence of text: they share the softmax."""
    block, x, tokens = text_attention("legacy")
    nn.init.zeros_(block.text.weight)
    nn.init.zeros_(block.text.bias)
    q, k, v = split_heads(block.qkv(block.norm(x).flatten(2).mT), 3, 2, "legacy")
    scores = (q @ k.mT / 8**0.5).exp()
    h = scores @ v / (scores.sum(-1, keepdim=True) + tokens.shape[1])
    expected = x + block.proj(h.transpose(1, 2).flatten(2)).mT.reshape(x.shape)
    torch.testing.assert_close(block(x, tokens), expected)
    assert not torch.allclose(block(x, tokens), block(x))


def test_attention_over_more_keys_than_queries() -> None:
    """The bfloat16 path takes keys of another number than the queries."""
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    torch.testing.assert_close(out, attend(q, k, v), rtol=5e-2, atol=5e-2)


def test_tokens_are_checked() -> None:
    """Text that is missing, not read or of the wrong shape is an error."""
    x, t = torch.randn(2, 3, 16, 16), torch.zeros(2)
    with pytest.raises(ValueError, match="reads none"):
        UNet(SMALL)(x, t, tokens=torch.zeros(2, 3, 8))
    net = UNet(dataclasses.replace(SMALL, tokens=8))
    with pytest.raises(ValueError, match="width 8 are needed"):
        net(x, t)
    with pytest.raises(ValueError, match=r"expected \(2, N, 8\)"):
        net(x, t, tokens=torch.zeros(2, 3, 4))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_leave_their_input_alone(dtype: torch.dtype, grad: bool) -> None:
    """What a block is given is read again by the decoder: no step inside may overwrite it."""
    blocks = [ResBlock(16, 16, 32, groups=8, scale_shift=s) for s in (False, True)]
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 16, 8, 8, dtype=dtype).contiguous(memory_format=layout)
        emb = torch.randn(2, 32, dtype=dtype)
        for block in (*blocks, Attention(16, 2, groups=8)):
            given = (x,) if isinstance(block, Attention) else (x, emb)
            before = [part.clone() for part in given]
            with torch.set_grad_enabled(grad):
                randomise(block).to(dtype)(*given)
            assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
