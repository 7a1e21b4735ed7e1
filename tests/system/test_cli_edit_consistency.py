"""`fewstep sample` and `fewstep edit` with a model that is sampled as a consistency model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.denoiser import CONSISTENCY, NetDenoiser
from fewstep.model import Model, Sampling
from fewstep.process import EDM
from fewstep.report.picture import read_settings
from fewstep.train import checkpoint
from tests.system.cli_runs import call, refused
from tests.system.editing import answering, lower_half, made, pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A consistency model of RGB images that learnt nothing, but answers differently to each."""
    where = tmp_path_factory.mktemp("models") / "few"
    own, two = Sampling("consistency", 1, "karras"), (80.0, 1.382)
    tuned = {2: Sampling("consistency", 2, "karras", levels=two)}
    denoiser = NetDenoiser(answering(), EDM(), CONSISTENCY)
    checkpoint.save_model(Model(denoiser, (3, 8, 8), sampling=own, tuned=tuned), where)
    return where


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a picture, a small and a grey one, and a mask of its lower half."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, shape in {"a": (8, 8, 3), "small": (4, 4, 3), "grey": (8, 8)}.items():
        Image.fromarray(rng.integers(60, 200, shape, dtype=np.uint8)).save(f"{name}.png")
    lower_half("mask.png")
    return tmp_path


def test_samples_of_one_step_of_two_and_over_levels_of_ones_own(capsys, model):
    one = made(capsys, "sample", model, "-n", "1")
    assert (one["sampling"]["sampler"], one["nfe"]) == ("consistency", 1)
    first = pixels("x.png")
    two = made(capsys, "sample", model, "-n", "1", "--steps", "2")
    assert (two["sampling"]["levels"], two["nfe"]) == ([80.0, 1.382], 2)
    words = ("sample", model, "-n", "1", "--sampler", "consistency", "--levels", "80,0.8")
    own = made(capsys, *words)
    assert (own["sampling"]["levels"], own["nfe"]) == ([80.0, 0.8], 2)
    assert (pixels("x.png") != first).any()
    three = made(capsys, "sample", model, "-n", "1", "--steps", "3")
    assert (three["nfe"], "levels" in three["sampling"]) == (3, False)


def test_what_was_measured_stays(capsys, model):
    told = made(capsys, "edit", "inpaint", model, "a.png", "--mask", "mask.png", "-n", "2")
    assert (told["sampling"]["sampler"], told["nfe"], told["images"][0]["kept_to"]) == (
        "consistency", 40, 0,
    )  # fmt: skip
    sheet, original = pixels("x.png"), pixels("a.png")
    for image in (sheet[:, :8], sheet[:, 8:]):
        assert (image[:4] == original[:4]).all()
        assert (image[4:] != original[4:]).any()
    told = made(capsys, "edit", "superres", model, "small.png", "--steps", "4")
    assert told["nfe"] == 4
    means = pixels("x.png").reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(means - pixels("small.png")).max() < 1.5
    made(capsys, "edit", "colorize", model, "grey.png", "--steps", "4")
    weights = np.array([0.2989, 0.5870, 0.1140])
    off = pixels("x.png") @ weights - pixels("grey.png") * weights.sum()
    assert np.abs(off).max() < 2


def test_a_sketch_takes_the_steps_of_the_model(capsys, model):
    told = made(capsys, "edit", "stroke", model, "a.png", "--strength", "0.5")
    assert (told["steps"], told["nfe"], told["sampling"]["eta"]) == (1, 1, 0)
    made(capsys, "edit", "stroke", model, "a.png", "--strength", "0")
    assert (pixels("x.png") == pixels("a.png")).all()
    code, out, _ = call(capsys, "edit", "stroke", model, "a.png", "-o", "x.png")
    assert code == 0
    assert "1 image, consistency 1 step, 1 network evaluation each" in out


def test_the_ends_of_a_walk_are_the_samples_of_its_seeds(capsys, model):
    told = made(capsys, "edit", "interpolate", model, "3", "8", "-n", "4")
    assert (told["sampling"]["sampler"], told["steps"]) == ("consistency", 1)
    sheet = pixels("x.png")
    for seed, image in ((3, sheet[:, :8]), (8, sheet[:, -8:])):
        made(capsys, "sample", model, "-n", "1", "--seed", str(seed))
        assert np.abs(pixels("x.png") - image).max() <= 1
    assert read_settings(Path("x.png"))["sampling"]["sampler"] == "consistency"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("edit", "encode", "MODEL", "a.png"), "not the noise of an image"),
        (("edit", "interpolate", "MODEL", "a.png", "3"), "walk between two seeds"),
        (("edit", "interpolate", "MODEL", "2", "3", "--steps", "4"), "takes 1 step"),
        (("edit", "stroke", "MODEL", "a.png", "--eta", "0.5"), "only the sampler ddim"),
        (("edit", "stroke", "MODEL", "a.png", "--strength", "0.0001"), "ends at 0.002"),
        (("sample", "MODEL", "--levels", "80,0.001"), "ends at 0.002"),
    ],
)
def test_what_a_consistency_model_cannot_do_is_refused(capsys, model, words, named):
    said = [model if word == "MODEL" else word for word in words]
    refused(call(capsys, *said), 2, named)
