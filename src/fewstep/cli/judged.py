"""What `evaluate`, `compare` and `demo` share: real images, items, and work that can be stopped.

Images and their features are made chunk by chunk under a meter; SIGTERM and Ctrl-C leave after
the step at hand, with every finished chunk on disk, and the same command goes on from there.
Under torchrun, or with --shard, each process takes its part of the chunks; they share nothing but
the folder.
"""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fewstep.cli import console
from fewstep.errors import DataError, Interrupted, Preempted, UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.report.judge import Judge, Reals
    from fewstep.report.results import Line
    from fewstep.report.work import Work

ARRAYS = (".npz", ".npy", ".safetensors")
_MODEL = ("manifest.json", "model.json", "checkpoints", "config.yaml")
_EVERY = 15.0  # seconds between lines where there is no terminal
_LOOK = 0.1  # share of the time that early tables may take


def is_images(word: str) -> bool:
    """Return whether a word of the command line means images and not a model."""
    path = Path(word).expanduser()
    if path.is_dir():
        return not any((path / name).exists() for name in _MODEL)
    return path.is_file() and path.suffix.lower() in (*ARRAYS, ".parquet")


def share(word: str | None) -> tuple[int, int]:
    """Return which part of the chunks this process makes, (i, k) from 0, of "i/k" from 1.

    Without a word, torchrun says it.

    Raises:
        UsageError: no such part.
    """
    if word is None:
        ranks = os.environ.get("WORLD_SIZE", "1")
        return console.rank(), int(ranks) if ranks.isdecimal() else 1
    first, slash, of = word.partition("/")
    if not (slash and first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of)):
        raise UsageError(f"--shard {word}: must be I/K with 1 <= I <= K, such as 3/8")
    return int(first) - 1, int(of)


def reals(data: str | None, found: "Found | None") -> "Reals":
    """Open the real images: those named, or those the model was trained on.

    Raises:
        UsageError: none named, and the model does not say.
        DataError: they cannot be used.
    """
    from fewstep import data as door
    from fewstep.report.judge import Reals

    options: dict[str, Any] = {}
    if data is None:
        data, options = _own_data(found)
    if Path(data).suffix.lower() in ARRAYS and Path(data).expanduser().is_file():
        whole = door.load(data)
        return Reals(whole.name, whole)
    train, held_out = door.open(data, **options)
    return Reals(train.name, train, held_out if len(held_out) else None)


def _own_data(found: "Found | None") -> tuple[str, dict[str, Any]]:
    """Return the data a model was trained on and how they were read."""
    from fewstep.recipes import load

    if found is not None:
        run = found.path.parent.parent if found.path.parent.name == "checkpoints" else found.path
        if (run / "config.yaml").is_file():
            said = dict(load(run / "config.yaml").get("data", {}))
            path = said.pop("path", "digits")
            return path, said
        if found.model.about.get("data", {}).get("name") == "digits":
            return "digits", {}
    raise UsageError(
        "which real images to measure against is not known: give --data PATH (a folder, an npz "
        "file, or the word digits)"
    )


