"""What `evaluate`, `compare` and `demo` share: what is judged, by which real images, and where.

Everything that can be refused is refused here, before a folder is made or a judge is trained.
"""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fewstep.cli import console, options
from fewstep.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

    from fewstep.cli.resolve import Found
    from fewstep.report.judge import Judge, Protocol, Reals
    from fewstep.report.results import Line
    from fewstep.report.work import Subject

ARRAYS = (".npz", ".npy", ".safetensors")
_MODEL = ("manifest.json", "model.json", "checkpoints", "config.yaml", "distill.json")


def is_images(word: str) -> bool:
    """Return whether a word of the command line means images and not a model."""
    from fewstep.cli.resolve import shipped

    path = Path(word).expanduser()
    if path.is_dir():
        if word in shipped():
            return False  # the shipped model; ./digits means the folder
        return not any((path / name).exists() for name in _MODEL)
    return path.suffix.lower() in (*ARRAYS, ".parquet")


def share(word: str | None) -> tuple[int, int]:
    """Return which part of the chunks this process makes, (i, k) from 0, of "i/k" from 1.

    Without a word, torchrun says it.

    Raises:
        UsageError: no such part.
    """
    if word is None:
        ranks = os.environ.get("WORLD_SIZE", "1")
        return console.rank(), int(ranks) if ranks.isdecimal() else 1
    first, slash, of = word.partition("/")
    if not (slash and first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of)):
        raise UsageError(f"--shard {word}: must be I/K with 1 <= I <= K, such as 3/8")
    return int(first) - 1, int(of)


def reals(data: str | None, found: "Found | None") -> "Reals":
    """Open the real images: those named, or those the model was trained on.

    They are read in the size and the way in which the model's own were read.

    Raises:
        UsageError: none named, and the model does not say.
        DataError: they cannot be used.
    """
    from fewstep import data as door
    from fewstep.report.judge import LEAST, Reals

    if data is not None and not data.strip():
        raise UsageError(
            f"--data {data!r}: must be a folder, a file of images, or the word digits"
        )
    theirs, options = own(found)
    said, data = data, data or theirs
    if data is None:
        raise UsageError(
            "which real images to measure against is not known: give --data PATH (a folder, an "
            "npz file, or the word digits)"
        )
    # what somebody names is the reference; what the model was trained on is parted as it was then
    if said is not None and said != theirs and Path(said).suffix.lower() in ARRAYS:
        whole = door.load(data)
        return Reals(whole.name, whole)
    train, held_out = door.open(data, **options)
    if 0 < len(held_out) < LEAST <= len(train):
        console.warn(
            f"{len(held_out)} held-out images are too few to judge with (at least {LEAST}): left "
            f"out; what is measured against are the {len(train)} training images"
        )
    return Reals(train.name, train, held_out if len(held_out) >= LEAST else None)


def untold(found: "Found") -> None:
    """Refuse a model that is told more than classes: real images have no such words or images.

    Raises:
        UsageError: it is.
    """
    if found.model.text or found.model.inputs:
        raise UsageError(
            f"{found.name} is told a text or an image beside the noise, which --data does not "
            "have; only models of classes and unconditional ones are measured"
        )


def own(found: "Found | None") -> tuple[str | None, dict[str, Any]]:
    """Return the data a model was trained on, if it says so, and how they were read."""
    from fewstep.cli.resolve import is_student
    from fewstep.recipes import load

    if found is not None:
        if is_student(found.path):
            from fewstep.students import run as distillation

            kept = (distillation.planned(found.path.parent) or {}).get("kept", {})
            return kept.get("data"), dict(kept.get("read", {}))
        run = found.path.parent.parent if found.path.parent.name == "checkpoints" else found.path
        if (run / "config.yaml").is_file():
            said = dict(load(run / "config.yaml").get("data", {}))
            path = said.pop("path", "digits")
            said.pop("hint", None)  # is for who has no images yet
            return path, said
        if found.model.about.get("data", {}).get("name") == "digits":
            return "digits", {}
    return None, {}


def folder(place: Path, *images: str | None) -> Path:
    """Return the folder for everything, checked but not made.

    Args:
        place: the folder.
        images: folders of images, which it must not lie in; None is passed over.

    Raises:
        UsageError: it is a file, or lies inside one of the folders.
    """
    place = place.expanduser()
    if place.exists() and not place.is_dir():
        raise UsageError(f"-o {place}: a file; give a folder")
    for word in images:
        root = None if word is None else Path(word).expanduser()
        if root is not None and root.is_dir() and place.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"-o {place}: inside the images {root}; choose another folder")
    return place


