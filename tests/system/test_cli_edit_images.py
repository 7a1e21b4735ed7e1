"""`fewstep edit inpaint`, `colorize`, `superres`, `stroke`: real files in, what is known kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import made
from fewstep.data.digits import digits
from fewstep.denoiser import NetDenoiser
from fewstep.model import Model, Sampling
from fewstep.process import Cosine
from fewstep.report.picture import read_settings
from fewstep.train import checkpoint
from tests.system.cli_runs import call, process, refused
from tests.system.editing import answering, lower_half, pixels

IN = ("inpaint", "digits", "3.png", "--mask", "mask.png")
WEIGHTS = np.array([0.2989, 0.5870, 0.1140])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with two held-out digits, a mask, a small image and a photograph's like."""
    monkeypatch.chdir(tmp_path)
    _, held = digits()
    for k in (3, 7):
        pixels = held.pixels[int(np.flatnonzero(np.asarray(held.labels) == k)[0]), 0]
        Image.fromarray(np.asarray(pixels)).save(f"{k}.png")
    lower_half("mask.png")
    Image.open("3.png").resize((4, 4), Image.Resampling.BOX).save("small.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save("photo.jpg")
    return tmp_path


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    """A model of RGB images that learnt nothing, but answers differently to each."""
    where = tmp_path_factory.mktemp("models") / "rgb"
    model = Model(NetDenoiser(answering(), Cosine()), (3, 8, 8))
    checkpoint.save_model(replace(model, sampling=Sampling(steps=4)), where)
    return where


def tiles(path, columns):
    """Return the images of such a picture, (rows, columns, 8, 8[, 3])."""
    sheet = pixels(path)
    cut = sheet.reshape(len(sheet) // 8, 8, columns, 8, *sheet.shape[2:])
    return cut.swapaxes(1, 2)


def test_half_a_digit_is_painted_anew(folder):
    words = ("edit", "inpaint", "digits", "3.png", "7.png", "--mask", "mask.png", "-n", "3")
    more = ("--label", "3,7", "--repeat", "3", "--steps", "10", "--scale", "1", "-o", "in.png")
    done = process(*words, *more, "--format", "json", cwd=folder, stdout=-1, stderr=-1)
    out, err = done.communicate()
    assert (done.returncode, err) == (0, "")
    told = json.loads(out)
    assert told["nfe"] == 2 * (9 * 3 + 1)  # guided: two each; the step to clean is walked once
    assert (told["file"], told["strip"]) == ("in.png", "in-strip.png")
    results, strip = tiles("in.png", 3), tiles("in-strip.png", 5)
    for k, row, shown in zip((3, 7), results, strip, strict=True):
        original = pixels(f"{k}.png")
        assert (row[:, :4] == original[:4]).all()  # to the last bit
        assert (row[:, 4:] != original[4:]).any()
        assert (row[0] != row[1]).any()
        assert (shown[0] == original).all()
        assert (shown[1][:4] == original[:4]).all()
        assert (shown[1][4:] == 128).all()
        assert (shown[2:] == row).all()
    inside = read_settings(folder / "in.png")
    assert [i["image"] for i in inside["images"]] == ["3.png", "7.png"]
    assert [i["label"] for i in inside["images"]] == ["3", "7"]
    assert [i["kept_to"] for i in inside["images"]] == [0, 0]
    assert (inside["repeat"], inside["sampling"]["guidance_scale"]) == (3, 2)


def test_each_result_has_its_seed(capsys, monkeypatch):
    words = ("edit", "inpaint", "digits", "--mask", "mask.png", "--scale", "1", "--steps", "4")
    assert call(capsys, *words, "3.png", "7.png", "-n", "3", "-o", "all.png")[0] == 0
    together = tiles("all.png", 3)
    monkeypatch.setattr(made, "_BATCH_PIXELS", 2 * 64)  # two images, then one
    assert call(capsys, *words, "3.png", "7.png", "-n", "3", "-o", "parts.png")[0] == 0
    assert (tiles("parts.png", 3) == together).all()
    assert call(capsys, *words, "7.png", "--seed", "4", "-o", "one.png")[0] == 0
    assert (tiles("one.png", 1)[0, 0] == together[1, 1]).all()


def test_a_small_image_is_enlarged_with_its_means(capsys):
    words = ("edit", "superres", "digits", "--label", "3", "-n", "4", "--scale", "1")
    code, _, err = call(capsys, *words, "small.png", "-o", "large.png")
    assert (code, err) == (0, "")
    small = pixels("small.png")
    for image in tiles("large.png", 4)[0]:
        assert np.abs(image.reshape(4, 2, 4, 2).mean((1, 3)) - small).max() < 0.6
        assert (image.reshape(4, 2, 4, 2).std((1, 3)) > 5).any()
    kept = tiles("large-strip.png", 6)[0, 1]
    assert (kept == small.repeat(2, 0).repeat(2, 1)).all()
    code, _, err = call(capsys, *words, "3.png", "--factor", "4", "-o", "large4.png")
    assert (code, err) == (0, "3.png: 8x8, stretched to 2x2\n")
    assert read_settings(Path("large4.png"))["images"][0]["factor"] == 4


def test_a_grey_image_gets_colours_and_keeps_its_luminance(capsys, rgb):
    words = ("edit", "colorize", rgb, "-n", "4", "--scale", "1")
    code, out, err = call(capsys, *words, "3.png", "photo.jpg", "-o", "col.png")
    assert (code, err) == (0, "photo.jpg: 16x12, stretched to 8x8\n"), err
    assert "8 images" in out
    grey = pixels("3.png")
    results, strip = tiles("col.png", 4), tiles("col-strip.png", 6)
    for image in results[0]:
        assert np.abs(image @ WEIGHTS - grey * WEIGHTS.sum()).max() < 1
    middle = (grey > 30) & (grey < 220)  # black and white have no colours
    assert np.ptp(results[0][:, middle], axis=-1).mean() > 10
    assert (results[0][0] != results[0][1]).any()
    assert (strip[0, 1] == grey[..., None]).all()
    assert np.ptp(strip[1, 0], axis=-1).max() > 10  # the photograph as it was, then grey
    assert (np.ptp(strip[1, 1], axis=-1) == 0).all()


def test_a_sketch_is_returned_at_0_and_forgotten_at_1(capsys):
    words = ("edit", "stroke", "digits", "3.png", "--scale", "1", "--label", "7", "-n", "3")
    ends = {}
    for s in ("0", "0.2", "1"):
        assert call(capsys, *words, "--strength", s, "-o", "s.png", "--seed", "5")[0] == 0
        ends[s] = tiles("s.png", 3)[0]
        assert read_settings(Path("s.png"))["strength"] == float(s)
    assert (ends["0"] == pixels("3.png")).all()
    new = ("sample", "digits", "--label", "7", "-n", "3", "--seed", "5", "--eta", "1")
    assert call(capsys, *new, "--scale", "1", "-o", "grid.png")[0] == 0
    assert (ends["1"] == tiles("grid.png", 2).reshape(-1, 8, 8)[:3]).all()

    def far(images):
        return float(np.abs(images - pixels("3.png")).mean())

    assert 0 < far(ends["0.2"]) < 0.7 * far(ends["1"])


def test_a_strip_that_is_there_stays(capsys, folder):
    shutil.copy("7.png", "x-strip.png")
    words = ("edit", "stroke", "digits", "x-strip.png", "--steps", "2", "-o", "x.png")
    code, out, _ = call(capsys, *words)
    assert (code, "before and after: x-strip-2.png" in out) == (0, True)
    assert call(capsys, *words)[0] == 0  # a result that is named is made anew
    assert (folder / "x-strip.png").read_bytes() == (folder / "7.png").read_bytes()
    names = {"x.png", "x-strip.png", "x-strip-2.png", "x-strip-3.png"}
    assert {path.name for path in folder.glob("x*")} == names


def test_what_is_said_is_what_was_walked(capsys):
    words = ("edit", "stroke", "digits", "3.png", "--steps", "10", "-n", "2", "-o", "x.png")
    code, out, _ = call(capsys, *words, "--strength", "0.3", "--seed", 2**64 - 1)
    inside = read_settings(Path("x.png"))
    assert (code, inside["steps"], inside["sampling"]["steps"]) == (0, inside["nfe"], 10)
    assert 1 < inside["steps"] < 10
    assert f"ddim {inside['steps']} steps of" in out
    assert f"seeds {2**64 - 1}..0" in out


def test_every_file_is_read_once(capsys):
    words = ("edit", "inpaint", "digits", "photo.jpg", "3.png", "photo.jpg", "--mask", "white.png")
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save("white.png")
    code, _, err = call(capsys, *words, "--steps", "2", "-o", "x.png")
    assert (code, err.count("white.png: 9x9"), err.count("white.png: all")) == (0, 1, 1)
    assert err.count("photo.jpg: 16x12") == 1
    walk = ("edit", "interpolate", "digits", "photo.jpg", "photo.jpg", "--label", "1,2,3")
    code, _, err = call(capsys, *walk, "--steps", "4", "-n", "2", "-o", "y.png")
    assert (code, err.count("photo.jpg: 16x12")) == (0, 1)


def test_new_files_are_named_by_what_they_are(capsys, folder):
    for name in ("digits-stroke-3-and-1", "digits-stroke-3-and-1-2"):
        assert call(capsys, "edit", "stroke", "digits", "3.png", "7.png", "--steps", "2")[0] == 0
        assert (folder / f"{name}.png").is_file()
        assert (folder / f"{name}-strip.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("inpaint", "digits", "3.png"), 2, "--mask is missing"),
        (("inpaint", "digits", "3.png", "--mask", "no.png"), 2, "no.png: no such file"),
        (("inpaint", "digits", "no.png", "--mask", "mask.png"), 2, "no.png: no such file"),
        (("inpaint", "digits", "text.png", "--mask", "mask.png"), 3, "text.png: not an image"),
        (("stroke", "digits", "text.png"), 3, "give a whole image file: PNG, JPEG, WebP"),
        (("stroke", "digits", "part.png"), 3, "part.png: truncated at byte 60; give a whole"),
        (("stroke", "digits", "a.png"), 2, "a.png: a folder; give an image file: PNG"),
        (("stroke", "digits", "3.png", "-o", "a.png"), 2, "a folder; must be a file that ends"),
        (("stroke", "digits", "3.png", "-o", ""), 2, ".png"),
        (("stroke", "digits", "7.png", "3.png", "-o", "3.png"), 2, "-o 3.png: is the input"),
        (("stroke", "digits", "3.png", "-o", "./link.png"), 2, "is the input 3.png, which is"),
        (("stroke", "digits", "link.png", "-o", "3.png"), 2, "is the input link.png"),
        (("inpaint", "digits", "3.png", "--mask", "mask.png", "-o", "mask.png"), 2, "the input"),
        (("inpaint", "digits", "3.png", "--mask", "mask.png", "--jump", "3"), 2, "needs --repeat"),
        ((*IN, "--steps", "4", "--repeat", "2", "--jump", "4"), 2, "4 steps have parts of 1..3"),
        (("inpaint", "digits", "3.png", "--mask", "mask.png", "--repeat", "0"), 2, "1..1000"),
        (("inpaint", "digits", "3.png", "--mask", "mask.png", "--eta", "9"), 2, "largest legal"),
        (("inpaint", "digits", "3.png", "--mask", "mask.png", "--eta", "-1"), 2, "eta -1"),
        (("inpaint", "digits", "3.png", "--mask", "mask.png", "-o", "x.jpg"), 2, ".png"),
        (("colorize", "digits", "3.png"), 2, "makes grey images"),
        (("superres", "digits", "3.png"), 2, "8x8 is no whole part of the model's 8x8"),
        (("superres", "digits", "photo.jpg"), 2, "16x12 is no whole part"),
        (("superres", "digits", "3.png", "--factor", "3"), 2, "allowed are 2, 4, 8"),
        (("stroke", "digits", "3.png", "--strength", "1.5"), 2, "--strength 1.5"),
        (("stroke", "digits", "3.png", "--strength", "nan"), 2, "--strength nan"),
        (("stroke", "digits", "3.png", "--guidance-scale", "2"), 2, "--label"),
        (("stroke", "digits", "3.png", "--label", "3,7"), 2, "2 classes for 1 images"),
        (("stroke", "digits", "3.png", "--label", "x"), 2, "allowed are"),
        (("stroke", "digits", "3.png", "-n", "0"), 2, "1..1000"),
        (("stroke", "digits", "3.png", "--steps", "0"), 2, "see fewstep edit stroke --help"),
        (("stroke", "digits", "3.png", "--seed", "-1"), 2, "2^64-1"),
        (("stroke", "nothing", "3.png"), 4, "nothing"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, folder, words, code, named):
    (folder / "text.png").write_text("not an image")
    (folder / "part.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (folder / "a.png").mkdir()
    (folder / "link.png").symlink_to("3.png")
    before = sorted(folder.iterdir())
    images = {path: path.read_bytes() for path in before if path.is_file()}
    refused(call(capsys, "edit", *words), code, named)
    assert sorted(folder.iterdir()) == before
    assert all(path.read_bytes() == image for path, image in images.items())
