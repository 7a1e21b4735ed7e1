"""Store how well noisy classifiers tell the class at each quarter of the noise, with a table.

fewstep train digits-classifier && fewstep train mnist-classifier train.steps=1000
python tools/classifier_table.py runs/digits-classifier runs/mnist-classifier
python tools/classifier_table.py --check      # compares the page with what is stored
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs/results/noisy-classifiers.json"
PAGE = STORED.with_suffix(".md")
TEXT = """# Noisy classifiers: accuracy by noise

Made by `python tools/classifier_table.py RUN...` from finished runs. Held-out images, noised at
times even in each quarter of [0, 1], classified with the averaged weights of the run's end. The
last quarter is nearly pure noise: chance is all that can be had there, and the gradient small.
MNIST here is its file of 10,000 test images, nine tenths of them for training.

"""


def facts(run: Path) -> dict[str, Any]:
    """Return what a run says of its training and of its last accuracy."""
    recipe = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    data = json.loads((run / "data.json").read_text("utf-8"))
    last = json.loads(max((run / "samples").glob("step-*.json")).read_text("utf-8"))
    kept = ("net", "process", "objective", "train", "seed")
    return {
        "name": recipe["name"],
        **{key: recipe[key] for key in kept},
        "images": data["train"]["images"],
        "fingerprint": data["train"]["fingerprint"],
        "held out": last["images"],
        "step": last["step"],
        "accuracy": last["accuracy"],
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    heads = ["recipe", "steps x batch", "training images", "held out", *(f"{q}/4" for q in "1234")]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in rows:
        cost = f"{row['step']} x {row['train']['batch_size']}"
        shares = [f"{share:.3f}" for share in row["accuracy"]]
        lines.append([row["name"], cost, str(row["images"]), str(row["held out"]), *shares])
    return TEXT + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(words: list[str]) -> int:
    """Store and write, or compare; return the exit code."""
    if words != ["--check"]:
        rows = [facts(Path(word)) for word in words]
        STORED.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", "utf-8")
        PAGE.write_text(page(rows), "utf-8")
        return 0
    return int(PAGE.read_text("utf-8") != page(json.loads(STORED.read_text("utf-8"))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