def made(place: Path) -> Path:
    """Make a folder.

    Raises:
        ResourceError: it cannot be made.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResourceError(f"cannot make the folder {place}: {e.strerror or e}") from e
    return place


def rules(name: str, n: int | None, inception: Path | None, precision: str) -> "Protocol":
    """Return the protocol.

    Raises:
        UsageError: no such protocol, or options of Inception where it has no part.
    """
    from fewstep.report.judge import protocol

    found = protocol(name, n)
    if "inception" not in found.extractors and (inception is not None or precision != "fp32"):
        option = (
            f"--inception {inception}" if inception is not None else f"--precision {precision}"
        )
        raise UsageError(f"{option}: the protocol {name} does not use Inception; fid-10k does")
    return found


def judge(
    rules: "Protocol",
    reals: "Reals",
    *,
    inception: Path | None = None,
    precision: str = "fp32",
    device: str = "auto",
    folder: Path | None = None,
) -> "Judge":
    """Return the judge, with a note of what it will be judged by.

    Args:
        rules: the protocol.
        reals: the real images.
        inception: file of Inception's weights.
        precision: of Inception.
        device: where Inception computes.
        folder: of the work, where its classifier is kept for all who share it.
    """
    from fewstep.report import judge as judges

    with console.bar("the judge learns") as tick:
        extractors = judges.extractors(
            rules,
            reals,
            inception=inception,
            precision=precision,
            device=placed(device),
            tick=tick,
            folder=None if folder is None else folder / "judge",
        )
    with console.bar("features of the real images") as tick:
        found = judges.Judge(rules, reals, extractors, tick, placed(device))
    features = ", ".join(e.name for e in found.extractors)
    console.note(
        f"protocol {found.rules.name}: {found.rules.n} images, features {features}, against "
        f"{len(found.real)} real images ({reals.name}, {found.split})"
    )
    for i, line in enumerate(found.notes()):
        (console.warn if i == 0 and rules.n < judges.FEW else console.note)(line)
    return found


def placed(device: str) -> "torch.device":
    """Return the device of that name; under torchrun each process takes a GPU of its own.

    Raises:
        UsageError: it is not there.
    """
    import torch

    from fewstep.train import engine

    found, local = engine.pick_device(device), os.environ.get("LOCAL_RANK", "")
    if found.type == "cuda" and found.index is None and local.isdecimal():
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    return found


def part_done(word: str, then: str) -> None:
    """Say what to do when all parts are done."""
    console.result(f"part {word} is done; when all are: {then}")


def subject(
    found: "Found",
    reals: "Reals",
    rules: "Protocol",
    seed: int,
    device: str,
    known: tuple[str, ...] = (),
) -> "Subject":
    """Return a model as what is to be measured, on the device that samples.

    Args:
        found: the model.
        reals: the real images.
        rules: the protocol.
        seed: of image 0.
        device: where it samples.
        known: the classes that a classifier brings to a model without any.

    Raises:
        DataError: the real images cannot judge it.
    """
    from fewstep.report.cells import Labels
    from fewstep.report.work import Subject
    from fewstep.train import engine

    model = found.model
    classes = model.classes or known
    reals.check(model.shape, classes, found.name)
    engine.tune_cpu()
    model.denoiser.to(placed(device))
    counts = reals.counts(rules.against) or (1,) * len(classes)  # without labels: in turn
    labels = Labels(counts if classes else ())
    return Subject(model, found.name, found.weights, labels, seed)


def needs(*modules: str) -> None:
    """Raise before hours of sampling if a library for judging or drawing is missing.

    Raises:
        UsageError: one is, with the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        extras = ",".join(EXTRAS[name] for name in missing)
        raise UsageError(f"this needs {names}: pip install 'fewstep[{extras}]'")


def stated(lines: "list[Line]") -> list[str]:
    """Return what must stand beside the numbers of one protocol, a fact to a line."""
    first = lines[0]
    p = first.protocol
    reference = p["reference"]
    said = [f"protocol {p['name']}: {p['n']} images; {p['quantisation']}"]
    for name, e in p["extractors"].items():
        weights = f", weights {e['weights'][:16]}" if e["weights"] else ""
        said.append(f"features {name}{weights}: {e['rule']}")
    said.append(
        f"reference: {first.record.get('reference', 'real images')}, {reference['split']}, "
        f"{reference['images']} images, {reference['fingerprint'][:16]}"
    )
    for line in lines if len(lines) == 1 else ():
        words = ", ".join(f"{k} {v}" for k, v in line.settings.items() if v is not None)
        said += [f"sampling: {words}, {line.nfe} network evaluations"] if line.settings else []
    models = dict.fromkeys(f"{line.model} {line.weights[:16]}" for line in lines)
    said.append(f"of: {', '.join(models)}")
    return said + [f"{k}: {v}" for k, v in facts(lines).items()]


def lead(lines: "list[Line]") -> str:
    """Return one sentence about what was measured."""
    first = lines[0]
    reference = first.protocol["reference"]
    rows = " of each row" if len(lines) > 1 else ""
    return (
        f"{first.protocol['n']:,} images{rows} against {reference['images']:,} real ones "
        f"({first.record.get('reference', 'real images')}, {reference['split']}); every number "
        "with its 95 % interval and with what real images get."
    )


def facts(lines: "list[Line]") -> dict[str, str]:
    """Return what the numbers depend on beside their protocol."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        for key, value in line.record.items():
            if key in ("times", "reference", "student"):
                continue
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            found.setdefault(key, {})[str(value)] = None
    return {key: " | ".join(values) for key, values in found.items()}


EXTRAS = {"torch_fidelity": "eval", "matplotlib": "report", "torchdiffeq": "likelihood"}

# Options that `evaluate` and `compare` share.
PROTOCOL = typer.Option(metavar="NAME", help="small-1k, small-2k, small-10k, fid-10k, fid-50k")
NUMBER = typer.Option(
    "-n",
    "--number",
    parser=options.whole(1, 10_000_000),
    metavar="N",
    help="images of each row, in place of the protocol's number; a protocol of its own",
)
SEED = typer.Option(parser=options.seed, metavar="SEED", help="image i: SEED + i")
SHARD = typer.Option(
    metavar="I/K", help="make only part I of K, on any machine; --merge measures them"
)
MERGE = typer.Option("--merge", help="sample nothing: measure what all shards have made")
BATCH = typer.Option(parser=options.whole(1, 250), metavar="B", help="images sampled at once")
DEVICE = typer.Option(metavar="NAME", help="auto, cpu, cuda, ...")
INCEPTION = typer.Option(
    metavar="FILE", help="weights of the TF-2015 Inception, where they are not in torch's cache"
)
PRECISION = typer.Option(
    parser=options.choice("fp32", "bf16"),
    metavar="fp32|bf16",
    help="of Inception; bf16 is for monitoring only and a protocol of its own",
)
