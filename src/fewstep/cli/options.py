"""Numbers and choices on the command line, checked while the line is read.

The parsers raise typer's own error, which `main` prints as one line; torch is not needed to
refuse `-n ten`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import typer

from fewstep.cli import console
from fewstep.errors import suggest


def app() -> typer.Typer:
    """Return typer's object for the one command of a verb."""
    names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=names)


def whole(low: int, high: int, shown: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers in low..high; `shown` replaces the range in messages."""

    def parse(word: str) -> int:
        text = str(word).strip()
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            allowed = shown or f"{low}..{high}"
            raise typer.BadParameter(f"{word}: must be a whole number in {allowed}")
        return value

    return parse


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """Return a parser of finite numbers in low..high."""

    def parse(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            ends = [f">= {low:g}"] if math.isfinite(low) else []
            ends += [f"<= {high:g}"] if math.isfinite(high) else []
            wanted = f"a finite number {' and '.join(ends)}".strip()
            raise typer.BadParameter(f"{word}: must be {wanted}")
        return value

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """Return a parser of one of these words."""

    def parse(word: str) -> str:
        if word not in allowed:
            near = suggest(word, allowed)
            raise typer.BadParameter(f"{word}: allowed are {', '.join(allowed)}{near}")
        return word

    return parse


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def duration(word: str) -> float:
    """Return the seconds that 90s, 10m, 1.5h or a number of minutes stand for."""
    text = str(word).strip().lower()
    unit = _UNITS.get(text[-1:])
    try:
        seconds = float(text[:-1] if unit else text) * (unit or 60.0)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise typer.BadParameter(f"{word}: must be a time above 0, such as 90s, 10m or 2h")
    return seconds


LEVELS = typer.Option(
    metavar="LIST", help="falling noise levels sigma / alpha in place of a spacing: 14.6,2,0.3"
)


def levels(word: str | None) -> tuple[float, ...] | None:
    """Return the noise levels that --levels lists, or None where it is not given.

    Raises:
        UsageError: they do not fall to above 0.
    """
    if word is None:
        return None
    from fewstep.sampling import ratios  # here: it needs torch, and help must not

    return ratios(f"--levels {word}", word)


def steps(word: str) -> int:
    """Return a number of sampling steps."""
    from fewstep.sampling import MAX_STEPS  # here: it needs torch, and help must not

    return whole(1, MAX_STEPS)(word)


def seed(word: str) -> int:
    """Return a seed."""
    from fewstep.solvers.noise import SEEDS  # here: it needs torch, and help must not

    return whole(0, SEEDS - 1, "0..2^64-1")(word)


MODEL = typer.Argument(metavar="MODEL", help="a shipped model (digits), a run or model folder")
STEPS = typer.Option(parser=steps, metavar="N", help="sampling steps")
SPACING = typer.Option(metavar="NAME", help="even, quadratic, trailing, karras, ...")
ETA = typer.Option(
    parser=number(), metavar="ETA", help="fresh noise of ddim: 0 none, 1 as much as ddpm"
)
SEED = typer.Option(parser=seed, metavar="SEED", help="image i has the seed SEED + i")
SCALE = typer.Option(parser=whole(1, 64), metavar="K", help="enlarge pixels; 1 = as they are")
DEVICE = typer.Option(metavar="NAME", help="auto, cpu, cuda, ...")
FORMAT = typer.Option(
    "--format", parser=choice("human", "json"), metavar="human|json", help="result"
)


def explain(error: Any) -> str:
    """Return one line for an error of typer's parser: which option, and what is allowed."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    param = getattr(error, "param", None)
    names = list(getattr(param, "opts", ())) or [getattr(param, "name", "") or ""]
    hint = max(names, key=len) if param is not None else ""
    if param is not None and getattr(param, "param_type_name", "") == "argument":
        hint = str(getattr(param, "human_readable_name", "") or hint)
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        return f"no such option {error.option_name}{suggest(error.option_name, _options(command))}"
    if type(error).__name__ == "MissingParameter":
        return f"{hint} is missing"
    said = str(getattr(error, "message", error)).rstrip(".")
    return f"{hint} {said}" if hint else said[:1].lower() + said[1:]


def again(context: typer.Context, *, merge: bool = False) -> str:
    """Return the command that runs now, to be typed once more for the whole work.

    Args:
        context: of the command; `obj` holds its words.
        merge: to measure what shards have made.
    """
    words, rest = [], iter(context.obj or ())
    for word in rest:
        if word == "--shard":
            next(rest, None)
        elif word != "--merge" and not word.startswith("--shard="):
            words.append(word)
    verb = str(context.info_name).rpartition(" ")[2]
    return console.command(verb, *(["--merge"] if merge else []), *words)


def said(context: typer.Context, name: str) -> bool:
    """Return whether a parameter was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _options(command: Any) -> Iterable[str]:
    for param in getattr(command, "params", ()):
        yield from (*param.opts, *param.secondary_opts)
    yield "--help"
