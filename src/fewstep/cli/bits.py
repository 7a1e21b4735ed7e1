"""`fewstep evaluate --bits-per-dim`: how many bits real images cost a model."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import console, judged
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.data import Images
    from fewstep.denoiser import Denoiser
    from fewstep.metrics import Bits
    from fewstep.model import Model
    from fewstep.report.results import Line

MOST = 1000
"""Images that are measured unless somebody asks for more."""
TERMS = 50
"""Steps of the chain that are evaluated for each image unless somebody asks for more."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for.

    Attributes:
        number: how many images; None = all, at most `MOST`.
        terms: steps of the chain for each image; None = `TERMS`, or all where there are fewer.
        seed: of the noise.
        batch: images at once.
        device: where to compute.
        form: "human" or "json".
    """

    number: int | None
    terms: int | None
    seed: int
    batch: int
    device: str
    form: str


def measure(found: "Found", data: str | None, place: Path, wish: Wish) -> None:
    """Measure the bound of held-out images, print it, and store it beside the other figures.

    Args:
        found: the model.
        data: real images, or None for those that the model was trained on.
        place: the folder for the figures.
        wish: how.

    Raises:
        UsageError: more images than there are, or more terms than steps; a model that needs
            classes and images that have none; one of texts or images.
        DataError: real images of another kind than the model's.
    """
    from fewstep import metrics
    from fewstep.objectives import Chain
    from fewstep.report import results
    from fewstep.train import engine

    model = found.model
    judged.untold(found)
    reals = judged.reals(data, found)
    reals.check(model.shape, model.classes, found.name)
    split, whole, _ = reals.parts("held_out")
    images = _some(whole, wish.number)
    if model.classes and not images.classes and not model.denoiser.null:
        raise UsageError(
            f"{found.name} never saw the null condition: give --data with images of its classes"
        )
    steps = Chain.of(model.denoiser.process, "small").steps
    terms = min(TERMS, steps - 1) if wish.terms is None else wish.terms
    if terms >= steps:
        raise UsageError(f"--terms {terms}: must be in 1..{steps - 1}, a chain of {steps} steps")
    engine.tune_cpu()
    denoiser = _denoiser(model, wish.device)
    variances = ("learned", "small", "large") if model.learned_variance else ("small", "large")
    judged.made(place)
    console.note(
        f"bits per dimension: {len(images)} images ({reals.name}, {split}), for each the first "
        f"and {terms} of the other steps of {steps}"
    )
    with console.bar("bits per dimension") as tick:
        every = metrics.bits(denoiser, images, variances, terms, wish.seed, wish.batch, tick)
    protocol = {
        "name": "bits-per-dim",
        "n": len(images),
        "quantisation": "8 bits, as they are stored",
        "extractors": {},
        "reference": {"split": split, "images": len(whole), "fingerprint": whole.fingerprint},
        "parameters": {
            "steps": steps,
            "steps of each image": terms + 1,
            "given": "the class" if model.classes and images.classes else "nothing",
            "clip": model.sampling.clip,
        },
    }
    line = _line(found, every, protocol, reals.name, wish)
    key = hashlib.sha256(json.dumps([protocol, wish.seed]).encode()).hexdigest()[:8]
    path = place / f"bits-per-dim-{found.weights[:8]}-n{len(images)}-{key}.json"
    results.save(path, [line])
    if wish.form == "json":
        print(json.dumps(line.plain(), allow_nan=False))
        return
    _print(line, every)
    console.result(f"figures: {path}")


def _some(images: "Images", number: int | None) -> "Images":
    """Return so many images, the first in a fixed random order."""
    import numpy as np

    if number is not None and not 2 <= number <= len(images):
        raise UsageError(f"-n {number}: must be in 2..{len(images)}, the images of {images.name}")
    n = min(len(images), MOST) if number is None else number
    return images.subset(np.random.default_rng(0).permutation(len(images))[:n])


def _denoiser(model: "Model", device: str) -> "Denoiser":
    """Return the model's denoiser as it is sampled, without guidance, on the device."""
    from fewstep import guide, sampling
    from fewstep.denoiser import Denoiser

    denoiser = model.denoiser.to(judged.placed(device))
    if not isinstance(denoiser, Denoiser):
        raise sampling.no_denoiser(model)
    if not model.classes:
        denoiser = guide.Unconditional(denoiser)  # the images may have classes all the same
    return guide.Clamp(denoiser) if model.sampling.clip else denoiser


def _line(
    found: "Found", every: "list[Bits]", protocol: dict[str, Any], data: str, how: Wish
) -> "Line":
    """Return the figures with all that they depend on."""
    from fewstep.report.cells import machine
    from fewstep.report.results import Line

    record = {
        "reference": data,
        "noise": f"seed {how.seed}, batches of {how.batch}",
        "measured on": machine(judged.placed(how.device)),
    }
    return Line(
        title=f"{found.name}, bits per dimension",
        group="",
        model=found.name,
        weights=found.weights,
        settings={},
        nfe=protocol["parameters"]["steps of each image"],
        images=protocol["n"],
        seconds=0,
        figures=tuple(each.figure for each in every),
        protocol=protocol,
        record=record,
        detail={"parts": {each.figure.name: each.parts for each in every}},
    )


def _print(line: "Line", every: "list[Bits]") -> None:
    """Print the bound under each variance with its interval and its three parts."""
    console.result(f"{line.title}: {line.images} images, {line.nfe} network evaluations each")
    rows = [["", "", "95 % interval", "L_T", "L_1 ... L_T-1", "L_0"]]
    for each in every:
        f = each.figure
        ends = f"{f.low:.3f} to {f.high:.3f}"
        rows.append([f.name, f"{f.value:.3f}", ends, *(f"{part:.3f}" for part in each.parts)])
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    for first, *rest in rows:
        cells = (c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))
        console.result("  ".join(["", first.ljust(widths[0]), *cells]))
    p = line.protocol["parameters"]
    console.result(
        f"  bound from above by a chain of {p['steps']} steps, of which "
        f"{p['steps of each image']} are evaluated for each image; given {p['given']}"
    )
    for text in judged.stated([line]):
        console.result(f"  {text}")
