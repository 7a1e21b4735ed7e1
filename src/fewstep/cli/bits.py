"""`fewstep evaluate --bits-per-dim` and `--likelihood`: how many bits real images cost a model.

The first is the variational bound along the chain, the second the likelihood by the
probability-flow ODE; both bound the same quantity from above.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import console, judged
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.data import Images
    from fewstep.denoiser import Denoiser
    from fewstep.metrics import Figure
    from fewstep.model import Model
    from fewstep.report.results import Line

MOST = 1000
"""Images that are measured unless somebody asks for more."""
TERMS = 50
"""Steps of the chain that are evaluated for each image unless somebody asks for more."""


STEPS = 32
"""Runge-Kutta steps of the ODE unless somebody asks for more."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for.

    Attributes:
        number: how many images; None = all, at most `MOST`.
        seed: of the noise.
        batch: images at once.
        device: where to compute.
        form: "human" or "json".
        terms: steps of the chain for each image; None = `TERMS`, or all where there are fewer.
        steps: of the ODE; None = `STEPS`.
        probes: of the ODE's trace, for each image.
        tolerance: of the adaptive solver, in place of steps.
    """

    number: int | None
    seed: int
    batch: int
    device: str
    form: str
    terms: int | None = None
    steps: int | None = None
    probes: int = 1
    tolerance: float | None = None


@dataclass(frozen=True)
class Held:
    """The images that are measured.

    Attributes:
        images: some of them.
        whole: all.
        split: which part of the data they are.
        name: of the data.
    """

    images: "Images"
    whole: "Images"
    split: str
    name: str


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
    from fewstep.train import engine

    model = found.model
    held = _held(found, data, wish.number)
    steps = Chain.of(model.denoiser.process, "small").steps
    terms = min(TERMS, steps - 1) if wish.terms is None else wish.terms
    if terms >= steps:
        raise UsageError(f"--terms {terms}: must be in 1..{steps - 1}, a chain of {steps} steps")
    engine.tune_cpu()
    denoiser = _denoiser(model, wish.device, clip=model.sampling.clip)
    variances = ("learned", "small", "large") if model.learned_variance else ("small", "large")
    judged.made(place)
    console.note(
        f"bits per dimension: {len(held.images)} images ({held.name}, {held.split}), for each "
        f"the first and {terms} of the other steps of {steps}"
    )
    with console.bar("bits per dimension") as tick:
        every = metrics.bits(denoiser, held.images, variances, terms, wish.seed, wish.batch, tick)
    parameters = {
        "steps": steps,
        "steps of each image": terms + 1,
        "given": _given(model, held),
        "clip": model.sampling.clip,
    }
    line = _line(
        found, held, "bits-per-dim", parameters, [e.figure for e in every], terms + 1, wish
    )
    line = replace(line, detail={"parts": {each.figure.name: each.parts for each in every}})
    path = _save(line, place, wish)
    if path is None:
        return
    rows = [["", "", "95 % interval", "L_T", "L_1 ... L_T-1", "L_0"]]
    for each in every:
        rows.append([*_cells(each.figure), *(f"{part:.3f}" for part in each.parts)])
    _print(line, rows)
    p = line.protocol["parameters"]
    console.result(
        f"  bound from above by a chain of {p['steps']} steps, of which "
        f"{p['steps of each image']} are evaluated for each image; given {p['given']}"
    )
    _close(line, path)


def follow(found: "Found", data: str | None, place: Path, wish: Wish) -> None:
    """Measure the likelihood of held-out images by the ODE; print and store as `measure`.

    Args and errors as there; also refused are a tolerance without torchdiffeq, and a model whose
    density is not finite (NumericError).
    """
    from fewstep import metrics
    from fewstep.train import engine

    if wish.tolerance is not None:
        judged.needs("torchdiffeq")
    held = _held(found, data, wish.number)
    engine.tune_cpu()
    denoiser = _denoiser(found.model, wish.device, clip=False)
    steps = STEPS if wish.steps is None else wish.steps
    judged.made(place)
    solver = f"{steps} Runge-Kutta steps"
    if wish.tolerance is not None:
        solver = f"dopri5, tolerance {wish.tolerance:g}"
    probes = f"{wish.probes} probe{'s' * (wish.probes > 1)} of the trace"
    console.note(
        f"likelihood: {len(held.images)} images ({held.name}, {held.split}), {solver}, {probes}"
    )
    with console.bar("likelihood") as tick:
        got = metrics.likelihood(
            denoiser, held.images, steps, wish.probes, wish.tolerance,
            seed=wish.seed, batch=wish.batch, tick=tick,
        )  # fmt: skip
    parameters = {
        "solver": solver,
        "probes": wish.probes,
        "dequantised": "uniformly, over the width of a level",
        "given": _given(found.model, held),
    }
    line = _line(found, held, "likelihood", parameters, [got.figure], got.evaluations, wish)
    if wish.probes > 1:
        line = replace(line, detail={"standard error by the probes": got.spread})
    path = _save(line, place, wish)
    if path is None:
        return
    _print(line, [["", "", "95 % interval"], _cells(got.figure)])
    by = f"; standard error by the probes {got.spread:.2g}" if wish.probes > 1 else ""
    console.result(
        f"  likelihood by the probability-flow ODE of dequantised images, a bound from above: "
        f"{solver}, {probes}{by}; given {parameters['given']}"
    )
    _close(line, path)


def _held(found: "Found", data: str | None, number: int | None) -> Held:
    """Return the images that this model is measured on."""
    model = found.model
    judged.untold(found)
    reals = judged.reals(data, found)
    reals.check(model.shape, model.classes, found.name)
    split, whole, _ = reals.parts("held_out")
    images = _some(whole, number)
    if model.classes and not images.classes and not model.denoiser.null:
        raise UsageError(
            f"{found.name} never saw the null condition: give --data with images of its classes"
        )
    return Held(images, whole, split, reals.name)


def _given(model: "Model", held: Held) -> str:
    """Return what the model is told of each image."""
    return "the class" if model.classes and held.images.classes else "nothing"


def _some(images: "Images", number: int | None) -> "Images":
    """Return so many images, the first in a fixed random order."""
    import numpy as np

    if number is not None and not 2 <= number <= len(images):
        raise UsageError(f"-n {number}: must be in 2..{len(images)}, the images of {images.name}")
    n = min(len(images), MOST) if number is None else number
    return images.subset(np.random.default_rng(0).permutation(len(images))[:n])


def _denoiser(model: "Model", device: str, clip: bool) -> "Denoiser":
    """Return the model's denoiser without guidance, on the device."""
    from fewstep import guide, sampling
    from fewstep.denoiser import Denoiser

    denoiser = model.denoiser.to(judged.placed(device))
    if not isinstance(denoiser, Denoiser):
        raise sampling.no_denoiser(model)
    if not model.classes:
        denoiser = guide.Unconditional(denoiser)  # the images may have classes all the same
    return guide.Clamp(denoiser) if clip else denoiser


