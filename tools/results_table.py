"""Write the table of results into the README from the figures that the demo stored.

make demo && cp runs/demo/results.json docs/results/demo-digits.json
python tools/results_table.py            # writes; with --check it only compares
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: python tools/results_table.py -->", "<!-- end of results -->"


def table(results: dict) -> str:
    """Return the rows as Markdown; speed as a ratio to the slowest row of the same run."""
    rows = results["rows"]
    slowest = min(row["images_per_second"] for row in rows)
    lines = [
        "| | steps | network evaluations | images | speed | accuracy | FD-pixels | floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        title = row["title"].replace("scale", "DDIM, guidance scale")
        speed = row["images_per_second"] / slowest
        lines.append(
            f"| {title} | {row['steps']} | {row['network_evaluations']} | {row['images']} "
            f"| {speed:.0f}x | {row['label_accuracy']:.3f} | {row['fd_pixels']:.2f} "
            f"| {row['fd_pixels_floor']:.2f} |"
        )
    return "\n".join(lines)


def main(check: bool) -> int:
    """Write or compare; return the exit code."""
    results = json.loads((ROOT / "docs/results/demo-digits.json").read_text("utf-8"))
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    now = f"{head}{BEGIN}\n{table(results)}\n{END}{tail}"
    if check:
        return 0 if now == text else 1
    readme.write_text(now, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
