"""`fewstep evaluate` and `compare`: the same numbers whoever makes them, and however often."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fewstep import data
from fewstep.report import results
from tests.system.cli_runs import call, process, refused, train_tiny

pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny conditional run, in a folder whose name holds a space."""
    return train_tiny(tmp_path_factory.mktemp("some runs") / "tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    place = tmp_path / "a b"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def numbers(out: Path) -> list:
    """Everything measured, without what the clock says."""
    (path,) = [p for p in Path(out).glob("*.json") if p.is_file()]
    return [(x.title, x.images, x.figures, x.protocol) for x in results.load(path)]


def test_evaluate_prints_numbers_with_all_they_depend_on(run, capsys) -> None:
    code, out, err = call(capsys, "evaluate", run, "-n", "60", "-o", "e")
    assert code == 0, err
    for word in (
        "KD-pixels", "FD-pixels", "precision-pixels", "recall-pixels", "FD-classifier", "accuracy",
        "diversity", "copy rate", "95 % interval", "real images", "protocol small-2k: 60 images",
        "rounded", "weights", "reference: digits, held out, 450 images", "sampler ddim", "eta 0",
        "spacing even", "guidance_scale 2", "8 network evaluations", "image i: 0 + i", "torch ",
        "torch-fidelity", "sampled on",
    ):  # fmt: skip
        assert word in out, word
    assert not re.search(r"\bFID\b|\bKID\b", out)
    assert out.index("KD-pixels") < out.index("FD-pixels")
    assert "fewer than 2048" in err
    page = next(Path("e").glob("*.html")).read_text("utf-8")
    for word in ("Class by class", "Asked for and seen", "Closest to the training images"):
        assert word in page
    assert re.findall(r"https?://(?!www\.w3\.org/)", page) == []


def test_evaluate_again_makes_nothing_and_says_the_same(run, capsys) -> None:
    words = ("evaluate", run, "-n", "60", "-o", "e", "--format", "json")
    first = call(capsys, *words)
    made = {p: p.stat().st_mtime_ns for p in Path("e").rglob("*.npz")}
    again = call(capsys, *words)
    assert first[:2] == again[:2]
    assert {p: p.stat().st_mtime_ns for p in Path("e").rglob("*.npz")} == made
    value = json.loads(first[1])
    assert value["protocol"]["n"] == value["images"] == 60
    assert len(value["detail"]["per_class"]) == 10
    assert np.array(value["detail"]["confusion"]).sum(1).tolist() == [6] * 10


@pytest.mark.parametrize("verb", ["evaluate", "compare"])
def test_a_killed_command_goes_on(run, capsys, verb) -> None:
    """SIGKILL three times, at the first, the second and some file: the end is that of one go."""
    how = {"evaluate": ("--steps", "12"), "compare": ("--samplers", "ddim:5,dpmpp:9")}[verb]
    words = (verb, run, "-n", "750", *how, "-o")
    for files in (1, 3, 5):
        child = process(*words, "killed", cwd=".", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until = time.monotonic() + 120
        while len(list(Path("killed").rglob("*-*.npz"))) < files and child.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.005)
        child.kill()
        child.communicate()
    assert not list(Path("killed").glob("*.json"))  # it was really stopped before the end
    assert call(capsys, *words, "killed")[0] == 0
    assert call(capsys, *words, "whole")[0] == 0
    assert numbers(Path("killed")) == numbers(Path("whole"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_is_finished(run, number, code) -> None:
    """Hours of sampling are asked for; the first chunk is kept, one line says so."""
    words = ("compare", run, "--samplers", "ddim:2,ddim:1000", "-n", "5000", "-o", "c")
    child = process(*words, cwd=".", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 150
    while not list(Path("c").rglob("cell.json")) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(1.5)  # in the thousand steps of the second chunk
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "the same command goes on from there" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert len(list(Path("c/samples").glob("*/000000-000250.npz"))) == 1


def test_shards_and_merge_are_one_process(run, capsys, monkeypatch) -> None:
    """Two parts in either order, then --merge: the numbers of one process to 1e-6.

    Each in a cache of its own, as on machines that share nothing but the folder: the judge's
    classifier is that of the first, and --merge asks for images alone.
    """
    words = ("evaluate", run, "-n", "600", "-o")
    assert call(capsys, *words, "one")[0] == 0
    for part in ("2/2", "1/2"):
        refused(call(capsys, *words, "parts", "--merge"), 3, "--merge", "missing", "--shard")
        assert Path("parts").exists() == (part == "1/2")
        monkeypatch.setenv("FEWSTEP_CACHE", str(Path(f"cache {part[0]}").resolve()))
        code, out, _ = call(capsys, *words, "parts", "--shard", part)
        assert code == 0
        assert f"part {part} is done" in out
        assert " evaluate --merge " in out.splitlines()[-1]
        assert out.splitlines()[-1].endswith("-n 600 -o parts")
        assert not list(Path("parts").glob("*.json"))
    assert len(list(Path().glob("cache */classifiers/*"))) == 1, "the judge learnt twice"
    for path in Path("parts/samples").glob("*/*/*.npz"):
        path.unlink()  # features
    monkeypatch.setenv("FEWSTEP_CACHE", str(Path("cache 3").resolve()))
    assert call(capsys, *words, "parts", "--merge")[0] == 0
    for a, b in zip(numbers(Path("one")), numbers(Path("parts")), strict=True):
        assert a[3] == b[3]
        for x, y in zip(a[2], b[2], strict=True):
            assert y.value == pytest.approx(x.value, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one(run, capsys) -> None:
    words = ["evaluate", str(run), "-n", "600", "-o"]
    assert call(capsys, *words, "one")[0] == 0
    import fewstep

    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(fewstep.__file__).parent.parent),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "fewstep", *words, "two"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("protocol small-2k") == 1
    for a, b in zip(numbers(Path("one")), numbers(Path("two")), strict=True):
        for x, y in zip(a[2], b[2], strict=True):
            assert y.value == pytest.approx(x.value, rel=1e-6, abs=1e-9)


def test_images_of_others_are_measured_like_ours(run, capsys) -> None:
    """The same 60 images as an npz batch and as PNG files: the figures of the model's own."""
    from PIL import Image

    ours = call(capsys, "evaluate", run, "-n", "60", "-o", "e", "--format", "json")
    (chunk,) = Path("e/samples").glob("*/000000-000060.npz")
    with np.load(chunk) as arrays:
        pixels, labels = arrays["pixels"], arrays["labels"]
    np.savez("batch.npz", arr_0=pixels.transpose(0, 2, 3, 1), arr_1=labels)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = Path("png") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{i:03d}.png")
    value = {f["name"]: f["value"] for f in json.loads(ours[1])["figures"]}
    for k, word in enumerate(("batch.npz", "png")):
        code, out, err = call(
            capsys, "evaluate", word, "--data", "digits", "-o", f"f{k}", "--format", "json"
        )
        assert code == 0, err
        theirs = json.loads(out)
        assert theirs["images"] == 60
        assert theirs["settings"] == {}
        for f in theirs["figures"]:
            if k == 0:  # the same order: the same subsets
                assert f["value"] == pytest.approx(value[f["name"]], rel=1e-6, abs=1e-9), f["name"]
            elif f["name"].startswith(("FD", "accuracy", "precision", "recall", "copy")):
                assert f["value"] == pytest.approx(value[f["name"]], rel=1e-5), f["name"]


def test_compare_writes_table_charts_and_page(run, capsys) -> None:
    words = ("compare", run, "--samplers", "ddim:4,ddim:2:eta=0.5,dpmpp:3", "-n", "60", "-o", "c")
    code, out, err = call(capsys, *words)
    assert code == 0, err
    for word in ("DDIM 4", "DDIM 2, eta 0.5", "DPM-Solver++(2M) 3", "real images", "next: "):
        assert word in out, word
    for name in ("results.json", "report.html", "frontier.svg", "frontier.png"):
        assert (Path("c") / name).stat().st_size > 1000
    lines = results.load(Path("c/results.json"))
    assert [x.nfe for x in lines] == [8, 4, 6]
    assert (Path("c/frontier.png")).read_bytes()[:4] == b"\x89PNG"
    page = Path("c/report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") >= 3
    again = call(capsys, *words)
    assert [x.figures for x in results.load(Path("c/results.json"))] == [x.figures for x in lines]
    assert again[0] == 0


def test_early_estimates_come_before_the_end(run, capsys) -> None:
    """After the first pass over all rows a table of 250 images each, marked as early."""
    code, _, err = call(
        capsys, "compare", run, "--samplers", "ddim:2,ddim:1", "-n", "600", "-o", "c"
    )
    assert code == 0
    assert "early estimates, 250 images of each row" in err
    assert "early" in err.split("early estimates")[1]


def test_results_of_one_protocol_share_a_table_and_others_do_not(run, capsys) -> None:
    for n, out in ((60, "a"), (60, "b"), (80, "d")):
        sampler = "ddim:2" if out != "b" else "ddim:3"
        code, _, err = call(capsys, "compare", run, "--samplers", sampler, "-n", n, "-o", out)
        assert code == 0, err
    code, out, err = call(capsys, "compare", "a/results.json", "b/results.json", "-o", "both")
    assert code == 0, err
    assert "DDIM 2" in out
    assert "DDIM 3" in out
    refused(
        call(capsys, "compare", "a/results.json", "d/results.json", "-o", "mixed"),
        2, "different protocols", "n 60 and 80",
    )  # fmt: skip
    assert not Path("mixed/results.json").exists()
    before = len(list(Path().rglob("*.npz")))
    refused(
        call(capsys, "compare", "d/results.json", run, "--samplers", "ddim:2", "-n", "60"),
        2, "different protocols",
    )  # fmt: skip
    assert len(list(Path().rglob("*.npz"))) == before  # refused before any sampling


def test_the_talks_table_has_25_cells_and_the_published_beside(run, capsys, monkeypatch) -> None:
    """The preset whole, with the model's evaluations made cheap by few images."""
    code, out, err = call(
        capsys, "compare", run, "--preset", "ddim-table", "-n", "20", "-o", "t"
    )  # fmt: skip
    assert code == 0, err
    lines = results.load(Path("t/results.json"))
    assert len(lines) == 25
    assert {x.settings["spacing"] for x in lines} == {"uniform"}
    assert "13.36" in out
    assert "299.71" in out
    assert "sigma-hat" in out
    assert "published" in Path("t/report.html").read_text("utf-8").lower()


def test_a_model_with_classes_against_images_without(run, capsys) -> None:
    """Guided as it says it is, its classes in turn, and no figure that needs labels."""
    np.save("real.npy", data.digits()[0].pixels)
    words = ("--data", "real.npy", "-n", "60", "-o", "e", "--format", "json")
    code, out, err = call(capsys, "evaluate", run, *words)
    assert code == 0, err
    value = json.loads(out)
    assert value["record"]["labels"] == "classes in turn"
    assert value["nfe"] == 8
    assert {f["name"].rpartition("-")[2] for f in value["figures"]} == {"pixels"}
    assert "no FD-classifier" in err
    (path,) = Path("e/samples").glob("*/000000-000060.npz")
    assert np.load(path)["labels"].tolist() == [i % 10 for i in range(60)]


def test_two_models_of_one_name_are_told_apart(run, capsys, tmp_path) -> None:
    other = train_tiny(tmp_path / "elsewhere" / "tiny", "seed=1")
    code, out, err = call(
        capsys, "compare", run, other, "--samplers", "ddim:2", "-n", "60", "-o", "c"
    )
    assert code == 0, err
    lines = results.load(Path("c/results.json"))
    for line in lines:
        assert line.model == "tiny"
        assert f"tiny ({line.weights[:8]})" in out


def test_a_folder_does_not_hide_a_shipped_model(capsys) -> None:
    """The word alone is the model, ./digits the folder."""
    Path("digits").mkdir()
    code, _, err = call(capsys, "evaluate", "digits", "-n", "20", "--steps", "2", "-o", "e")
    assert code == 0, err
    refused(call(capsys, "evaluate", "./digits", "--data", "digits", "-o", "f"), 3, "digits")


def test_evaluation_judges_by_real_images_of_any_format(run, capsys) -> None:
    """A reference batch without a held-out part: one set, the floor by the law of the bias."""
    train, _ = data.digits()
    path = Path("ref.npz").resolve()
    np.savez(path, arr_0=train.pixels.transpose(0, 2, 3, 1), arr_1=train.labels)
    code, out, err = call(
        capsys, "evaluate", run, "--data", path, "-n", "60", "-o", "e", "--format", "json"
    )
    assert code == 0, err
    value = json.loads(out)
    assert value["protocol"]["reference"]["split"] == "all"
    assert value["protocol"]["reference"]["images"] == len(train)
    assert all(str(path.parent) not in x.read_text() for x in Path("e").glob("*.json"))
