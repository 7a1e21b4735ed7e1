"""Processes that are killed or told to stop: CK1, CK2, TR6. The kills happen in zygote.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def zygote(task: str, folder: Path, number: int) -> dict:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "zygote.py"), task, str(folder), str(number)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170)
    errors = folder / "stderr"
    assert done.returncode == 0, done.stderr + (errors.read_text() if errors.exists() else "")
    return json.loads(done.stdout)


def test_a_killed_save_never_costs_an_acknowledged_checkpoint(tmp_path):
    found = zygote("saver", tmp_path, 110)  # CK1
    assert found["good"] == found["kills"] == 110
    assert found["saves"] > 20, "the kills came too early to hit a save"
    assert found["left"] == []


def test_a_killed_trainer_ends_with_the_same_bits(tmp_path):
    found = zygote("trainer", tmp_path, 10)  # CK2
    assert found["killed"] == 10
    assert found["ended"] == 0
    assert len(set(found["found"])) >= 5, "hardly a kill was followed by a resume"
    assert found["same"] == [True, True]


def test_a_signal_saves_and_the_run_goes_on_exactly(tmp_path):
    found = zygote("signal", tmp_path, 0)  # TR6
    codes = {"SIGTERM": 75, "SIGUSR1": 75, "SIGINT": 130}
    assert found.keys() == codes.keys()
    for name, code in codes.items():
        assert found[name]["codes"] == [code, 0], name
        assert 0 < found[name]["at"] < 30, name
        assert found[name]["same"], name
