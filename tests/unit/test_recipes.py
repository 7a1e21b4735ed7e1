"""Recipes: what may stand in them, how keys are changed, and what they become."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import torch

from fewstep import data, model, recipes
from fewstep.data import Images
from fewstep.errors import UsageError
from fewstep.nets.published import PUBLISHED
from fewstep.objectives import times, weights
from fewstep.recipes import build, dump, load, override, parse, propose, read, schema, shipped
from fewstep.recipes.build import TIMES, WEIGHTS
from fewstep.train.config import FitConfig

SMALL = {"net": {"width": 8, "depth": 1, "heads": 1}, "train": {"batch_size": 8}}


def noise(shape=(1, 8, 8), classes=("a", "b"), n=40):
    rng = np.random.default_rng(0)
    labels = np.arange(n, dtype=np.int64) % max(len(classes), 1)
    return Images.of(rng.integers(0, 256, (n, *shape), dtype=np.uint8), labels, classes, "noise")


SIZES = {"digits": (1, 8), "mnist": (1, 28), "cifar10": (3, 32)}
"""Channels and side of the images that a shipped recipe is for, where it does not give them."""


def images_for(recipe):
    """Return as many images as a batch of a recipe has, of its shape, that take no memory."""
    d, n = recipe.data, recipe.train.batch_size
    channels, side = SIZES.get(d.path) or (d.channels, d.size)
    count = {"imagenet": 1000, "lsun": 0}.get(d.path, 10)
    shades = np.arange(n, dtype=np.uint8)[:, None, None, None]  # a ladder needs two that differ
    pixels = np.broadcast_to(shades, (n, channels, side, side))
    labels = np.arange(n, dtype=np.int64) % max(count, 1)
    return Images(pixels, labels, tuple(f"c{i}" for i in range(count)), d.path, "0" * 64)


@pytest.fixture
def weightless(monkeypatch):
    """Networks on the device meta: a published one has half a billion weights."""
    module = importlib.import_module("fewstep.recipes.build")  # the package's name is the function
    unet = module.UNet

    def build_on_meta(config):
        with torch.device("meta"):
            return unet(config)

    monkeypatch.setattr(module, "UNet", build_on_meta)


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_can_be_built(name, weightless):
    recipe = parse(load(read.shipped_path(name)))
    assert recipe.folder == f"runs/{name}"
    built = build(recipe, images_for(recipe))
    assert built.config.steps == recipe.train.steps


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("adm-imagenet64", 295_904_454),
        ("adm-imagenet128", 421_529_606),
        ("adm-imagenet256", 553_838_086),
        ("adm-imagenet512", 558_997_638),
        ("adm-lsun256", 552_814_086),
    ],
)
def test_published_recipes_have_the_published_networks(name, count, weightless):
    """Every field, and the number of parameters of the paper's table 11."""
    recipe = parse(load(read.shipped_path(name)))
    net = build(recipe, images_for(recipe)).model.denoiser.net
    assert model.parameter_count(net) == count
    assert dataclasses.replace(net.config, null=False) == PUBLISHED[name]
    assert net.config.null == (not net.config.classes)
    assert net.recompute


def test_the_network_for_one_gpu_is_of_middle_size(weightless):
    recipe = parse(load(read.shipped_path("cifar10-adm")))
    built = build(recipe, images_for(recipe)).model
    assert 8e6 < model.parameter_count(built.denoiser) < 16e6
    assert built.learned_variance


def test_the_digits_recipe_has_a_small_network():
    recipe = parse(load(read.shipped_path("digits")))
    built = build(recipe, data.open("digits")[0])
    assert 3e5 < model.parameter_count(built.model.denoiser) < 1.5e6
    assert built.model.denoiser.null
    assert repr(built.model.denoiser.param) == "V"


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_train_on_every_device(name):
    assert parse(load(read.shipped_path(name))).train.precision in ("auto", "fp32")


def test_what_is_written_down_is_the_recipe(tmp_path):
    recipe = parse(override(SMALL, ["seed=18446744073709551615", "out=a b", "data.size=16"]))
    path = tmp_path / "config.yaml"
    path.write_text(dump(recipe))
    assert parse(load(path)) == recipe
    assert recipe.seed == 2**64 - 1


def test_overrides_are_typed_and_leave_the_original_alone():
    values = {"train": {"lr": 0.1}}
    words = [
        "train.lr=1e-4",
        "net.mult=[1, 2.5]",
        "train.flip=true",
        "name=2024",
        "data.size=null",
    ]
    recipe = parse(override(values, words))
    assert recipe.train.lr == 1e-4  # YAML alone would read this as text
    assert recipe.net.mult == (1.0, 2.5)
    assert recipe.train.flip is True
    assert recipe.name == "2024"
    assert recipe.data.size is None
    assert values == {"train": {"lr": 0.1}}