class Meter:
    """Say how far the work is and how long it will take.

    Args:
        total: network evaluations to be made.
        what: to say before it.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self.done, self.what = max(total, 1), 0, what
        self.wanted, self.where = 0, ""
        self._size = 0
        self._began = self._said = time.monotonic()
        self._bar = _bar() if console.rank() == 0 and sys.stderr.isatty() else None
        self._task = None if self._bar is None else self._bar.add_task(what, total=self.total)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Meter":
        """Begin, and hold the signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave terminal and signals as they were."""
        if self._bar is not None:
            self._bar.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.wanted = number

    def chunk(self, evaluations: int, where: str) -> None:
        """Tell that a chunk of so many evaluations begins."""
        self._size, self.where = evaluations, where

    def tick(self, done: int, total: int) -> None:
        """Tell that `done` of `total` steps of the chunk are done; stop here if told to.

        Raises:
            Preempted: SIGTERM.
            Interrupted: Ctrl-C.
        """
        self.stop()
        now, at = time.monotonic(), self.done + self._size * done / total
        if done == total:
            self.done += self._size
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=at, description=self.where)
        elif now - self._said >= _EVERY:
            from fewstep.train.log import clock

            self._said, left = now, (self.total - at) / max(at, 1) * (now - self._began)
            console.note(
                f"  {100 * at / self.total:.0f} %  {self.where}  "
                f"{at / (now - self._began):,.0f} evaluations/s  ETA {clock(left)}"
            )

    def stop(self) -> None:
        """Leave if a signal has come."""
        if self.wanted:
            kind = Interrupted if self.wanted == signal.SIGINT else Preempted
            name = signal.Signals(self.wanted).name
            raise kind(f"{name}: what is finished is kept; the same command goes on from there")


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def do(work: "Work", early: "Callable[[list[Line], int], None] | None" = None) -> None:
    """Make what is missing of the work, with early tables if someone wants them.

    Args:
        work: items, judge and share.
        early: given lines on the images made so far, and how many images those are.
    """
    made, looked, cost = time.monotonic(), 0.0, work.cost()
    with Meter(cost, "sampling") as meter:
        for done in work.make(meter.chunk, meter.tick):
            meter.stop()
            whole = done.images >= work.n
            spent = time.monotonic() - made
            if early is None or not cost or not done.last or whole or done.images < 50:
                continue
            if done.turn and looked > _LOOK * spent:
                continue
            began = time.monotonic()
            early([work.line(item, done.images) for item in work.items], done.images)
            looked += time.monotonic() - began


def wait(work: "Work", seconds: float = 7 * 86400) -> None:
    """Wait until the other processes of this torchrun have made their chunks.

    Raises:
        DataError: they have not after all this time.
    """
    until, said = time.monotonic() + seconds, 0.0
    while work.missing():
        if time.monotonic() > until:
            raise DataError("other processes did not finish their chunks; run the command again")
        if time.monotonic() - said > _EVERY:
            said = time.monotonic()
            console.note(f"  waiting for {len(work.missing())} chunks of other processes")
        time.sleep(0.2)


def complete(work: "Work", again: str) -> None:
    """Refuse a merge while chunks are missing.

    Raises:
        DataError: some are; names the first.
    """
    missing = work.missing()
    if missing:
        item, start, end = missing[0]
        raise DataError(
            f"--merge: {len(missing)} chunks are missing, the first is images {start}..{end - 1} "
            f"of {item.title} ({item.store.folder}); make them with --shard I/K, or run the same "
            f"command without --merge: {again}"
        )


def folder(out: Path | None, default: Path, data: str | None) -> Path:
    """Return the folder for everything, made if need be.

    Raises:
        UsageError: it is a file, or lies inside the real images.
        ResourceError: it cannot be made.
    """
    from fewstep.errors import ResourceError

    place = (out or default).expanduser()
    if place.exists() and not place.is_dir():
        raise UsageError(f"-o {place}: a file; give a folder")
    root = Path(data).expanduser() if data is not None else None
    if root is not None and root.is_dir() and place.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"-o {place}: inside the real images {root}; choose another folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResourceError(f"cannot make the folder {place}: {e.strerror or e}") from e
    return place


def judge(
    rules: tuple[str, int | None],
    reals: "Reals",
    *,
    inception: Path | None = None,
    precision: str = "fp32",
    device: str = "auto",
) -> "Judge":
    """Return the judge, with a note of what it will be judged by.

    Args:
        rules: name of the protocol and n, or None for the protocol's.
        reals: the real images.
        inception: file of Inception's weights.
        precision: of Inception.
        device: where Inception computes.
    """
    from fewstep.report import judge as judges
    from fewstep.train import engine

    place = engine.pick_device(device)
    with console.bar("the judge learns") as tick:
        found = judges.summon(
            judges.protocol(*rules),
            reals,
            inception=inception,
            precision=precision,
            device=place,
            tick=tick,
        )
    features = ", ".join(e.name for e in found.extractors)
    console.note(
        f"protocol {found.rules.name}: {found.rules.n} images, features {features}, against "
        f"{len(found.real)} real images ({reals.name}, {found.split})"
    )
    for line in found.notes():
        console.warn(line)
    return found


def part_done(word: str, again: str) -> None:
    """Say what to do when all parts are done."""
    console.result(f"part {word} is done; when all are: {again} --merge (and the same options)")


def needs(*modules: str) -> None:
    """Raise before hours of sampling if a library for judging or drawing is missing.

    Raises:
        UsageError: one is, with the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        extras = ",".join(EXTRAS[name] for name in missing)
        raise UsageError(f"this needs {names}: pip install 'fewstep[{extras}]'")


def stated(lines: "list[Line]") -> list[str]:
    """Return what must stand beside the numbers of one protocol, a fact to a line."""
    first = lines[0]
    p = first.protocol
    reference = p["reference"]
    said = [f"protocol {p['name']}: {p['n']} images; {p['quantisation']}"]
    for name, e in p["extractors"].items():
        weights = f", weights {e['weights'][:16]}" if e["weights"] else ""
        said.append(f"features {name}{weights}: {e['rule']}")
    said.append(
        f"reference: {reference['name']}, {reference['split']}, {reference['images']} images, "
        f"{reference['fingerprint'][:16]}"
    )
    for line in lines if len(lines) == 1 else ():
        words = ", ".join(f"{k} {v}" for k, v in line.settings.items() if v is not None)
        said += [f"sampling: {words}, {line.nfe} network evaluations"] if line.settings else []
    models = dict.fromkeys(f"{line.model} {line.weights[:16]}" for line in lines)
    said.append(f"of: {', '.join(models)}")
    return said + [f"{k}: {v}" for k, v in facts(lines).items()]


def lead(lines: "list[Line]") -> str:
    """Return one sentence about what was measured."""
    first = lines[0]
    reference = first.protocol["reference"]
    rows = " of each row" if len(lines) > 1 else ""
    return (
        f"{first.protocol['n']:,} images{rows} against {reference['images']:,} real ones "
        f"({reference['name']}, {reference['split']}); every number with its 95 % interval and "
        "with what real images get."
    )


def facts(lines: "list[Line]") -> dict[str, str]:
    """Return what the numbers depend on beside their protocol."""
    found: dict[str, str] = {}
    for line in lines:
        for key, value in line.record.items():
            text = (
                ", ".join(f"{k} {v}" for k, v in value.items())
                if isinstance(value, dict)
                else value
            )
            if key != "times":
                found.setdefault(key, str(text))
    return found


EXTRAS = {"torch_fidelity": "eval", "matplotlib": "report"}

INCEPTION = typer.Option(
    metavar="FILE", help="weights of the TF-2015 Inception, where they are not in torch's cache"
)
PRECISION = typer.Option(
    metavar="fp32|bf16", help="of Inception; bf16 is for monitoring only and a protocol of its own"
)
