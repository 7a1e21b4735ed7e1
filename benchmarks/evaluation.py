"""Rows E1, E2, E4: the Inception network and streamed statistics, against torch-fidelity.

E1 and E2 give the same 32x32 images to the network of torch-fidelity as it comes and to ours,
which has the same layers with the normalisation folded in, channels last (E1, float32), and
in bfloat16 (E2, for monitoring). Both have the same weights, random ones: the speed does not
depend on them, and nothing is downloaded. E1 refuses to time features that differ by more than
1e-5 of their size; E2 states how much its features and a Frechet distance are off.

E4 is memory: the statistics of a memory-mapped file of features, of N and of 10 N rows, each in
a process of its own; the ratio of the two peaks of anonymous memory above what the process had
before. Pages of the file itself belong to the system's cache and are not counted.

Run: python -m benchmarks E1 E2 E4
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import timing
from fewstep import metrics

ROUNDS = 7  # fewer are a quick look
BATCH = 16
LAYERS = ["2048", "logits_unbiased"]
ROWS, FEATURES = 10_000, 256  # of the smaller file of row E4
EQUAL = 1e-5


def images(count: int, seed: int = 0, size: int = 32) -> Tensor:
    """Return smooth random colour pictures, uint8, shape (count, 3, size, size)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    x = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    x = x + 0.05 * torch.randn(count, 3, size, size, generator=draw)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def random_inception(path: Path, seed: int = 0) -> None:
    """Write a weight file for torch-fidelity's Inception network, with random numbers in it.

    Normalisation gets the statistics of a few pictures, so that activations neither vanish nor
    explode and features tell images apart; its scales and shifts are random as well, so that a
    fold that forgets one of them is seen.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as source
    except ImportError as e:
        raise timing.Skip(f"torch-fidelity is not installed ({e})") from e
    kind = source.FeatureExtractorInceptionV3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with (  # its constructor would download the published weights
            mock.patch.object(source, "load_state_dict_from_url", return_value={}),
            mock.patch.object(kind, "load_state_dict"),
        ):
            net = kind("random", LAYERS)
        for block in net.modules():
            if isinstance(block, nn.Conv2d):
                nn.init.kaiming_normal_(block.weight, nonlinearity="relu")
            if isinstance(block, nn.BatchNorm2d):
                nn.init.uniform_(block.weight, 0.7, 1.3)
                nn.init.uniform_(block.bias, 0.5, 1.5)
                block.momentum = 1.0
        nn.init.normal_(net.fc.weight, std=0.1)
        with torch.no_grad():
            net.train()(images(12, seed=99))
            mean = net.eval()(images(12, seed=99))[0].mean(0)
            # No class is the likeliest for every picture: the inception score is then not 1.
            net.fc.weight -= torch.outer(net.fc.weight @ mean, mean) / mean.square().sum()
    torch.save(net.state_dict(), path)


def peer(path: Path) -> Any:
    """Return torch-fidelity's extractor as it comes."""
    from torch_fidelity.utils import create_feature_extractor

    return create_feature_extractor(
        "inception-v3-compat", LAYERS, cuda=False, verbose=False,
        feature_extractor_weights_path=str(path),
    )  # fmt: skip


def _relative(x: Tensor, y: Tensor) -> float:
    """Return the largest difference, over the largest value."""
    return ((x - y).abs().max() / y.abs().max()).item()


