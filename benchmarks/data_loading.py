"""Row D1: batches from disk, ours against torchvision's ImageFolder with two loader workers.

Both sides read the same 32x32 image files in class folders and give float batches in [-1, 1] in
shuffled order, on one thread each (plus the peer's two workers). Ours decodes the files once,
into a memory map; that first pass is timed and printed too, but is no part of the ratio, because
it is paid once per data set and not once per epoch. The peer's workers persist, so that their
start is paid in the warm-up. One timed unit is one epoch; the sides take turns.

Run: python -m benchmarks D1
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import timing
from fewstep import data

COUNT = 5000
BATCH = 128
GOAL = 50.0


def _from_parquet(root: Path) -> bool:
    """Write JPEG files from the optional CIFAR parquet; False if it cannot be read."""
    here = Path(__file__).resolve().parents[1]
    shared = Path(os.environ.get("FEWSTEP_SHARED") or here.parent / "shared")
    source = shared / "data" / "cifar10-jpeg" / "train.parquet"
    try:
        from pyarrow import parquet

        rows = next(parquet.ParquetFile(source).iter_batches(batch_size=COUNT)).to_pylist()
    except (ImportError, OSError):
        return False
    for i, row in enumerate(rows):
        folder = root / str(row["label"])
        folder.mkdir(exist_ok=True)
        (folder / f"{i:05}.jpg").write_bytes(row["image"]["bytes"])
    return True


def _synthetic(root: Path) -> None:
    """Write smooth random colour pictures as JPEG files, ten classes."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        folder = root / str(i % 10)
        folder.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((32, 32)).save(folder / f"{i:05}.jpg", quality=90)


def _peer(root: Path) -> torch.utils.data.DataLoader:
    try:
        from torchvision import datasets, transforms
    except ImportError as e:
        raise timing.Skip(f"torchvision is not installed ({e})") from e
    steps = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    images = datasets.ImageFolder(str(root), transforms.Compose(steps))
    return torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )


def _our_epoch(images: data.Images, epoch: int) -> int:
    steps = len(images) // BATCH
    for step in range(epoch * steps, (epoch + 1) * steps):
        images.batch(data.batch_ids(0, step, BATCH, len(images)))
    return steps * BATCH


def _peer_epoch(loader: torch.utils.data.DataLoader, epoch: int) -> int:
    del epoch  # the loader draws its own order
    return sum(len(x) for x, _ in loader)


def _measure(root: Path, rounds: int) -> dict[str, Any]:
    start = time.perf_counter()
    images, _ = data.open(root, held_out=0)
    first = time.perf_counter() - start
    start = time.perf_counter()
    images, _ = data.open(root, held_out=0)
    again = time.perf_counter() - start
    loader = _peer(root)
    sides = {"ours": (_our_epoch, images), "peer": (_peer_epoch, loader)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in range(rounds + 1):
        for name, (run_epoch, source) in sides.items():
            start = time.perf_counter()
            count = run_epoch(source, epoch)
            if epoch:  # the first round warms up: workers, page cache, permutation
                rates[name].append(count / (time.perf_counter() - start))
    ours, peer = (statistics.median(rates[name]) for name in ("ours", "peer"))
    ratio = timing.ratio(rates["ours"], rates["peer"])
    return {
        "row": "D1",
        "what": "batches from disk: memory map vs ImageFolder + DataLoader(2)",
        "ours": ours,
        "peer": peer,
        "unit": "images/s",
        "ratio": ratio,
        "goal": f">= {GOAL:.0f}",
        "ok": ratio >= GOAL,
        "rounds": rounds,
        "first_open_s": first,
        "cached_open_s": again,
        "images": len(images),
    }


def run(rounds: int = 7, rows: Collection[str] = ("D1",)) -> timing.Row:
    """Measure row D1 and return it."""
    del rows  # there is one
    threads, kept = torch.get_num_threads(), os.environ.get("FEWSTEP_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        real = _from_parquet(root)
        if not real:
            _synthetic(root)
        os.environ["FEWSTEP_CACHE"] = str(Path(folder) / "cache")
        torch.set_num_threads(1)
        try:
            return _measure(root, rounds) | {"files": "CIFAR JPEG" if real else "synthetic JPEG"}
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("FEWSTEP_CACHE")
            if kept is not None:
                os.environ["FEWSTEP_CACHE"] = kept


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
