"""`fewstep train`: bad input gets one line and leaves nothing; a run goes on bit for bit."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.cli import console, demo, judged
from fewstep.recipes import read
from tests.system.cli_runs import TINY, call, checkpoints, copy, process, refused, train_tiny


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder whose name holds a space, with a cache of its own."""
    place = tmp_path / "a b"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    stub = tmp_path / "bin" / "fewstep"  # so that the printed commands are the short ones
    stub.parent.mkdir()
    stub.touch(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train once: 6 steps, checkpoints at 3 and 6."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "tiny")


def images(where, names=("a", "b"), count=12, size=(8, 8), suffix=".png"):
    """Make class folders of noise."""
    rng = np.random.default_rng(0)
    for name in names:
        Path(where, name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0]), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(where, name, f"{i}{suffix}"), format="PNG")
    return Path(where)


def huge_png(path, side=20_000):
    """Write a PNG that says it is huge."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x"))


# ---------------------------------------------------------------- data: rows B
def b1(d):
    return "no such folder", d


def b2(d):
    images("zip")
    shutil.make_archive(str(d), "zip", "zip")
    d.with_suffix(".zip").rename(d)
    return d, "archive", "unpack"


def b3(d):
    d.mkdir()
    return "no images", d, ".png"


def b4(d):
    d.mkdir()
    for i in range(3):
        (d / f"{i}.tiff").touch()
    (d / "x.csv").touch()
    return "3 .tiff", "1 .csv"


def b7(d):
    images(d)
    bad = d / "a" / "0.png"
    if os.geteuid():
        bad.chmod(0)
        return bad, "Permission denied"
    bad.unlink()
    bad.symlink_to("nowhere")  # root reads everything: the other way to be unreadable
    return bad, "No such file"


def b8(d):
    (images(d) / "a" / "3.png").write_bytes(b"")
    return d / "a" / "3.png", "empty file"


def b9(d):
    (images(d) / "b" / "3.png").write_text("<html><body>404</body></html>")
    return d / "b" / "3.png", "not an image", "<htm"


def b10(d):
    whole = (images(d) / "a" / "1.png").read_bytes()
    (d / "a" / "1.png").write_bytes(whole[:-20])
    return d / "a" / "1.png", f"truncated at byte {len(whole) - 20}"


def b12(d):
    huge_png(images(d) / "a" / "1.png")
    return d / "a" / "1.png", "400 MP", "64 MP"


def b19(d):
    images(d)
    (d / "empty").mkdir()
    return d / "empty", "no images"


@pytest.mark.parametrize("make", [b1, b2, b3, b4, b7, b8, b9, b10, b12, b19])
def test_bad_data(capsys, make):
    data = Path("data set").absolute()
    named = make(data)
    # The size is given for those rows whose one bad header would already change the proposal.
    answer = call(capsys, "train", "--data", data, "out=run", *TINY, "train.steps=1")
    refused(answer, 3, *named)
    assert not Path("run").exists()


def test_mixed_sizes_need_a_rule(capsys):  # B17
    data = images("mixed", names=("a",), size=(8, 8))
    images("mixed/..", names=("mixed/b",), size=(12, 8), count=5)
    answer = call(capsys, "train", "digits", "--data", data, "out=run", *TINY)
    refused(answer, 3, "8x8 (12", "12x8 (5", "resize=crop", "size=8")
    assert not Path("run").exists()


def test_fewer_images_than_a_batch(capsys):  # B6
    answer = call(capsys, "train", "digits", "out=run", *TINY, "train.batch_size=5000")
    refused(answer, 3, "5000", "batch")
    assert not Path("run").exists()


def test_a_folder_gets_a_proposal_and_upper_case_counts(capsys):  # B5
    data = images("photos", suffix=".PNG", count=20)
    words = ["train", "--data", data, *TINY, "train.steps=1"]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert "36 training images" in err
    assert "memorise" in err
    assert out.splitlines()[-1] == "next: fewstep sample runs/photos --label b -n 16"
    assert Path("runs/photos/config.yaml").is_file()
    code, out, _ = call(capsys, *words)  # the same command again
    assert code == 0
    assert "finished" in out


# ---------------------------------------------------------------- configuration: rows C
@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("train.stepz=1", ('"train.steps"', "train.stepz")),  # C1
        ("steps=1", ('"train.steps"', "'steps'")),
        ("nett.width=1", ("nett.width", '"net.width"')),
        ("train=1", ("train is a section", "train.steps")),
        ("process.flor=1", ("flor", "floor")),
        ("train.steps=0", ("train.steps=0", "whole number", "1..100000000")),  # C3
        ("train.steps=-1", ("train.steps=-1", "1..100000000")),
        ("train.steps=1.5", ("train.steps=1.5", "whole number")),
        ("train.steps=ten", ("train.steps=ten", "whole number")),
        ("train.steps=1000000000", ("train.steps=1000000000", "1..100000000")),
        ("train.steps=true", ("train.steps=true", "whole number")),
        ("train.lr=0", ("train.lr=0", "> 0")),  # C4
        ("train.lr=-1", ("train.lr=-1", "> 0")),
        ("train.lr=nan", ("train.lr=nan", "number")),
        ("train.lr=inf", ("train.lr=inf", "<= 10")),
        ("train.lr=1e-4x", ("train.lr=1e-4x", "number")),
        ("net.mult=[1,2,2,2,2]", ("8x8", "16", "multiple")),  # C6
        ("net.heads=5", ("heads", "5")),
        ("train.batch_size=15", ("train.batch_size=15", "14 or 16")),  # C5
        ("device=cuda:9", ("cuda:9", "cpu")),  # C14
        ("train.precision=fp8", ("fp8", "bf16")),
        ("seed=-1", ("seed=-1", "0..2^64-1")),  # C16
        ("seed=18446744073709551616", ("seed=18446744073709551616", "2^64-1")),
        ("seed=abc", ("seed=abc", "2^64-1")),
        ("objective.drop=0", ("null", "objective.drop")),  # C12, said before hours of training
        ("sampling.sampler=dim", ("sampling.sampler=dim", '"ddim"')),
    ],
)
def test_bad_keys(capsys, word, named):
    more = ["train.accumulate=2"] if "batch_size" in word else []
    refused(call(capsys, "train", "digits", "out=run", *TINY, *more, word), 2, *named)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train:\n  steps: 1\n  steps: 2\n", (":3:3", "'steps'", "twice")),
        ("train:\n\tsteps: 1\n", (":2:1", "tab")),
        ("seed: 1\nout: !!python/object/apply:os.system [ls]\n", (":2:6", "python", "refused")),
        ("train: {steps: 1\n", (":2:1",)),
        ("- 1\n- 2\n", (":1:1", "mapping")),
        ("\x00", ("not YAML",)),
        ("train:\n  stepz: 1\n", ("train.stepz", '"train.steps"')),
        ("train:\n  steps: 0\n", ("train.steps=0", "1..100000000")),
        ("train: 5\n", ("train=5", "section")),
    ],
)
def test_bad_recipe_files(capsys, text, named):  # C2
    Path("my recipe.yaml").write_text(text)
    refused(call(capsys, "train", "my recipe.yaml", "out=run"), 2, "my recipe.yaml", *named)
    assert not Path("run").exists()


def test_options_and_names(capsys):
    refused(call(capsys, "train", "digits", "--dta", "x"), 2, "--dta", '"--data"')  # C1
    refused(call(capsys, "train", "digitz"), 2, "digitz", '"digits"')
    refused(call(capsys, "train", "mine.yaml"), 2, "mine.yaml")
    refused(call(capsys, "train"), 2, "--data")
    refused(call(capsys, "train", "runs/nowhere"), 4, "runs/nowhere", "no such run")  # K1
    assert list(Path.cwd().iterdir()) == []


def test_a_place_that_is_taken(capsys, run):  # C15
    taken = copy(run, "taken")
    before = {p: p.read_bytes() for p in taken.rglob("*") if p.is_file()}
    words = ["train", "digits", f"out={taken}", "train.steps=6", *TINY]
    refused(call(capsys, *words, "train.lr=0.5"), 2, "taken", "train.lr 0.002 -> 0.5")
    assert {p: p.read_bytes() for p in taken.rglob("*") if p.is_file()} == before
    Path("file").write_text("mine")
    refused(call(capsys, *words, "out=file"), 2, "file")
    refused(call(capsys, *words, "out=file/run"), 2, "file/run", "in the way")
    if Path("/proc/self").exists():  # a place where even root may not write
        refused(call(capsys, *words, "out=/proc/run"), 6, "/proc/run", "cannot write")
    Path("letters").mkdir()
    Path("letters/to-mother.txt").write_text("dear")
    refused(call(capsys, *words, "out=letters"), 2, "letters", "no run")
    refused(call(capsys, "train", "letters"), 4, "letters", "--data letters")
    data = images("data")
    refused(call(capsys, "train", "--data", data, f"out={data}/run"), 2, "inside the data")
    assert not (data / "run").exists()


def test_a_run_keeps_its_images(capsys):
    data = images("photos", count=20)
    words = ["train", "--data", data, "out=run", *TINY, "train.steps=1"]
    assert call(capsys, *words)[0] == 0
    config = Path("run/config.yaml").read_bytes()
    data.rename("moved")  # the same images in another place are the same
    assert call(capsys, "train", "run", "data.path=moved")[0] == 0
    Path("run/config.yaml").write_bytes(config)
    Path("moved/a").rename("moved/c")
    answer = call(capsys, "train", "run", "data.path=moved")
    refused(answer, 3, 'missing "a"', 'new "c"')
    Path("moved/c").rename("moved/a")
    Path("moved/a/0.png").unlink()
    refused(call(capsys, "train", "run", "data.path=moved"), 2, "36 then, 35 now")
    assert Path("run/config.yaml").read_bytes() == config


# ---------------------------------------------------------------- runs
def test_a_run_folder_is_complete(run):
    assert {"config.yaml", "environment.json", "data.json", "metrics.jsonl", "samples"} <= {
        p.name for p in run.iterdir()
    }
    assert json.loads((run / "data.json").read_text())["train"]["classes"] == list("0123456789")
    assert json.loads((run / "environment.json").read_text())["versions"]["torch"]
    with Image.open(run / "samples" / "step-00000006.png") as grid:
        assert grid.size == (8 * 34 - 2, 10 * 34 - 2)  # ten classes x eight seeds, 8 px x 4
    assert [p.name for p in checkpoints(run)] == ["step-00000003", "step-00000006"]


def test_the_first_and_last_lines(capsys):
    code, out, err = call(
        capsys, "train", "digits", "out=my run", *TINY, "train.steps=2", "train.log_every=1"
    )
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == lines[-2] == "run folder: my run"
    assert lines[-1] == "next: fewstep sample 'my run' --label 7 -n 16"
    assert "parameters" in err
    assert "2 steps x 16 images" in err
    assert "ETA" in err


def test_the_same_command_continues_and_then_says_so(capsys, run):
    again = copy(run, "again")
    words = ["train", "digits", f"out={again}", "train.checkpoint_every=3", *TINY]
    weights = (checkpoints(again)[-1] / "train.safetensors").read_bytes()
    code, out, err = call(capsys, *words, "train.steps=6")
    assert (code, "finished" in out) == (0, True)
    assert (checkpoints(again)[-1] / "train.safetensors").read_bytes() == weights
    assert "rises" not in err
    code, out, err = call(capsys, "train", again, "train.steps=9")  # extends it
    assert code == 0, err
    assert "warning: train.steps=9, before 6: the learning rate rises again" in err
    assert "finished" not in out
    assert [p.name for p in checkpoints(again)][-1] == "step-00000009"
    assert "steps: 9" in (again / "config.yaml").read_text()
    code, out, _ = call(capsys, "train", again / "config.yaml", f"out={again}")
    assert (code, "finished" in out) == (0, True)


def test_the_next_command_works_where_fewstep_is_not_on_the_path(monkeypatch, folder):
    assert console.command("sample", "my run") == "fewstep sample 'my run'"
    monkeypatch.setattr(console.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(folder / ".venv" / "bin" / "python"))
    assert console.command("train", "x") == ".venv/bin/python -m fewstep train x"
    monkeypatch.setattr(sys, "executable", "/opt/my python")
    assert console.command("train", "x") == "'/opt/my python' -m fewstep train x"


def test_a_folder_called_digits_is_in_nobodys_way(capsys):
    """The recipe means the embedded data; a folder counts where the user names it."""
    images("digits", names=("a", "b"), count=12)
    shipped = read.shipped_path("digits")
    words = [*TINY, "train.steps=1"]
    assert call(capsys, "train", shipped, "out=one", *words)[0] == 0
    assert json.loads(Path("one/data.json").read_text())["train"]["images"] == 1347
    assert call(capsys, "train", "one")[0] == 0
    assert json.loads(Path("one/data.json").read_text())["train"]["images"] == 1347
    code, _, err = call(capsys, "train", "--data", "digits", "out=two", *words)
    assert code == 0, err
    assert json.loads(Path("two/data.json").read_text())["train"]["classes"] == ["a", "b"]


def test_the_demo_trains_beside_a_folder_called_digits(folder):
    images("digits", names=("a", "b"), count=12)
    found = demo._train(Path("a run"), 1, 0)
    assert found.model.classes == tuple("0123456789")
    code = (folder / "a run" / "config.yaml").read_text()
    assert "path: digits\n" in code


def test_the_demo_says_first_what_it_lacks(capsys, monkeypatch):
    monkeypatch.setattr(judged.importlib.util, "find_spec", lambda name: None)
    answer = call(capsys, "demo", "--out", "demo")
    refused(answer, 2, "torch-fidelity and matplotlib", "pip install 'fewstep[eval,report]'")
    assert list(Path.cwd().iterdir()) == []


def test_a_killed_run_ends_with_the_same_bits(capsys, folder):
    words = ["train", "digits", "train.steps=40", "train.checkpoint_every=5", *TINY]
    killed = Path("killed")
    p = process(*words, f"out={killed}", cwd=folder, stdout=-3, stderr=-3)
    deadline = time.monotonic() + 60
    while not (killed / "checkpoints" / "step-00000020").exists():
        assert p.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (killed / "checkpoints" / "step-00000040").exists()
    assert call(capsys, *words, f"out={killed}")[0] == 0
    assert call(capsys, *words, "out=straight")[0] == 0
    for name in ("weights.safetensors", "train.safetensors", "model.json"):
        one, two = (checkpoints(r)[-1] / name for r in (killed, "straight"))
        assert one.read_bytes() == two.read_bytes(), name


@pytest.mark.slow
def test_two_processes_speak_with_one_voice(folder):
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fewstep", "train"]
    env = {**os.environ, "PYTHONPATH": str(Path(fewstep.__file__).parent.parent)}
    words += ["digits", "out=run", "train.steps=4", *TINY]
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "run folder: run",
        "run folder: run",
        "next: fewstep sample run --label 7 -n 16",
    ]
    assert done.stderr.count("parameters") == 1
    assert json.loads(Path("run/environment.json").read_text())["processes"] == 2
