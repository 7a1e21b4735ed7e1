"""A student that is told its guidance scale: its network, its model, its sampling, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep import conditions, guide, sampling, steer
from fewstep.cli import guidance
from fewstep.conditions import Cond, Known, LowRes, Scaled
from fewstep.denoiser import NetDenoiser
from fewstep.distill import Guided, Progressive, student
from fewstep.errors import UsageError
from fewstep.guide import ClassifierFree
from fewstep.model import Model, Sampling, from_description
from fewstep.nets import (
    MLP,
    GuidanceScale,
    Inpaint,
    MLPConfig,
    SuperRes,
    TextUNet,
    TextUNetConfig,
    UNet,
    UNetConfig,
    sinusoid,
)
from fewstep.objectives import LossSecondMoment
from fewstep.process import Cosine
from fewstep.train.checkpoint import load_model, save_model
from laws.cases import generator, largest, mixture, normal
from unit.random_nets import randomise

SHARED = {"size": 8, "width": 8, "mult": (1,), "depth": 1, "groups": 4, "heads": 1,
          "attention": ()}  # fmt: skip
PLAIN, OTHER = Sampling(steps=4), Sampling(steps=4, guidance_scale=3.0)


def told_nets() -> dict[str, tuple[nn.Module, Cond, tuple[int, ...]]]:
    """Return a network of every kind that can be told the scale, with its condition and input."""
    small, whole = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 8, 8)
    y = torch.tensor([2, 0, -1])
    tokens = torch.arange(12).reshape(3, 4)
    text = {"tokens": 8, "vocab": 20, "context": 4, "text_layers": 1, "text_heads": 2}
    return {
        "points": (MLP(MLPConfig(width=16, classes=3)), y, (3, 2)),
        "classes": (UNet(UNetConfig(**SHARED, classes=3)), y, (3, 3, 8, 8)),
        "text": (
            TextUNet(TextUNetConfig(**SHARED | {"attention": (8,)}, **text)),
            conditions.Caption(tokens, tokens % 4 < 3),
            (3, 3, 8, 8),
        ),
        "partial, small": (
            Inpaint(SuperRes(UNet(UNetConfig(**SHARED, classes=3, in_channels=10)))),
            Known(whole, whole[:, :1].round(), LowRes(small, y)),
            (3, 3, 8, 8),
        ),
    }


every_net = pytest.mark.parametrize("name", told_nets())


def taught_model(low: float = 1.0, high: float = 5.0, *, drawn: bool = True) -> Model:
    """Return a student of a small random U-Net whose answers depend on the scale."""
    torch.manual_seed(0)
    net = randomise(UNet(UNetConfig(1, 1, classes=3, **SHARED)))
    made = student(Model(NetDenoiser(net, Cosine()), (1, 8, 8), tuple("abc")), low, high)
    if drawn:
        randomise(made.denoiser.net)
    return replace(made, sampling=replace(made.sampling, steps=4))


# ---------------------------------------------------------------- the network
@every_net
def test_before_its_first_step_the_student_is_the_conditional_teacher(name: str) -> None:
    """CHECK 12: 0 difference for every scale; once trained, the scale is heard."""
    torch.manual_seed(0)
    net, cond, shape = told_nets()[name]
    model = Model(NetDenoiser(randomise(net), Cosine()), shape[1:], tuple("abc"))
    made = student(model)
    x, t = torch.randn(shape, generator=generator(1)), torch.tensor([0.1, 0.5, 0.9])
    want = model.denoiser(x, t, cond)
    assert isinstance(made.denoiser, NetDenoiser)
    for scale in ([1.0, 1.0, 1.0], [0.0, 1.5, 5.0], [-3.0, 100.0, 2.0]):
        got = made.denoiser(x, t, conditions.scaled(cond, torch.tensor(scale)))
        assert torch.equal(got.x0, want.x0)
    assert torch.equal(made.denoiser(x, t, cond).x0, want.x0)
    randomise(made.denoiser.net)
    two, three = (conditions.scaled(cond, torch.tensor([s, 2.0, 1.0])) for s in (2.0, 3.0))
    moved = made.denoiser(x, t, two).x0 - made.denoiser(x, t, three).x0
    far = moved.detach().abs().flatten(1).amax(1)
    assert float(far[0]) > 1e-3
    assert float(far[1:].max()) < 1e-5
    one = made.denoiser(x, t, conditions.scaled(cond, torch.ones(3)))
    assert torch.equal(made.denoiser(x, t, cond).x0, one.x0)
    assert torch.equal(model.denoiser(x, t, cond).x0, want.x0), "the teacher was changed"


def test_the_scale_is_spread_as_noise_labels_are() -> None:
    """256 cosines and sines of 1000 w, w = s - 1, in single precision at least."""
    net, seen = GuidanceScale(MLP(MLPConfig(width=8, classes=2))), []
    net.scale.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    scale = torch.tensor([1.0, 1.3, 4.7])
    for told in (scale, scale.half(), scale.double()):
        net(torch.zeros(3, 2), torch.zeros(3), Scaled(told, torch.zeros(3, dtype=torch.long)))
        wide = told if told.dtype == torch.float64 else told.float()
        assert torch.equal(seen[-1], sinusoid(1000 * (wide - 1), 256).float())
    net(torch.zeros(3, 2), torch.zeros(3))
    assert torch.equal(seen[-1], sinusoid(torch.zeros(3), 256))


@every_net
def test_a_student_comes_back(name: str, tmp_path: Path) -> None:
    net, cond, shape = told_nets()[name]
    made = student(Model(NetDenoiser(net, Cosine()), shape[1:], tuple("abc")), 1.5, 4.0)
    randomise(made.denoiser.net)
    stored = made.describe()
    fresh = from_description(stored)
    fresh.denoiser.load_state_dict(made.denoiser.state_dict())
    save_model(made, tmp_path / "kept")
    for back in (fresh, load_model(tmp_path / "kept")):
        back.denoiser.eval()
        assert back.describe() == stored
        assert (back.scales, back.inputs, back.denoiser.null) == ((1.5, 4.0), made.inputs, False)
        told = conditions.scaled(cond, torch.tensor([2.0, 3.0, 4.0]))
        x = torch.randn(shape, generator=generator(1))
        assert torch.equal(back.denoiser(x, 0.5, told).x0, made.denoiser(x, 0.5, told).x0)
    assert "guidance" not in made.inputs
    assert type(made.net) is type(from_description(stored).net)


# ---------------------------------------------------------------- sampling
@torch.no_grad()
def test_one_evaluation_for_each_step() -> None:
    """Counted by the plan and at the network; a float is the scale of all."""
    model, asked = taught_model(), []
    model.denoiser.net.register_forward_hook(lambda *a: asked.append(a[1][2]))
    for name, steps in (("ddim", 4), ("heun", 7)):
        s = replace(OTHER, sampler=name)
        assert sampling.plan(model, s).nfe == steps
        asked.clear()
        *_, _ = sampling.walk(model, s, [0, 1, 2], 3)
        assert len(asked) == steps
        assert all(cond.scale.tolist() == [3.0] * 3 for cond in asked)
    once = sampling.plan(model, replace(OTHER, guidance_low=0.5, guidance_high=3.0))
    assert once.nfe == 4
    one, three = (sampling.plan(model, replace(OTHER, guidance_scale=s)) for s in (1.0, 3.0))
    x, y = normal(2, 1, 8, 8).float(), torch.tensor([0, 2])
    assert largest(one.denoiser(x, 0.5, y).x0, three.denoiser(x, 0.5, y).x0) > 1e-3
    assert torch.equal(one.denoiser(x, 0.5, y).x0, guide.Clamp(model.denoiser)(x, 0.5, y).x0)


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance_scale": 5.5}, r"scale 5\.5: .*taught .* 2 to 5"),
        ({"guidance_scale": 1.0}, r"scale 1: .*taught .* 2 to 5"),
        ({"guidance_rescale": 0.7}, r"rescale 0\.7: .*taught"),
        ({"apg": True}, "apg inf: .*taught"),
        ({"guidance_low": 0.3}, r"interval 0\.3\.\.: .*scale 1.* 2 to 5"),
    ],
)
def test_what_a_student_was_not_taught_is_refused_in_one_line(changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        steer.guided(taught_model(2.0), replace(OTHER, **changes))
    assert "\n" not in str(caught.value)


def test_a_student_is_asked_one_branch_only() -> None:
    model = taught_model()
    with pytest.raises(UsageError, match=r"weak model: .*taught"):
        steer.guided(model, OTHER, steer.Weak(model))
    with pytest.raises(UsageError, match="null condition"):
        ClassifierFree(model.denoiser, 2.0)
    with pytest.raises(UsageError, match="give a class"):
        steer.guided(model, OTHER)(torch.zeros(2, 1, 8, 8), 0.5)
    for said in ({}, {"scales": [5, 1]}, {"scales": [1]}, {"scales": ["1", "5"]}, {"scales": 3}):
        with pytest.raises(UsageError, match=r"student\.scales"):
            steer.guided(replace(model, student=said), OTHER)


def test_a_student_is_guided_and_not_doubled() -> None:
    """Its paths are bent as its teacher's, at half the cost."""
    made = taught_model()
    plain = Model(NetDenoiser(made.net, Cosine()), made.shape, made.classes)
    assert (guidance.on(made, 3.0), guidance.doubled(made, 3.0)) == (True, False)
    assert (guidance.on(plain, 3.0), guidance.doubled(plain, 3.0)) == (True, True)
    assert not any(f(m, 1.0) for m in (made, plain) for f in (guidance.on, guidance.doubled))


