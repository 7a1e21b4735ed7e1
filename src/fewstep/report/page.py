"""The report as one HTML file that opens from disk: style, charts and pictures are inside it.

A page is a headline and sections (`sections` makes them), then what the numbers depend on and
what to try next. It runs no script and asks no server, follows the reader's light or dark
setting, and is readable on a phone.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from fewstep.metrics.figures import Figure
from fewstep.report import picture, table

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --soft: #5b6570;
  --line: #d8dde3; --card: #f5f7f9; --accent: #0b63b0; --warn: #9a5b00; --heat: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --ink: #e4e8ec;
  --soft: #9aa5b1; --line: #343b43; --card: #1d2126; --accent: #6db3f2; --warn: #e5aa4d; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif; margin: 0;
  background: var(--ground); color: var(--ink); }
main { max-width: 74rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p { max-width: 48rem; } .lead { color: var(--soft); font-size: 1.1rem; margin: 0; }
.note { color: var(--soft); font-size: .88rem; margin: .4rem 0; }
ul.note { padding-left: 1.1rem; } small { color: var(--soft); font-size: .8em; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
table.wide { width: 100%; }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding: 0 0 .4rem; }
caption span { position: sticky; left: 0; display: inline-block;
  max-width: calc(100vw - 2rem); }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); font-size: .82rem; vertical-align: bottom; cursor: help; }
tbody th, thead th:first-child { text-align: left; position: sticky; left: 0;
  background: var(--ground); }
td small { display: block; } tr.group th { font-weight: 600; padding-top: 1.1rem; }
tr.real td, tr.real th { color: var(--soft); border-top: 2px solid var(--line); }
td.best b { color: var(--accent); } .early { color: var(--warn); font-size: .8em; }
td.heat { background: color-mix(in srgb, var(--heat) calc(var(--h) * 1%), transparent); }
.grey { --heat: #808080; color: var(--soft); }
td.right { --heat: var(--accent); } table.small { font-size: .82rem; }
table.small :is(th, td) { padding: .2rem .4rem; }
.beside { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: flex-start; }
.beside > * { max-width: 100%; } .known { display: grid; gap: .8rem; }
figure { margin: 1rem 0; } figure.chart svg { width: 100%; height: auto; display: block; }
figure.chart text { font-family: inherit !important; }
.narrow { display: none; }
@media (max-width: 640px) { .narrow { display: block; } .broad { display: none; }
  main { padding: 1.25rem .9rem 3rem; } h1 { font-size: 1.5rem; }
  table.wide tbody th { min-width: 6.5rem; white-space: normal; }
  table.eta tbody th { min-width: 0; white-space: nowrap; } td.meaning { display: none; } }
img { image-rendering: pixelated; display: block; max-width: 100%; }
.strips { display: grid; grid-template-columns: minmax(9rem, 15rem) 1fr; gap: .5rem 1rem;
  align-items: center; }
.strips img { width: 100%; max-width: 44rem; border-radius: 3px; }
.strips small { display: block; }
@media (max-width: 640px) { .strips { grid-template-columns: 1fr; gap: .2rem; }
  .strips img { margin-bottom: .8rem; } .strips small { display: inline; } }
table.pictures :is(th, td) { padding: .25rem; border: 0; vertical-align: middle; }
table.pictures thead th { text-align: center; }
table.pictures img { min-width: 9.5rem; width: 100%; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  gap: 1rem; } .pairs figure { margin: 0; } .pairs img { width: 100%; max-width: 12rem; }
.bar { display: inline-block; height: .6rem; background: var(--accent); opacity: .7;
  border-radius: 2px; vertical-align: middle; }
td.left { text-align: left; white-space: normal; min-width: 12rem; }
td.left:not(:has(.bar)) { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1rem;
  font-size: .92rem; margin: .5rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .92rem; }
code { background: var(--card); padding: .35rem .6rem; border-radius: .3rem; display: block;
  overflow-x: auto; white-space: pre; font-size: .88rem; border: 1px solid var(--line); }
"""


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        title: its heading.
        body: HTML; what comes from outside is escaped in it.
    """

    title: str
    body: str


def render(
    title: str,
    lead: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    hints: Sequence[str],
    style: str = "",
) -> str:
    """Return the page.

    Args:
        title: headline.
        lead: one sentence below it.
        sections: of `fewstep.report.sections`, in the order in which they are shown.
        facts: what else the numbers depend on, such as the machine: name to text.
        hints: commands to try next.
        style: CSS of the sections, where that of all pages does not do.

    Returns:
        HTML that refers to nothing outside itself and runs no script.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']
    parts += [
        f'<section aria-labelledby="s{i}"><h2 id="s{i}">{escape(s.title)}</h2>{s.body}</section>'
        for i, s in enumerate(sections)
    ]
    if facts:
        parts.append(f"<section><h2>How this was made</h2>{listed(facts)}</section>")
    if hints:
        lines = "".join(f"<p><code>{escape(line)}</code></p>" for line in hints)
        parts.append(f"<section><h2>Next</h2>{lines}</section>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def escape(text: str) -> str:
    """Return text as HTML, fit for an attribute too."""
    return html.escape(text)


def listed(facts: Mapping[str, str]) -> str:
    """Return names and texts as a list of definitions."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{items}</dl>"


def html_table(caption: str, head: str, rows: Sequence[str], kind: str = "") -> str:
    """Return a table that scrolls by itself where the screen is narrow.

    Args:
        caption: text, escaped here.
        head: rows of the head, HTML.
        rows: rows of the body, HTML.
        kind: classes of the style.
    """
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption><span>{escape(caption)}</span></caption>'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def html_cell(f: Figure | None, wide: int, mark: str = "", inside: str = "") -> str:
    """Return a figure with its interval and what real images get as a cell.

    Args:
        f: the figure, or None for an empty cell.
        wide: decimals.
        mark: class of the style.
        inside: more attributes of the cell.
    """
    if f is None:
        return "<td>-</td>"
    value, _, half = table.shown(f, wide, "&plusmn;").partition(" ")
    value = f"<b>{value}</b>" if "best" in mark else value
    interval = f" <small style='display:inline'>{half}</small>" if half else ""
    real = "" if f.real is None else f"<small>real {f.real:.{wide}f}</small>"
    return f'<td class="{mark}"{inside}>{value}{interval}{real}</td>'


def data_uri(pixels: Tensor, columns: int = 10) -> str:
    """Return images as one PNG inside a URI.

    Args:
        pixels: uint8, shape (K, C, H, W).
        columns: images in a row.
    """
    sheet = picture.grid(
        pixels.numpy(), columns, scale=picture.factor(*pixels.shape[2:]) // 2 or 1
    )
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
