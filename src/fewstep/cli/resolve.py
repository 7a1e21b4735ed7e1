"""From what the user typed to a model: a path, a run folder or a shipped model's name.

A run folder stands for its newest checkpoint that is whole; broken ones are passed over by name.
Pickles (.pt, .ckpt, .pkl) may run code when they are opened: they are refused by their name,
before anything is read.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli.console import warn
from fewstep.errors import CheckpointError, UsageError, suggest

if TYPE_CHECKING:
    from fewstep.model import Model

SHIPPED = Path(__file__).parent.parent / "models"
"""Where the models of the package lie, one folder each."""
DISTILLED, STUDENT = "distill.json", "student"
"""What the folder of a distillation holds: see `students.run`, which needs torch."""


@dataclass(frozen=True)
class Found:
    """A model that was found and opened.

    Attributes:
        path: the directory it was read from.
        name: what to call it: the shipped name, the run's, or the folder's.
        model: the model, in evaluation mode, on the CPU.
        weights: SHA-256 of its weights file.
    """

    path: Path
    name: str
    model: "Model"
    weights: str


def shipped() -> list[str]:
    """Return the names of the models in the package."""
    if not SHIPPED.is_dir():
        return []
    return sorted(p.name for p in SHIPPED.iterdir() if (p / "manifest.json").is_file())


def locate(word: str) -> Path:
    """Return the directory of the model that a word of the command line means.

    Args:
        word: a model or checkpoint directory, a run folder or a shipped model's name; a folder
            goes before a shipped model of the same name.

    Raises:
        UsageError: a pickle file.
        CheckpointError: there is nothing of that name, or no checkpoint that is whole.
    """
    from fewstep.train.checkpoint import refuse_pickle

    path = Path(word).expanduser()
    refuse_pickle(path)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        raise CheckpointError(f"{word}: a file; give the folder of the model or of the run")
    if word in shipped():
        return SHIPPED / word
    raise CheckpointError(_missing(word, path))


def _in_folder(path: Path) -> Path:
    """Return the model that a folder is or, for a run, its newest one."""
    from fewstep.train import checkpoint

    if any((path / name).exists() for name in ("manifest.json", "model.json")):
        return path
    if (path / DISTILLED).is_file():
        return _student(path)
    if not (path / "checkpoints").is_dir() and not (path / "config.yaml").is_file():
        if path.name in shipped():
            return SHIPPED / path.name
        raise CheckpointError(
            f"{path}: neither a model (no manifest.json) nor a run (no checkpoints/); "
            f"give one of these, or a shipped model: {', '.join(shipped()) or 'none here'}"
        )
    newest = checkpoint.newest(path, warn)
    if newest is None:
        raise CheckpointError(f"{path}: this run has no checkpoint yet; fewstep train {path}")
    return newest


def _student(path: Path) -> Path:
    """Return the student of a distillation.

    Raises:
        CheckpointError: it is not finished, or ended without one.
    """
    if not (path / STUDENT / "manifest.json").is_file():
        from fewstep.cli import wished
        from fewstep.cli.console import command
        from fewstep.students import run

        said = None
        with suppress(CheckpointError):  # a damaged record is told by who goes on with it
            said = run.planned(path)
        if said is not None and said.get(wished.FAILED):
            raise CheckpointError(wished.failure(said, path))
        raise CheckpointError(
            f"{path}: this distillation has no student yet; {command('distill', str(path))} goes "
            "on with it"
        )
    return path / STUDENT


def is_student(path: Path) -> bool:
    """Return whether a model lies in the folder of its distillation."""
    return path.name == STUDENT and (path.parent / DISTILLED).is_file()


def teacher(found: Found) -> str:
    """Return where the teacher of a student was, or what it is called."""
    if is_student(found.path):
        from fewstep.students import run

        said = run.planned(found.path.parent)
        if said is not None:
            return str(said["asked"]["model"])
    return str(found.model.student.get("teacher", "the model it was made of"))


def _missing(word: str, path: Path) -> str:
    """Return the message for a word that means nothing, with what it may have meant."""
    names = shipped()
    near = suggest(word, names)
    if not near and path.parent.is_dir():
        siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()]
        near = suggest(word, siblings)
    return (
        f"no model {word!r}{near}: no such folder, and the shipped models are: "
        f"{', '.join(names) or 'none in this installation'}"
    )


def find(word: str, *, classifier: bool = False) -> Found:
    """Find a model and open it; every byte is verified.

    Args:
        word: see `locate`.
        classifier: whether a noisy classifier is wanted, or a model of images.

    Raises:
        UsageError: a pickle file, or the other kind of model.
        CheckpointError: nothing of that name, or it is damaged.
        NumericError: a weight is not finite.
    """
    from fewstep.train import checkpoint

    path = locate(word)
    model = checkpoint.load_model(path)
    if classifier and model.classifier is None:
        raise UsageError(
            f"{word}: a model of images, not a noisy classifier; train one with "
            "fewstep train digits-classifier, or kind=classifier in a recipe"
        )
    if model.classifier is not None and not classifier:
        raise UsageError(
            f"{word}: a noisy classifier, which makes no images; it guides: fewstep sample MODEL "
            f"--classifier {word} --label {model.classes[0]}"
        )
    sealed = checkpoint.verify(path, hashes=False)["files"]
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    run = path.parent if is_student(path) else run
    return Found(path, run.resolve().name, model, sealed[checkpoint.WEIGHTS]["sha256"])
