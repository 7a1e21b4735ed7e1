"""fewstep distill keeps to its budget, and to the memory that there is, on a tiny teacher."""

import json
import re
import time
from pathlib import Path

import pytest
import torch

from fewstep.distill import Progressive
from fewstep.students import Pace
from fewstep.train.ema import EMA
from tests.system import distilling
from tests.system.cli_runs import call, refused
from tests.system.distilling import described, everything, folders, saved, weights

SLOW = 0.1  # seconds, that a step takes longer: most of its time
SHORT = ("--to", "4", "--method", "progressive", "--start", "8", "-n", "20")


@pytest.fixture(autouse=True)
def teacher(tmp_path, monkeypatch):
    """A teacher of random weights and its images, in a folder whose name holds a space."""
    distilling.settle(tmp_path, monkeypatch)
    monkeypatch.setattr("fewstep.cli.climb._worse", lambda *_: False)
    return saved("one"), "--data", folders("images")


def narrow(monkeypatch, most):
    """Let memory end above so many training images at once."""
    real = Progressive.__call__

    def goal(self, denoiser, x0, *more):
        if len(x0) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, denoiser, x0, *more)

    monkeypatch.setattr(Progressive, "__call__", goal)


def plan(out):
    """Return batch and pieces of the stages that a folder plans."""
    stages = json.loads(Path(out, "distill.json").read_text())["stages"]
    return [(stage["batch_size"], stage["accumulate"]) for stage in stages]


def test_a_budget_is_what_training_takes(teacher, capsys, monkeypatch):
    """With an average of weights that takes most of the time; the network does not show it.

    Between a half and twice the budget: most of a step is this wait, which no other program on
    the machine makes longer; a speed without it would give several times as much.
    """
    real = EMA.update

    def slow(*args):
        time.sleep(SLOW)
        return real(*args)

    monkeypatch.setattr(EMA, "update", slow)
    code, _, err = call(capsys, "distill", *teacher, *SHORT, "--budget", "12s", "-o", "out")
    assert code == 0, err
    spent = int(re.search(r"^(\d+) of \d+ s were training", err, re.M).group(1))
    assert 6 <= spent <= 24
    tried = re.findall(r"^  progressive: (.*) s for a step of 32 images", err, re.M)
    assert len(tried) == 1
    assert float(tried[0]) >= SLOW
    said = re.search(
        r"in all about 0:(\d\d) of training, copy errors and checkpoints included", err
    )
    assert int(said.group(1)) <= 13  # 1.05 of it, rounded up
    assert "of sampling to measure" in err


def test_a_batch_that_memory_does_not_bear_is_taken_in_pieces(teacher, capsys, monkeypatch):
    """And so when it goes on: the pieces are part of the plan."""
    narrow(monkeypatch, 20)
    words = ("distill", *teacher, *SHORT, "--images", "640", "-o", "out")
    code, _, err = call(capsys, *words)
    assert code == 0, err
    assert err.count("memory does not bear 32 images at once: taken as 2 x 16") == 1
    assert plan("out") == [(32, 2)]
    before = weights("out/student")
    code, _, err = call(capsys, "distill", "out")
    assert code == 0, err
    assert "memory does not bear" not in err
    assert weights("out/student") == before


def test_no_memory_at_all_leaves_nothing(teacher, capsys, monkeypatch):
    """The advice is of options that distill has; a budget and a number of images alike."""
    narrow(monkeypatch, 0)
    before = everything(".")
    for words in (("--images", "640"), ("--budget", "9s")):
        answer = call(capsys, "distill", *teacher, *SHORT, *words, "-o", "out")
        line = refused(answer, 6, "out of memory", "does not bear a step of one image", "--device")
        assert "accumulate" not in line
        assert everything(".") == before
        assert not Path("out").exists()


def test_a_plan_that_memory_did_not_bear_goes_on_in_pieces(teacher, capsys, monkeypatch):
    """As one that was written without a trial: begun, and nothing trained."""
    narrow(monkeypatch, 20)
    words = ("distill", *teacher, *SHORT, "--images", "640", "-o", "out")
    with monkeypatch.context() as patch:
        patch.setattr(Pace, "fitted", lambda _, stages: stages)
        patch.setattr("fewstep.cli.wished._expected", lambda *_: None)
        line = refused(call(capsys, *words), 6, "out", "--device cpu")
        assert "accumulate" not in line
    assert plan("out") == [(32, 1)]
    facts = json.loads(Path("out/distill.json").read_text())
    code, _, err = call(capsys, "distill", "out")
    assert code == 0, err
    assert plan("out") == [(32, 2)]
    now = json.loads(Path("out/distill.json").read_text())
    assert {**now, "stages": 0} == {**facts, "stages": 0}
    assert described("out/student")["student"]["images"] == 640
