"""Sections of a report: tables, charts and pictures of measured rows as HTML.

`measured` turns lines into sections, one for each protocol, so that numbers that do not compare
are never in one table. `page.render` puts sections together; those of
`detail` are about one set of images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fewstep.report import chart, results, spec, sweep, table
from fewstep.report.detail import confusion, pairs, per_class
from fewstep.report.page import Section, data_uri, escape, html_cell, html_table, listed
from fewstep.report.results import Line

__all__ = ["confusion", "measured", "pairs", "per_class"]

_STRIP = 10  # images of a row that a page shows
_LARGE, _FEWER = 128, 6  # of large images, fewer
_HEADS = (
    ("steps", "sampling steps asked for"),
    ("NFE", "network evaluations per image"),
    ("images/s", "on the machine that sampled, the median over chunks, after a warm-up"),
)


def measured(lines: Sequence[Line], figure: str | None = None) -> list[Section]:
    """Return what was measured, each protocol in a section of its own.

    Args:
        lines: of one or more protocols.
        figure: what the chart and the talk's table show, and whose features come first; None
            takes the first Frechet distance.

    Raises:
        UsageError: no line has this figure, or matplotlib is missing.
    """
    groups, found = results.by_protocol(lines), []
    for members in groups:
        names = results.columns(members)
        first = [n for n in names if table.kind(n) == "FD"] or names
        name = figure if figure in names else first[0] if first else ""
        title = "Figures"
        if len(groups) > 1:
            title = f"Protocol {members[0].protocol.get('name', '')}: {_about(members[0])}"
        found.append(Section(title, _group(members, name, len(groups) > 1)))
    return found


def _group(lines: Sequence[Line], figure: str, several: bool) -> str:
    """Return chart, table, pictures and protocol of lines of one protocol."""
    parts = []
    if several:
        parts.append(
            '<p class="note">One of several protocols on this page. Numbers of different ones do '
            "not compare, so each has a table of its own.</p>"
        )
    swept = sweep.is_sweep(lines)
    if swept or chart.drawable(lines, figure):
        for name, place in (("broad", chart.WIDE), ("narrow", chart.NARROW)):
            svg = (sweep.figure if swept else chart.chart)(lines, figure, place)
            parts.append(f'<figure class="chart {name}">{svg}</figure>')
    talk = table.is_ddim_table(lines)
    alone = len(lines) == 1
    parts.append(
        _ddim(lines, figure) if talk else _single(lines[0]) if alone else _frontier(lines, figure)
    )
    parts.append(_notes(lines))
    if talk:
        everything = f"<summary>All figures</summary>{_frontier(lines, figure)}"
        parts += [f"<details>{everything}</details>", _picture_table(lines)]
    else:
        parts.append(_strips(lines))
    shown = {key: _text(value) for key, value in lines[0].protocol.items()}
    weights = {f"weights of {name}": own for name, own in _weights(lines).items()}
    parts.append(f"<h3>Protocol</h3>{listed({**shown, **weights})}")
    return "\n".join(parts)


def _weights(lines: Sequence[Line]) -> dict[str, str]:
    """Return the weights of each model; of students that share a name, row by row."""
    known: dict[str, set[str]] = {}
    for line in lines:
        known.setdefault(line.model, set()).add(line.weights)
    return {
        line.model if len(known[line.model]) == 1 else f"{line.model}, {line.title}": line.weights
        for line in lines
        if line.weights
    }


def _about(line: Line) -> str:
    """Return the number of images and the reference of a protocol in a few words."""
    reference = line.protocol.get("reference", {})
    words = [line.record.get("reference", ""), reference.get("split", "")]
    against = f" against {', '.join(w for w in words if w)}" if any(words) else ""
    return f"{line.protocol.get('n', line.images)} images{against}"


def _text(value: Any) -> str:
    """Return a JSON value as words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {_text(v)}" for k, v in value.items() if v not in ("", None))
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value)
    return str(value)


