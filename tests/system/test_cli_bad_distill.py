"""fewstep distill with bad input: one line that helps, the exit code, and nothing written."""

import os
from pathlib import Path

import numpy as np
import pytest

from fewstep.denoiser import SCORE
from fewstep.students import Cost, Pace
from tests.system import distilling
from tests.system.cli_runs import TINY, call, main, refused
from tests.system.distilling import everything, folders, saved

WAY = ("--method", "progressive", "--images", "3200")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder whose name holds a space, in a hurry."""
    return distilling.settle(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), ("--to is missing", "--to 4")),
        (("--to", "0"), ("--to 0", "1..32")),
        (("--to", "four"), ("--to four", "1..32")),
        (("--to", "3", "--method", "progressive"), ("--to 3", "1, 2, 4, 8, 16 or 32")),
        (("--to", "24", "--method", "progressive"), ("--to 24", "1, 2, 4, 8, 16 or 32 steps")),
        (("--to", "12"), ("--to 12", "allowed are 1..8, 16 and 32")),
        (("--to", "16", "--method", "ect"), ("--to 16", "1..8 of --method ect", "progressive")),
        (("--to", "4", "--start", "4"), ("--start 4", "above --to 4")),
        (("--to", "4", "--start", "2"), ("--start 2", "above --to 4")),
        (("--to", "4", "--start", "6"), ("--start 6", "not halved to 4", "8 steps, 16, 32")),
        (("--to", "4", "--data", ""), ("--data ''", "must be")),
        (("--to", "4", "--start", "1"), ("--start 1", "2..4096")),
        (("--to", "3", "--start", "8"), ("--start 8", "not of consistency-distillation")),
        (("--to", "4", "--method", "progresive"), ("progresive", 'did you mean "progressive"')),
        (("--to", "4", "--method", ""), ("--method", "ict")),
        (("--to", "4", "--images", "0"), ("--images 0", "1..")),
        (("--to", "4", "--images", "100"), ("--images 100", "too few", "at least 640 would be")),
        (
            ("--to", "4", "--images", "999", "--start", "32"),
            ("--images 999", "at least 1920 would be", "smaller --start"),
        ),
        (("--to", "1", "--images", "600"), ("--images 600", "at least 640 would be")),
        (("--to", "4", "--budget", "abc"), ("--budget abc", "90s, 10m or 2h")),
        (("--to", "4", "--budget", "0"), ("--budget 0", "above 0")),
        (("--to", "4", "--budget", "-1m"), ("--budget -1m", "above 0")),
        (("--to", "4", "--budget", "nan"), ("--budget nan", "above 0")),
        (("--to", "4", "--guidance-scale", "nan"), ("--guidance-scale nan", "finite")),
        (
            ("--to", "3", "--method", "ect", "--guidance-scale", "3"),
            ("--guidance-scale 3", "no guidance"),
        ),
        (("--to", "4", "--guidance-range", "4..1"), ("--guidance-range 4..1", "1..4")),
        (("--to", "4", "--guidance-range", "1..x"), ("--guidance-range 1..x", "1..4")),
        (("--to", "4", "--guidance-range", "3"), ("--guidance-range 3", "1..4")),
        (("--to", "4", "--guidance-range", "1..inf"), ("--guidance-range 1..inf", "1..4")),
        (
            ("--to", "3", "--guidance-range", "1..4"),
            ("--guidance-range 1..4", "not of consistency-distillation"),
        ),
        (
            ("--to", "4", "--guidance-range", "1..4", "--guidance-scale", "2"),
            ("--guidance-scale and --guidance-range",),
        ),
        (("--to", "4", "--budget", "10s", "--images", "9600"), ("--budget and --images", "one")),
        (("--to", "4", "-n", "5"), ("-n 5", "at least 20")),
        (("--to", "4", "--seed", "-1"), ("--seed -1", "2^64-1")),
        (("--to", "4", "--device", "cuda:9"), ("cuda:9", "cpu")),
        (("--to", "4", "--bugdet", "1m"), ("--bugdet", '"--budget"')),
    ],
)  # fmt: skip
def test_bad_options(capsys, folder, words, named):
    if "--images" not in words and "--budget" not in words:
        words = (*words, "--images", "100000")
    refused(call(capsys, "distill", "digits", *words, "-o", "out"), 2, *named)
    assert list(folder.iterdir()) == []


def even(monkeypatch, seconds):
    """Let training take so long for an image, and nothing else take any time."""

    def timed(_, stages, i, parts):
        return Cost(seconds * stages[i].batch_size, 0.0, 0.0, parts)

    monkeypatch.setattr(Pace, "_timed", timed)


def test_a_budget_that_is_too_short_says_what_is_enough(capsys, monkeypatch, folder):
    even(monkeypatch, 0.01)  # two stages of 20 updates of 32 images: 12.8 s
    words = ("distill", "digits", "--to", "4", "--start", "16", "-o", "out", "--budget")
    line = refused(call(capsys, *words, "10s"), 2, "--budget 0:10", "too short", "would be")
    assert "0:15 would be enough, or give a smaller --start" in line
    assert list(folder.iterdir()) == []


def test_nothing_and_no_model(capsys, folder):
    refused(call(capsys, "distill"), 2, "model is missing", "--help")
    refused(call(capsys, "distill", "digitz", "--to", "4"), 4, "digitz", '"digits"')
    refused(call(capsys, "distill", "no/where", "--to", "4"), 4, "no/where")
    refused(call(capsys, "distill", "model.pt", "--to", "4"), 2, "model.pt")
    assert list(folder.iterdir()) == []
    Path("empty").mkdir()
    refused(call(capsys, "distill", "empty", "--to", "4"), 4, "empty", "neither a model")


def test_teachers_that_are_none(capsys, folder):
    """A noisy classifier, a student, a model of the score, one without classes to guide."""
    del folder
    words = [*TINY[1:8], "train.batch_size=16", "train.steps=1", "out=judge"]
    assert main(["train", "digits-classifier", *(w for w in words if "drop" not in w)]) == 0
    refused(call(capsys, "distill", "judge", "--to", "4", *WAY, "-o", "out"), 2, "classifier")
    done = {"kind": "progressive", "steps": 4, "teacher": "runs/mine"}
    one = saved("one", student=done)
    named = ("one", "a progressive student already", "give its teacher, runs/mine")
    refused(call(capsys, "distill", one, "--to", "1", "-o", "out"), 2, *named)
    data = ("--data", str(folders("images")))
    bare = saved("bare", classes=())
    more = ("--to", "4", *WAY, "-o", "out")
    flat = folders("flat", names=("",))
    plain = ("--data", str(flat))
    for guided in (("--guidance-scale", "2"), ("--guidance-range", "1..4")):
        refused(call(capsys, "distill", bare, *more, *plain, *guided), 2, "unconditional")
    score = saved("score", param=SCORE)
    refused(call(capsys, "distill", score, *more, *data), 2, "SCORE", "V, EDM, BOTH")
    assert not Path("out").exists()


def test_a_teacher_of_texts(capsys, imported, place, folder):
    del imported
    text = place / "models" / "glide_text2im_unet"
    words = ("--to", "4", "--images", "3200", "--data", "digits", "-o", "out")
    refused(call(capsys, "distill", text, *words), 2, "text")
    assert list(folder.iterdir()) == []


def test_a_damaged_teacher(capsys):
    one = saved("one")
    (one / "weights.safetensors").write_bytes(b"")
    refused(call(capsys, "distill", one, "--to", "4", "-o", "out"), 4, "weights.safetensors")
    assert not Path("out").exists()


def test_data_that_do_not_fit(capsys):
    one = saved("one")
    more = ("distill", one, "--to", "4", *WAY, "-o", "out")
    refused(call(capsys, *more), 2, "give --data")
    refused(call(capsys, *more, "--data", "nowhere"), 3, "nowhere", "no such folder")
    other = folders("other", names=("a", "c"))
    refused(call(capsys, *more, "--data", other), 3, 'missing "b"', 'new "c"')  # K11
    np.savez("large.npz", arr_0=np.zeros((30, 12, 12, 1), np.uint8), arr_1=np.arange(30) % 2)
    refused(call(capsys, *more, "--data", "large.npz"), 3, "large.npz", "1x12x12", "1x8x8")
    wide = saved("wide", classes=(), shape=(3, 64, 64))
    np.savez("wide.npz", arr_0=np.zeros((30, 64, 64, 3), np.uint8))
    named = ("3x64x64", "too many pixels")
    refused(call(capsys, "distill", wide, *more[2:], "--data", "wide.npz"), 2, *named)
    few = folders("few", count=8)
    refused(call(capsys, *more, "--data", few), 3, "few", "at least 20")
    assert not Path("out").exists()


def test_few_images_make_small_batches(capsys):
    """A batch is never larger than the data, whatever the budget buys."""
    one = saved("one")
    few = folders("few", count=13)
    words = ("--to", "4", "--method", "progressive", "--images", "640", "--start", "8", "-n", "20")
    code, _, err = call(capsys, "distill", one, *words, "--data", few, "-o", "out")
    assert code in (0, 5), err  # random weights: worse or not
    assert "updates of 24 images" in err


def test_places_that_are_taken(capsys):
    one, images = saved("one"), folders("images")
    Path("file").write_text("mine")
    Path("letters").mkdir()
    Path("letters/to-mother.txt").write_text("dear")
    before = everything(".")
    words = ("distill", one, "--to", "4", *WAY, "--data", images)
    for out, named in (
        ("file", "a file"),
        ("file/out", "file"),
        ("letters", "something else"),
        ("images/out", "inside the images"),
        ("one", "something else"),
    ):
        refused(call(capsys, *words, "-o", out), 2, f"-o {out}", named)
    if Path("/proc/self").exists():  # a place where even root may not write
        refused(call(capsys, *words, "-o", "/proc/out"), 6, "/proc/out", "cannot write")
    if os.geteuid():
        Path("letters").chmod(0o500)
        refused(call(capsys, *words, "-o", "letters/out"), 6, "letters/out", "cannot write")
        Path("letters").chmod(0o700)
    assert everything(".") == before


ASKED = (
    '{"model": "digits", "weights": "", "guidance": 1, "method": "progressive", "to": 4, '
    '"seed": 0, "data": ""}'
)
STAGE = '{"method": "progressive", "steps": 4, "updates": UPDATES, "batch_size": 32, "lr": 1e-4}'


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"asked": {}}', '{"asked": {}, "stages": [{}]}',
        '{"asked": null, "stages": []}',
        *(f'{{"asked": {ASKED}, "stages": [{STAGE.replace("UPDATES", word)}]}}'
          for word in ('"x"', "-5", "1.5")),
    ],
)  # fmt: skip
def test_a_damaged_record(capsys, text):
    Path("begun").mkdir()
    Path("begun/distill.json").write_text(text)
    for words in (("begun",), ("digits", "--to", "4", *WAY, "-o", "begun")):
        answer = call(capsys, "distill", *words)
        refused(answer, 4, "begun/distill.json", "cannot be read")
    refused(call(capsys, "sample", "begun"), 4, "begun", "no student yet", "distill begun")


def test_help_says_what_there_is(capsys):
    code, out, _ = call(capsys, "distill", "--help")
    assert code == 0
    for word in (
        "--to",
        "--budget",
        "by default 10m",
        "by default 1000",
        "--guidance-range",
        "runs/",
    ):
        assert word in " ".join(out.split())
    assert "protocol" not in out


def test_ten_minutes_are_ten_minutes(capsys, monkeypatch):
    even(monkeypatch, 1.0)
    named = ("--budget 10:00", "11:44 would be")
    refused(call(capsys, "distill", "digits", "--to", "4", "-o", "out"), 2, *named)
