"""`fewstep train`: from a recipe, or from a folder of images, to a run; and on with a run.

The run folder is the only state: the same command on the same `out` continues it bit for bit, and
`fewstep train RUN` does so from the folder alone. Before anything is written, the folder is
checked: another run in it, foreign files, a place inside the data are refused.
"""

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import options
from fewstep.cli.console import command, note, rank, result, warn
from fewstep.cli.resolve import DISTILLED
from fewstep.errors import CheckpointError, DataError, UsageError, suggest

if TYPE_CHECKING:
    from fewstep.model import Model
    from fewstep.recipes import Built, Recipe

app = options.app()

CONFIG = "config.yaml"


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE_OR_RUN [KEY=VALUE]",
            help="a shipped recipe (digits), a YAML file or a run folder; then keys to change, "
            "such as out=runs/mine device=cpu seed=0 train.steps=3000 train.batch_size=64 "
            "train.checkpoint_every=500",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="images to train on: a folder of class folders (or of images), idx or parquet "
            "files; without a recipe, one is proposed for them",
        ),
    ] = None,
) -> None:
    """Train a model, or continue a run.

    The same command again on the same `out` continues the run where it was; on a finished run,
    a larger train.steps extends it. Ctrl-C saves and stops.
    """
    given = list(words or [])
    first = None
    if given and ("=" not in given[0] or Path(given[0]).exists()):
        first = given.pop(0)
    out, model = run(first, given, data)
    result(f"run folder: {out}")
    classes = model.classes
    label = ["--label", classes[min(7, len(classes) - 1)]] if classes else []
    if model.classifier is not None:
        result(f"next: {command('sample', 'MODEL', '--classifier', str(out), *label, '-n', '16')}")
    else:
        result(f"next: {command('sample', str(out), *label, '-n', '16')}")


def run(first: str | None, changes: list[str], data: str | None = None) -> "tuple[Path, Model]":
    """Train or continue a run; return its folder and the model with averaged weights.

    Args:
        first: a shipped recipe, a YAML file, a run folder, or None.
        changes: KEY=VALUE words.
        data: images to train on, or None for the recipe's.
    """
    from fewstep.recipes import build, settle

    recipe, out = _recipe(first, changes, data)
    images, held_out = _images(recipe, out)
    recipe, chosen = settle(recipe, images)
    built = build(recipe, images)
    _machine(recipe)
    if rank() == 0:
        _open(recipe, out, {"train": images.describe(), "held_out": held_out.describe()})
    _announce(recipe, out, built, len(images))
    if chosen:
        note(chosen)
    return out, _fit(recipe, out, built, images, held_out)


def _recipe(first: str | None, changes: list[str], data: str | None) -> "tuple[Recipe, Path]":
    """Return the recipe with all its changes, and the run folder."""
    from fewstep.recipes import parse, read

    if data is not None:
        changes = [*changes, f"data.path={data}"]
    values, where, run = _values(first, changes, data)
    parse(values, where)  # so that a fault is said to be where it is
    recipe = parse(read.override(values, changes), "command line")
    if run is not None and not any(c.startswith("out=") for c in changes):
        recipe = recipe.model_copy(update={"out": str(run)})
    # In a recipe, "digits" is the embedded data; typed by the user, a folder ./digits goes first.
    typed = any(c.startswith("data.path=") for c in changes)
    if typed or recipe.data.path != "digits":
        full = _place(recipe.data.path)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": full})})
    return recipe, Path(recipe.folder).expanduser()


def _place(data: str) -> str:
    """Return where the images lie, for the run may go on from another folder."""
    path = Path(data).expanduser()
    return data if data == "digits" and not path.exists() else str(path.absolute())