def test_a_student_is_no_weak_model_of_another() -> None:
    model = taught_model()
    plain = Model(NetDenoiser(model.net, Cosine()), model.shape, model.classes)
    with pytest.raises(UsageError, match="has conditions a guidance scale, the model none"):
        steer.guided(plain, OTHER, steer.Weak(model))


@pytest.mark.parametrize(
    ("own", "want"),
    [
        (replace(PLAIN, clip=False), replace(PLAIN, guidance_scale=1.5, clip=False)),
        (replace(OTHER, guidance_low=0.3, guidance_rescale=0.7), OTHER),
        (replace(OTHER, guidance_scale=9.0, apg=True), replace(OTHER, guidance_scale=4.0)),
    ],
)
def test_the_preset_of_a_student_is_one_that_it_can_follow(own: Sampling, want: Sampling) -> None:
    """A scale that it is taught, no refinement, and no preset that was tuned for the teacher."""
    teacher = taught_model()
    net = NetDenoiser(teacher.net, Cosine()).requires_grad_(False)
    plain = Model(net, (1, 8, 8), tuple("abc"), own, {"data": "x"}, {5: own}, {"steps": 8})
    made = student(plain, 1.5, 4.0)
    assert (made.sampling, made.tuned, made.about) == (want, {}, {"data": "x"})
    assert made.student == {"steps": 8, "kind": "guided", "scales": [1.5, 4.0]}
    assert sampling.plan(made, made.sampling).nfe == 4
    assert all(p.requires_grad for p in made.denoiser.parameters())
    assert not any(p.requires_grad for p in net.parameters())
    inside = replace(OTHER, guidance_low=0.3)
    assert student(replace(plain, sampling=inside)).sampling == inside
    for bad, said in ((replace(plain, classes=()), "unconditional"), (made, "already")):
        with pytest.raises(UsageError, match=said):
            student(bad)


