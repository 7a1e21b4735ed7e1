"""What guidance refuses, and how it says it."""

import math

import pytest
import torch

from fewstep import guide
from fewstep.denoiser import NetDenoiser
from fewstep.errors import UsageError
from fewstep.exact import Mixture
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.process import VP

MODEL = Mixture(VP(), torch.tensor([[1.0], [-1.0]]), 0.2, torch.tensor([0, 1]))


def deaf() -> NetDenoiser:
    """A model that was trained without label dropout."""
    return NetDenoiser(MLP(MLPConfig(classes=2, null=False)), VP(), null=False)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_refuses_scales_that_are_no_numbers(scale: float) -> None:
    with pytest.raises(UsageError, match=r"guidance scale .* must be a finite number"):
        guide.ClassifierFree(MODEL, scale)
    with pytest.raises(UsageError, match=r"guidance scale .* must be a finite number"):
        guide.LogProb(MODEL, MODEL.log_prob, scale)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_refuses_guidance_of_a_model_without_the_null(scale: float) -> None:
    with pytest.raises(UsageError, match="never saw the null condition"):
        guide.ClassifierFree(deaf(), scale)
    with pytest.raises(UsageError, match="never saw the null condition"):
        guide.ClassifierFree(guide.Clamp(deaf()), scale)
    with pytest.raises(UsageError, match="never saw the null condition"):
        guide.Unconditional(deaf())
    assert guide.ClassifierFree(deaf(), 1.0).cost(0.5) == 1


def test_no_guidance_gives_a_model_the_null_that_it_never_saw() -> None:
    model = deaf()
    for g in (
        guide.ClassifierFree(model, 1.0),
        guide.LogProb(model, MODEL.log_prob, 2.0),
        guide.Interval(model, MODEL),
        guide.Interval(MODEL, model),
        guide.Clamp(model),
        guide.Threshold(model),
        guide.Rescaled(model, 1.0),
        guide.Projected(model, 1.0),
    ):
        with pytest.raises(UsageError, match="never saw the null condition"):
            guide.Unconditional(g)


def test_a_weak_model_without_the_null_takes_it_from_the_pair() -> None:
    """At scale 1 the weak model is not asked, and the good one's null condition is left."""
    good = NetDenoiser(MLP(MLPConfig(classes=2)), VP())
    pair = guide.Auto(good, deaf(), 2.0)
    with pytest.raises(UsageError, match="never saw the null condition"):
        guide.Unconditional(pair)
    with pytest.raises(UsageError, match="never saw the null condition"):
        guide.ClassifierFree(pair, 3.0)
    guide.Unconditional(guide.Auto(good, deaf(), 1.0))
    with pytest.raises(UsageError, match="never saw the null condition"):
        guide.Unconditional(guide.Auto(deaf(), good, 2.0))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (2.0, 2.0), (3.0, 1.0), (math.nan, 1.0)])
def test_refuses_empty_intervals(low: float, high: float) -> None:
    with pytest.raises(UsageError, match="0 <= low < high"):
        guide.Interval(MODEL, MODEL, low, high)


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (0.0, 0.0), (math.nan, 1.0)])
def test_refuses_an_empty_clamp(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        guide.Clamp(MODEL, low, high)


def test_an_unconditional_mixture_refuses_classes() -> None:
    model = Mixture(VP(), torch.zeros(1, 1), 0.2)
    with pytest.raises(ValueError, match="the components have no classes"):
        model(torch.zeros(2, 1), 0.5, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"classes of shape \(3,\): expected \(1,\)"):
        Mixture(VP(), torch.zeros(1, 1), 0.2, torch.zeros(3))
    with pytest.raises(ValueError, match="std must be"):
        Mixture(VP(), torch.zeros(1, 1), -0.2)


def test_classifier_gradients_do_not_need_or_leave_a_graph() -> None:
    x = torch.randn(3, 1, requires_grad=True)
    with torch.no_grad():
        out = guide.LogProb(MODEL, MODEL.log_prob, 2.0)(x, 0.5, torch.tensor([0, 1, 1])).x0
    assert not out.requires_grad
    assert x.grad is None


def test_a_mixture_lives_where_its_means_are() -> None:
    """The device of the means decides, not the default one."""
    means, classes = torch.zeros(2, 1), torch.tensor([0, 1])
    with torch.device("meta"):
        model = Mixture(VP(), means, 0.2, classes)
    assert {b.device.type for b in model.buffers()} == {"cpu"}


def test_points_have_no_width_but_widths_are_not_negative() -> None:
    assert float(Mixture(VP(), torch.zeros(1, 1), 0.0).std) == 0.0
    with pytest.raises(ValueError, match=r"std must be >= 0, got -0\.1"):
        Mixture(VP(), torch.zeros(1, 1), -0.1)