def _values(
    first: str | None, changes: list[str], data: str | None
) -> tuple[dict[str, Any], str, Path | None]:
    """Return plain values, where they are from, and the run folder if the user named one."""
    from fewstep.recipes import load, read, shipped

    if first is None:
        if data is None:
            raise UsageError(
                f"nothing to train: give a recipe ({', '.join(shipped())}, or a YAML file), a run "
                "folder, or --data FOLDER"
            )
        return _proposed(changes, data)
    path = Path(first).expanduser()
    if path.is_dir():
        if (path / DISTILLED).is_file():
            raise UsageError(
                f"{first}: a distillation, not a run; {command('distill', first)} goes on with it"
            )
        if not (path / CONFIG).is_file():
            raise CheckpointError(
                f"{first}: a folder without {CONFIG}, so no run to continue; for images give "
                f"--data {shlex.quote(first)}"
            )
        return load(path / CONFIG), str(path / CONFIG), path
    if path.is_file():
        return load(path), first, None
    if first in shipped():
        return load(read.shipped_path(first)), f"recipe {first}", None
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"{first}: no such recipe file; shipped: {', '.join(shipped())}")
    if len(path.parts) > 1:
        raise CheckpointError(
            f"{first}: no such run; nothing was started; a new run needs a recipe "
            f"({', '.join(shipped())}) and out={first}"
        )
    raise UsageError(
        f"no recipe {first!r}{suggest(first, shipped())}: shipped are {', '.join(shipped())}; "
        "or give a YAML file, a run folder, or --data FOLDER"
    )


def _proposed(changes: list[str], data: str) -> tuple[dict[str, Any], str, Path | None]:
    """Return a proposal for the data, or the recipe of the run that has begun with one."""
    from fewstep.recipes import load, override, parse, propose

    asked = parse(override({}, changes), "command line")
    path = _place(data)
    named = asked.out or f"runs/{Path(path).name}"
    if (Path(named) / CONFIG).is_file():
        return load(Path(named) / CONFIG), f"{named}/{CONFIG}", None
    recipe, reasons = propose(path)
    note(f"{path}: a recipe for these images (change any key with KEY=VALUE):")
    for line in reasons:
        note(f"  {line}")
    return recipe.model_dump(mode="json"), f"proposal for {data}", None


def _images(recipe: "Recipe", out: Path) -> Any:
    """Open the data; refuse a run folder inside it before decoding."""
    from fewstep import data

    d = recipe.data
    root = Path(d.path)
    if root.is_dir() and out.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"out={out}: inside the data folder {root}, whose images it would mix with; "
            "choose another out"
        )
    if d.hint is not None and d.path != "digits" and not root.expanduser().exists():
        raise DataError(
            f"no such folder: {root}; put {d.hint} there, or say where they are with --data FOLDER"
        )
    return data.open(
        d.path,
        size=d.size,
        resize=d.resize,
        channels=d.channels,
        allow_empty_class=d.allow_empty_class,
        held_out=d.held_out,
    )


def _machine(recipe: "Recipe") -> None:
    """Refuse what this machine cannot do before anything is written."""
    from fewstep.train import engine

    engine.pick_precision(recipe.train.precision, engine.pick_device(recipe.device))
    batch, micro = recipe.train.batch_size, recipe.train.accumulate
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch % (parts := processes * micro):
        low = batch // parts * parts
        nearest = " or ".join(str(n) for n in (low, low + parts) if n)
        raise UsageError(
            f"train.batch_size={batch}: must be a multiple of {processes} processes x "
            f"train.accumulate={micro}; nearest: {nearest}"
        )


def _open(recipe: "Recipe", out: Path, data: dict[str, Any]) -> None:
    """Make the run folder, or check that it is this run's, and write down what it is.

    Raises:
        UsageError: the folder holds another run, something else, or a trainer at work.
        ResourceError: it cannot be written.
    """
    from fewstep.cli import record
    from fewstep.recipes import dump, load, parse
    from fewstep.train import checkpoint, engine
    from fewstep.train.state import check_identity

    if out.exists() and not out.is_dir():
        raise UsageError(f"out={out}: a file; choose another out")
    if (out / CONFIG).is_file() and checkpoint.listed(out):
        before = parse(load(out / CONFIG), str(out / CONFIG))
        _same_data(out, data["train"])
        check_identity(_own(before), _own(recipe), str(out))
        _longer(before, recipe, done=_step(checkpoint.listed(out)[0]))
    elif _foreign(out):
        raise UsageError(f"out={out}: holds files that are no run; choose another out")
    with engine.locked(out):
        (out / "samples").mkdir(exist_ok=True)
        again = shlex.join(["fewstep", "train", str(out)])  # the folder may go elsewhere
        record.text(out / CONFIG, f"# {again} continues this run\n{dump(recipe)}")
        record.json_file(out / "environment.json", record.environment(recipe.device))
        record.json_file(out / "data.json", data)


