"""`fewstep lab`: the two-dimensional laboratory, a page of pictures with numbers to reproduce."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import judged, made, options
from fewstep.cli.console import command, note, result
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.lab.part import Number, Part

app = options.app()

_OUT = typer.Option(
    "--out", "-o", metavar="FILE.html", help="the page; by default a new lab.html beside you"
)


@app.command()
def lab(
    out: Annotated[Path | None, _OUT] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="SET|FILE",
            help="two-modes, rings, moons, grid, swiss-roll, or a .csv or .npy file of points",
        ),
    ] = "moons",
    seed: Annotated[
        int, typer.Option(parser=options.seed, metavar="N", help="of all that is drawn")
    ] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="less work, coarser pictures, a worse network")
    ] = False,
    form: Annotated[str, options.FORMAT] = "human",
) -> int:
    """Measure what the talk says on points in the plane, and write one page of pictures.

    Beside each picture stand the formula, the function that implements it, and the numbers that
    must be reproduced. The exit code is 1 if one is not. It takes about half a minute.
    """
    judged.needs("matplotlib")
    _check_place(out)
    began = time.monotonic()
    from fewstep.cli import record
    from fewstep.lab import page as pages
    from fewstep.lab.parts import STAGES, parts
    from fewstep.lab.size import FULL, QUICK
    from fewstep.train import engine

    size, done = QUICK if quick else FULL, 0
    x, about = _points(data, size.points, seed)
    engine.tune_cpu()

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        note(f"lab {done}/{STAGES + 1}: {what} ({time.monotonic() - began:.0f} s)")

    found = parts(x, size, seed, tell)
    tell("the page")
    facts = {
        "data": f"{data}: {about}; {len(x)} points",
        "seed": str(seed),
        "work": "quick: fewer chains and steps, a worse network" if quick else "full",
        "device": f"cpu, {record.environment('cpu')['threads']} threads",
        "time": f"{time.monotonic() - began:.0f} s until this page was drawn",
    }
    other = "swiss-roll" if data == "moons" else "moons"
    hint = command("lab", "--data", other, "-o", f"{other}.html")
    file = out or made.free("lab", suffix=".html")
    record.text(file, pages.page(f"fewstep lab: {Path(data).name}", found, facts, [hint]))
    numbers = [(part, n) for part in found for n in part.numbers]
    failed = [n for _, n in numbers if not n.reproduced]
    if form == "json":
        _print_json(file, data, seed, numbers)
    else:
        _print(found)
        result(f"page: {file}")
        result(f"next: {hint}")
    if failed:
        note(f"fewstep: error: not reproduced: {'; '.join(pages.said(n) for n in failed)}")
    return 1 if failed else 0


def _check_place(out: Path | None) -> None:
    """Refuse a place for the page before any work is done."""
    if out is None:
        return
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {out}: must end in .html")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UsageError(f"-o {out}: must be a file in a folder that exists")


def _points(data: str, n: int, seed: int) -> "tuple[Tensor, str]":
    """Return the points of a set or of a file, and what they are in a few words."""
    from fewstep.lab import sets

    if data in sets.SETS:
        return sets.points(data, n, seed), sets.SETS[data].about
    return sets.read(Path(data)), "points of a file"


def _print(found: "list[Part]") -> None:
    """Print each section's numbers."""
    for part in found:
        result(part.title)
        for n in part.numbers:
            mark = "ok " if n.reproduced else "NOT"
            result(f"  {mark}  {n.got:<12.5g} {n.must:<18} {n.name}")


def _print_json(out: Path, data: str, seed: int, numbers: "list[tuple[Part, Number]]") -> None:
    """Print all numbers as one line of strict JSON."""
    rows = [{"section": part.title, **n.plain()} for part, n in numbers]
    answer = {"page": str(out), "data": data, "seed": seed, "numbers": rows}
    print(json.dumps(answer, allow_nan=False))
