"""`fewstep evaluate` and `compare`: what cannot be measured gets one clear line and no output."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep.denoiser import NetDenoiser
from fewstep.metrics.classifier import Recipe
from fewstep.model import Model, Sampling
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import Cosine
from fewstep.train import checkpoint
from tests.system.cli_runs import call, refused

pytest.importorskip("torch_fidelity")

REAL = ("--data", "real.npy", "-n", "40")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, kept):
    """Work in a folder whose name holds a space; the inputs lie there, `left` finds the rest."""
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.setenv("FEWSTEP_CACHE", str(kept))
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    # What the judge's classifier has learnt plays no part here.
    monkeypatch.setattr(Recipe, "of", classmethod(lambda cls, train, seed=0: cls(steps=1)))
    monkeypatch.chdir(folder)
    np.save("real.npy", pixels(60))
    np.save("made.npy", pixels(45))
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def pixels(n, channels=1, size=8):
    draw = np.random.default_rng(n)
    return draw.integers(0, 256, (n, channels, size, size), dtype=np.uint8)


def untrained(where, channels=1, size=8, classes=(), fill=None):
    """Save a model that learnt nothing, or whose weights are all one number."""
    options = {"width": 4, "mult": (1,), "attention": (), "heads": 1, "groups": 2}
    config = UNetConfig(channels, channels, size, classes=len(classes), **options)
    net = UNet(config)
    if fill is not None:
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(fill)
    model = Model(NetDenoiser(net, Cosine()), (channels, size, size), classes)
    checkpoint.save_model(replace(model, sampling=Sampling(steps=2)), where)
    return where


def class_folders(root, classes, count):
    for label in classes:
        for i, each in enumerate(pixels(count)):
            path = Path(root) / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(each[0]).save(path)


def files():
    """Return all files here but the small one that says what a folder of samples is for."""
    return {p for p in Path().rglob("*") if p.is_file() and p.name != "cell.json"}


def bad(capsys, code, named, *words):
    """Check that a command is refused with one line and writes nothing."""
    before = files()
    line = refused(call(capsys, *words), code, *named)
    assert line.isprintable()
    assert files() == before
    return line


# ------------------------------------------------------------------------------ images
def npz(name="bad.npz", **arrays):
    return lambda: np.savez(name, **arrays)


def nans():
    x = (pixels(40) / 127.5 - 1).astype(np.float32)
    x[[3, 7], 0, 1, 1] = np.nan
    np.savez("bad.npz", arr_0=x.transpose(0, 2, 3, 1))


def cut():
    np.savez("bad.npz", arr_0=pixels(40).transpose(0, 2, 3, 1))
    Path("bad.npz").write_bytes(Path("bad.npz").read_bytes()[:-40])


IMAGES = {
    "NaN": (nans, "bad.npz", ["bad.npz arr_0: image 3", "not finite", "2 of 40"]),
    "wrong keys": (npz(x=pixels(40)), "bad.npz", ["holds x;", "arr_0"]),
    "statistics": (npz(mu=pixels(2), sigma=pixels(2)), "bad.npz", ["mu, sigma", "no images"]),
    "truncated": (cut, "bad.npz", ["bad.npz", "truncated"]),
    "4 channels": (npz(arr_0=pixels(40, 4).transpose(0, 2, 3, 1)), "bad.npz", ["4 channels"]),
    "0...1": (lambda: np.save("bad.npy", pixels(40) / 255), "bad.npy", ["ambiguous", "uint8"]),
    "empty array": (lambda: np.save("bad.npy", pixels(40)[:0]), "bad.npy", ["no images"]),
    "empty folder": (lambda: Path("bad").mkdir(), "bad", ["no images under bad"]),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_that_cannot_be_read(capsys, case):
    make, name, named = IMAGES[case]
    make()
    bad(capsys, 3, named, "evaluate", name, *REAL, "-o", "out")
    bad(capsys, 3, named, "evaluate", "made.npy", "--data", name, "-n", "40", "-o", "out")


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_pickles_are_refused(capsys, command):
    Path("made.pt").write_bytes(b"PK\3\4")
    bad(capsys, 2, ["made.pt", "never loaded"], command, "made.pt", *REAL)
    untrained("m")
    named = ["made.pt", "pickles", ".npz"]
    bad(capsys, 3, named, command, "m", "--data", "made.pt", "-n", "40", "-o", "out")


def test_too_few_images(capsys):
    np.save("few.npy", pixels(5))
    said = ["few.npy: 5 images", "at least 20"]
    bad(capsys, 3, said, "evaluate", "few.npy", "--data", "real.npy")
    untrained("m")
    few = ["--data", "real.npy", "-n", "5"]
    bad(capsys, 2, ["-n 5", "too few", "at least 20"], "evaluate", "made.npy", *few)
    bad(capsys, 2, ["-n 5", "too few"], "compare", "m", *few, "--samplers", "ddim:2")
    bad(capsys, 2, ["-n 50", "45 images"], "evaluate", "made.npy", *few[:2], "-n", "50")


def test_too_few_real_images(capsys):
    np.save("few.npy", pixels(5))
    named = ["few.npy", "5 real images", "at least 20"]
    bad(capsys, 3, named, "evaluate", "made.npy", "--data", "few.npy", "-n", "40")
    class_folders("few", "ab", 8)
    bad(capsys, 3, ["few", "at least 20"], "evaluate", "made.npy", "--data", "few", "-n", "40")


def test_a_small_held_out_part_is_left_out_and_it_is_said(capsys):
    class_folders("few", "ab", 30)
    code, out, err = call(capsys, "evaluate", "made.npy", "--data", "few", "-n", "40", "-o", "out")
    assert code == 0, err
    assert "warning: 6 held-out images are too few" in err
    assert "54 images" in out


@pytest.mark.parametrize(("channels", "size"), [(3, 8), (1, 16)])
def test_another_shape(capsys, channels, size):
    np.save("other.npy", pixels(40, channels, size))
    untrained("m", channels, size)
    shapes = [f"{channels}x{size}x{size}", "1x8x8", "real.npy"]
    for name in ("other.npy", "m"):
        bad(capsys, 3, [name, *shapes], "evaluate", name, *REAL, "-o", "out")
    bad(capsys, 3, ["m", *shapes], "compare", "m", *REAL, "--samplers", "ddim:2")


def test_another_class_map(capsys):
    class_folders("classes", "ab", 120)
    data = ["--data", "classes", "-n", "40", "-o", "out"]
    untrained("m", classes=("a", "c"))
    bad(capsys, 3, ["classes", "missing: b", "new: c"], "evaluate", "m", *data)
    more = ["--samplers", "ddim:2"]
    bad(capsys, 3, ["classes", "missing: b", "new: c"], "compare", "m", *data, *more)
    untrained("turned", classes=("b", "a"))
    bad(capsys, 3, ["classes", "another order"], "evaluate", "turned", *data)
    last = pixels(40).transpose(0, 2, 3, 1)
    np.savez("labelled.npz", arr_0=last, arr_1=np.arange(40) % 2)
    assert call(capsys, "evaluate", "labelled.npz", *data)[0] == 0
    np.savez("third.npz", arr_0=last, arr_1=np.arange(40) % 3)
    bad(capsys, 3, ["third.npz", "new: 0, 1, 2"], "evaluate", "third.npz", *data)
    np.savez("wrong.npz", arr_0=last, arr_1=np.arange(39))
    bad(capsys, 3, ["wrong.npz arr_1", "(39,)", "(40,)"], "evaluate", "wrong.npz", *data)


def test_a_model_that_makes_no_numbers(capsys):
    untrained("huge", fill=1e38)
    named = ["huge", "images 0..", "step 1 of", "not finite"]
    bad(capsys, 5, named, "evaluate", "huge", *REAL, "-o", "out")
    bad(capsys, 5, named, "compare", "huge", *REAL, "--samplers", "ddim:2", "-o", "out")


def test_a_model_with_damaged_weights(capsys):
    untrained("m")
    (weights,) = Path("m").glob("*.safetensors")
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    bad(capsys, 4, ["weights.safetensors"], "evaluate", "m", *REAL, "-o", "out")


def test_no_real_images_are_named(capsys):
    untrained("m")
    for name in ("m", "made.npy"):
        bad(capsys, 2, ["--data PATH"], "evaluate", name)
    bad(capsys, 2, ["--data PATH"], "compare", "m")
    bad(capsys, 3, ["no such folder: nowhere"], "evaluate", "m", "--data", "nowhere")


# ------------------------------------------------------------------------------ options
OPTIONS = {
    "protocol": (["--protocol", "smal-2k"], ['"smal-2k"', 'did you mean "small-2k"?']),
    "sampler": (["--sampler", "dppm"], ['sampler "dppm"', "did you mean"]),
    "spacing": (["--spacing", "evn"], ['spacing "evn"', 'did you mean "even"?']),
    "steps 0": (["--steps", "0"], ["--steps 0", "1.."]),
    "eta < 0": (["--eta", "-1"], ["eta -1"]),
    "eta nan": (["--eta", "nan"], ["--eta nan"]),
    "scale inf": (["--guidance-scale", "inf"], ["--guidance-scale inf"]),
    "seed": (["--seed", "-1"], ["--seed -1", "0..2^64-1"]),
    "format": (["--format", "xml"], ["--format xml", "human, json"]),
    "device": (["--device", "gpu9"], ["'gpu9'", "cpu"]),
    "unknown": (["--protcol", "x"], ["--protcol", 'did you mean "--protocol"?']),
    "both parts": (["--shard", "1/2", "--merge"], ["--shard and --merge"]),
    "file as folder": (["-o", "real.npy"], ["-o real.npy", "a file"]),
    "no weights": (
        ["--protocol", "fid-10k", "--inception", "no.pth"],
        ["no file no.pth", "weights-inception-2015-12-05-6726825d.pth", "--inception FILE"],
    ),
    "other weights": (["--protocol", "fid-10k", "--inception", "made.npy"], ["made.npy"]),
    **{
        f"shard {word}": ([f"--shard={word}"], [f"--shard {word}:", "I/K", "1 <= I <= K"])
        for word in ("0/4", "5/4", "a/b", "4", "1/0", "-1/4", "1/2/3", "1.0/2")
    },
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_evaluate(capsys, case):
    untrained("m")
    words, named = OPTIONS[case]
    out = [] if "-o" in words else ["-o", "out"]
    # Weights that are no weights are data; every other option is a matter of usage.
    bad(capsys, 3 if case == "other weights" else 2, named, "evaluate", "m", *REAL, *out, *words)


def test_weights_of_inception_that_are_nowhere(capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(Path("hub").absolute()))
    untrained("m")
    named = [
        Path("hub").absolute() / "hub" / "checkpoints",
        "weights-inception-2015-12-05-6726825d.pth",
        "--inception FILE",
    ]
    bad(capsys, 2, named, "evaluate", "m", *REAL, "--protocol", "fid-10k", "-o", "out")


@pytest.mark.parametrize(
    "words", ["--sampler ddim", "--steps 5", "--eta 0", "--spacing even", "--guidance-scale 2"]
)
def test_finished_images_are_not_sampled(capsys, words):
    option, value = words.split()
    named = [option, "made.npy", "finished"]
    bad(capsys, 2, named, "evaluate", "made.npy", *REAL, option, value)


COMPARE = {
    "sampler": (["--samplers", "ddmi:10"], ['"ddmi"', "did you mean"]),
    "no steps": (["--samplers", "ddim"], ['"ddim"', "steps is missing"]),
    "key": (["--samplers", "ddim:5:eat=1"], ['key "eat"', 'did you mean "eta"?']),
    "nothing": (["--samplers", ""], ["an empty row"]),
    "twice": (["--samplers", "ddim:5,ddim:5"], ["the same settings"]),
    "preset": (["--preset", "ddim-tabel"], ['"ddim-tabel"', 'did you mean "ddim-table"?']),
    "both": (["--preset", "frontier", "--samplers", "ddim:2"], ["--samplers and --preset"]),
    "stride": (
        ["--preset", "ddim-table", "--spacing", "quadratc"],
        ['"quadratc"', 'did you mean "quadratic"?'],
    ),
    "stride alone": (["--spacing", "uniform"], ["--spacing uniform", "ddim-table"]),
    "protocol": (["--protocol", "fid-50"], ['"fid-50"', 'did you mean "fid-50k"?']),
    "shard": (["--shard", "3/2"], ["--shard 3/2"]),
    "both parts": (["--shard", "1/2", "--merge"], ["--shard and --merge"]),
}


@pytest.mark.parametrize("case", COMPARE)
def test_options_of_compare(capsys, case):
    untrained("m")
    words, named = COMPARE[case]
    bad(capsys, 2, named, "compare", "m", *REAL, "-o", "out", *words)


def test_nothing_to_compare(capsys):
    bad(capsys, 2, ["missing"], "compare", *REAL)
    bad(capsys, 4, ["no model 'nowhere'"], "compare", "nowhere", *REAL)
    bad(capsys, 2, ["real.npy", "finished images", ".json"], "compare", "real.npy", *REAL)


@pytest.mark.parametrize(
    ("command", "name", "extra"),
    [("evaluate", "torch_fidelity", "eval"), ("compare", "matplotlib", "report")],
)
def test_missing_extra(command, name, extra):
    """It is taken away in a process of its own, where nothing was imported before."""
    code = (
        "import sys\n"
        f"sys.modules[{name!r}] = None\n"
        "from fewstep.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    untrained("m")
    before = files()
    done = subprocess.run(
        [sys.executable, "-c", code, command, "m", *REAL, "-o", "out"],
        env=dict(os.environ, PYTHONPATH=str(Path(fewstep.__file__).parent.parent)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    answer = done.returncode, done.stdout, done.stderr
    refused(answer, 2, name.replace("_", "-"), f"pip install 'fewstep[{extra}]'")
    assert files() == before


# ------------------------------------------------------------------------------ folders
def test_folder_inside_the_real_images(capsys):
    class_folders("classes", "ab", 60)
    untrained("m")
    for out in ("classes/out", "classes"):
        words = ["--data", "classes", "-n", "40", "-o", out]
        bad(capsys, 2, [f"-o {out}", "inside the images"], "evaluate", "m", *words)
        bad(capsys, 2, [f"-o {out}", "inside the images"], "compare", "m", *words)


def test_folder_that_cannot_be_made(capsys):
    untrained("m")
    words = ["evaluate", "m", *REAL, "-o", "made.npy/out"]
    bad(capsys, 6, ["made.npy/out", "Not a directory"], *words)


def test_merge_before_all_parts_are_made(capsys):
    untrained("m")
    data = ["--data", "real.npy", "-n", "600", "-o", "out"]
    named = ["3 chunks are missing", "images 0..249", "--shard I/K"]
    bad(capsys, 3, named, "evaluate", "m", *data, "--merge")
    assert call(capsys, "evaluate", "m", *data, "--shard", "1/3")[0] == 0
    assert not list(Path("out").glob("*.json"))
    named = ["2 chunks are missing", "images 250..499"]
    bad(capsys, 3, named, "evaluate", "m", *data, "--merge")
    for part in ("2/3", "3/3"):
        assert call(capsys, "evaluate", "m", *data, "--shard", part)[0] == 0
    assert call(capsys, "evaluate", "m", *data, "--merge")[0] == 0
    assert len(list(Path("out").glob("*.json"))) == 1


def test_folder_with_images_made_in_another_way(capsys):
    untrained("m")
    words = ["evaluate", "m", *REAL, "-o", "out"]
    assert call(capsys, *words)[0] == 0
    (stated,) = Path("out").rglob("cell.json")
    facts = json.loads(stated.read_text())
    stated.write_text(json.dumps({**facts, "seed": 7}))
    bad(capsys, 3, [stated.parent, "made in another way", "remove"], *words)
    stated.write_text("{")
    bad(capsys, 3, [stated.parent, "cannot be read", "remove"], *words)


def test_results_of_other_protocols_share_no_table(capsys):
    for n, out in (("40", "a"), ("30", "b")):
        words = ["--data", "real.npy", "-n", n, "-o", out]
        assert call(capsys, "evaluate", "made.npy", *words)[0] == 0
    (a,), (b,) = Path("a").glob("*.json"), Path("b").glob("*.json")
    bad(capsys, 2, ["different protocols", "n 40 and 30"], "compare", a, b, "-o", "out")
    untrained("m")
    words = ["compare", "m", b, *REAL, "--samplers", "ddim:2", "-o", "out"]
    bad(capsys, 2, ["different protocols", "n 30 and 40"], *words)
    np.save("real2.npy", pixels(70))
    words = ["--data", "real2.npy", "-n", "40", "-o", "c"]
    assert call(capsys, "evaluate", "made.npy", *words)[0] == 0
    (c,) = Path("c").glob("*.json")
    bad(capsys, 2, ["different protocols", "reference.images 60 and 70"], "compare", a, c)


def test_results_that_are_none(capsys):
    assert call(capsys, "evaluate", "made.npy", *REAL, "-o", "a")[0] == 0
    whole = json.loads(next(Path("a").glob("*.json")).read_text())
    whole["lines"][0]["figures"][0]["value"] = 0.0
    for name, content, said in (
        ("edited.json", json.dumps(whole), "changed after it was written"),
        ("other.json", "{}", "no results of fewstep"),
        ("html.json", "<html>", "no results file"),
        ("future.json", json.dumps({**whole, "format": 99}), "format 99"),
    ):
        Path(name).write_text(content)
        bad(capsys, 3, [name, said], "compare", name, "-o", "out")
    bad(capsys, 3, ["gone.json", "No such file"], "compare", "gone.json", "-o", "out")
