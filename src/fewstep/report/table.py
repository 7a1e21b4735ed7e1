"""Tables of measured rows, for a terminal and for Markdown.

No number stands alone: a cell holds the figure and half of its 95 % interval, the last row what
real images get under the same protocol. Lines of different protocols are refused, because their
numbers do not compare. `ddim_table` lays the rows of `spec.ddim_table` out as the talk does, eta
against S, with the published figures of other models below.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fewstep.errors import UsageError, suggest
from fewstep.metrics.figures import Figure
from fewstep.report import results, spec
from fewstep.report.results import Line

WIDTH = 120
"""Columns of a terminal that a table may take."""

Cells = Mapping[tuple[str, int], Line]
"""The talk's table: {(row, S): line}."""

REFERENCE = (
    "For reference, published FID of other models: other data and other features, so only the",
    "shape compares. CIFAR-10 with quadratic strides, CelebA with uniform ones; predictions were",
    "clipped in the rows of sigma-hat alone.",
    f"{spec.SOURCE}.",
)
"""What must stand beside the published figures."""

_KINDS = {"FID": "FD", "KID": "KD", "IS": "score", "accuracy": "accuracy"}
_WORDS = ("FD", "KD", "score", "precision", "recall", "accuracy", "diversity", "copy")
_PLACES = 5  # decimals at most
_REAL = "real images"
_OF = re.compile(r"[^-]*-(?P<features>.+)")


class Heads(NamedTuple):
    """A table in plain words: the same for a terminal and for Markdown.

    Attributes:
        titles: heads of the columns; the first is that of the rows.
        rows: (heading or None, cells); a heading is said where it changes.
    """

    titles: list[str]
    rows: list[tuple[str, list[str]]]


def kind(name: str) -> str:
    """Return what a figure is, whatever its features: FD, KD, score, precision, accuracy, ...

    >>> kind("FID"), kind("KD-pixels"), kind("copy rate")
    ('FD', 'KD', 'copy')
    """
    if name in _KINDS:
        return _KINDS[name]
    first = re.split(r"[- ]", name, maxsplit=1)[0]
    return first if first in _WORDS else ""


def explain(name: str) -> str:
    """Return in one sentence what a figure says."""
    found = _OF.fullmatch(name)
    features = found["features"] if found else "inception"
    what = {
        "FD": f"Frechet distance of the {features} features to the reference; lower is better",
        "KD": f"kernel distance of the {features} features to the reference, without bias in N; "
        "lower is better, and real images get about 0",
        "score": f"how sure and how varied the {features} classifier finds the images; higher is "
        "better",
        "precision": "share of images that lie where real ones do; higher is better, and real "
        "images do not get 1",
        "recall": "share of real images that lie where made ones do; higher is better, and real "
        "images do not get 1",
        "accuracy": "share of images that a classifier takes for the class asked for",
        "diversity": "how varied the images of a class are, over how varied real ones are: 1 is "
        "right",
        "copy": "share of images that lie closer to a training image than held-out ones do",
    }
    return what.get(kind(name), name)


def places(figures: Iterable[Figure]) -> int:
    """Return how many decimals a column needs for three digits of its smallest figure."""
    sizes = [max(abs(f.value), (f.high - f.low) / 2) for f in figures]
    sizes = [s for s in sizes if s > 0]
    return min(_PLACES, max(0, 2 - math.floor(math.log10(min(sizes))))) if sizes else 3


def shown(figure: Figure, decimals: int, sign: str = "+-") -> str:
    """Return a figure with half of its interval; alone if no interval is known."""
    half = (figure.high - figure.low) / 2
    text = f"{figure.value:.{decimals}f}"
    return f"{text} {sign}{half:.{decimals}f}" if half > 0 else text


