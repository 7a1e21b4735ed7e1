"""Conditions of every kind: their null, two batches as one, some images of a batch."""

import pytest
import torch
from torch import Tensor, nn

from fewstep import conditions, guide, steer
from fewstep.conditions import Caption, Cond, Known, LowRes, Scaled
from fewstep.denoiser import EPS, NetDenoiser, V
from fewstep.model import Model, Sampling
from fewstep.nets import Inpaint, SuperRes, TextUNet, TextUNetConfig
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import Cosine
from laws.cases import generator
from unit.random_nets import randomise

B = 3
TOKENS = torch.arange(B * 4).reshape(B, 4)
CAPTION = Caption(TOKENS, TOKENS % 4 < 3)
CLASSES = torch.tensor([2, 0, 1])
SMALL, WHOLE = torch.rand(B, 3, 4, 4), torch.rand(B, 3, 8, 8)
SCALE = torch.tensor([1.0, 2.5, 4.0])
MASK = (torch.rand(B, 1, 8, 8) > 0.5).float()
EVERY: dict[str, Cond] = {
    "nothing": None,
    "classes": CLASSES,
    "caption": CAPTION,
    "small": LowRes(SMALL),
    "small and classes": LowRes(SMALL, CLASSES),
    "partial and caption": Known(WHOLE, MASK, CAPTION),
    "partial, small and caption": Known(WHOLE, MASK, LowRes(SMALL, CAPTION)),
    "scale and classes": Scaled(SCALE, CLASSES),
    "partial, small, scale and caption": Known(WHOLE, MASK, LowRes(SMALL, Scaled(SCALE, CAPTION))),
}
every = pytest.mark.parametrize("name", EVERY)


def leaves(cond: Cond) -> list[Tensor]:
    """Return the tensors of a condition."""
    if isinstance(cond, tuple):
        return [leaf for part in cond for leaf in leaves(part)]
    return [] if cond is None else [cond]


