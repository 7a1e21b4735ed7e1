"""Measure the rows and print one table: `python -m benchmarks [ROW ...]`.

A row compares ours with another library on the same work, or a whole with the sum of its parts,
the two in turn on one thread, and its figure is a ratio. Rows S1, S2, S4, G11, I1, I2, D1, E1, E2,
E4 have a goal that must hold: a miss makes the exit code 1. The others are measured and stated. A
row whose peer is not installed is skipped.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

from benchmarks import timing
from benchmarks.timing import Row

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
GATED = ("S1", "S2", "S4", "G11", "I1", "I2", "D1", "E1", "E2", "E4")
LIBRARIES = (
    "torch",
    "diffusers",
    "azula",
    "k-diffusion",
    "torchvision",
    "torch-fidelity",
    "numpy",
)


class Part(NamedTuple):
    """A module of this folder, the rows it measures, and its rounds: usual and quick."""

    module: str
    rows: tuple[str, ...]
    rounds: int
    quick: int


# The rows on start-up come first and those that tune the whole process come last.
PARTS = (
    Part("startup", ("I1", "I2"), 9, 3),
    Part("samplers", ("S1", "S4", "S2"), 151, 31),
    Part("every_solver", ("S8",), 51, 11),
    Part("optimizer", ("G11",), 31, 7),
    Part("data_loading", ("D1",), 7, 3),
    Part("evaluation", ("E1", "E2", "E4"), 9, 3),
    Part("networks", ("S3", "G1", "G2", "G3", "G4", "G5", "G9"), 9, 3),
    Part("guidance", ("S5", "S6", "S7"), 9, 3),
    Part("distillation", ("D2", "D3", "D4", "D5", "D6"), 13, 5),
)


def measure(part: Part, rounds: int, wanted: set[str]) -> list[Row]:
    """Return the lines of a part; those of a part that cannot run say why."""
    try:
        run: Callable[..., Row | list[Row]] = import_module(f"benchmarks.{part.module}").run
        rows = run(rounds, wanted)
    except (timing.Skip, ImportError) as e:
        return [timing.skipped(name, str(e)) for name in part.rows]
    return rows if isinstance(rows, list) else [rows]


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _verdict(row: Row) -> str:
    if row["ok"] is None:
        return "skipped"
    if row["row"] in GATED:
        return "holds" if row["ok"] else "MISSED"
    return "reached" if row["ok"] else "not reached"


def table(rows: list[Row]) -> list[list[str]]:
    """Return the cells of the table, the head first."""
    cells = [["row", "what", "ours", "peer", "ratio", "goal", "verdict"]]
    for row in rows:
        figures = [""] * 4
        if row["ok"] is not None:
            unit = row.get("unit", "")
            figures = [f"{_figure(row[side])} {unit}".strip() for side in ("ours", "peer")]
            figures += [_figure(row["ratio"]), str(row["goal"])]
        cells.append([row["row"], row["what"], *figures, _verdict(row)])
    return cells


def protocol(quick: bool) -> dict[str, str | int | bool]:
    """Return what the figures were measured on and with."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    model, cpuinfo = platform.machine(), Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": model,
        "cores": os.cpu_count() or 1,
        "threads": 1,
        "python": platform.python_version(),
        **versions,
        "quick": quick,
    }


def save(rows: list[Row], said: dict[str, str | int | bool]) -> None:
    """Write docs/results/bench-cpu.json and bench-cpu.md."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    whole = json.dumps({"protocol": said, "rows": rows}, indent=1) + "\n"
    (RESULTS / "bench-cpu.json").write_text(whole)
    head, *body = table(rows)
    counts: dict[str, dict[str, None]] = {}  # in order: a row may have lines of other rounds
    for row in rows:
        if "rounds" in row:
            counts.setdefault(row["row"], {})[str(row["rounds"])] = None
    rounds = ", ".join(f"{name} {' and '.join(ns)}" for name, ns in counts.items())
    lines = [
        "# Speed on a CPU, beside other libraries",
        "",
        "Made by `python -m benchmarks --save`. The sides take turns in one process, on one",
        "thread; a ratio is the median, over the rounds, of ours / peer within a round. Warm-up",
        "rounds are left out. Each row's module in `benchmarks/` says what exactly is compared.",
        "",
        *(f"- {key}: {value}" for key, value in said.items() if key != "quick"),
        f"- rounds: {rounds}",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(line)} |" for line in body),
        "",
    ]
    (RESULTS / "bench-cpu.md").write_text("\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; return the exit code."""
    known = [name for part in PARTS for name in part.rows]
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {' '.join(known)}; none: all")
    parser.add_argument("--quick", action="store_true", help="few rounds: rough figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--save", action="store_true", help="write docs/results/bench-cpu.*")
    options = parser.parse_args(arguments)
    wanted = {name.upper() for name in options.rows} or set(known)
    if wanted - set(known):
        parser.error(f"no row {' '.join(sorted(wanted - set(known)))}; there is {' '.join(known)}")
    rows: list[Row] = []
    for part in PARTS:
        if not wanted & set(part.rows):
            continue
        asked = [name for name in part.rows if name in wanted]
        print(f"{' '.join(asked)} ...", end=" ", file=sys.stderr, flush=True)
        start = time.perf_counter()
        lines = measure(part, part.quick if options.quick else part.rounds, wanted)
        rows += [line for line in lines if line["row"] in wanted]
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    cells = table(rows)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    said = protocol(options.quick)
    if options.json:
        options.json.write_text(json.dumps({"protocol": said, "rows": rows}, indent=1) + "\n")
    if options.save:
        save(rows, said)
    return int(any(row["row"] in GATED and row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