def cells(lines: Sequence[Line]) -> dict[tuple[str, int], Line]:
    """Return the lines that belong into the talk's table, by their place there.

    Raises:
        UsageError: two lines for one place.
    """
    found: dict[tuple[str, int], Line] = {}
    for line in lines:
        s = line.settings
        eta = {"ddpm-large": "sigma-hat", "ddim": f"{s.get('eta', -1):g}"}.get(
            s.get("sampler", ""), ""
        )
        place = (eta, line.steps or 0)
        if eta not in spec.ETAS or place[1] not in spec.STEPS:
            continue
        if place in found:
            raise UsageError(
                f'"{found[place].title}" and "{line.title}" of {line.model}: both are {eta}, '
                f"S = {place[1]} of the ddim-table; one line to a place"
            )
        found[place] = line
    return found


def is_ddim_table(lines: Sequence[Line]) -> bool:
    """Return whether the lines are a table of eta against S and nothing else."""
    try:
        found = cells(lines)
    except UsageError:
        return False
    subset = _alike(lines) and lines[0].settings.get("spacing") in spec.STRIDES
    rows, columns = ({place[i] for place in found} for i in (0, 1))
    return subset and len(found) == len(lines) and len(rows) > 1 and len(columns) > 1


def notes(lines: Sequence[Line]) -> list[str]:
    """Return what a reader of a table of these lines must know, a sentence each."""
    said = ["+-: half of the 95 % interval over other samples of the same model"]
    if any(f.real is not None for line in lines for f in line.figures):
        text = f"{_REAL}: real against real, as many as the N of the row where there are"
        every = [f for line in lines for f in line.figures]
        biased = [f for f in every if kind(f.name) == "FD" and f.real_n]
        fewest = min((f.real_n for f in biased), default=0)
        if biased and fewest < max(line.images for line in lines):
            text += (
                f", {fewest} images: distances scaled to N by the law of their bias, all else as "
                "measured"
            )
        said.append(text)
    if any(line.nfe for line in lines):
        said.append(
            "NFE: network evaluations per image; images/s: where it was sampled, after warm-up"
        )
    if any(line.early for line in lines):
        said.append("early: fewer images than the protocol asks for; the figures will move")
    return said


def frontier(lines: Sequence[Line], width: int = WIDTH, names: Sequence[str] = ()) -> list[str]:
    """Return the lines as a table for a terminal.

    Args:
        lines: of one protocol, in the order in which they are shown.
        width: characters; figures that do not fit are left out, the less common ones first.
        names: the figures, the most telling first; () for all.

    Raises:
        UsageError: lines of different protocols.
    """
    results.same_protocol(lines)
    names = list(names) or ranked(lines)
    while True:
        table = _frontier(lines, names, "+-")
        text = _terminal(table)
        if len(names) <= 1 or max(len(line) for line in text) <= width:
            break
        names = names[:-1]
        if len(names) > 1 and kind(names[-1]) == "precision":  # not without its recall
            names = names[:-1]
    left = [name for name in results.columns(lines) if name not in names]
    rest = [f"not shown here, in results.json: {', '.join(left)}"] if left else []
    return [*text, "", *(f"  {note}" for note in [*notes(lines), *rest])]


def markdown(lines: Sequence[Line], names: Sequence[str] = ()) -> str:
    """Return the lines as a Markdown table with these figures; with all of them if none is named.

    Raises:
        UsageError: lines of different protocols.
    """
    results.same_protocol(lines)
    table = _frontier(lines, list(names) or ranked(lines), "±")
    parts, before = [_markdown_row(table.titles), _rule(len(table.titles))], ""
    for heading, row in table.rows:
        if heading != before and heading:
            parts.append(_markdown_row([f"**{heading}**", *[""] * (len(row) - 1)]))
        before = heading
        parts.append(_markdown_row(row))
    said = [note.replace("+-", "±") for note in notes(lines)]
    return "\n".join([*parts, "", *(f"- {note}" for note in said)]) + "\n"


