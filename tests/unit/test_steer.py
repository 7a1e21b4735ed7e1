"""Guidance from settings: what changes nothing changes nothing, and what is refused says why."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from fewstep import guide, sampling, steer
from fewstep.denoiser import NetDenoiser
from fewstep.errors import UsageError
from fewstep.model import Model, Sampling, from_description
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import VP, Cosine

LABELS = [0, 3, -1, 2, 1]
BASE = Sampling(steps=4, guidance_scale=3.0)


def random_model(seed=0, *, classes=4, null=True, size=8, process=None) -> Model:
    """A network whose answers depend on everything it is told."""
    torch.manual_seed(seed)
    net = UNet(UNetConfig(1, 1, size, width=8, mult=(1,), depth=1, attention=(), heads=1, groups=4,
                          classes=classes, null=null))  # fmt: skip
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    denoiser = NetDenoiser(net.eval(), process or Cosine(), null=null)
    return Model(denoiser, (1, size, size), tuple("abcdefghij"[:classes]))


MODEL, OTHER = random_model(), random_model(1)


def images(model=MODEL, guiding=None, labels=LABELS, **changes) -> torch.Tensor:
    settings = sampling.changed(BASE, changes)
    *_, last = sampling.walk(model, settings, labels, len(LABELS), 5, guiding)
    return last.x


def cost(guiding=None, model=MODEL, **changes) -> int:
    return sampling.plan(model, sampling.changed(BASE, changes), guiding).nfe


# ---------------------------------------------------------------- what changes nothing
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp", "ddpm"])
def test_scale_one_is_the_conditional_model_bit_for_bit(name) -> None:
    """With clipping around it, and whatever refinements the model's own settings hold."""
    plan = sampling.plan(MODEL, replace(BASE, sampler=name))
    alone = guide.Clamp(MODEL.denoiser)
    from fewstep import solvers

    labels = torch.tensor(LABELS)
    *_, last = solvers.sample(alone, (5, 1, 8, 8), plan.times, plan.solver, labels, 5)
    fine = replace(BASE, sampler=name, guidance_low=0.3, guidance_rescale=0.5)
    one = sampling.changed(fine, {"guidance_scale": 1.0})
    *_, got = sampling.walk(MODEL, one, LABELS, 5, 5)
    assert torch.equal(got.x, last.x)
    assert not torch.equal(got.x, images(sampler=name))


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_rescale": 0.0},
        {"guidance_low": 0.0, "guidance_high": 1e12},
        {**steer.dial("", "interval", "0..inf")},
    ],
)
def test_what_refines_nothing_is_plain_guidance_bit_for_bit(changes) -> None:
    assert torch.equal(images(**changes), images())
    assert cost(**changes) == cost() == 8


def test_guided_by_itself_a_model_is_itself() -> None:
    """weak + s (good - weak) with weak = good: good, up to the rounding of one sum."""
    itself = steer.Weak(MODEL)
    want = images(guidance_scale=1.0)
    for scale in (0.0, 1.0, 3.0):
        got = images(guiding=itself, guidance_scale=scale)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert torch.equal(images(guiding=steer.Weak(OTHER), guidance_scale=1.0), want)
    assert float((images(guiding=steer.Weak(OTHER)) - want).abs().max()) > 1e-2


# ---------------------------------------------------------------- what each one does
def test_each_refinement_is_its_combinator_under_the_clip() -> None:
    x, t, y = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3)), 0.6, LABELS
    own, cond = MODEL.denoiser, torch.tensor(y)
    weak, ratio = OTHER.denoiser, math.tan(0.3 * math.pi)  # sigma / alpha, near enough
    for changes, guiding, want in (
        ({"guidance_rescale": 0.7}, None, guide.Rescaled(own, 3.0, 0.7)),
        ({"apg": True, "apg_radius": 0.01}, None, guide.Projected(own, 3.0, radius=0.01)),
        ({}, steer.Weak(OTHER), guide.Auto(own, weak, 3.0)),
        ({"guidance_low": ratio / 2}, None, guide.ClassifierFree(own, 3.0)),
        ({"guidance_low": 2 * ratio}, None, own),
        ({"guidance_high": ratio / 2}, steer.Weak(OTHER), own),
    ):
        plan = sampling.plan(MODEL, replace(BASE, **changes), guiding)
        assert torch.equal(plan.denoiser(x, t, cond).x0, guide.Clamp(want)(x, t, cond).x0), changes
    high = sampling.plan(MODEL, replace(BASE, threshold=80.0)).denoiser
    free = guide.ClassifierFree(own, 3.0)
    assert torch.equal(high(x, t, cond).x0, guide.Threshold(free, 80.0)(x, t, cond).x0)


def test_each_dial_changes_the_images() -> None:
    words = ("interval=0.5..3", "rescale=0.7", "apg=inf", "apg=0.01", "threshold=60")
    made = [images()]
    for name, _, word in (text.partition("=") for text in words):
        made.append(images(**steer.dial("", name, word)))
    made.append(images(apg=True, apg_momentum=-0.5))
    for i, one in enumerate(made):
        assert all(not torch.equal(one, other) for other in made[:i]), i


