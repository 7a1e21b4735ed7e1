"""Write src/fewstep/data/digits.npz from scikit-learn's digits (a development dependency).

Run it from the root of the repository: python tools/make_digits.py
The file depends on nothing but the data, so running it again gives the same bytes.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    """Convert grey levels 0 ... 16 to bytes and save them with the labels."""
    levels, labels = map(np.asarray, load_digits(return_X_y=True))
    pixels = np.round(levels * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    target = Path(__file__).parents[1] / "src" / "fewstep" / "data" / "digits.npz"
    np.savez_compressed(target, pixels=pixels, labels=labels.astype(np.uint8))
    print(f"wrote {target.name}: {len(pixels)} images, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
