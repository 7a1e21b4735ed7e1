"""Learned variances on the command line: recipes, training that goes on, the bound of a model."""

import gzip
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from fewstep import data, metrics
from fewstep.cli.resolve import SHIPPED
from fewstep.denoiser import NetDenoiser
from fewstep.guide import Clamp
from fewstep.model import Model
from fewstep.nets import SuperRes, UNet, UNetConfig
from fewstep.process import Cosine
from fewstep.report import results
from fewstep.train import checkpoint
from tests.system.cli_runs import call, copy, refused, run, train_tiny

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


def test_the_bound_of_a_run(bound, tmp_path):
    """The command gives what the library gives, with its interval, and stores it."""
    code, out, err = run(
        "evaluate", bound, "--bits-per-dim", "--terms", 7, "-n", 60, "-o", "e",
        "--format", "json", "--batch-size", 20, cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "60 images (digits, held out), for each the first and 7 of the other steps of 40" in err
    line = json.loads(out)
    (stored,) = results.load(next((tmp_path / "e").glob("bits-per-dim-*.json")))
    assert stored.plain() == line
    assert line["protocol"]["parameters"] == {
        "steps": 40, "steps of each image": 8, "given": "the class", "clip": True,
    }  # fmt: skip
    images = data.digits()[1]
    images = images.subset(np.random.default_rng(0).permutation(len(images))[:60])
    denoiser = Clamp(checkpoint.load_model(checkpoint.newest(bound)).denoiser)
    with torch.no_grad():
        want = metrics.bits(denoiser, images, ("learned", "small", "large"), 7, 0, 20)
        whole = metrics.bits(denoiser, images, ("learned", "small", "large"))
    for figure, each, all_ in zip(stored.figures, want, whole, strict=True):
        assert figure.name == each.figure.name
        assert figure.value == pytest.approx(each.figure.value, rel=1e-5)
        assert figure.low < all_.figure.value < figure.high
        assert sum(stored.detail["parts"][figure.name]) == pytest.approx(figure.value)


def test_a_model_without_a_learned_variance_has_a_bound(tmp_path, capsys, monkeypatch):
    """The shipped one, along its own process at a thousand whole steps."""
    monkeypatch.chdir(tmp_path)
    words = ("evaluate", "digits", "--bits-per-dim", "-n", "20", "--terms", "3")
    code, out, err = call(capsys, *words)
    assert code == 0, err
    for word in ("bits/dim, small", "bits/dim, large", "95 % interval", "L_1 ... L_T-1",
                 "chain of 1000 steps, of which 4 are evaluated", "given the class", "20 images",
                 "held out, 450 images", "seed 0"):  # fmt: skip
        assert word in out, word
    assert "learned" not in out
    assert list(tmp_path.glob("runs/eval-digits/bits-per-dim-*.json"))


def test_an_unconditional_model_takes_no_classes(tmp_path, capsys):
    """The images have classes all the same."""
    model = checkpoint.load_model(SHIPPED / "digits")
    net = UNet(replace(model.denoiser.net.config, classes=0))
    plain = NetDenoiser(net, model.denoiser.process)
    checkpoint.save_model(Model(plain, model.shape), tmp_path / "plain")
    words = ("--data", "digits", "-o", tmp_path / "e", "-n", 4, "--terms", 1)
    code, out, err = call(capsys, "evaluate", tmp_path / "plain", "--bits-per-dim", *words)
    assert code == 0, err
    assert "given nothing" in out


def test_with_a_protocol_the_usual_figures_come_as_well(bound, tmp_path, capsys):
    pytest.importorskip("torch_fidelity")
    words = ("--protocol", "small-1k", "-n", 30, "--terms", 2, "-o", tmp_path / "e")
    code, out, err = call(capsys, "evaluate", bound, "--bits-per-dim", *words)
    assert code == 0, err
    assert out.index("bits/dim, learned") < out.index("FD-pixels")
    assert len(list((tmp_path / "e").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--steps", "5"], ["--steps", "--protocol"]),
        (["--guidance-scale", "2"], ["--guidance-scale"]),
        (["--shard", "1/2"], ["--shard"]),
        (["--terms", "40"], ["--terms 40", "1..39, a chain of 40 steps"]),
        (["-n", "1"], ["-n 1", "2..450"]),
        (["-n", "451"], ["2..450"]),
    ],
)
def test_what_the_bound_cannot_have_is_one_line(bound, tmp_path, capsys, words, named):
    answer = call(capsys, "evaluate", bound, "--bits-per-dim", "-o", tmp_path / "e", *words)
    refused(answer, 2, *named)
    assert not (tmp_path / "e").exists()


def test_what_has_no_bound_is_one_line(bound, tmp_path, capsys):
    refused(call(capsys, "evaluate", bound, "--terms", "3"), 2, "belongs to --bits-per-dim")
    np.save(tmp_path / "x.npy", np.zeros((30, 1, 8, 8), np.uint8))
    answer = call(capsys, "evaluate", tmp_path / "x.npy", "--data", "digits", "--bits-per-dim")
    refused(answer, 2, "x.npy", "finished images")
    config = UNetConfig(2, 1, 8, width=8, mult=(1,), depth=1, attention=(), heads=1, groups=4)
    told = Model(NetDenoiser(SuperRes(UNet(config)), Cosine()), (1, 8, 8))
    checkpoint.save_model(told, tmp_path / "told")
    answer = call(capsys, "evaluate", tmp_path / "told", "--data", "digits", "--bits-per-dim")
    refused(answer, 2, "told is told a text or an image")
