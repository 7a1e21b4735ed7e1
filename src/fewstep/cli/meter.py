"""Work that can be watched and stopped: sampling under a meter.

Images and their features are made chunk by chunk; signals leave after the step at hand, with every
finished chunk on disk, and the same command goes on from there. Under torchrun, or with --shard,
each process takes its part of the chunks; they share nothing but the folder.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from fewstep.cli import console
from fewstep.errors import DataError, Interrupted, Preempted

if TYPE_CHECKING:
    from fewstep.report.results import Line
    from fewstep.report.work import Item, Work

_PATIENCE = 300.0  # seconds to wait for features that somebody may still be making
_LOOK = 0.1  # share of the time that early tables may take


class Meter:
    """Say how far the work is and how long it will take.

    Args:
        total: network evaluations to be made, or images to be looked at.
        what: to say before it.
        unit: "evaluations" or "images".
    """

    def __init__(self, total: int, what: str, unit: str = "evaluations") -> None:
        self.unit = unit
        self.total, self.done, self.what = max(total, 1), 0, what
        self.wanted, self.where = 0, ""
        self._size = 0
        self._began = self._said = time.monotonic()
        self._bar = _bar() if console.rank() == 0 and sys.stderr.isatty() else None
        self._task = None if self._bar is None else self._bar.add_task(what, total=self.total)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Meter":
        """Begin, and hold the signals."""
        from fewstep.train.engine import Signals  # here: it needs torch, and help must not

        for number in Signals.CAUGHT:
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
        """Tell that a chunk of so many evaluations, or images, begins."""
        self._size, self.where = evaluations, where
        self._say(self.done)

    def tick(self, done: int, total: int) -> None:
        """Tell that `done` of `total` steps of the chunk are done; stop here if told to.

        Raises:
            Preempted: SIGTERM or SIGUSR1.
            Interrupted: Ctrl-C.
        """
        self.stop()
        at = self.done + self._size * done / total
        if done == total:
            self.done += self._size
        self._say(at)

    def _say(self, at: float) -> None:
        """Show how far the work is, a line now and then where there is no terminal."""
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=at, description=self.where)
        elif now - self._said >= console.EVERY and at:
            from fewstep.train.log import clock

            self._said, left = now, (self.total - at) / max(at, 1) * (now - self._began)
            console.note(
                f"  {100 * at / self.total:.0f} %  {self.where}  "
                f"{at / (now - self._began):,.0f} {self.unit}/s  ETA {clock(left)}"
            )

    def stop(self) -> None:
        """Leave if a signal has come."""
        if self.wanted:
            raise _stopped(self.wanted)


@contextmanager
def leaving() -> Iterator[None]:
    """Let SIGTERM, SIGUSR1 and Ctrl-C end the work at once, with a line and an exit code.

    For what lies between training and sampling, which hold these signals themselves.

    Raises:
        Preempted: SIGTERM or SIGUSR1.
        Interrupted: Ctrl-C.
    """
    from fewstep.train.engine import Signals

    def leave(number: int, _: Any) -> NoReturn:
        raise _stopped(number)

    before = {number: signal.signal(number, leave) for number in Signals.CAUGHT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(number: int) -> Preempted | Interrupted:
    """Return the error that ends work which was told to stop."""
    kind = Interrupted if number == signal.SIGINT else Preempted
    name = signal.Signals(number).name
    return kind(f"{name}: what is finished is kept; the same command goes on from there")


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
    from fewstep.report.work import absent

    made, looked, cost = time.monotonic(), 0.0, work.cost()
    sampled = absent(work.items, work.n)
    words = ("sampling", "evaluations") if sampled else ("features", "images")
    with Meter(cost, *words) as meter:
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

    When all images are there and no features have come for some minutes, this process makes the
    rest itself as it measures.

    Raises:
        DataError: images are missing after all this time.
    """
    from fewstep.report.work import absent

    changed = time.monotonic()
    until, said, count = changed + seconds, 0.0, -1
    while (left := work.missing()) > 0:
        now = time.monotonic()
        if left != count:
            count, changed = left, now
        if now - changed > _PATIENCE and not absent(work.items, work.n):
            return
        if now > until:
            raise DataError("other processes did not finish their chunks; run the command again")
        if now - said > console.EVERY:
            said = now
            console.note(f"  waiting for {left} chunks of other processes")
        time.sleep(0.2)


def complete(items: "list[Item]", n: int, again: str) -> None:
    """Refuse a merge while images are missing; features are made where they are not there.

    Raises:
        DataError: some are; names the first.
    """
    from fewstep.report.work import absent

    missing = absent(items, n)
    if missing:
        item, start, end = missing[0]
        raise DataError(
            f"--merge: {len(missing)} chunks are missing, the first is images {start}..{end - 1} "
            f"of {item.title} ({item.store.folder}); make them with --shard I/K, or here with: "
            f"{again}"
        )