def _best(lines: Sequence[Line], name: str) -> set[int]:
    """Return the lines whose interval reaches that of the best; none if it is the only one."""
    if table.kind(name) in ("diversity", "copy", ""):
        return set()
    found = {i: f for i, line in enumerate(lines) if not line.early and (f := line.figure(name))}
    if len(found) < 2:
        return set()
    if next(iter(found.values())).better == "lower":
        end = min(found.values(), key=lambda f: f.value).high
        return {i for i, f in found.items() if f.low <= end}
    end = max(found.values(), key=lambda f: f.value).low
    return {i for i, f in found.items() if f.high >= end}


def _frontier(lines: Sequence[Line], figure: str) -> str:
    """Return a table of all figures, those of this one's features first."""
    results.same_protocol(lines)
    names = table.ranked(lines, figure)
    wide = {n: table.places(f for x in lines if (f := x.figure(n))) for n in names}
    best = {n: _best(lines, n) for n in names}
    costs = _HEADS if any(line.nfe for line in lines) else ()
    columns = [*costs, *_meanings(names)]
    head = "".join(
        f'<th scope="col" title="{escape(why)}">{escape(name)}</th>' for name, why in columns
    )
    rows, before = [], ""
    for i, (line, (heading, _)) in enumerate(zip(lines, table.titles(lines), strict=True)):
        if heading != before:
            rows.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{1 + len(columns)}">'
                f"{escape(heading)}</th></tr>"
            )
            before = heading
        rate = f"{line.rate:.1f}" if line.rate else "-"
        spent = (f"{line.steps or '-'}", f"{line.nfe or '-'}", rate) if costs else ()
        cells = "".join(f"<td>{text}</td>" for text in spent)
        cells += "".join(
            html_cell(line.figure(n), wide[n], "best" if i in best[n] else "") for n in names
        )
        rows.append(f'<tr><th scope="row">{escape(line.title)}{_early(line)}</th>{cells}</tr>')
    caption = f"{_about(lines[0])}. In blue: the best, and what its interval does not part from it"
    return html_table(caption, f'<tr><th scope="col">row</th>{head}</tr>', rows, "wide") + _legend(
        columns
    )


def _single(line: Line) -> str:
    """Return the figures of one line, a row to each."""
    costs = (f"{line.steps or '-'}", f"{line.nfe}", f"{line.rate:.1f}" if line.rate else "-")
    rows = []
    for (name, why), text in zip(_HEADS if line.nfe else (), costs, strict=False):
        rows.append(
            f'<tr><th scope="row">{name}</th><td>{text}</td><td></td><td></td>'
            f'<td class="left meaning">{why}</td></tr>'
        )
    for f in line.figures:
        wide = table.places([f])
        value, low, high = (f"{x:.{wide}f}" for x in (f.value, f.low, f.high))
        interval = f"{low} to {high}" if f.high > f.low else "-"
        real = "-" if f.real is None else f"{f.real:.{wide}f}"
        rows.append(
            f'<tr><th scope="row">{escape(f.name)}</th><td><b>{value}</b></td>'
            f"<td>{interval}</td><td>{real}</td>"
            f'<td class="left meaning">{escape(table.explain(f.name))}</td></tr>'
        )
    words = ("", "", "95 % interval", "real images", "")
    head = "".join(f'<th scope="col">{w}</th>' for w in words)
    caption = f"{line.title}{', early' if line.early else ''}: {_about(line)}"
    if line.early:
        caption += f", {line.images} so far"
    legend = _legend([*(_HEADS if line.nfe else ()), *_meanings(results.columns([line]))])
    return html_table(caption, f"<tr>{head}</tr>", rows, "wide") + legend


def _meanings(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, table.explain(name)) for name in names]


def _legend(columns: Sequence[tuple[str, str]]) -> str:
    """Return what the columns mean, for those who cannot point at them."""
    return f"<details><summary>What the words mean</summary>{listed(dict(columns))}</details>"


def _early(line: Line) -> str:
    return f' <span class="early">early, N {line.images}</span>' if line.early else ""


