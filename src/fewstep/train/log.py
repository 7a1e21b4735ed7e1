"""What a run says: metrics.jsonl for programs and a progress line for people.

metrics.jsonl holds one strict-JSON object per line, appended in one write each, so that a kill
costs at most the last line. Progress goes to stderr: a rich bar on a terminal, a plain line every
few seconds elsewhere.

Inside: `Metrics` (writer), `read`, `truncate` (before a resume), `Progress`.
"""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from fewstep.errors import ResourceError
from fewstep.files import replacing


class Metrics:
    """Append records to a JSON-lines file.

    Args:
        path: the file; made if absent.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record in one system call.

        Raises:
            ValueError: a number is not finite.
            ResourceError: the disk refuses.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            with open(self.path, "ab", buffering=0) as f:
                f.write(line)
        except OSError as e:
            raise ResourceError(f"{self.path}: {e.strerror}; make room and run again") from e


def read(path: Path | str) -> list[dict[str, Any]]:
    """Return the records of a metrics file; a last line cut by a kill is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if i < len(lines) - 1:  # only the last line may be a torn one
                raise ValueError(f"{path}: line {i + 1} is not JSON") from None
    return records


def truncate(path: Path | str, step: int) -> None:
    """Drop the records after `step`, so that a resumed run writes no step twice.

    Raises:
        ResourceError: the disk refuses.
    """
    path = Path(path)
    if not path.is_file():
        return
    try:
        kept = [r for r in read(path) if r["step"] <= step]
        with replacing(path) as aside:
            aside.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in kept))
    except OSError as e:
        raise ResourceError(f"{path}: {e.strerror}; make room and run again") from e


class Progress:
    """Show step, loss, speed and time left.

    Args:
        total: steps of the whole run.
        start: steps already done.
        images: images per step.
        stream: where to write; stderr when None.
        every: seconds between plain lines.
        show: False keeps silent (all processes but the first).
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        images: int = 0,
        stream: TextIO | None = None,
        every: float = 5.0,
        show: bool = True,
    ) -> None:
        self.total, self.start, self.images, self.every = total, start, images, every
        self.stream, self.show = stream or sys.stderr, show
        self._bar: Any = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        """Begin; the clock for the speed starts here."""
        if self.show and self.stream.isatty():
            self._bar = _bar(self.stream)
            self._bar.start()
            self._task = self._bar.add_task(
                "train", total=self.total, completed=self.start, note=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        if not self.show:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            say(line, self.stream)

    def update(self, step: int, loss: float) -> None:
        """Tell that `step` steps are done, the last with this loss."""
        now = time.monotonic()
        due = now - self._said >= self.every or step in (self.start + 1, self.total)
        if not self.show or (self._bar is None and not due):
            return
        rate = (step - self.start) / max(now - self._began, 1e-9)
        left = (self.total - step) / rate
        note = f"loss {loss:.4f}  {rate:.1f} steps/s  {rate * self.images:.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=f"{note}  ETA {clock(left)}")
        else:
            self._said = now
            self.say(f"step {step}/{self.total}  {note}  ETA {clock(left)}")


def say(line: str, stream: TextIO | None = None) -> None:
    """Print one line to stderr, at once."""
    print(line, file=stream or sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a duration as 1:02:03 or 2:03.

    >>> clock(123.4), clock(3723)
    ('2:03', '1:02:03')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Rich

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    return Rich(*columns, console=Console(file=stream))
