"""`fewstep edit` with students, which begin their steps where they were trained alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.denoiser import NetDenoiser
from fewstep.model import Model, Sampling
from fewstep.process import EDM, Cosine
from fewstep.report.picture import read_settings
from fewstep.train import checkpoint
from tests.system.cli_runs import call, refused
from tests.system.editing import answering, lower_half, made, pixels

LEVELS = (80.0, 0.8, 0.2)


def saved(where, sampling, process, **student):
    """Save a student that learnt nothing, but answers differently to each image."""
    model = Model(NetDenoiser(answering(), process), (3, 8, 8), sampling=sampling, student=student)
    checkpoint.save_model(model, where)
    return where


@pytest.fixture(scope="module", params=["cosine", "edm"])
def consistent(tmp_path_factory, request):
    """A consistency student of 3 steps."""
    where = tmp_path_factory.mktemp("models") / "few"
    process = Cosine() if request.param == "cosine" else EDM(120.0)
    return saved(where, Sampling("consistency", 3, levels=LEVELS), process, kind="consistency")


@pytest.fixture(scope="module", params=[4, 1])
def halved(tmp_path_factory, request):
    """A progressive student of 4 steps, or of 1."""
    where, n = tmp_path_factory.mktemp("models") / "halved", request.param
    return saved(where, Sampling("ddim", n), Cosine(), kind="progressive", steps=n), n


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a picture and a mask of its lower half."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    lower_half("mask.png")
    return tmp_path


# ---------------------------------------------------------------- consistency students
def test_a_walk_begins_at_the_first_level(capsys, consistent):
    """Its ends are the images of `sample --steps 1`."""
    told = made(capsys, "edit", "interpolate", consistent, "3", "8", "-n", "4")
    assert (told["sampling"]["levels"], told["steps"]) == ([80.0], 1)
    sheet = pixels("x.png")
    for seed, image in ((3, sheet[:, :8]), (8, sheet[:, -8:])):
        one = made(capsys, "sample", consistent, "-n", "1", "--seed", seed, "--steps", "1")
        assert (one["sampling"]["levels"], one["nfe"]) == ([80.0], 1)
        assert np.abs(pixels("x.png") - image).max() <= 1
    assert read_settings(Path("x.png"))["sampling"]["levels"] == [80.0]


def test_a_sketch_begins_no_higher_than_was_trained(capsys, consistent):
    stroke = ("edit", "stroke", consistent, "a.png")
    told = made(capsys, *stroke, "--strength", "1")
    assert (told["sampling"]["levels"], told["nfe"]) == (list(LEVELS), 3)
    forgotten = pixels("x.png")
    made(capsys, *stroke, "--strength", "0.999")  # more noise than at level 80
    assert (pixels("x.png") == forgotten).all()
    made(capsys, "sample", consistent, "-n", "1")
    assert np.abs(pixels("x.png") - forgotten).max() <= 1
    assert made(capsys, *stroke, "--strength", "0.5")["nfe"] == 3  # from 1, 0.8 and 0.2
    assert made(capsys, *stroke, "--strength", "0.4")["nfe"] == 2  # from 0.7 and 0.2
    told = made(capsys, *stroke, "--steps", "2", "--strength", "1")
    assert told["sampling"]["levels"] == [80.0, 0.8]
    refused(call(capsys, *stroke, "--steps", "4"), 2, "steps 4: ", "1..3 steps")
    refused(call(capsys, *stroke, "--spacing", "karras"), 2, "spacing karras: ", "1..3 steps")


@pytest.mark.parametrize(
    "more", [(), ("--steps", "40"), ("--steps", "5"), ("--spacing", "karras")]
)
def test_what_is_completed_goes_down_from_the_first_level(capsys, consistent, more):
    """Karras' levels, of any number; each within those that were trained."""
    words = ("edit", "inpaint", consistent, "a.png", "--mask", "mask.png")
    told = made(capsys, *words, *more)
    n = 5 if "5" in more else 40
    levels = told["sampling"]["levels"]
    assert (len(levels), told["nfe"], told["images"][0]["kept_to"]) == (n, n, 0)
    assert levels[0] == 80.0
    assert all(a > b for a, b in pairwise(levels))
    assert 0.002 <= levels[-1] < 0.01
    root = [level ** (1 / 7) for level in levels]
    assert np.diff(root) == pytest.approx(np.full(n - 1, root[1] - root[0]))


