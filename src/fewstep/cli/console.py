"""What is said where: results on stdout, everything else on stderr.

Under `torchrun` every process runs the same command; only the first one speaks.
"""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY = 15.0
"""Seconds between lines of progress where there is no terminal."""


def rank() -> int:
    """Return the number of this process under torchrun, else 0."""
    word = os.environ.get("RANK", "0")
    return int(word) if word.isdigit() else 0


def one_line(text: str) -> str:
    """Return text fit for one line of a terminal: line ends and control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text.replace("\n", " "))


def count(n: int, word: str) -> str:
    """Return a number of things in words.

    >>> count(1, "step"), count(50, "network evaluation")
    ('1 step', '50 network evaluations')
    """
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def command(*words: str) -> str:
    """Return a command line of ours that can be typed as it stands, here and by this user.

    Where `fewstep` is not on the PATH, as in an environment that is not activated, it is started
    by the Python that runs now.
    """
    start = ["fewstep"]
    if shutil.which("fewstep") is None:
        python = Path(sys.executable or "python")
        if python.is_relative_to(Path.cwd()):
            python = python.relative_to(Path.cwd())
        start = [str(python), "-m", "fewstep"]
    return shlex.join([*start, *words])


def result(line: str) -> None:
    """Print a line of the result."""
    if rank() == 0:
        print(line, flush=True)


def note(line: str) -> None:
    """Print a line of information beside the result."""
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Print a warning in one line."""
    note(f"fewstep: warning: {one_line(line)}")


def _lines(what: str) -> Callable[[int, int], None]:
    """Return tick(done, total) that prints a line every `EVERY` seconds."""
    began = said = time.monotonic()

    def tick(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= EVERY:
            from fewstep.train.log import clock  # here: it needs torch, and help must not

            said, left = now, (total - done) / max(done, 1) * (now - began)
            note(f"  {what}: {100 * done / max(total, 1):.0f} %  ETA {clock(left)}")

    return tick


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give tick(done, total): a progress bar on a terminal, elsewhere a line now and then."""
    if rank() or not sys.stderr.isatty():
        yield _lines(what)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
