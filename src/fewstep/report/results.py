"""Results: measured rows, in memory and in results.json, and when two may share a column.

A `Line` is one row with everything its figures depend on. What must be equal for two figures to
compare is its protocol: number of images, features with their weights and their way of resizing,
reference set, parameters of the figures. `same_protocol` refuses a table of anything else, which
is how unlike FIDs get into one table everywhere else.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import DataError, NumericError, ResourceError, UsageError
from fewstep.files import replacing
from fewstep.metrics.figures import Figure

FORMAT = 1
"""The number of the layout of results.json; another one is refused."""
WHAT = "fewstep results"
_SHOWN = 6  # fields that a refusal names
_HASH = 12  # characters of a long word that are enough to tell it from another


@dataclass(frozen=True)
class Line:
    """One measured row.

    The dicts hold JSON values and are made so (a tuple becomes a list), so that a line read
    back is equal to the line that was written.

    Attributes:
        title: what the row is called.
        group: heading under which it is shown.
        model: what the model, or the folder of foreign images, is called.
        weights: SHA-256 of the model's weights; "" for foreign images.
        settings: sampler, steps, spacing, eta, guidance_scale, clip, process, and what else
            guides; {} for foreign images.
        nfe: network evaluations per image; 0 for foreign images.
        images: how many are measured so far.
        seconds: per image, the median over chunks; 0 for foreign images.
        figures: in the order in which they are to be read.
        protocol: what must be equal within a column; "n" is the number of images it asks for.
        record: what else belongs to the numbers: name of the reference, seeds, labels, what
            sampled, versions, machine.
        detail: figures that are no columns: "per_class", figures by class, and "confusion",
            counts, rows asked for, columns seen.
        pixels: the first images, uint8, shape (K, C, H, W); not stored and not compared.
    """

    title: str
    group: str
    model: str
    weights: str
    settings: dict[str, Any]
    nfe: int
    images: int
    seconds: float
    figures: tuple[Figure, ...]
    protocol: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    pixels: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Turn the dicts into JSON values."""
        for name in ("settings", "protocol", "record", "detail"):
            object.__setattr__(self, name, _json(getattr(self, name)))
        object.__setattr__(self, "figures", tuple(self.figures))

    @property
    def early(self) -> bool:
        """Whether fewer images are measured than the protocol asks for."""
        return self.images < self.protocol.get("n", 0)

    @property
    def rate(self) -> float | None:
        """Images per second; None for foreign images."""
        return 1 / self.seconds if self.seconds > 0 else None

    @property
    def steps(self) -> int | None:
        """Sampling steps asked for; None for foreign images."""
        return self.settings.get("steps")

    def figure(self, name: str) -> Figure | None:
        """Return the figure of this name, or None."""
        return next((f for f in self.figures if f.name == name), None)

    def plain(self) -> dict[str, Any]:
        """Return the line without its pictures as JSON values."""
        names = [f.name for f in fields(self) if f.name not in ("figures", "pixels")]
        values = {name: getattr(self, name) for name in names}
        return {**values, "figures": [f.plain() for f in self.figures]}


def save(path: Path, lines: Sequence[Line]) -> None:
    """Write results.json: the whole file or none.

    The file carries the digest of its lines, so that an edited number is not taken for a measured
    one.

    Raises:
        NumericError: a figure is not finite.
        ResourceError: the disk refuses.
    """
    for line in lines:
        for f in line.figures:
            numbers = (f.value, f.low, f.high, 0.0 if f.real is None else f.real)
            if not all(math.isfinite(x) for x in numbers):
                raise NumericError(f'"{line.title}": {f.name} is not finite; nothing was written')
    plain = [line.plain() for line in lines]
    whole = {"what": WHAT, "format": FORMAT, "sha256": _digest(plain), "lines": plain}
    try:
        with replacing(path) as aside:
            aside.write_text(json.dumps(whole, allow_nan=False, indent=1) + "\n", "utf-8")
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror or e}") from e


