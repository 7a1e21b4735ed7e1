"""How every row is timed: the sides take turns, and a ratio is a ratio within one round.

A shared machine changes its speed from second to second. So one round runs each side once,
directly after another and in an order that turns from round to round; the figure of a row is the
median over the rounds of the quotient within a round, and one slow round moves it little. The
first rounds warm up (caches, lazily made kernels) and are thrown away.
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Row = dict[str, Any]
"""One line of the table; the keys that every row has are those of `row`."""

Side = Callable[[], object]


class Skip(Exception):
    """Say why a row cannot be measured on this machine."""


def take_turns(sides: Mapping[str, Side], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each side in each round, warm-up left out."""
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for k in range(-warm_up, rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            start = time.perf_counter()
            sides[name]()
            elapsed = time.perf_counter() - start
            if k >= 0:
                times[name].append(elapsed)
    return times


def ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """Return the median of the quotients of each round."""
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def spread(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Return the middle half of the quotients, lower and upper end."""
    low, _, high = statistics.quantiles([a / b for a, b in zip(ours, peer, strict=True)], n=4)
    return [low, high]


def row(
    name: str,
    what: str,
    ours: Sequence[float],
    peer: Sequence[float],
    unit: str,
    most: float,
    **more: Any,
) -> Row:
    """Return the line of a row whose ratio must not exceed `most`.

    Args:
        name: of the row.
        what: is measured, against what.
        ours: one figure per round, in `unit`.
        peer: the same of the other side.
        unit: of both.
        most: the goal.
        more: further keys of the line.
    """
    value = ratio(ours, peer)
    return {
        "row": name,
        "what": what,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "unit": unit,
        "ratio": value,
        "middle_half": spread(ours, peer),
        "goal": f"<= {most:.2f}",
        "ok": value <= most,
        "rounds": len(ours),
        **more,
    }


def skipped(name: str, reason: str) -> Row:
    """Return the line of a row that could not be measured."""
    return {"row": name, "what": f"skipped: {reason}", "ok": None}


def each(
    measures: Mapping[str, Callable[[], Row | list[Row]]], rows: Collection[str]
) -> list[Row]:
    """Return the lines of the rows asked for; a row that cannot run says why, the others run."""
    lines: list[Row] = []
    for name, measure in measures.items():
        if name in rows:
            try:
                got = measure()
            except Skip as e:
                got = skipped(name, str(e))
            lines += got if isinstance(got, list) else [got]
    return lines


def one_thread() -> AbstractContextManager[None]:
    """Return a context in which torch computes with one thread."""
    import torch  # here, so that the rows on start-up do not load it

    @contextmanager
    def alone():  # noqa: ANN202 -- contextmanager types it
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return alone()