def _longer(before: "Recipe", now: "Recipe", done: int) -> None:
    """Warn that a longer run has another learning rate, and so another end than one in one go."""
    old, new = before.train.steps, now.train.steps
    if now.train.decay != "constant" and new > old and done > now.train.warmup:
        warn(
            f"train.steps={new}, before {old}: the learning rate rises again, to where it is in "
            f"a run of {new} steps"
        )


def _step(path: Path) -> int:
    """Return the step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def _same_data(out: Path, now: dict[str, Any]) -> None:
    """Refuse other images than those the run began with; where they lie may change.

    Raises:
        DataError: the classes differ; it names them.
        UsageError: the classes are the same and the images are others.
    """
    from fewstep.data import check_classes

    try:
        before = json.loads((out / "data.json").read_text("utf-8"))["train"]
        classes, print_before = before["classes"], before["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # `fit` compares the images with its own record
    check_classes(classes, now["classes"], now["name"])
    if print_before != now["fingerprint"]:
        raise UsageError(
            f"{out} was trained on other images than {now['name']} holds now ({before['images']} "
            f"then, {now['images']} now); restore them or choose another out"
        )


def _foreign(out: Path) -> bool:
    """Return whether a folder holds something, and no run."""
    if not out.is_dir() or (out / CONFIG).is_file():
        return False
    return any(not name.startswith(".") for name in os.listdir(out))


def _own(recipe: "Recipe") -> dict[str, Any]:
    """Return the keys that make a run this run; its images are compared by content."""
    from fewstep.train.config import FREE

    values = recipe.model_dump(mode="json", exclude={"name", "out", "device", "sampling", "data"})
    del values["net"]["recompute"]
    values["train"] = {k: v for k, v in values["train"].items() if k not in FREE}
    return values


def _announce(recipe: "Recipe", out: Path, built: "Built", images: int) -> None:
    """Print where the run lies and how long it is."""
    from fewstep.model import parameter_count

    c, h, w = built.model.shape
    steps, batch = recipe.train.steps, recipe.train.batch_size
    kind = f"{len(built.model.classes)} classes" if built.model.classes else "unconditional"
    net = "U-Net" if built.model.classifier is None else "noisy classifier"
    result(f"run folder: {out}")
    note(
        f"model: {net}, {parameter_count(built.model.denoiser):,} parameters, {c}x{h}x{w}, {kind}"
    )
    passes = steps * batch / images
    note(f"length: {steps} steps x {batch} images, {passes:.1f} passes over {images}")


def _fit(recipe: "Recipe", out: Path, built: "Built", images: Any, held_out: Any) -> "Model":
    """Train, with a preview now and then; return the model with averaged weights."""
    from fewstep.cli.preview import Accuracy, Preview
    from fewstep.train import checkpoint, engine
    from fewstep.train.fit import fit

    engine.tune_cpu()
    done = [_step(p) for p in checkpoint.listed(out)]
    steps = recipe.train.steps
    if done and max(done) > steps:
        warn(f"train.steps={steps}: the run has {max(done)} steps already")
    model = fit(
        built.model,
        images,
        built.objective,
        built.config,
        out,
        device=recipe.device,
        on_sample=Preview(out / "samples")
        if built.model.classifier is None
        else Accuracy(out / "samples", held_out if len(held_out) else images),
    )
    if done and max(done) >= steps:
        more = command("train", str(out), "train.steps=N")
        result(f"finished: the run has its {max(done)} steps; more: {more}")
    return model