def test_an_interval_asks_once_outside() -> None:
    """4 steps from sigma / alpha = inf: 1000, 2.4, 1 and 0.4, of which two lie in 0.5..3."""
    assert cost(guidance_low=0.5, guidance_high=3.0) == 6
    assert cost(guidance_low=0.5, guidance_high=3.0, guiding=steer.Weak(OTHER)) == 6
    asked = []
    handle = MODEL.denoiser.net.register_forward_hook(lambda *a: asked.append(len(a[1][0])))
    images(guidance_low=0.5, guidance_high=3.0)
    handle.remove()
    assert sum(asked) == 6 * len(LABELS)


def test_a_weak_model_guides_one_without_classes() -> None:
    plain, weak = random_model(classes=0), random_model(1, classes=0)
    got = images(plain, steer.Weak(weak), labels=None)
    assert got.isfinite().all()
    assert not torch.equal(got, images(plain, guidance_scale=1.0, labels=None))


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("changes", "guiding", "said"),
    [
        ({"apg_momentum": -0.5}, None, "momentum -0.5: belongs to apg"),
        ({"apg": True, "guidance_rescale": 0.7}, None, "rescale and apg: .*give one"),
        ({"apg": True, "apg_momentum": -0.5, "sampler": "heun"}, None, "heun asks twice"),
        ({"guidance_scale": 1.0, "guidance_low": 0.3}, None, r"interval 0.3\.\.: .*scale 1 is"),
        ({"guidance_scale": 1.0, "apg": True}, None, "apg inf: .*scale 1 is none"),
        ({"guidance_rescale": 0.7}, steer.Weak(OTHER), "rescale 0.7: .*weak model stands"),
        ({"apg": True}, steer.Weak(OTHER), "apg inf: .*weak model stands"),
        ({"guidance_low": 3.0, "guidance_high": 2.0}, None, "interval"),
        ({"threshold": 0.0}, None, "percentile 0"),
        ({}, steer.Weak(random_model(size=16)), "images of shape 1, 16, 16, the model 1, 8, 8"),
        ({}, steer.Weak(random_model(classes=3)), "has classes a, b, c, the model a, b"),
        ({}, steer.Weak(random_model(classes=0)), "classes none, the model a, b"),
        ({}, steer.Weak(random_model(process=VP())), "process .*VP.*Cosine"),
        ({"guidance_scale": math.nan}, steer.Weak(OTHER), "finite"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(changes, guiding, said) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        sampling.plan(MODEL, replace(BASE, **changes), guiding)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "word", "fields"),
    [
        ("interval", "0.3..3", {"guidance_low": 0.3, "guidance_high": 3.0}),
        ("interval", "2..", {"guidance_low": 2.0, "guidance_high": None}),
        ("rescale", "0.7", {"guidance_rescale": 0.7}),
        ("apg", "15", {"apg": True, "apg_radius": 15.0}),
        ("apg", "inf", {"apg": True, "apg_radius": None}),
        ("momentum", "-0.5", {"apg_momentum": -0.5}),
        ("threshold", "99.5", {"threshold": 99.5}),
    ],
)
def test_a_dial_is_its_word(name, word, fields) -> None:
    assert steer.dial("x", name, word) == fields
    assert steer.dials(replace(BASE, **fields)) == {name: word}
    off = steer.dial("x", name, "off")
    assert replace(BASE, **fields, **{}) != BASE == replace(replace(BASE, **fields), **off)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        *(("interval", w) for w in ("", "3", "3..3", "3..1", "-1..2", "nan..2", "..", "inf..")),
        *(("rescale", w) for w in ("", "-0.1", "1.1", "nan", "x")),
        *(("apg", w) for w in ("", "0", "-1", "nan")),
        *(("momentum", w) for w in ("1", "-1", "nan", "inf")),
        *(("threshold", w) for w in ("0", "100.1", "nan", "inf")),
    ],
)  # fmt: skip
def test_a_dial_takes_no_other_word(name, word) -> None:
    with pytest.raises(UsageError, match=r"--it: must be .*off"):
        steer.dial("--it", name, word)


# ---------------------------------------------------------------- what is kept
def test_settings_of_before_mean_what_they_meant() -> None:
    """A stored preset without the new fields is the same, and one that sets none says none."""
    names = ["sampler", "steps", "spacing", "eta", "guidance_scale", "clip"]
    assert list(BASE.plain()) == names
    assert BASE.plain() == {name: asdict(BASE)[name] for name in names}
    fine = replace(BASE, guidance_high=3.0, threshold=99.5)
    assert fine.plain() == {**BASE.plain(), "guidance_high": 3.0, "threshold": 99.5}
    for settings in (BASE, fine):
        stored = replace(MODEL, sampling=settings).describe()
        assert from_description(stored).sampling == settings


def test_changes_leave_nothing_without_a_use() -> None:
    fine = replace(BASE, guidance_high=3.0, apg=True, apg_momentum=-0.5, threshold=99.5)
    one = sampling.changed(fine, {"guidance_scale": 1.0})
    assert one == replace(BASE, guidance_scale=1.0, threshold=99.5)
    assert sampling.changed(fine, {"clip": False}).threshold is None
    assert sampling.changed(fine, {"guidance_scale": 2.0}) == replace(fine, guidance_scale=2.0)
    asked = sampling.changed(BASE, {"guidance_scale": 1.0, "guidance_low": 0.3})
    assert asked.guidance_low == 0.3
