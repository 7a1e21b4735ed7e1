"""The page of the laboratory: a picture, and beside it formula, function and number."""

from collections.abc import Mapping, Sequence

from fewstep.lab.part import Number, Part
from fewstep.report import chart
from fewstep.report.page import Section, escape, html_table, render

_STYLE = """
.lab { display: grid; grid-template-columns: minmax(0, 4fr) minmax(0, 3fr); gap: 0 2rem;
  align-items: start; }
.lab figure { margin: .5rem 0; }
@media (max-width: 960px) { .lab { grid-template-columns: minmax(0, 1fr); } }
.formula { font-family: "STIX Two Math", "Cambria Math", "Times New Roman", serif;
  font-size: 1.08rem; margin: .35rem 0; padding: .45rem .8rem; background: var(--card);
  border-left: 3px solid var(--accent); border-radius: .2rem; }
sub, sup { line-height: 0; font-size: .72em; }
.lab h3 { margin: 1rem 0 .3rem; font-size: .95rem; }
.lab ul { margin: .2rem 0; padding: 0; list-style: none; }
.lab li { line-height: 1.3; margin: .3rem 0; }
.lab li code { display: inline-block; max-width: 100%; padding: .1rem .45rem; }
table.numbers { width: 100%; font-size: .86rem; }
table.numbers :is(th, td) { padding: .22rem .4rem; }
table.numbers tbody th { white-space: normal; min-width: 8.5rem; line-height: 1.3; }
td.yes, .verdict.yes { color: var(--right); } td.no, .verdict.no { color: var(--wrong); }
td.no, .verdict { font-weight: 600; } tr.no { background: color-mix(in srgb, var(--wrong) 12%,
  transparent); } tr.no th { background: none; }
:root { --right: #15743b; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --right: #5fce8c; --wrong: #ff8a80; } }
@media print { .lab { grid-template-columns: minmax(0, 1fr); }
  figure, tr { break-inside: avoid; } }
"""


def page(title: str, parts: Sequence[Part], facts: Mapping[str, str], hints: Sequence[str]) -> str:
    """Return the page.

    Args:
        title: headline.
        parts: the sections, in their order.
        facts: what the numbers depend on: name to text.
        hints: commands to try next.

    Returns:
        HTML that refers to nothing outside itself and runs no script.

    Raises:
        UsageError: matplotlib is missing.
    """
    failed = [(i, n) for i, part in enumerate(parts) for n in part.numbers if not n.reproduced]
    total = sum(len(part.numbers) for part in parts)
    lead = f"What the talk says, measured on points: {total} numbers, all of them reproduced."
    sections = [_section(part, i) for i, part in enumerate(parts)]
    if failed:
        lead = f"{len(failed)} of {total} numbers are NOT reproduced."
        sections.insert(0, Section("Not reproduced", _failures(parts, failed)))
    return render(title, lead, sections, facts, hints, _STYLE)


def _section(part: Part, index: int) -> Section:
    """Return one section: words, then the picture and what stands beside it."""
    words = "".join(f"<p>{text}</p>" for text in part.words)
    place = chart.Place(part.inches, page=True)
    svg = chart.inline(chart.rendered(part.draw, place, "svg"), place, part.alt)
    formulas = "".join(f'<p class="formula">{line}</p>' for line in part.formulas)
    functions = "".join(f"<li><code>{escape(name)}</code></li>" for name in part.functions)
    good = sum(n.reproduced for n in part.numbers)
    kind = "yes" if good == len(part.numbers) else "no"
    verdict = f'<p class="verdict {kind}">{good} of {len(part.numbers)} numbers reproduced</p>'
    left = f'<figure class="chart">{svg}</figure><h3>In fewstep</h3><ul>{functions}</ul>'
    right = f"{verdict}<h3>Formula</h3>{formulas}{_table(part.numbers)}"
    body = f'{words}<div class="lab"><div>{left}</div><div>{right}</div></div>'
    return Section(f"{index + 1}. {part.title}", body)


def _table(numbers: Sequence[Number]) -> str:
    """Return the numbers as a table, each with its verdict in words."""
    rows = []
    for n in numbers:
        kind, word = ("yes", "\N{CHECK MARK} yes") if n.reproduced else ("no", "\N{BALLOT X} no")
        rows.append(
            f'<tr class="{kind}"><th scope="row">{escape(n.name)}</th><td>{escape(n.must)}</td>'
            f'<td>{n.got:.5g}</td><td class="{kind}">{word}</td></tr>'
        )
    heads = ("number", "must be", "measured", "reproduced")
    head = "".join(f'<th scope="col">{word}</th>' for word in heads)
    return html_table("What must be reproduced", f"<tr>{head}</tr>", rows, "numbers")


def _failures(parts: Sequence[Part], failed: Sequence[tuple[int, Number]]) -> str:
    """Return the numbers that are not reproduced, with links to their sections below."""
    items = "".join(
        f'<li><a href="#s{i + 1}">{escape(parts[i].title)}</a>: {escape(said(n))}</li>'
        for i, n in failed
    )
    return f"<ul>{items}</ul>"


def said(n: Number) -> str:
    """Return a number with what was measured and what it must be, in one line."""
    return f"{n.name}: {n.got:.5g}, must be {n.must}"