def ddim_table(lines: Sequence[Line], figure: str = "FD-pixels") -> list[str]:
    """Return the talk's table for a terminal, with the published figures below.

    Args:
        lines: of one protocol and one model; those that are no row of the table are left out.
        figure: what to show.

    Raises:
        UsageError: lines of different protocols, no such figure, two lines for one place.
    """
    ours, said = _matrix(lines, figure, "+-")
    text = ["", said[0], *_terminal(ours), "", *(f"  {note}" for note in said[1:])]
    known = [_terminal(_published(data, values)) for data, values in spec.PUBLISHED.items()]
    wide = max(len(line) for line in known[0])
    beside = [f"{a:<{wide}}    {b}".rstrip() for a, b in zip(*known, strict=True)]
    names = [f"  {data}, FID" for data in spec.PUBLISHED]
    heads = f"{names[0]:<{wide}}    {names[1]}"
    return [*text, "", *(f"  {line}" for line in REFERENCE), "", heads, *beside]


def ddim_markdown(lines: Sequence[Line], figure: str = "FD-pixels") -> str:
    """Return the talk's table in Markdown, with the published figures below.

    Raises:
        UsageError: lines of different protocols, no such figure, two lines for one place.
    """
    ours, said = _matrix(lines, figure, "±")
    known = [(f"{data}, FID", _published(data, v)) for data, v in spec.PUBLISHED.items()]
    parts = []
    for heading, table in [(said[0], ours), (" ".join(REFERENCE), None), *known]:
        parts += [f"**{heading}**" if table else heading, ""]
        if table:
            rows = [_markdown_row(row) for _, row in table.rows]
            parts += [_markdown_row(table.titles), _rule(len(table.titles)), *rows, ""]
        if table is ours:
            parts += [*(f"- {note.replace('+-', '±')}" for note in said[1:]), ""]
    return "\n".join(parts)


def checked(lines: Sequence[Line], figure: str) -> dict[tuple[str, int], Line]:
    """Return the cells of the talk's table once they are known to compare in this figure.

    Raises:
        UsageError: lines of different protocols or models, no such figure, no row of the table,
            two lines for one place.
    """
    found = cells(lines)
    if not found:
        raise UsageError("no line belongs to the ddim-table; make them with --preset ddim-table")
    if not _alike(list(found.values())):
        raise UsageError(
            "the ddim-table: its lines must be of one model and differ in eta and S alone; "
            "make them with --preset ddim-table"
        )
    results.same_protocol(list(found.values()))
    names = results.columns(found.values())
    if figure not in names:
        raise UsageError(
            f'figure "{figure}": the lines have {", ".join(names)}{suggest(figure, names)}'
        )
    return found


def _alike(lines: Sequence[Line]) -> bool:
    """Return whether lines are of one model and differ in sampler, eta and steps alone."""
    free = ("sampler", "eta", "steps")
    kept = [
        (line.model, line.weights, {k: v for k, v in line.settings.items() if k not in free})
        for line in lines
    ]
    return bool(kept) and all(other == kept[0] for other in kept)


def label(eta: str) -> str:
    """Return what a row of the talk's table is called."""
    return eta if eta == "sigma-hat" else f"eta {eta}"


def real_range(figures: Iterable[Figure | None], decimals: int) -> str:
    """Return what real images get: a number, a range if the floors differ, or "-"."""
    real = [f.real for f in figures if f is not None and f.real is not None]
    if not real:
        return "-"
    low, high = (f"{x:.{decimals}f}" for x in (min(real), max(real)))
    return low if low == high else f"{low} to {high}"