def test_students_that_cannot_be_are_refused() -> None:
    exact = mixture(Cosine())
    for low, high in ((2.0, 1.0), (float("nan"), 2.0), (1.0, float("inf"))):
        for make in (lambda a, b: Guided(exact, a, b), student_of):
            with pytest.raises(UsageError, match="guidance scales"):
                make(low, high)
        with pytest.raises(UsageError, match="guidance scales"):
            Progressive(exact, (1.0, 0.5, 0.0), scales=(low, high))
    with pytest.raises(UsageError, match="drop"):
        Progressive(exact, (1.0, 0.5, 0.0), drop=0.1, scales=(1.0, 2.0))
    with pytest.raises(UsageError, match="Bound"):
        Guided(exact, times=LossSecondMoment(10))
    with pytest.raises(UsageError, match="no condition"):
        Guided(exact)(exact, normal(2, 2), None, 0, generator(0))
    exact.null = False
    with pytest.raises(UsageError, match=r"guided distillation: .*null condition"):
        Guided(exact)
    with pytest.raises(ValueError, match=r"GuidanceScale: .*SuperRes"):
        GuidanceScale(SuperRes(UNet(UNetConfig(**SHARED))))
    with pytest.raises(ValueError, match=r"scale .*\(2,\)"):
        GuidanceScale(MLP(MLPConfig()))(torch.zeros(2, 2), torch.zeros(2), Scaled(torch.ones(3)))


def student_of(low: float, high: float) -> Model:
    """Return a student of a fresh network with classes."""
    net = MLP(MLPConfig(width=8, classes=2))
    return student(Model(NetDenoiser(net, Cosine()), (2,), ("a", "b")), low, high)
