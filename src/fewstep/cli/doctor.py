"""`fewstep doctor`: what is here, whether it works, and one piece of advice a line.

Nothing is changed and nothing is fetched. The self-test samples one image with a shipped model, or
with a tiny untrained one where there is none.
"""

import importlib.util
import json
import os
import platform
import shutil
import time
from collections import deque
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fewstep.cli import options
from fewstep.cli.console import command

if TYPE_CHECKING:
    from fewstep.model import Model

app = options.app()

_LIBRARIES = ("torch", "numpy", "safetensors", "accelerate", "pydantic", "typer")
_EXTRAS = {
    "report": ("matplotlib", "pictures of the report"),
    "eval": ("torch_fidelity", "FID, KID, precision and recall"),
    "parquet": ("pyarrow", "data from parquet files"),
    "text": ("tokenizers", "models of texts"),
    "likelihood": ("torchdiffeq", "likelihoods within a tolerance"),
}
_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line: is it well, what it is, and what to do."""

    ok: bool
    name: str
    value: str
    advice: str = ""


@app.command()
def doctor(
    form: Annotated[str, options.FORMAT] = "human",
) -> int:
    """Look at this machine and this installation; exit 6 if something is wrong."""
    findings = [_versions(), _device(), _memory(), _disk(), *_models(), *_extras(), _self_test()]
    good = all(f.ok for f in findings)
    if form == "json":
        print(json.dumps({"ok": good, "findings": [asdict(f) for f in findings]}))
    else:
        for f in findings:
            advice = f"  ({f.advice})" if f.advice else ""
            print(f"{'ok ' if f.ok else 'BAD'} {f.name:<10} {f.value}{advice}")
    return 0 if good else 6


def _versions() -> Finding:
    from fewstep import __version__

    shown, missing = [f"fewstep {__version__}", f"python {platform.python_version()}"], []
    for name in _LIBRARIES:
        try:
            shown.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    advice = f"missing: {', '.join(missing)}; install fewstep again" if missing else ""
    return Finding(not missing, "versions", ", ".join(shown), advice)


def _device() -> Finding:
    import torch

    from fewstep.train import engine

    there, threads = engine.devices(), torch.get_num_threads()
    picked = engine.pick_device("auto")
    precision = engine.pick_precision("auto", picked)
    advice = "no GPU: small images train well on a CPU" if picked.type == "cpu" else ""
    value = f"{picked} ({precision}), {threads} threads; usable: {', '.join(there)}"
    return Finding(True, "device", value, advice)


def _memory() -> Finding:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    except (ValueError, OSError, AttributeError):
        return Finding(True, "memory", "unknown on this system")
    advice = "close other programs, or take a smaller batch" if free < 1 else ""
    return Finding(free >= 0.3, "memory", f"{free:.1f} of {total:.1f} GiB free", advice)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    writable = os.access(Path.cwd(), os.W_OK)
    advice = "this folder cannot be written: give out=FOLDER" if not writable else ""
    if free < 1:
        advice = "make room before you train"
    return Finding(free >= 0.1, "disk", f"{free:.1f} GiB free here", advice)


def _models() -> list[Finding]:
    from fewstep.cli.resolve import shipped
    from fewstep.recipes import shipped as recipes

    names = shipped()
    train = command("train", recipes()[0])
    advice = f"train one: {train}"
    if names:
        label = ["--label", "7"] if names[0] == "digits" else []
        advice = command("sample", names[0], *label, "-n", "16")
    return [
        Finding(True, "models", ", ".join(names) or "none shipped", advice),
        Finding(True, "recipes", ", ".join(recipes()), train),
    ]


def _extras() -> list[Finding]:
    found = []
    for extra, (module, what) in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        advice = "" if there else f"for {what}: pip install 'fewstep[{extra}]'"
        found.append(Finding(True, extra, "installed" if there else "not installed", advice))
    return found


def _self_test() -> Finding:
    """Sample one image."""
    from dataclasses import replace

    from fewstep import sampling
    from fewstep.cli.resolve import find, shipped
    from fewstep.train import engine

    began = time.monotonic()
    try:
        model = find(shipped()[0]).model if shipped() else _tiny()
        device = engine.pick_device("auto")
        model.denoiser.to(device)
        preset = replace(model.sampling, steps=10)
        walk = sampling.walk(model, preset, [0] if model.classes else None, 1)
        (step,) = deque(walk, maxlen=1)
        good = bool(step.x.isfinite().all())
    except Exception as e:
        advice = "run again with --debug; install fewstep again"
        return Finding(False, "self-test", f"failed: {type(e).__name__}: {e}", advice)
    seconds = time.monotonic() - began
    which = "shipped model" if shipped() else "untrained network"
    value = f"one image, 10 steps, {which} on {device}: {seconds:.2f} s"
    return Finding(good, "self-test", value, "" if good else "the image is not finite")


def _tiny() -> "Model":
    """Return an untrained network, where no model is shipped."""
    from fewstep.denoiser import NetDenoiser
    from fewstep.model import Model
    from fewstep.nets.unet import UNet, UNetConfig
    from fewstep.process import Cosine

    config = UNetConfig(1, 1, 8, width=8, mult=(1,), attention=(), heads=1, groups=4)
    return Model(NetDenoiser(UNet(config), Cosine()).eval(), (1, 8, 8))
