"""Two processes that train together (gloo, CPU), started by torchrun; nightly."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.train import checkpoint, log
from train import toy

HERE = Path(__file__).parent


def launch(folder: Path, processes: int, steps: int, *more: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(HERE / "ranks.py"), str(folder), str(steps)]
    command += more
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_ranks_hold_the_same_weights_and_resume(tmp_path):  # CK10
    launch(tmp_path / "a", 2, 8)
    a = [(tmp_path / "a" / f"rank{k}").read_text() for k in (0, 1)]
    assert a[0] == a[1]
    records = log.read(tmp_path / "a" / "run" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 9))
    assert all(math.isfinite(r["loss"]) for r in records)
    launch(tmp_path / "b", 2, 5)
    launch(tmp_path / "b", 2, 8)
    assert (tmp_path / "b" / "rank0").read_text() == (tmp_path / "b" / "rank1").read_text()
    assert checkpoint.newest(tmp_path / "b" / "run") is not None
    # One process alone sees the same images, in other micro-batches: nearly the same first loss.
    toy.train(tmp_path / "alone", 8, batch_size=16)
    alone = log.read(tmp_path / "alone" / "metrics.jsonl")
    assert alone[0]["loss"] == pytest.approx(records[0]["loss"], rel=0.5)


@pytest.mark.slow
def test_two_ranks_learn_the_same_times(tmp_path):
    """Each rank sees half of the losses and remembers all of them; the table is stored once."""
    launch(tmp_path, 2, 8, "bound")
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()
    stored = checkpoint.load(checkpoint.newest(tmp_path / "run")).tensors("train.safetensors")
    assert int(stored["memory.count"].sum()) == 8 * 16
