"""Recipes that match scores: what they build, what the images settle, what is refused."""

import numpy as np
import pytest
import torch

from fewstep.data import Images
from fewstep.denoiser import EPS, NetDenoiser
from fewstep.errors import UsageError
from fewstep.labels import nothing
from fewstep.langevin import ladder
from fewstep.objectives import DenoisingScore, SlicedScore
from fewstep.objectives.times import Ladder, Uniform
from fewstep.process import VE
from fewstep.recipes import build, dump, load, override, parse, read, settle

NCSN = load(read.shipped_path("digits-ncsn"))


def images(side: int = 8) -> Images:
    """Return 200 random grey images of three classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 1, side, side), dtype=np.uint8)
    return Images.of(pixels, np.arange(200) % 3, ("a", "b", "c"), "noise")


def made(*changes: str):
    return build(parse(override(NCSN, list(changes))), images())


def test_the_images_settle_ladder_and_steps():
    """NCSNv2's techniques 1, 2 and 4, against the rules themselves."""
    recipe, line = settle(parse(NCSN), images())
    x, _ = images().batch(np.arange(200))
    flat = x.flatten(1).double()
    far = float((flat[:, None] - flat).square().sum(2).max().sqrt())
    assert recipe.process["sigma_max"] == pytest.approx(far, abs=1e-3)
    sigmas = ladder.levels_for(x, torch.Generator(), 0.03)
    assert recipe.objective.levels == len(sigmas)
    assert recipe.sampling.steps == len(sigmas) - 1
    rho = ladder.epsilon_for(sigmas, 5) / 0.03**2
    assert recipe.sampling.snr == pytest.approx((rho / 2) ** 0.5, abs=1e-4)
    for value in (recipe.process["sigma_max"], recipe.objective.levels, recipe.sampling.snr):
        assert f"{value:g}" in line
    assert dump(recipe).count(": auto") == 2  # device and precision
    assert settle(recipe, images()) == (recipe, "")
    assert settle(parse(NCSN), images())[0] == recipe


def test_what_is_said_is_kept():
    words = ["process.sigma_max=4", "objective.levels=7", "sampling.each=2"]
    recipe, _ = settle(parse(override(NCSN, words)), images())
    assert (recipe.process["sigma_max"], recipe.objective.levels) == (4.0, 7)
    assert recipe.sampling.steps == 6
    sigmas = ladder.geometric(4.0, 0.03, 7)
    assert recipe.sampling.snr == pytest.approx(ladder.snr_for(sigmas, 2), abs=1e-4)


def test_the_recipe_is_ncsnv2():
    built = made()
    goal, model = built.objective, built.model
    assert isinstance(goal, DenoisingScore)
    assert isinstance(model.denoiser.process, VE)
    assert goal.times == Ladder(model.sampling.steps + 1)
    assert isinstance(model.denoiser, NetDenoiser)
    assert (model.denoiser.param, model.denoiser.label) == (EPS, nothing)
    for p in model.denoiser.parameters():  # a fresh network says 0
        torch.nn.init.normal_(p, std=0.05)
    x = torch.randn(2, 1, 8, 8)
    one, two = (model.denoiser(x, t, None) for t in (0.2, 0.9))
    p = model.denoiser.process
    pair = one.score * p.sigma(0.2), two.score * p.sigma(0.9)
    assert torch.allclose(*pair, rtol=1e-5)  # technique 3


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["objective.kind=sliced"], ("rademacher", 1, False)),
        (["objective.kind=sliced-vr", "objective.projections=3"], ("rademacher", 3, True)),
        (["objective.kind=sliced", "objective.directions=unit"], ("unit", 1, False)),
    ],
)
def test_sliced_kinds_are_built(words, want):
    goal = made(*words, "objective.levels=1", "sampling.steps=10").objective
    assert isinstance(goal, SlicedScore)
    assert (goal.law, goal.count, goal.reduced, goal.times) == (*want, Ladder(1))


def test_without_levels_the_times_are_as_said():
    goal = made("objective.levels=null", "sampling.steps=19").objective
    assert isinstance(goal, DenoisingScore)
    assert goal.times == Uniform()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["process.name=VP"], "process"),
        (["process.sigma_max=never"], "sigma_max"),
        (["objective.levels=0"], "or auto"),
        (["sampling.snr=1.5"], "or auto"),
        (["objective.levels=null"], r"sampling\.steps=auto.*objective\.levels"),
        (["objective.levels=1"], "above 1"),
        (["process.sigma_min=50"], "0 < low < high"),
        (["objective.times=log-normal"], "times=uniform, or levels=null"),
        (["objective.weight=edm"], "kind=simple alone"),
        (["objective.kind=simple"], r"objective\.levels=\d+: not of objective\.kind=simple"),
        (["objective.kind=sliced-vr", "objective.directions=unit"], "needs E"),
        (["objective.kind=sliced", "net.recompute=true"], "net.recompute=false"),
        (["net.learn_variance=true"], "the others cannot"),
    ],
)
def test_keys_that_do_not_fit_are_refused(words, said):
    with pytest.raises(UsageError, match=said) as error:
        made(*words)
    assert "\n" not in str(error.value)


def test_a_ladder_is_of_an_exploding_process():
    plain = {k: v for k, v in NCSN.items() if k != "process"}
    with pytest.raises(UsageError, match="not of Cosine"):
        build(parse(plain), images())
    numbers = override(plain, ["objective.levels=5", "sampling.steps=4", "sampling.snr=0.3"])
    with pytest.raises(UsageError, match=r"that of process\.name=VE"):
        build(parse(numbers), images())
