"""Rows I1 and I2: what it costs to start.

Every figure is the wall time of a whole process, the sides in turn, byte code already cached.
I1 imports fewstep and touches what a sampling script uses (solvers, guidance, `NetDenoiser`,
the networks), and compares it with `import torch`, which any such library pays; a plain
`import fewstep` loads nothing and is stated beside it. I2 asks the command line for its help and
compares that with a Python that does nothing.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Collection

from benchmarks import timing

WORKING_SET = (
    "import fewstep; fewstep.solvers; fewstep.guide; fewstep.NetDenoiser; fewstep.nets.UNet; "
    "fewstep.VP"
)


def _process(*arguments: str) -> timing.Side:
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def imports(rounds: int) -> timing.Row:
    """Measure I1."""
    sides = {
        "ours": _process("-c", WORKING_SET),
        "peer": _process("-c", "import torch"),
        "plain": _process("-c", "import fewstep"),
    }
    times = timing.take_turns(sides, rounds)
    return timing.row(
        "I1", "import fewstep and use solvers, guide, NetDenoiser, nets, vs import torch",
        times["ours"], times["peer"], "s", 1.03, plain_s=statistics.median(times["plain"]),
        imported=WORKING_SET,
    )  # fmt: skip


def help_(rounds: int) -> timing.Row:
    """Measure I2."""
    sides = {"ours": _process("-m", "fewstep", "--help"), "peer": _process("-c", "pass")}
    times = timing.take_turns(sides, rounds)
    row = timing.row(
        "I2", "python -m fewstep --help vs python -c pass", times["ours"], times["peer"], "s", 5.0
    )
    row["ok"] = row["ok"] and row["ours"] < 0.1
    return row | {"goal": row["goal"] + ", < 0.1 s"}


def run(rounds: int = 9, rows: Collection[str] = ("I1", "I2")) -> list[timing.Row]:
    """Measure the rows that are asked for."""
    measures = {"I1": lambda: imports(rounds), "I2": lambda: help_(2 * rounds + 1)}
    return timing.each(measures, rows)


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
