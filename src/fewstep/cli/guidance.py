"""From the options of guidance to what guides."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fewstep.cli import console, options
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.model import Model
    from fewstep.steer import Steer, Weak

_HUGE = 50.0  # guidance beyond this burns images out
_REAL = options.number()

SCALE = typer.Option(
    parser=_REAL,
    metavar="S",
    help="exponent on p(label | image): 0 ignores the label, 1 is the plain conditional model, "
    "more follows the label harder",
)
W = typer.Option(parser=_REAL, metavar="W", help="the same as --guidance-scale 1 + W")
INTERVAL = typer.Option(
    metavar="LOW..HIGH",
    help="guide only while sigma / alpha of the noise is in there, such as 0.3..3; outside, one "
    "evaluation a step and no guidance",
)
RESCALE = typer.Option(
    metavar="PHI", help="bring back this share of the contrast that guidance adds, 0..1; 0.7"
)
APG = typer.Option(
    metavar="R",
    help="adaptive projected guidance: leave out what only adds contrast, and shorten what is "
    "longer than R (inf: nothing is)",
)
MOMENTUM = typer.Option(metavar="B", help="of --apg: of its running sum, such as -0.5; 0")
THRESHOLD = typer.Option(
    metavar="P", help="dynamic thresholding at this percentile instead of clipping; 99.5"
)
CLASSIFIER = typer.Option(
    metavar="RUN", help="a noisy classifier that guides: a run or model folder"
)
CLASSIFIER_SCALE = typer.Option(
    parser=_REAL, metavar="S", help="exponent of its p(label | image); 1"
)
WEAK = typer.Option(
    metavar="RUN",
    help="autoguidance: guide away from this weaker model instead of the unconditional one, by "
    "--guidance-scale; an earlier checkpoint of the same run, RUN/checkpoints/step-..., is one",
)

AWAY = typer.Option(
    metavar="RUN", help="the weaker model of rows with weak=yes: see fewstep sample --weak"
)


def dials(words: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the fields of the settings that options set; None is an option that is not given.

    Args:
        words: by the option's name, which ends in that of a dial.

    Raises:
        UsageError: a word that an option does not take.
    """
    from fewstep.steer import dial

    changes: dict[str, Any] = {}
    for name, word in words.items():
        if word is not None:
            changes |= dial(f"--{name} {word}", name.rpartition("-")[2], word)
    return changes


def refuse_idle(changes: Mapping[str, Any]) -> None:
    """Refuse changes that refine guidance where there is none, because no label is asked for.

    Raises:
        UsageError: there are such changes.
    """
    from fewstep import steer
    from fewstep.model import Sampling

    said = steer.dials(Sampling(**changes))
    for name in (n for n in steer.REFINING if n in said):
        raise UsageError(
            f"{name} {said[name]} without a label: give --label NAME, or leave it out"
        )


def steer(
    word: str | None, scale: float | None, weak: str | None, label: list[str] | None
) -> "Steer | Weak | None":
    """Return the classifier or the weak model that guides, if one is asked for.

    Args:
        word: the classifier.
        scale: of the classifier.
        weak: the weak model.
        label: what is asked for.

    Raises:
        UsageError: both, a scale without a classifier, or a classifier without a label.
    """
    if word is None:
        if scale is not None:
            raise UsageError(f"--classifier-scale {scale:g}: give --classifier RUN with it")
        return None if weak is None else weaker(weak)
    if weak is not None:
        raise UsageError(f"--classifier {word} and --weak {weak}: give one of them")
    if not label:
        raise UsageError(f"--classifier {word}: towards which class? give --label NAME")
    warn_far(scale)
    return classifier(word, 1.0 if scale is None else scale)


def classifier(word: str, scale: float = 1.0) -> "Steer":
    """Return the classifier that a word means, as what guides.

    Raises:
        UsageError, CheckpointError, NumericError: as `resolve.find`.
    """
    from fewstep.cli.resolve import find
    from fewstep.steer import Steer

    found = find(word, classifier=True)
    return Steer(found.model, scale, found.name, found.weights)


def weaker(word: str) -> "Weak":
    """Return the weak model that a word means; of a checkpoint, the name says the step.

    Raises:
        UsageError, CheckpointError, NumericError: as `resolve.find`.
    """
    from fewstep.cli.resolve import find
    from fewstep.steer import Weak

    found = find(word)
    step = Path(word).name if found.path.name == Path(word).name != found.name else ""
    return Weak(found.model, "/".join(filter(None, (found.name, step))), found.weights)


def stated(facts: Mapping[str, Any]) -> str:
    """Return what the facts of a file say of guidance beside its scale, and of Langevin steps."""
    from fewstep.model import Sampling
    from fewstep.sampling import LANGEVIN
    from fewstep.steer import dials

    settings = {k: v for k, v in facts["sampling"].items() if k != "guidance_w"}
    said = [f"{name} {word}" for name, word in dials(Sampling(**settings)).items()]
    said += [f"{name} {settings[name]:g}" for name in LANGEVIN if name in settings]
    judge, weak = facts.get("classifier"), facts.get("weak")
    said += [f"classifier {judge['name']} scale {judge['scale']:g}"] if judge else []
    said += [f"away from {weak['name']}"] if weak else []
    return "".join(f", {text}" for text in said)


def baked(model: "Model") -> dict[str, float]:
    """Return what goes into a file of a student that has its guidance in its weights."""
    scale = float(model.student.get("guidance", 1.0))
    return {} if scale == 1 else {"guidance_in_weights": scale}


def shown(facts: Mapping[str, Any]) -> str:
    """Return the guidance scale of the facts of a file in words."""
    settings = facts["sampling"]
    scale = settings["guidance_scale"]
    if scale == 1 and "guidance_in_weights" in facts:
        return f"guidance scale {facts['guidance_in_weights']:g}, in its weights"
    w = f" (w = {settings['guidance_w']:g})" if "guidance_w" in settings else ""
    return f"guidance scale {scale:g}{w}"


def one_scale(scale: float | None, w: float | None) -> float | None:
    """Return the scale from either of its names: s = 1 + w."""
    if scale is not None and w is not None:
        raise UsageError(
            f"--guidance-scale {scale:g} and --guidance-w {w:g}: give one of them (scale = 1 + w)"
        )
    scale = 1 + w if w is not None else scale
    warn_far(scale)
    return scale


def on(model: "Model", scale: float, *, weak: bool = False) -> bool:
    """Return whether guidance of a scale bends the paths, by which solver and grid are chosen.

    That is not the cost, which `doubled` says: the paths of a student that was taught guidance are
    those of its guided teacher.

    Args:
        model: that is guided.
        scale: the exponent s; 1 and 0 are no guidance.
        weak: whether a weaker model guides.
    """
    conditional = bool(model.classes) or model.text is not None
    return scale not in (0, 1) and (weak or conditional)


def doubled(model: "Model", scale: float, *, weak: bool = False) -> bool:
    """Return whether guidance of a scale asks two networks, or one twice, at every step.

    Args:
        model: that is guided; a student that was taught guidance is asked once.
        scale: the exponent s; 1 and 0 ask once.
        weak: whether a weaker model guides.
    """
    return on(model, scale, weak=weak) and model.scales is None


def warn_far(*scales: float | None) -> None:
    """Warn of the first scale that is far beyond what is of use; None is one that is not said."""
    for scale in scales:
        if scale is not None and abs(scale) > _HUGE:
            console.warn(
                f"guidance scale {scale:g} is far beyond what follows a label (about 1 to 10): "
                "expect images without detail"
            )
            return
