"""`fewstep edit` on the shipped model: round trips that close, walks that end where they must."""

import json

import numpy as np
import pytest
from PIL import Image

from fewstep.data.digits import digits
from fewstep.report.picture import read_settings
from tests.system.cli_runs import call, process, refused


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with two real held-out digits, 3 and 7."""
    monkeypatch.chdir(tmp_path)
    _, held = digits()
    for k in (3, 7):
        pixels = held.pixels[int(np.flatnonzero(np.asarray(held.labels) == k)[0]), 0]
        Image.fromarray(np.asarray(pixels)).save(f"{k}.png")
    return tmp_path


def run(cwd, *words):
    """Run the command line in a process of its own."""
    done = process(*words, cwd=cwd, stdout=-1, stderr=-1)
    out, err = done.communicate()
    return done.returncode, out, err


def tiles(path, columns):
    """Return the images of a PNG that is not enlarged, (rows, columns, 8, 8)."""
    sheet = np.asarray(Image.open(path)).astype(int)
    return sheet.reshape(len(sheet) // 8, 8, columns, 8).transpose(0, 2, 1, 3)


def test_a_real_digit_is_encoded_and_decoded(folder):
    words = ("edit", "encode", "digits", "3.png", "--label", "3", "--scale", "1")
    code, out, err = run(folder, *words, "-o", "trip.png", "--format", "json")
    assert code == 0, err
    told = json.loads(out)
    assert told["largest_error"] < 1e-4
    assert told["residual"] < 1e-4
    assert told["evaluations"] > 2 * told["steps"]  # not the flipped grid, which costs one each
    assert 0.6 < told["code_std"] < 1.3
    original, decoded, difference = tiles("trip.png", 3)[0]
    assert (original == np.asarray(Image.open("3.png"))).all()
    assert (decoded == original).all()
    assert np.ptp(difference) <= 1
    assert abs(difference.mean() - 127.5) <= 0.5
    inside = read_settings(folder / "trip.png")
    assert inside["mse"] == told["mse"]
    assert (inside["sampling"]["guidance_scale"], inside["sampling"]["clip"]) == (1, False)


def test_a_walk_between_images_has_them_at_its_ends(folder, capsys):
    words = ("edit", "interpolate", "digits", "3.png", "7.png", "--scale", "1", "-n", "5")
    code, out, err = call(capsys, *words, "--label", "3,7", "-o", "walk.png")
    assert code == 0, err
    assert "2 x 5 images between 3.png and 7.png" in out
    rows = tiles("walk.png", 5)
    assert rows.shape == (2, 5, 8, 8)
    for row in rows:
        assert (row[0] == np.asarray(Image.open("3.png"))).all()
        assert (row[-1] == np.asarray(Image.open("7.png"))).all()
    assert (rows[0, 2] != rows[1, 2]).any()  # each class has its own middle
    assert call(capsys, *words[:3], "3.png", "5", "--scale", "1", "-n", "3", "-o", "m.png")[0] == 0
    assert (tiles("m.png", 3)[0, 0] == np.asarray(Image.open("3.png"))).all()


def test_a_walk_between_seeds_ends_at_the_images_of_sample(capsys):
    same = ("--label", "4", "--steps", "6", "--scale", "1", "--guidance-scale", "3")
    assert call(capsys, "edit", "interpolate", "digits", "2", "9", *same, "-o", "w.png")[0] == 0
    row = tiles("w.png", 9)[0]
    for seed, end in ((2, row[0]), (9, row[-1])):
        words = ("sample", "digits", "--sampler", "ddim", "--eta", "0", "--seed", seed)
        assert call(capsys, *words, *same, "-n", "1", "-o", "s.png")[0] == 0
        assert np.abs(np.asarray(Image.open("s.png")).astype(int) - end).max() <= 1
    assert (row[4] != row[0]).any()
    words = ("edit", "interpolate", "digits", "2", "9", "-n", "2", "--steps", "2", "-o", "w.png")
    told = json.loads(call(capsys, *words, "--format", "json")[1])
    assert (told["between"], told["steps"], told["file"]) == (["2", "9"], 2, "w.png")


def test_new_files_are_named_by_what_they_are(capsys, folder):
    for name in ("digits-encode-3.png", "digits-encode-3-2.png"):
        assert call(capsys, "edit", "encode", "digits", "3.png", "--steps", "4")[0] == 0
        assert (folder / name).is_file()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ((), 2, "missing command"),
        (("encod", "digits", "3.png"), 2, "encode"),
        (("encode", "digits"), 2, "missing"),
        (("encode", "digits", "none.png"), 2, "no such file"),
        (("encode", "digits", "text.png"), 3, "text.png"),
        (("encode", "digit", "3.png"), 4, "digits"),
        (("encode", "digits", "3.png", "-l", "x"), 2, "allowed are"),
        (("encode", "digits", "3.png", "-l", "3,7"), 2, "one class"),
        (("encode", "digits", "3.png", "--steps", "1"), 2, "at least 2"),
        (("encode", "digits", "3.png", "--spacing", "odd"), 2, "allowed are"),
        (("encode", "digits", "3.png", "-o", "a.jpg"), 2, ".png"),
        (("encode", "digits", "3.png", "-o", "no/a.png"), 2, "no such folder"),
        (("encode", "digits", "3.png", "-o", "3.png"), 2, "-o 3.png: is the input 3.png"),
        (("interpolate", "digits", "3.png"), 2, "missing"),
        (("interpolate", "digits", "1", "7.png", "-o", "7.png"), 2, "-o 7.png: is the input"),
        (("interpolate", "digits", "1", "2", "-n", "1"), 2, "2..1000"),
        (("interpolate", "digits", "1", str(2**64)), 2, "2^64"),
        (("interpolate", "digits", "1", "3.png", "--guidance-scale", "2"), 2, "without guidance"),
        (("interpolate", "digits", "1", "2", "--guidance-scale", "2"), 2, "--label"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, folder, words, code, named):
    (folder / "text.png").write_text("not an image")
    before = sorted(folder.iterdir())
    refused(call(capsys, "edit", *words), code, named)
    assert sorted(folder.iterdir()) == before