def test_changing_the_process_drops_the_parameters_of_the_old_one():
    values = {"process": {"name": "Cosine", "floor": 0.01}}
    recipe = parse(override(values, ["process.name=VP", "process.beta_max=10"]))
    assert recipe.process == {"name": "VP", "beta_min": 0.1, "beta_max": 10.0}
    with pytest.raises(UsageError, match="floor"):
        parse(override({}, ["process.floor=warm"]))


@pytest.mark.parametrize("key", list(read.keys()))
def test_every_key_takes_its_own_default(key):
    value = parse({}).model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    if key == "process":
        return
    text = value if isinstance(value, str) else json.dumps(value)
    assert parse(override({}, [f"{key}={text}"])) == parse({})


def test_the_first_fault_is_told_and_the_others_counted():
    with pytest.raises(UsageError, match=r"train.steps=0: must be .* \(and 1 more\)"):
        parse({"train": {"steps": 0, "lr": 0}})


def test_settings_are_those_of_the_layers_below():
    fit = {f.name for f in dataclasses.fields(FitConfig)} - {"seed"}
    assert set(schema.Train.model_fields) - {"replacement"} == fit
    defaults = schema.Train()
    same = [n for n in fit if getattr(defaults, n) == getattr(FitConfig(), n)]
    assert set(same) == fit
    assert schema.Sampling().model_dump() == dataclasses.asdict(model.Sampling())


def test_the_network_meets_its_images():
    colour = build(parse(SMALL), noise((3, 8, 8), ("a", "b", "c"))).model
    config = colour.denoiser.net.config
    assert (config.in_channels, config.out_channels, config.classes) == (3, 3, 3)
    assert colour.classes == ("a", "b", "c")
    plain = build(parse(SMALL), noise(classes=())).model
    assert plain.denoiser.net.config.classes == 0
    with pytest.raises(UsageError, match=r"10x10.*multiple of 4.*8 or 12"):
        build(parse({**SMALL, "net": {"width": 8, "mult": [1, 1, 1]}}), noise((1, 10, 10)))


def test_without_label_dropout_there_is_no_null_condition():
    dropped = build(parse({**SMALL, "objective": {"drop": 0.1}}), noise())
    kept = build(parse({**SMALL, "objective": {"drop": 0}}), noise())
    assert dropped.model.denoiser.null
    assert not kept.model.denoiser.null
    assert (dropped.objective.drop, kept.objective.drop) == (0.1, 0)
    with pytest.raises(UsageError, match="null condition"):
        build(
            parse({**SMALL, "objective": {"drop": 0}, "sampling": {"guidance_scale": 2}}), noise()
        )


def test_weights_come_from_the_seed_and_leave_the_global_numbers_alone():
    def first(seed):
        return next(build(parse({**SMALL, "seed": seed}), noise()).model.denoiser.parameters())

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two, other = first(1), first(1), first(2)
    assert torch.rand(1) == expected
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_model_does_not_say_where_its_data_lay():
    images = noise().renamed("/home/somebody/cats")
    about = build(parse(SMALL), images).model.about
    assert about["data"]["name"] == "cats"
    assert about["data"]["fingerprint"] == images.fingerprint


def test_objective_names_are_a_closed_table():
    goal = {"times": "log-normal", "weight": "edm", "view": "x0"}
    built = build(parse({**SMALL, "param": "EDM", "objective": goal}), noise())
    assert isinstance(built.objective.times, times.LogNormal)
    assert isinstance(built.objective.weight, weights.Edm)
    for name in TIMES:
        parse({"objective": {"times": name}})
    for name in WEIGHTS:
        parse({"objective": {"weight": name}})


@pytest.mark.parametrize(
    ("size", "n", "expected"),
    [
        ((8, 8), 40, {"size": None, "levels": 2, "batch": 32}),
        ((28, 28), 300, {"size": None, "levels": 3, "batch": 128}),
        ((30, 41), 40, {"size": 24, "levels": 3, "batch": 32}),
        ((200, 180), 40, {"size": 64, "levels": 4, "batch": 32}),
        ((5, 9), 40, {"size": 8, "levels": 2, "batch": 32}),
    ],
)
def test_a_proposal_fits_its_images(tmp_path, monkeypatch, size, n, expected):
    from PIL import Image

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for i in range(n):
        folder = tmp_path / "set" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, 0, 0)).save(folder / f"{i}.png")
    recipe, reasons = propose(tmp_path / "set")
    assert recipe.data.size == expected["size"]
    assert len(recipe.net.mult) == expected["levels"]
    assert recipe.train.batch_size == expected["batch"]
    assert recipe.name == "set"
    assert any("memorise" in line for line in reasons)
    assert propose(tmp_path / "set")[0] == recipe
    d = recipe.data
    train, _ = data.open(d.path, size=d.size, resize=d.resize, channels=d.channels)
    thin = recipe.net.model_copy(update={"width": 16})
    built = build(recipe.model_copy(update={"net": thin}), train)
    assert built.model.classes == ("a", "b")


def test_the_package_names_are_there():
    assert set(recipes.__all__) <= set(dir(recipes))
