"""What the tests of the command line share: calling it, and a tiny run to call it on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fewstep
from fewstep.cli.main import main

# Every number that a test looks at is given, so that the recipe `digits` may be tuned freely.
TINY = (
    "device=cpu", "net.width=8", "net.depth=1", "net.heads=1", "net.mult=[1,2]",
    "net.attention=[4]", "process.name=Cosine", "objective.drop=0.1", "train.batch_size=16",
    "train.warmup=2", "train.lr=0.002", "sampling.sampler=ddim", "sampling.steps=4",
    "sampling.spacing=even", "sampling.eta=0", "sampling.guidance_scale=2",
)  # fmt: skip


def call(capsys, *words):
    """Run the command line in this process; return exit code, stdout, stderr."""
    capsys.readouterr()
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def process(*words, cwd, **options):
    """Start the command line as a process of its own."""
    import torch

    env = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))
    env["PYTHONPATH"] = str(Path(fewstep.__file__).parent.parent)
    command = [sys.executable, "-m", "fewstep", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, **options)


def run(*words, cwd):
    """Run the command line as a process of its own; return exit code, stdout, stderr."""
    started = process(*words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = started.communicate(timeout=100)
    return started.returncode, out, err


def refused(answer, code, *named):
    """Check an answer: this exit code, one line of error that names these, no traceback."""
    got, out, err = answer
    errors = [line for line in err.splitlines() if line.startswith("fewstep: error: ")]
    assert got == code, err
    assert len(errors) == 1, err
    assert "Traceback" not in out + err
    for name in named:
        assert str(name) in errors[0], f"{name!r} is not in {errors[0]!r}"
    return errors[0]


def train_tiny(out, *more, steps=6, every=3):
    """Train a tiny conditional digits model; two checkpoints and more."""
    words = [f"out={out}", f"train.steps={steps}", f"train.checkpoint_every={every}"]
    code = main(["train", "digits", *words, *TINY, *more])
    assert code == 0
    return Path(out)


def copy(run, place):
    """Copy a run, to damage it."""
    shutil.copytree(run, place)
    return Path(place)


def checkpoints(run):
    """Return the checkpoints of a run, oldest first."""
    return sorted((Path(run) / "checkpoints").iterdir())