def test_another_spacing_of_what_is_completed_is_refused(capsys, consistent):
    words = ("edit", "inpaint", consistent, "a.png", "--mask", "mask.png", "--spacing", "even")
    refused(call(capsys, *words), 2, "spacing even: ", "consistency student")


# ---------------------------------------------------------------- progressive students
def test_a_student_edits_in_its_own_way(capsys, halved):
    """Without settings: as many steps as it was made for, without fresh noise."""
    student, n = halved
    mask = ("--mask", "mask.png")
    for verb, more in (("inpaint", mask), ("stroke", ()), ("stroke", ("--eta", "0"))):
        told = made(capsys, "edit", verb, student, "a.png", *more)
        assert (told["sampling"]["eta"], told["sampling"]["steps"]) == (0, n)
    made(capsys, "edit", "inpaint", student, "a.png", *mask, "--repeat", "2")
    assert (pixels("x.png")[:4] == pixels("a.png")[:4]).all()


@pytest.mark.parametrize("verb", [("inpaint", "--mask", "mask.png"), ("stroke",)])
def test_what_differs_from_a_students_way_is_named(capsys, halved, verb):
    student, n = halved
    words = ("edit", verb[0], student, "a.png", *verb[1:])
    made_for = f"made for {n} step"
    refused(call(capsys, *words, "--eta", "1"), 2, "error: eta 1: this model", made_for)
    refused(call(capsys, *words, "--steps", "9"), 2, "error: steps 9: this model", made_for)
    refused(call(capsys, *words, "--spacing", "karras"), 2, "error: spacing karras: ", made_for)


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.5, 0.6, 0.9, 1.0])
def test_a_sketch_gets_the_noise_of_a_time_that_the_student_knows(capsys, halved, strength):
    student, n = halved
    told = made(capsys, "edit", "stroke", student, "a.png", "--strength", strength)
    k = max(1, round(strength * n))  # steps that are left; the cosine's times are shares
    assert (told["steps"], told["nfe"]) == (k, k)
    assert told["strength"] == pytest.approx(k / n if k < n else 1.0, abs=1e-3)
    assert told["strength_asked"] == strength
    code, out, err = call(
        capsys, "edit", "stroke", student, "a.png", "--strength", strength, "-o", "x.png"
    )
    assert code == 0
    said = (
        f"strength {told['strength']:.3g} in place of {strength:g}, as the student knows no noise"
    )
    assert (said in out) == (abs(k / n - strength) > 0.01)
    assert ("warning: strength 1: the image is forgotten" in err) == (k == n and strength < 0.99)


def test_no_noise_and_nothing_but_noise(capsys, halved):
    student, _ = halved
    made(capsys, "edit", "stroke", student, "a.png", "--strength", "0")
    assert (pixels("x.png") == pixels("a.png")).all()
    made(capsys, "edit", "stroke", student, "a.png", "--strength", "1", "--seed", "5")
    forgotten = pixels("x.png")
    made(capsys, "sample", student, "-n", "1", "--seed", "5")
    assert np.abs(pixels("x.png") - forgotten).max() <= 1


def test_the_shipped_student_redraws_without_settings(capsys):
    told = made(capsys, "edit", "stroke", "digits-4step", "a.png", "--label", "3")
    assert (told["sampling"]["eta"], told["steps"], told["nfe"]) == (0, 2, 2)
