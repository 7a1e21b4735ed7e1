"""Training times that learn are a part of the state of a run."""

import shutil
from pathlib import Path

import pytest
import torch

from fewstep.errors import CheckpointError, NumericError
from fewstep.model import Model
from fewstep.objectives import Bound
from fewstep.train import checkpoint
from fewstep.train.fit import fit
from train import toy

STEPS, STOP = 24, 15
FILES = ("weights.safetensors", "train.safetensors")
KEPT = "memory."  # what the names of an objective's tensors begin with


def train(out: Path, goal: Bound | None = None) -> Model:
    config = toy.config(STEPS, checkpoint_every=STOP)
    return fit(toy.wide(), toy.images(), goal or toy.bound(), config, out, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("bound")
    train(out)
    return out


def last(out: Path) -> list[bytes]:
    return [(checkpoint.place(out, STEPS) / name).read_bytes() for name in FILES]


def cut(run: Path, out: Path) -> Path:
    """Copy a run without its end."""
    shutil.copytree(run, out)
    shutil.rmtree(checkpoint.place(out, STEPS))
    return out


def test_a_resumed_run_is_byte_equal(run, tmp_path):
    train(cut(run, tmp_path / "again"))
    assert last(tmp_path / "again") == last(run)


def test_what_was_learned_is_stored(run):
    """Of both micro-batches of every step; and by then the times are no longer uniform."""
    goal = toy.bound()
    for step in (STOP, STEPS):
        tensors = checkpoint.load(checkpoint.place(run, step)).tensors("train.safetensors")
        stored = {k.removeprefix(KEPT): v for k, v in tensors.items() if k.startswith(KEPT)}
        goal.times.restore(stored)
        assert int(stored["count"].sum()) == 8 * step
    assert float(goal.times.probabilities.std()) > 0.01


def test_a_checkpoint_of_an_earlier_version_is_continued(run, tmp_path):
    """Where the memory of training times had a name of its own; the same bits in the end."""
    again = cut(run, tmp_path / "r")
    files = checkpoint.load(checkpoint.place(again, STOP))
    parts = {name: files.json(name) for name in ("model.json", "state.json")}
    parts |= {name: files.tensors(name) for name in FILES}
    train_part = parts["train.safetensors"]
    for name in [k for k in train_part if k.startswith(KEPT)]:
        train_part[f"times.{name.removeprefix(KEPT)}"] = train_part.pop(name)
    checkpoint.write(checkpoint.place(again, STOP), parts, step=STOP)
    train(again)
    assert last(again) == last(run)


def test_an_objective_begins_each_run_anew(run, tmp_path):
    """What it learned in another run is forgotten."""
    used = toy.bound()
    t = torch.tensor([0.25] * 8)
    used.times.see(t, torch.full((8,), 1e3))
    used.times.learn(used.times.seen())
    train(tmp_path, used)
    assert last(tmp_path) == last(run)


def test_a_checkpoint_without_it_is_refused(run, tmp_path):
    again = cut(run, tmp_path / "r")
    files = checkpoint.load(checkpoint.place(again, STOP))
    names = ("model.json", "state.json")
    parts = {name: files.json(name) for name in names}
    parts |= {name: files.tensors(name) for name in FILES}
    del parts["train.safetensors"][f"{KEPT}count"]
    checkpoint.write(checkpoint.place(again, STOP), parts, step=STOP)
    with pytest.raises(CheckpointError, match=r"train\.safetensors: count of importance"):
        train(again)


def test_a_loss_that_is_not_finite_is_not_learned(tmp_path):
    """The last good state is the whole state."""
    goal = toy.bound()
    see, counts = goal.times.see, []

    def accident(t, losses):
        see(t, losses)
        counts.append(int(goal.times.state()["count"].sum()))
        if len(counts) == 7:  # the first half of the fourth step
            losses.mul_(float("nan"))

    goal.times.see = accident
    with pytest.raises(NumericError, match="step 4"):
        train(tmp_path, goal)
    assert int(goal.times.state()["count"].sum()) == 3 * 8
