"""Kill real savers and trainers at random times; print what was found as one JSON line.

One import of torch serves hundreds of processes: this program forks and never trains itself.
usage: python zygote.py saver|trainer|signal FOLDER [NUMBER]
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import toy  # beside this file

from fewstep.errors import FewstepError
from fewstep.train import checkpoint

_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
ERRORS = Path(sys.argv[2]) / "stderr"


def fork(task: Callable[[], object]) -> int:
    """Run a task in a child that never returns; its exit code is the error's."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        os.dup2(os.open(ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        task()
    except FewstepError as e:
        code = e.exit_code
        print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
        code = 99
    os._exit(code)


def code(pid: int) -> int:
    """Wait for a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def saver(run: Path, kills: int) -> dict[str, object]:
    """Kill a process that saves in a loop; what it acknowledged must be there, whole."""
    said = run.parent / "said"
    random.seed(0)
    good, step = 0, 0
    weights = {"w": torch.zeros(50_000)}

    def loop() -> None:
        checkpoint.sweep(run)
        for i in range(step + 1, step + 10_000):
            parts = {"w.safetensors": {"w": weights["w"] + i}, "state.json": {"step": i}}
            checkpoint.write(checkpoint.place(run, i), parts, step=i)
            said.write_text(str(i))
            checkpoint.retain(run, 2)

    for _ in range(kills):
        pid = fork(loop)
        time.sleep(random.uniform(0.005, 0.06))
        os.kill(pid, signal.SIGKILL)
        code(pid)
        acked = int(said.read_text() or 0) if said.exists() else 0
        newest = checkpoint.newest(run)
        found = 0
        if newest is not None:
            files = checkpoint.load(newest)
            found = files.json("state.json")["step"]
            whole = bool((files.tensors("w.safetensors")["w"] == found).all())
            good += whole and found >= acked
        else:
            good += acked == 0
        step = max(found, step)
    checkpoint.sweep(run)
    left = [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]
    return {"kills": kills, "good": good, "saves": step, "left": left}


def trainer(run: Path, kills: int) -> dict[str, object]:
    """Kill a trainer, again and again, then let it end; compare with one that lived."""
    random.seed(1)
    steps = 80
    whole = run.parent / "whole"
    assert code(fork(lambda: toy.train(whole, steps, checkpoint_every=2))) == 0
    killed, found = 0, []
    while killed < kills:
        # the kill comes at a random moment after a point of the run, so that no machine is too
        # slow or too fast for it; a run that ended before its kill is begun anew
        point = 7 * killed + random.randint(0, 7)
        pid = fork(lambda: toy.train(run, steps, checkpoint_every=2))
        while _at(run) < point and os.waitid(os.P_PID, pid, _LOOK) is None:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        if code(pid) == -signal.SIGKILL:
            killed += 1
            found.append(_at(run))
        else:
            shutil.rmtree(run)
    ended = code(fork(lambda: toy.train(run, steps, checkpoint_every=2)))
    names = ("weights.safetensors", "train.safetensors")
    last = f"checkpoints/step-{steps:08d}"
    same = [(run / last / n).read_bytes() == (whole / last / n).read_bytes() for n in names]
    return {"killed": killed, "found": found, "ended": ended, "same": same}


def _at(run: Path) -> int:
    """Return the step of the newest checkpoint, whole or not; 0 if there is none."""
    return max([0, *(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))])


def signalled(run: Path, _: int) -> dict[str, object]:
    """Send each signal to a trainer in its work; it must save, say so, and go on exactly."""
    steps, whole, found = 30, run.parent / "whole", {}
    assert code(fork(lambda: toy.train(whole, steps))) == 0
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        out = run.parent / number.name
        pid = fork(lambda out=out: toy.train(out, steps))
        log = out / "metrics.jsonl"
        while not log.exists() or len(log.read_bytes()) < 300:
            time.sleep(0.005)
        os.kill(pid, number)
        first, stopped = code(pid), checkpoint.newest(out)
        at = -1 if stopped is None else int(stopped.name[5:])
        second = code(fork(lambda out=out: toy.train(out, steps)))
        last = f"checkpoints/step-{steps:08d}/train.safetensors"
        same = (out / last).read_bytes() == (whole / last).read_bytes()
        found[number.name] = {"codes": [first, second], "at": at, "same": same}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    toy.train(Path(sys.argv[2]) / "warm", 1)  # imports what a trainer imports
    task = {"saver": saver, "trainer": trainer, "signal": signalled}[sys.argv[1]]
    folder = Path(sys.argv[2])
    print(json.dumps(task(folder / "run", int(sys.argv[3]))))
