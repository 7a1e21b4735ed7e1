"""Write tables of stored results as Markdown.

make demo && cp runs/demo/results.json docs/results/demo-digits.json
python tools/results_table.py                 # into the README; with --check it only compares
python tools/results_table.py FILE.json       # any results.json, to stdout
python tools/results_table.py FILE.json FD-pixels   # as the talk's table of eta against S
"""

import sys
from pathlib import Path

from fewstep.report import results, table
from fewstep.report.results import Line

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs/results/demo-digits.json"
BEGIN, END = "<!-- results: python tools/results_table.py -->", "<!-- end of results -->"
FIGURES = ("accuracy", "FD-pixels")


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


def readme(check: bool) -> int:
    """Write the table of the demo into the README, or compare; return the exit code."""
    page = ROOT / "README.md"
    text = page.read_text("utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    now = f"{head}{BEGIN}\n{short(results.load(STORED))}\n{END}{tail}"
    if check:
        return 0 if now == text else 1
    page.write_text(now, "utf-8")
    return 0


def main(words: list[str]) -> int:
    """Do what the words ask for; return the exit code."""
    if words in ([], ["--check"]):
        return readme(bool(words))
    lines = results.load(Path(words[0]))
    print(table.ddim_markdown(lines, words[1]) if words[1:] else table.markdown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
