"""fewstep tune: presets of few steps, kept in the model beside weights that stay as they are."""

import json
import signal
import subprocess

import pytest

from fewstep import tune
from fewstep.report import picture
from fewstep.train import checkpoint
from tests.system.cli_runs import call, checkpoints, copy, process, refused, train_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train once: 6 steps, checkpoints at 3 and 6."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Try two samplers only, along a coarse trajectory; the interrupted process tries all."""
    monkeypatch.setattr(tune, "FINER", 1)
    monkeypatch.setattr(tune, "SOLVERS", ("ddim", "ipndm"))


def described(folder):
    return json.loads((folder / "model.json").read_text())


def sums(folder):
    return {k: v["sha256"] for k, v in checkpoint.verify(folder)["files"].items()}


def test_a_run_keeps_what_was_found_and_samples_by_it(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = copy(run, tmp_path / "mine")
    newest = checkpoints(mine)[-1]
    before = sums(newest)
    code, out, err = call(capsys, "tune", mine, "--steps", "3,2", "-n", "4")
    assert code == 0, err
    assert "3 steps: error, sampler, grid" in out
    assert out.count("(untuned)") == 2
    assert f"sample {mine} --steps 3 --label=0 -n 16" in out
    assert list(described(newest)["tuned"]) == ["2", "3"]
    after = sums(newest)
    assert {k for k in before if before[k] != after[k]} == {"model.json"}
    found = described(newest)["tuned"]["3"]
    words = ("--label", "7", "-n", "1", "--seed", "5")
    code, _, err = call(capsys, "sample", mine, "--steps", "3", *words, "-o", "a.png")
    assert code == 0
    assert f"3 steps: sampler {found['sampler']} on " in err
    assert "found for this model by fewstep tune" in err
    said = picture.read_settings(tmp_path / "a.png")["sampling"]
    assert (said["sampler"], said.get("levels")) == (found["sampler"], found.get("levels"))
    assert said["guidance_scale"] == 2
    # what the user says goes first, and another number of steps has no such preset
    code, _, err = call(capsys, "sample", mine, "--steps", "3", "--sampler", "ddim", *words)
    assert "fewstep tune" not in err
    code, _, err = call(capsys, "sample", mine, "--steps", "5", *words)
    assert "fewstep tune" not in err
    code, _, err = call(capsys, "train", mine, "train.steps=7")
    assert code == 0, err


def test_a_shipped_model_is_copied(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(call(capsys, "tune", "digits", "--steps", "3"), 2, "shipped model", "-o FOLDER")
    code, out, err = call(capsys, "tune", "digits", "--steps", "2", "-n", "4", "-o", "mine")
    assert code == 0, err
    assert list(described(tmp_path / "mine")["tuned"]) == ["2"]
    assert "sample mine --steps 2" in out
    for label, taken in ((("--label", "3"), True), ((), False)):  # found with guidance
        words = ("--steps", "2", "-n", "1", *label)
        code, _, err = call(capsys, "sample", "mine", *words)
        assert code == 0
        assert ("found for this model" in err) is taken


def test_a_copy_of_a_run_is_a_model_alone(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sums(checkpoints(run)[-1])
    for n in ("2", "3"):
        assert call(capsys, "tune", run, "--steps", n, "-n", "4", "-o", "m")[0] == 0
    assert list(described(tmp_path / "m")["tuned"]) == ["2", "3"]
    assert {*sums(tmp_path / "m")} == {"model.json", "weights.safetensors"}
    assert sums(checkpoints(run)[-1]) == before


@pytest.mark.parametrize("steps", ["0", "61", "x", "3,", "-2", "2.5"])
def test_refuses_other_numbers_of_steps(run, capsys, steps):
    refused(call(capsys, "tune", run, f"--steps={steps}"), 2, "1..60")


def test_refuses_a_place_that_is_taken(run, capsys, tmp_path):
    (tmp_path / "x").write_text("mine")
    words = ("tune", run, "--steps", "2", "-n", "4", "-o")
    refused(call(capsys, *words, tmp_path), 2, "holds something else")
    refused(call(capsys, *words, tmp_path / "x"), 2, "a file; choose a free name")
    refused(call(capsys, *words, tmp_path / "x" / "m" / "n"), 2, "is a file, not a folder")
    refused(call(capsys, *words, ""), 2, "-o ''", "must be a folder")
    assert (tmp_path / "x").read_text() == "mine"


def test_interrupted_it_keeps_what_was_found(run, tmp_path):
    mine = copy(run, tmp_path / "mine")
    words = ("tune", mine, "--steps", "1,60", "-n", "16")
    job = process(*words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert job.stdout is not None
    for line in job.stdout:
        if "(untuned)" in line:
            break
    newest = checkpoints(mine)[-1]
    for _ in range(1000):
        if "tuned" in described(newest):
            break
        signal.sigtimedwait([], 0.05)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130, err
    assert "stopped: interrupted" in err
    assert list(described(newest)["tuned"]) == ["1"]
    checkpoint.verify(newest)