def titles(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return the heading and the title of every line; the model is named where there are two."""
    several = len({line.model for line in lines}) > 1
    found = []
    for line in lines:
        heading = ": ".join(part for part in (line.model if several else "", line.group) if part)
        early = f" (early, N {line.images})" if line.early else ""
        found.append((heading, line.title + early))
    return found


def ranked(lines: Sequence[Line], figure: str = "") -> list[str]:
    """Return the names of the figures, the most telling first; within a rank as they come.

    Args:
        lines: have the figures.
        figure: whose features tell most; by default those of the first distance.
    """
    names = results.columns(lines)
    distances = [name for name in names if kind(name) in ("FD", "KD")]
    near = {name.partition("-")[2] for name in ([figure] if figure else distances[:1])}

    def rank(name: str) -> int:
        first = name.partition("-")[2] in near
        distance, share = (0, 2) if first else (3, 4)
        known = {"FD": distance, "KD": distance, "accuracy": 1}
        return known.get(kind(name), share if kind(name) in ("precision", "recall") else 5)

    return sorted(names, key=rank)


def _frontier(lines: Sequence[Line], names: list[str], sign: str) -> Heads:
    """Return the table of lines against figures, with the real images last."""
    columns = {name: [line.figure(name) for line in lines] for name in names}
    wide = {name: places(f for f in column if f) for name, column in columns.items()}
    speed = any(line.nfe for line in lines)
    rows: list[tuple[str, list[str]]] = []
    for i, (line, (heading, title)) in enumerate(zip(lines, titles(lines), strict=True)):
        rate = f"{line.rate:.1f}" if line.rate else "-"
        cost = [f"{line.steps or '-'}", f"{line.nfe or '-'}", rate] if speed else []
        values = [shown(f, wide[n], sign) if (f := columns[n][i]) else "-" for n in names]
        rows.append((heading, [title, *cost, *values]))
    grouped = any(heading for heading, _ in rows)
    counts = sorted({line.images for line in lines})
    for n in counts:
        chosen = [i for i, line in enumerate(lines) if line.images == n]
        real = [real_range((column[i] for i in chosen), wide[k]) for k, column in columns.items()]
        if set(real) != {"-"}:
            title = _REAL if len(counts) == 1 else f"{_REAL}, N = {n}"
            blank = [""] * 3 if speed else []
            rows.append((("real against real" if grouped else ""), [title, *blank, *real]))
    return Heads(["", *(("steps", "NFE", "images/s") if speed else ()), *names], rows)


def _matrix(lines: Sequence[Line], figure: str, sign: str) -> tuple[Heads, list[str]]:
    """Return the talk's table of a figure, and the sentences above and below it."""
    found = checked(lines, figure)
    figures = {place: f for place, line in found.items() if (f := line.figure(figure))}
    decimals = places(figures.values())
    early = [place for place in figures if found[place].early]

    def cell(place: tuple[str, int]) -> str:
        f = figures.get(place)
        return "-" if f is None else shown(f, decimals, sign) + " early" * (place in early)

    rows = _by_eta(cell)
    one = next(iter(found.values()))
    about = f"{figure} of {one.model}, N = {one.protocol.get('n', one.images)}"
    if one.group:
        about += f". {one.group}"
    real = real_range(figures.values(), decimals)
    said = [about, f"{_REAL}: {real}" if real != "-" else "", *notes(list(found.values()))[:1]]
    if early:
        said.append("early: fewer images than the protocol asks for; the figures will move")
    return Heads(["", *(f"S = {s}" for s in spec.STEPS)], rows), [s for s in said if s]


def _by_eta(cell: Callable[[tuple[str, int]], str]) -> list[tuple[str, list[str]]]:
    """Return the rows of the talk's table."""
    return [("", [label(eta), *(cell((eta, s)) for s in spec.STEPS)]) for eta in spec.ETAS]


def _published(data: str, values: Mapping[tuple[str, int], float]) -> Heads:
    """Return a published table."""
    return Heads(
        ["", *(f"S = {s}" for s in spec.STEPS)], _by_eta(lambda place: f"{values[place]:.2f}")
    )


def _terminal(table: Heads) -> list[str]:
    """Return a table as aligned text, the headings on lines of their own."""
    rows = [("", table.titles), *table.rows]
    widths = [max(len(row[i]) for _, row in rows) for i in range(len(table.titles))]
    text: list[str] = []
    before = ""
    for heading, row in rows:
        if heading != before:
            text += ["", heading]
        before = heading
        rest = (c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))
        text.append("  ".join(["", row[0].ljust(widths[0]), *rest]).rstrip())
    return text


def _markdown_row(row: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in row) + " |"


def _rule(columns: int) -> str:
    return "|---" + "|---:" * (columns - 1) + "|"