def load(path: Path) -> list[Line]:
    """Read results.json.

    Raises:
        DataError: no such file, no results, another format, damaged, or changed by hand.
    """
    try:
        whole = json.loads(
            path.read_text("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse
        )
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: no results file, or a damaged one ({e})") from None
    if not isinstance(whole, dict) or whole.get("what") != WHAT:
        raise DataError(f"{path}: no results of fewstep; evaluate and compare write them")
    if whole.get("format") != FORMAT:
        raise DataError(
            f"{path}: results of format {whole.get('format')!r}, this version reads {FORMAT}; "
            "read it with the version that wrote it, or measure again"
        )
    plain = whole.get("lines")
    if not isinstance(plain, list) or whole.get("sha256") != _digest(plain):
        raise DataError(
            f"{path}: its digest does not fit its lines, so it was changed after it was written; "
            "measure again"
        )
    if not plain:
        raise DataError(f"{path}: holds no rows; measure again")
    return [_line(value, f"{path}: line {i}") for i, value in enumerate(plain, 1)]


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return which nested fields differ, each with both values.

    >>> difference({"n": 1000, "real": {"split": "test"}}, {"n": 2000, "real": {"split": "train"}})
    ['n 1000 and 2000', 'real.split test and train']
    """
    found: list[str] = []
    for key in dict.fromkeys((*a, *b)):
        if key not in a or key not in b:
            one, other = ("absent" if key not in d else _short(d[key]) for d in (a, b))
            found.append(f"{key} {one} and {other}")
        elif isinstance(a[key], Mapping) and isinstance(b[key], Mapping):
            found += [f"{key}.{text}" for text in difference(a[key], b[key])]
        elif a[key] != b[key] or isinstance(a[key], bool) != isinstance(b[key], bool):
            one, other = _short(a[key]), _short(b[key])
            if one == other:  # they differ where it was cut
                one, other = str(a[key]), str(b[key])
            found.append(f"{key} {one} and {other}")
    return found


def same_protocol(lines: Sequence[Line]) -> None:
    """Raise unless figures of these lines may stand in one column.

    Raises:
        UsageError: two lines were measured under different protocols; says which and where.
    """
    for line in lines[1:]:
        found = difference(lines[0].protocol, line.protocol)
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            advice = "evaluate both under one protocol to compare them"
            if all(text.startswith("extractors.classifier.weights ") for text in found):
                advice = (
                    "the judge's classifier was trained twice, with two results: measure both "
                    "with one -o FOLDER, or copy FOLDER/judge to the other before measuring"
                )
            raise UsageError(
                f"{_name(lines[0])} and {_name(line)} were measured under different protocols: "
                f"{'; '.join(found[:_SHOWN])}{more}; {advice}"
            )


def by_protocol(lines: Iterable[Line]) -> list[list[Line]]:
    """Return the lines in groups of one protocol each, in order of first appearance."""
    groups: list[list[Line]] = []
    for line in lines:
        for group in groups:
            if not difference(group[0].protocol, line.protocol):
                group.append(line)
                break
        else:
            groups.append([line])
    return groups


def named(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with their models called as where they stand together.

    The students of one distillation, if there are several, are called by that: so they are one
    series of a chart and one block of a table. What has one name and is not the same, by its
    weights or its distillation, is told apart.
    """
    made: dict[str, set[str]] = {}
    for line in lines:
        made.setdefault(_ladder(line), set()).add(line.weights)
    called = [
        (f"students of {line.record['student']['teacher']}", ladder)
        if (ladder := _ladder(line)) and len(made[ladder]) > 1
        else (line.model, line.weights)
        for line in lines
    ]
    apart: dict[str, set[str]] = {}
    for name, own in called:
        apart.setdefault(name, set()).add(own)
    return [
        replace(line, model=f"{name} ({own[:8]})" if len(apart[name]) > 1 else name)
        for line, (name, own) in zip(lines, called, strict=True)
    ]


def columns(lines: Iterable[Line]) -> list[str]:
    """Return the names of the figures in order of first appearance."""
    return list(dict.fromkeys(f.name for line in lines for f in line.figures))


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value as it will be when it is read back."""
    return json.loads(json.dumps(value, allow_nan=False))


def _ladder(line: Line) -> str:
    """Return which distillation made the model of a line; "" if none is known."""
    return line.record.get("student", {}).get("ladder", "")


def _name(line: Line) -> str:
    return f'"{line.title}" of {line.model}'


def _short(value: Any) -> str:
    """Return a value in few characters."""
    text = str(value)
    long = isinstance(value, str) and len(text) > 2 * _HASH and " " not in text
    return f"{text[:_HASH]}.." if long else text


def _digest(plain: Any) -> str:
    """Return the SHA-256 of JSON values, whatever their layout in the file."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _line(value: Any, where: str) -> Line:
    """Return the line that `Line.plain` described."""
    kinds = {
        "title": str, "group": str, "model": str, "weights": str, "settings": dict, "nfe": int,
        "images": int, "seconds": (int, float), "protocol": dict, "record": dict, "detail": dict,
        "figures": list,
    }  # fmt: skip
    values = _checked(value, kinds, where)
    figures = [_figure(f, f"{where}, figure {i}") for i, f in enumerate(values["figures"], 1)]
    return Line(**{**values, "figures": tuple(figures)})


def _figure(value: Any, where: str) -> Figure:
    """Return the figure that `Figure.plain` described."""
    number = (int, float)
    kinds = {
        "name": str, "value": number, "low": number, "high": number,
        "real": (*number, type(None)), "real_n": int, "better": str,
    }  # fmt: skip
    values = _checked(value, kinds, where)
    if values["better"] not in ("lower", "higher"):
        raise DataError(f"{where}: better {values['better']!r}: allowed are lower, higher")
    return Figure(**values)


def _checked(value: Any, kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return an object with exactly these keys and kinds."""
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise DataError(f"{where}: must be an object of {', '.join(kinds)}")
    for key, kind in kinds.items():
        word = value[key]
        infinite = isinstance(word, float) and not math.isfinite(word)
        if not isinstance(word, kind) or isinstance(word, bool) or infinite:
            raise DataError(f"{where}: {key} is {word!r}, of the wrong kind")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; refuse one that says a key twice."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object says a key twice")
    return value


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")
