"""From the options of guidance to what guides."""

from typing import TYPE_CHECKING, Any

from fewstep.cli import console
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.sampling import Steer

_HUGE = 50.0  # guidance beyond this burns images out


def steer(
    word: str | None, scale: float | None, label: list[str] | None
) -> "tuple[Steer | None, dict[str, Any]]":
    """Return the classifier that guides, if one is asked for, and what the file says of it."""
    if word is None:
        if scale is not None:
            raise UsageError(f"--classifier-scale {scale:g}: give --classifier RUN with it")
        return None, {}
    if not label:
        raise UsageError(f"--classifier {word}: towards which class? give --label NAME")
    from fewstep.cli.resolve import find
    from fewstep.sampling import Steer

    found = find(word, classifier=True)
    guiding = Steer(found.model, 1.0 if scale is None else scale)
    facts = {"name": found.name, "weights_sha256": found.weights, "scale": guiding.scale}
    return guiding, {"classifier": facts}


def one_scale(scale: float | None, w: float | None) -> float | None:
    """Return the scale from either of its names: s = 1 + w."""
    if scale is not None and w is not None:
        raise UsageError(
            f"--guidance-scale {scale:g} and --guidance-w {w:g}: give one of them (scale = 1 + w)"
        )
    scale = 1 + w if w is not None else scale
    if scale is not None and abs(scale) > _HUGE:
        console.warn(
            f"guidance scale {scale:g} is far beyond what follows a label (about 1 to 10): "
            "expect images without detail"
        )
    return scale