def _notes(lines: Sequence[Line]) -> str:
    items = "".join(
        f"<li>{escape(note).replace('+-', '&plusmn;')}</li>" for note in table.notes(lines)
    )
    return f'<ul class="note">{items}</ul>'


def _ddim(lines: Sequence[Line], figure: str) -> str:
    """Return the talk's table, the published ones beside it."""
    cells = table.checked(lines, figure)
    found = {place: f for place, line in cells.items() if (f := line.figure(figure))}
    wide = table.places(found.values())
    heat = _heat({place: f.value for place, f in found.items()})

    def ours(place: tuple[str, int]) -> str:
        if place not in found:
            return "<td>-</td>"
        text = html_cell(found[place], wide, "heat", heat(place))
        return text.replace("</td>", _early(cells[place]) + "</td>")

    one = next(iter(cells.values()))
    known = []
    for data, values in spec.PUBLISHED.items():
        shade = _heat(values)
        known.append(
            _etas(
                f"Published: FID, {data}",
                lambda p, v=values, s=shade: f'<td class="heat"{s(p)}>{v[p]:.2f}</td>',
                "grey small",
            )
        )
    said = " ".join(table.REFERENCE)
    mine = _etas(f"{figure} of {one.model}. {one.group}", ours)
    both = f'{mine}<div class="known">{"".join(known)}</div>'
    return f'<div class="beside">{both}</div><p class="note">{escape(said)}</p>'


def _heat(values: Mapping[tuple[str, int], float]) -> Callable[[tuple[str, int]], str]:
    """Return what shades a cell by the logarithm of its value."""
    logs = {k: math.log(v) for k, v in values.items() if v > 0}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)

    def style(place: tuple[str, int]) -> str:
        h = 55 * (logs.get(place, low) - low) / ((high - low) or 1)
        return f' style="--h:{h:.0f}"'

    return style


def _etas(caption: str, cell: Callable[[tuple[str, int]], str], kind: str = "") -> str:
    """Return a table of eta against S."""
    head = "".join(f'<th scope="col">S = {s}</th>' for s in spec.STEPS)
    rows = [
        f'<tr><th scope="row">{escape(table.label(eta))}</th>'
        f"{''.join(cell((eta, s)) for s in spec.STEPS)}</tr>"
        for eta in spec.ETAS
    ]
    return html_table(caption, f'<tr><th scope="col"></th>{head}</tr>', rows, f"eta {kind}")


def _picture_table(lines: Sequence[Line]) -> str:
    """Return the pictures of the talk's table in its order: the same seeds in every cell."""
    cells = table.cells(lines)

    def cell(place: tuple[str, int]) -> str:
        line = cells.get(place)
        if line is None or line.pixels is None:
            return "<td></td>"
        alt = escape(f"{line.title}: generated images")
        some = _some(line.pixels)
        return f'<td><img alt="{alt}" src="{data_uri(some, -(-len(some) // 2))}"></td>'

    if all(line.pixels is None for line in lines):
        return ""
    caption = "The first images of every cell: the same seeds, the same classes"
    return f"<h3>Pictures</h3>{_etas(caption, cell, 'pictures wide')}"


def _some(pixels: Tensor) -> Tensor:
    """Return as many images as a page shows of a line, uint8, shape (K, C, H, W)."""
    return pixels[: _FEWER if max(pixels.shape[2:]) >= _LARGE else _STRIP]


def _strips(lines: Sequence[Line]) -> str:
    """Return a strip of pictures of every line: one seed to a column."""
    parts = []
    for line in lines:
        if line.pixels is None:
            continue
        uri = data_uri(_some(line.pixels))
        name = escape(line.title)
        cost = f"{line.nfe} evaluations" if line.nfe else escape(line.model)
        parts.append(
            f"<div>{name}{_early(line)} <small>{cost}</small></div>"
            f'<img alt="{name}: generated images" src="{uri}">'
        )
    if not parts:
        return ""
    text = "The same seeds and classes in every strip, one under the other."
    if len(lines) == 1:
        text = "The first images."
    return f'<h3>Pictures</h3><p class="note">{text}</p><div class="strips">{"".join(parts)}</div>'