def _line(  # budget: table
    found: "Found",
    held: Held,
    name: str,
    parameters: dict[str, Any],
    figures: "list[Figure]",
    nfe: int,
    wish: Wish,
) -> "Line":
    """Return the figures with all that they depend on."""
    from fewstep.report.cells import machine
    from fewstep.report.results import Line

    protocol = {
        "name": name,
        "n": len(held.images),
        "quantisation": "8 bits, as they are stored",
        "extractors": {},
        "reference": {
            "split": held.split,
            "images": len(held.whole),
            "fingerprint": held.whole.fingerprint,
        },
        "parameters": parameters,
    }
    noise = f"seed {wish.seed}, batches of {wish.batch}"
    if name == "likelihood":
        noise = f"seed {wish.seed} + i of image i"
    record = {
        "reference": held.name,
        "noise": noise,
        "measured on": machine(judged.placed(wish.device)),
    }
    return Line(
        title=f"{found.name}, {name.replace('-', ' ').replace('per dim', 'per dimension')}",
        group="",
        model=found.name,
        weights=found.weights,
        settings={},
        nfe=nfe,
        images=len(held.images),
        seconds=0,
        figures=tuple(figures),
        protocol=protocol,
        record=record,
    )


def _save(line: "Line", place: Path, wish: Wish) -> Path | None:
    """Store the line; print it and return None where JSON is asked for."""
    from fewstep.report import results

    p = line.protocol
    key = hashlib.sha256(json.dumps([p, wish.seed]).encode()).hexdigest()[:8]
    path = place / f"{p['name']}-{line.weights[:8]}-n{p['n']}-{key}.json"
    results.save(path, [line])
    if wish.form == "json":
        print(json.dumps(line.plain(), allow_nan=False))
        return None
    return path


def _cells(f: "Figure") -> list[str]:
    """Return the name, value and interval of a figure."""
    return [f.name, f"{f.value:.3f}", f"{f.low:.3f} to {f.high:.3f}"]


def _print(line: "Line", rows: list[list[str]]) -> None:
    """Print a table with its title."""
    console.result(f"{line.title}: {line.images} images, {line.nfe} network evaluations each")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        cells = (c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))
        console.result("  ".join(["", first.ljust(widths[0]), *cells]))


def _close(line: "Line", path: Path) -> None:
    """Print what stands beside the numbers, and where they are."""
    for text in judged.stated([line]):
        console.result(f"  {text}")
    console.result(f"figures: {path}")
