"""What the tests of `fewstep distill` share: a tiny teacher, and quick commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fewstep
from fewstep import data
from fewstep.cli import climb
from fewstep.cli.main import main
from fewstep.denoiser import NetDenoiser
from fewstep.metrics.classifier import Recipe
from fewstep.model import Model, Sampling
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import Cosine
from fewstep.students import plan
from fewstep.train import checkpoint
from tests.system.cli_runs import TINY

UPDATES, QUICK = 20, 40
"""Least updates of a stage, and images of a quick look, in place of those of the program."""

JUDGED = Recipe(steps=40)
"""How the judge is trained: no test of students asks how good it is."""

START = (
    "import sys; from fewstep.students import plan; from fewstep.cli import climb; "
    "from fewstep.cli.main import main; from fewstep.metrics.classifier import Recipe; "
    "plan.LEAST = {least}; climb._QUICK = {quick}; climb._FINE = 4; judged = {judged!r}; "
    "Recipe.of = lambda *_: judged; sys.exit(main(sys.argv[1:]))"
)


def settle(tmp_path, monkeypatch):
    """Go into a folder whose name holds a space, in a hurry; return it."""
    place = tmp_path / "a b"
    place.mkdir()
    monkeypatch.chdir(place)
    hasten(monkeypatch)
    return place


def hasten(monkeypatch):
    """Let commands of this process be content with little."""
    monkeypatch.setattr(plan, "LEAST", UPDATES)
    monkeypatch.setattr(climb, "_QUICK", QUICK)
    monkeypatch.setattr(climb, "_FINE", 4)
    monkeypatch.setattr(Recipe, "of", lambda *_: JUDGED)


def started(*words, cwd, least=60):
    """Start `fewstep distill` as a process of its own, content with little."""
    env = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))
    env["PYTHONPATH"] = str(Path(fewstep.__file__).parent.parent)
    code = START.format(least=least, quick=QUICK, judged=JUDGED)
    command = [sys.executable, "-c", code, "distill", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, **pipes)


def folders(where, names=("a", "b"), count=120):
    """Write real digits into class folders, so many of each."""
    train, _ = data.open("digits")
    for k, name in enumerate(names):
        Path(where, name).mkdir(parents=True)
        for i in np.flatnonzero(np.asarray(train.labels) == k)[:count]:
            Image.fromarray(np.asarray(train.pixels[i])[0]).save(Path(where, name, f"{i}.png"))
    return Path(where)


def teacher(place):
    """Train a tiny teacher on class folders; return its run folder."""
    images = folders(place / "some images")
    words = ["--data", str(images), f"out={place / 'a run'}", *TINY, "train.steps=60"]
    assert main(["train", *words, "train.checkpoint_every=60"]) == 0
    return place / "a run"


def saved(where, classes=("a", "b"), param=None, shape=(1, 8, 8), **about):
    """Save a tiny model of random weights."""
    config = UNetConfig(
        in_channels=shape[0], out_channels=shape[0], width=8, mult=(1, 2), depth=1, groups=4,
        classes=len(classes),
    )  # fmt: skip
    args = () if param is None else (param,)
    denoiser = NetDenoiser(UNet(config), Cosine(), *args).eval()
    sampling = Sampling(steps=4, guidance_scale=2.0 if classes else 1.0)
    checkpoint.save_model(Model(denoiser, shape, classes, sampling, **about), Path(where))
    return Path(where)


def described(folder):
    """Return what a model says of itself."""
    return json.loads((Path(folder) / "model.json").read_text())


def weights(folder):
    """Return the bytes of a model's weights."""
    return (Path(folder) / "weights.safetensors").read_bytes()


def everything(folder):
    """Return all files of a folder with what is in them."""
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
