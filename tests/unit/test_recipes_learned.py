"""Recipes of learned variances: what fits together, and what a key does to network and loss."""

import pytest

from fewstep import model, recipes, sampling
from fewstep.errors import UsageError
from fewstep.model import Sampling
from fewstep.objectives import Bound, Hybrid, LossSecondMoment
from fewstep.objectives.times import Uniform
from fewstep.recipes import override, parse
from unit.test_recipes import SMALL, noise

HYBRID = (
    "net.learn_variance=true", "process.name=Tabulated", "process.betas=cosine", "param=EPS",
    "objective.kind=hybrid", "objective.view=eps",
)  # fmt: skip


def build(*words):
    return recipes.build(parse(override(SMALL, words)), noise((3, 8, 8)))


def test_the_hybrid_objective():
    built = build(*HYBRID, "objective.drop=0.2")
    assert built.objective == Hybrid(1e-3, Uniform(), 0.2)
    assert built.model.denoiser.net.config.out_channels == 6
    assert built.model.learned_variance
    assert not build().model.learned_variance
    assert not build("kind=classifier", "net.learn_variance=true").model.learned_variance


def test_the_bound_and_its_times():
    plain = build(*HYBRID, "objective.kind=bound", "objective.view=v")
    assert plain.objective == Bound("learned", Uniform(), 0.1)
    learns = build(*HYBRID, "objective.kind=bound", "objective.times=importance",
                   "process.steps=40")  # fmt: skip
    assert isinstance(learns.objective.times, LossSecondMoment)
    assert learns.objective.times.steps == 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net.learn_variance=false"], "kind=hybrid with net.learn_variance=false"),
        (["objective.kind=simple"], "kind=simple with net.learn_variance=true"),
        (["process.name=Cosine"], "process.name=Cosine.*take process.name=Tabulated"),
        (["objective.kind=bound", "process.name=EDM"], "kind=bound with process.name=EDM"),
        (["objective.view=v"], "view=v.*give objective.view=eps"),
        (["objective.weight=edm"], "weight=edm: for objective.kind=simple alone"),
        (["objective.times=importance"], "importance: for objective.kind=bound alone"),
        (["objective.kind=bound", "objective.times=log-normal"], "log-normal: the mean"),
        (["kind=classifier", "objective.times=importance", "objective.kind=bound"], "importance"),
        (["net.head_channels=3"], "net: head_channels = 3 does not divide"),
        (["net.attention_order=old"], "net.attention_order=old: allowed are"),
        (["objective.kind=hybird"], 'did you mean "hybrid"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(words, message):
    with pytest.raises(UsageError, match=message) as e:
        build(*HYBRID, *words)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_channels", 4),
        ("attention_order", "legacy"),
        ("scale_shift", False),
        ("rescale", True),
        ("updown", False),
        ("resample_conv", False),
        ("groups", 2),
        ("dropout", 0.5),
    ],
)
def test_every_choice_reaches_the_network(key, value):
    config = build(f"net.{key}={str(value).lower()}").model.denoiser.net.config
    assert getattr(config, key) == value
    assert getattr(build().model.denoiser.net.config, key) != value


def test_recomputing_is_how_a_network_runs_and_not_what_it_is():
    one, two = build("net.recompute=true").model, build().model
    assert (one.denoiser.net.recompute, two.denoiser.net.recompute) == (True, False)
    assert one.describe() == two.describe()


def test_the_learned_variance_is_sampled_where_there_is_one():
    """A preset that needs it is refused when the run starts, in the words of the recipe."""
    wanted = Sampling("ddpm-learned", 3)
    learned = build(*HYBRID, "sampling.sampler=ddpm-learned").model
    assert repr(sampling.plan(learned, wanted).solver) == "DDPM(variance='learned', push=None)"
    *_, last = sampling.walk(learned, wanted, [0, 1], 2)
    assert last.x.shape == (2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"no learned variance \(net.learn_variance"):
        build("sampling.sampler=ddpm-learned")
    with pytest.raises(UsageError, match="no learned variance"):
        sampling.plan(build().model, wanted)


def test_a_model_with_a_learned_variance_comes_back():
    ours = build(*HYBRID, "net.head_channels=4", "sampling.sampler=ddpm-learned").model
    back = model.from_description(ours.describe())
    assert back.describe() == ours.describe()
    assert back.learned_variance
