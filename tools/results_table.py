"""Write tables of stored results as Markdown.

make demo && cp runs/demo/results.json docs/results/demo-digits.json
python tools/results_table.py                 # into their pages; with --check it only compares
python tools/results_table.py FILE.json       # any results.json, to stdout
python tools/results_table.py FILE.json FD-pixels   # as the talk's table of eta against S
"""

import sys
from collections.abc import Callable
from pathlib import Path

from fewstep.report import results, sweep, table
from fewstep.report.results import Line

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: python tools/results_table.py -->", "<!-- end of results -->"
FIGURES = ("accuracy", "FD-pixels")
FEW = ("FD-classifier", "FD-pixels", "accuracy", "precision-classifier", "recall-classifier")
CONTENT = ("FD-classifier", "KD-classifier", "FD-pixels", "accuracy", "diversity-classifier")


def short(lines: list[Line]) -> str:
    """Return lines as short Markdown tables, one for each protocol.

    Speed is a ratio to the slowest row of the run.
    """
    slowest = max(line.seconds for line in lines)
    return "\n\n".join(_short(group, slowest) for group in results.by_protocol(lines))


def _short(lines: list[Line], slowest: float) -> str:
    """Return lines of one protocol as a short Markdown table."""
    heads = ["", "steps", "network evaluations", "images", "speed", *FIGURES, "real images"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for line in lines:
        sweep = line.title.startswith("scale")
        title = f"DDIM, guidance {line.title}" if sweep else line.title
        figures = [line.figure(name) for name in FIGURES]
        shown = [table.shown(f, 3, "±") if f else "-" for f in figures]
        real = table.real_range(figures[-1:], 3)
        cost = [line.steps or "-", line.nfe or "-", line.images]
        speed = f"{slowest / line.seconds:.0f}x" if line.seconds else "-"
        rows.append([title, *map(str, cost), speed, *shown, real])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


PAGES: dict[str, tuple[str, Callable[[list[Line]], str]]] = {
    "README.md": ("docs/results/demo-digits.json", short),
    "docs/results/ncsn-digits.md": (
        "docs/results/ncsn-digits.json",
        lambda lines: table.markdown(lines, CONTENT).rstrip("\n"),
    ),
    "docs/results/ddim-digits.md": ("docs/results/ddim-digits.json", table.ddim_markdown),
    **{
        f"docs/results/distill-{name}.md": (
            f"docs/results/distill-{name}.json",
            lambda lines: table.markdown(lines, FEW).rstrip("\n"),
        )
        for name in ("digits", "mnist")
    },
    **{
        f"docs/results/{name}.md": (f"docs/results/{name}.json", sweep.markdown)
        for name in ("guidance-digits", "guidance-unlabelled")
    },
}
"""Pages with a table: the stored results, and what makes the table."""


def pages(check: bool) -> int:
    """Write the tables into their pages, or compare; return the exit code."""
    stale = 0
    for name, (stored, made) in PAGES.items():
        page = ROOT / name
        text = page.read_text("utf-8")
        head, rest = text.split(BEGIN)
        lines = results.named(results.load(ROOT / stored))
        now = f"{head}{BEGIN}\n{made(lines)}\n{END}{rest.split(END)[1]}"
        stale += now != text
        if not check:
            page.write_text(now, "utf-8")
    return min(stale, 1) if check else 0


def main(words: list[str]) -> int:
    """Do what the words ask for; return the exit code."""
    if words in ([], ["--check"]):
        return pages(bool(words))
    lines = results.named(results.load(Path(words[0])))
    print(table.ddim_markdown(lines, words[1]) if words[1:] else table.markdown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
