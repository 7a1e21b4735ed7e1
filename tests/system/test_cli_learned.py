"""Learned variances on the command line: recipes, training that goes on, the bound of a model."""

import gzip
import struct

import numpy as np
import pytest
import yaml

from fewstep.train import checkpoint
from system.cli_runs import call, copy, refused, train_tiny

LEARNED = (
    "process.name=Tabulated", "process.betas=cosine", "process.steps=40", "param=EPS",
    "net.learn_variance=true", "objective.view=eps",
)  # fmt: skip


@pytest.fixture(scope="module")
def bound(tmp_path_factory):
    """A tiny run on the bound, with times that learn."""
    more = ("objective.kind=bound", "objective.times=importance")
    return train_tiny(tmp_path_factory.mktemp("b") / "run", *LEARNED, *more, steps=30, every=20)


def bytes_of(run, step):
    place = checkpoint.place(run, step)
    return [(place / n).read_bytes() for n in ("weights.safetensors", "train.safetensors")]


def test_a_run_goes_on_byte_for_byte_and_may_recompute(bound, tmp_path, capsys):
    """What the times learned is a part of it; whether features are computed again is not."""
    again = copy(bound, tmp_path / "again")
    (gone,) = again.glob("checkpoints/step-00000030")
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    code, _, err = call(capsys, "train", again, "net.recompute=true")
    assert code == 0, err
    assert bytes_of(again, 30) == bytes_of(bound, 30)
    refused(call(capsys, "train", again, "net.rescale=true"), 2, "net.rescale False -> True")
    refused(call(capsys, "train", again, "objective.times=uniform"), 2, "objective.times")


def test_a_run_of_an_earlier_version_goes_on(tmp_path, capsys):
    """Its recipe lacks the keys that are younger than it."""
    run = train_tiny(tmp_path / "old", steps=4, every=2)
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    young = ("head_channels", "attention_order", "resample_conv", "scale_shift", "rescale",
             "recompute", "learn_variance")  # fmt: skip
    for key in young:
        del values["net"][key]
    del values["objective"]["kind"], values["data"]["hint"]
    path.write_text(yaml.safe_dump(values))
    code, _, err = call(capsys, "train", run, "train.steps=6")
    assert code == 0, err
    assert checkpoint.place(run, 6).is_dir()


@pytest.mark.parametrize("name", ["mnist-guided", "mnist-classifier", "cifar10-adm"])
def test_a_recipe_says_what_it_needs(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = name.split("-")[0]
    what = "idx files" if folder == "mnist" else "parquet files"
    line = refused(call(capsys, "train", name), 3, tmp_path / folder, what, "--data FOLDER")
    assert line.startswith("fewstep: error: no such folder")
    assert not (tmp_path / "runs").exists()
    refused(call(capsys, "train", name, "--data", "elsewhere"), 3, tmp_path / "elsewhere", what)


def idx(folder, n):
    """Write n images of noise in MNIST's format."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    head = struct.pack(">4I", 0x803, n, 28, 28)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    labels = (np.arange(n) % 10).astype(np.uint8)
    head = struct.pack(">2I", 0x801, n)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))


def test_mnist_trains_and_its_classifier_guides(tmp_path, capsys, monkeypatch):
    """Both recipes on idx files, made small; they have one process."""
    monkeypatch.chdir(tmp_path)
    idx(tmp_path / "mnist", 60)
    small = ("device=cpu", "net.width=8", "net.depth=1", "net.head_channels=8",
             "train.batch_size=4", "train.steps=2", "train.warmup=1")  # fmt: skip
    for name in ("mnist-guided", "mnist-classifier"):
        code, _, err = call(capsys, "train", name, *small)
        assert code == 0, err
    code, _, err = call(
        capsys, "sample", "runs/mnist-guided", "--label", "7", "-n", 2, "--steps", 3,
        "--classifier", "runs/mnist-classifier", "--classifier-scale", 2, "-o", "two.png",
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "two.png").is_file()