@every
def test_two_batches_are_cut_apart_again(name: str) -> None:
    cond = EVERY[name]
    both = conditions.join(cond, cond)
    conditions.check(both, 2 * B)
    for part in (slice(0, B), slice(B, 2 * B), torch.arange(B)):
        got = conditions.rows(both, part)
        assert type(got) is type(cond)
        pairs = zip(leaves(got), leaves(cond), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@every
def test_the_null_keeps_images_and_scale_and_forgets_words(name: str) -> None:
    """Beside its null, a condition is one batch; the null of the null is itself."""
    cond = EVERY[name]
    nothing = conditions.null(cond)
    if isinstance(nothing, Known):
        assert torch.equal(nothing.image, WHOLE)
        assert torch.equal(nothing.mask, MASK)
        nothing = nothing.cond
    if isinstance(nothing, LowRes):
        assert torch.equal(nothing.image, SMALL)
        nothing = nothing.cond
    if isinstance(nothing, Scaled):
        assert torch.equal(nothing.scale, SCALE)
        nothing = nothing.cond
    if isinstance(nothing, Caption):
        assert not nothing.mask.any()
        assert nothing.tokens.shape == TOKENS.shape
    else:
        assert nothing is None
    both = conditions.join(conditions.null(cond), cond)
    if cond is not None:
        conditions.check(both, 2 * B)
    asked = None if "caption" in name else conditions.classes(both)
    if "classes" in name:
        assert asked is not None
        assert asked.tolist() == [-1] * B + CLASSES.tolist()


@pytest.mark.parametrize(
    ("cond", "said"),
    [
        (CLASSES[:2], "cond"),
        (CLASSES[:, None], "cond"),
        (LowRes(SMALL[:2], CLASSES), "image"),
        (LowRes(SMALL, CLASSES[:2]), "cond"),
        (Caption(TOKENS, CAPTION.mask[:2]), "mask"),
        (Scaled(SCALE[:2], CLASSES), "scale"),
        (Scaled(SCALE[:, None], CLASSES), "scale"),
        (Scaled(torch.tensor(2.0), CLASSES), "scale"),
        (LowRes(SMALL, Scaled(SCALE, CLASSES[:2])), "cond"),
    ],
)
def test_conditions_of_other_images_are_refused(cond: Cond, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        conditions.check(cond, B)


def test_a_scale_stands_beside_the_words_whatever_images_there_are() -> None:
    """And takes the place of another; without it, the condition is what it was."""
    for name in ("nothing", "classes", "partial, small and caption"):
        told = conditions.scaled(conditions.scaled(EVERY[name], SCALE + 1), SCALE)
        conditions.check(told, B)
        while isinstance(told, LowRes | Known):
            told = told.cond
        assert isinstance(told, Scaled)
        assert told.scale is SCALE
        words = EVERY[name]
        while isinstance(words, LowRes | Known):
            words = words.cond
        assert told.cond is words


def test_two_kinds_are_no_batch() -> None:
    with pytest.raises(ValueError, match="two kinds"):
        conditions.join(CAPTION, CLASSES)
    with pytest.raises(ValueError, match="caption"):
        conditions.classes(CAPTION)


def nets() -> dict[str, tuple[nn.Module, Cond]]:
    """Return networks of each kind with what they are told."""
    shared = {"size": 8, "width": 8, "mult": (1,), "depth": 1, "groups": 4, "heads": 1}
    shared["attention"] = ()
    text = {
        "attention": (8,),
        "tokens": 8,
        "vocab": 20,
        "context": 4,
        "text_layers": 1,
        "text_heads": 2,
    }
    return {
        "classes": (UNet(UNetConfig(**shared, classes=3)), CLASSES),
        "small": (
            SuperRes(UNet(UNetConfig(**shared, classes=3, in_channels=6))),
            EVERY["small and classes"],
        ),
        "caption": (TextUNet(TextUNetConfig(**shared | text)), CAPTION),
        "partial": (
            Inpaint(TextUNet(TextUNetConfig(**shared | text | {"in_channels": 7}))),
            EVERY["partial and caption"],
        ),
    }


@pytest.mark.parametrize("name", nets())
@pytest.mark.parametrize("together", [True, False])
def test_guidance_is_the_same_sum_for_every_condition(
    name: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uncond + s (cond - uncond), in one doubled call or in two; the null asked explicitly."""
    net, cond = nets()[name]
    randomise(net)
    denoiser = NetDenoiser(net.double().eval(), Cosine(), V)
    monkeypatch.setattr("fewstep.guide.affine._DOUBLE_UP_TO", 100 if together else 0)
    x = torch.randn(B, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    plain, given = denoiser(x, 0.6, conditions.null(cond)), denoiser(x, 0.6, cond)
    assert (plain.x0 - given.x0).abs().max() > 1e-3
    got = guide.ClassifierFree(denoiser, 2.5)(x, 0.6, cond)
    assert torch.allclose(got.x0, plain.x0 + 2.5 * (given.x0 - plain.x0), atol=1e-10)
    alone = guide.Unconditional(denoiser)(x, 0.6, cond)
    assert torch.equal(alone.x0, plain.x0)


def test_known_pixels_are_kept() -> None:
    """The predicted image has them exactly, the noise follows, and without a mask nothing is."""
    net, cond = nets()["partial"]
    randomise(net)
    assert isinstance(cond, Known)
    denoiser = NetDenoiser(net.double().eval(), Cosine(), V)
    x = torch.randn(B, 3, 8, 8, generator=generator(2), dtype=torch.float64)
    kept, free = guide.Keep(denoiser)(x, 0.6, cond), denoiser(x, 0.6, cond)
    known = MASK.expand_as(x) > 0
    assert torch.equal(kept.x0[known], WHOLE.double()[known])
    assert torch.equal(kept.x0[~known], free.x0[~known])
    alpha, sigma = denoiser.levels(x, 0.6)
    assert torch.allclose(alpha * kept.x0 + sigma * kept.eps, x, atol=1e-12)
    assert torch.equal(guide.Keep(denoiser)(x, 0.6).x0, denoiser(x, 0.6).x0)


@pytest.mark.parametrize("threshold", [None, 50.0])
def test_known_pixels_outlast_what_bounds_the_others(threshold: float | None) -> None:
    """Dynamic thresholding scales an image down: not what may not change."""
    net, cond = nets()["partial"]
    randomise(net)
    assert isinstance(cond, Known)
    model = Model(NetDenoiser(net.eval(), Cosine(), EPS), (3, 8, 8))
    denoiser = steer.guided(model, Sampling(threshold=threshold))
    x0 = denoiser(3 * torch.randn(B, 3, 8, 8, generator=generator(3)), 0.9, cond).x0
    known = (MASK > 0).expand_as(x0)
    assert torch.equal(x0[known], cond.image[known])
    assert x0.abs().max() <= 1