def _inception(rounds: int, rows: Collection[str]) -> list[timing.Row]:
    """Measure E1 and E2 in the same rounds; few rounds are of fewer images."""
    u = images(BATCH if rounds >= ROUNDS else BATCH // 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        random_inception(path)
        theirs, ours, low = (
            peer(path), metrics.inception(path), metrics.inception(path, "bf16")
        )  # fmt: skip

    @torch.no_grad()
    def peer_run() -> tuple[Tensor, Tensor]:
        return theirs(u)

    found = ours(u)
    assert found.logits is not None
    want, logits = peer_run()
    off = max(_relative(found.vectors, want), _relative(found.logits, logits))
    assert off <= EQUAL, f"features differ by {off:.1e} of their size, at most {EQUAL:.0e}"
    sides: dict[str, timing.Side] = {"E1": lambda: ours(u), "E2": lambda: low(u)}
    sides = {name: side for name, side in sides.items() if name in rows}
    times = timing.take_turns({**sides, "peer": peer_run}, rounds)
    lines = []
    for name, what, most in (
        ("E1", "Inception features, float32, vs torch-fidelity", 0.74),
        ("E2", "Inception features, bfloat16, vs torch-fidelity in float32", 0.42),
    ):
        if name in sides:
            mine, other = ([s / len(u) * 1e3 for s in times[side]] for side in (name, "peer"))
            row = timing.row(name, what, mine, other, "ms/image", most)
            row["images_per_second"] = [1e3 / row[side] for side in ("ours", "peer")]
            row |= {"features_off": off} if name == "E1" else _deviation(ours, low, rounds)
            lines.append(row)
    return lines


def _deviation(full: metrics.Extractor, low: metrics.Extractor, rounds: int) -> dict[str, float]:
    """Return how far bfloat16 is off: features and a Frechet distance, relative.

    The random network tells more of rounding than a trained one, and 2,048 features of few
    images are no estimate of anything but of this difference.
    """
    count = 48 if rounds >= ROUNDS else 8
    real, made = images(count, 1), (images(count, 2) * 0.9 + 10).to(torch.uint8)
    x, y = full(real).vectors, low(real).vectors
    found = {
        "features_off": ((y - x).norm() / x.norm()).item(),
        "features_off_in_spreads": ((y - x).norm() / (x - x.mean(0)).norm()).item(),
    }
    if rounds >= ROUNDS:
        right = metrics.frechet_distance(x, full(made).vectors)
        found["distance_off"] = metrics.frechet_distance(y, low(made).vectors) / right - 1
        found["distance_images"] = count
    return found


PROBE = """
import sys, threading, time
import numpy as np, torch
from fewstep.metrics import Moments
{imports}
torch.set_num_threads(1)
def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
def work(x):
    {work}
work(torch.rand(5000, {features}))  # what the first call loads is not counted
x = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))
before, peak, done = held(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, held())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
start = time.perf_counter()
while time.perf_counter() < start + {seconds}:  # long enough for the other thread to look often
    work(x)
done = True
thread.join()
print((peak - before) / 1024)
"""
STREAMED = ("", "Moments.of(x)")
AT_ONCE = ("from torch_fidelity import metric_fid", "metric_fid.fid_features_to_statistics(x)")


def _peak(path: Path, how: tuple[str, str], seconds: float) -> float:
    """Return the peak of memory, MiB, while the statistics of a file of features are made."""
    code = PROBE.format(imports=how[0], work=how[1], features=FEATURES, seconds=seconds)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed is given back
    )  # fmt: skip
    return float(done.stdout)


def _memory(rounds: int) -> timing.Row:
    """Measure E4."""
    if not Path("/proc/self/status").exists():
        raise timing.Skip("memory is read from /proc, which is not here")
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.npy" for name in ("more", "few")]
        for path, count in zip(paths, (10 * ROWS, ROWS), strict=True):
            np.save(path, draw.standard_normal((count, FEATURES), dtype=np.float32))
        seconds = 3.0 if rounds >= ROUNDS else 1.0
        peaks = [
            [_peak(path, STREAMED, seconds) for path in paths]
            for _ in range(2 + (rounds >= ROUNDS))
        ]
        at_once = _peak(paths[0], AT_ONCE, 0.01)
    return timing.row(
        "E4", f"memory of streamed statistics, {10 * ROWS:,} x {FEATURES} vs {ROWS:,} x "
        f"{FEATURES} features", [p[0] for p in peaks], [p[1] for p in peaks], "MiB", 1.10,
        torch_fidelity_mib=at_once,
    )  # fmt: skip


def run(rounds: int = 9, rows: Collection[str] = ("E1", "E2", "E4")) -> list[timing.Row]:
    """Measure the rows that are asked for."""
    found: list[timing.Row] = []
    both = [name for name in ("E1", "E2") if name in rows]
    if both:
        try:
            with timing.one_thread():
                found += _inception(rounds, both)
        except timing.Skip as e:
            found += [timing.skipped(name, str(e)) for name in both]
    return found + timing.each({"E4": lambda: _memory(rounds)}, rows)


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
