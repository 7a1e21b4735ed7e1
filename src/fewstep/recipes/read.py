"""Read recipes from YAML, change single keys, and write them down.

Only plain YAML is read: PyYAML's safe loader without its one leniency, a key that occurs twice.
Every fault is one `UsageError` that names the place in the file, or the key with its value and
what is allowed.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fewstep.errors import UsageError, suggest
from fewstep.recipes.schema import Recipe, Section

_LARGEST = 1 << 20  # bytes of a recipe; more is some other file


class _Strict(yaml.SafeLoader):
    """Refuse what YAML lets pass: a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def shipped() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.yaml"))


def shipped_path(name: str) -> Path:
    """Return the file of a shipped recipe."""
    return Path(__file__).parent / f"{name}.yaml"


def load(path: Path | str) -> dict[str, Any]:
    """Return the plain values of a recipe file; `parse` checks them.

    Raises:
        UsageError: not there, not YAML, a key twice; with line and column.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path}: {path.stat().st_size} bytes are no recipe (limit 1 MiB)")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: not a recipe: byte {e.start} is not UTF-8 text") from e
    except OSError as e:
        raise UsageError(f"{path}: cannot read the recipe: {e.strerror}") from e
    try:
        value = _Strict(text).get_single_data()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{path}{where}: not YAML that a recipe may hold: {_said(e)}") from e
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as e:
        raise UsageError(f"{path}: not YAML: {' '.join(str(e).split())[:200]}") from e
    if not isinstance(value, dict):
        raise UsageError(
            f"{path}:1:1: a recipe is a mapping of keys, such as train: {{steps: 100}}"
        )
    return value


def _said(error: yaml.MarkedYAMLError) -> str:
    """Return PyYAML's reason, in words for those who do not know YAML's."""
    problem = " ".join((error.problem or "syntax error").split())
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    if "could not determine a constructor" in problem:
        return f"{problem.rsplit(' ', 1)[-1]}: tags that make objects are refused"
    return problem


def parse(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the recipe that these plain values stand for.

    Raises:
        UsageError: the first wrong key: its name, value and what is allowed.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as e:
        errors = e.errors(include_url=False)
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UsageError(f"{where}: {_line(errors[0])}{more}") from e


def _line(error: Mapping[str, Any]) -> str:
    """Return one line for a fault that pydantic found."""
    place = [str(part) for part in error["loc"]]
    key, kind, value = ".".join(place), error["type"], error["input"]
    if kind == "extra_forbidden":
        return unknown(place)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key}={_short(value)}: a section of keys, such as {key}: {{...}}"
    said = str(error["msg"]).removeprefix("Value error, ")
    if kind == "literal_error":
        said = f"allowed are {str(error['ctx']['expected']).replace(chr(39), '')}"
    elif kind.startswith("bool"):
        said = "must be true or false"
    elif kind == "tuple_type":
        said = "must be a list, such as [1, 2]"
    return f"{key}={_short(value)}: {said}"


def _short(value: Any) -> str:
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def keys(kind: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Yield every key of a recipe with its sections, such as train.steps."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def unknown(place: list[str]) -> str:
    """Return the line for a key that no recipe has, with the nearest that it has."""
    whole, leaf = ".".join(place), place[-1]
    every = list(keys())
    elsewhere = [k for k in every if k.split(".")[-1] == leaf]
    beside = [k for k in every if k.split(".")[:-1] == place[:-1]]
    near = f' (did you mean "{elsewhere[0]}"?)' if elsewhere else suggest(whole, beside)
    near = near or suggest(whole, every)
    allowed = ", ".join(beside if len(place) > 1 and beside else Recipe.model_fields)
    return f"no key {whole!r}{near}; there are: {allowed}"


def override(values: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """Return the values with some keys changed by words such as `train.steps=100`.

    Raises:
        UsageError: a word without "=", or a key that no recipe has.
    """
    changed = _copy(values)
    for word in words:
        key, sign, text = word.partition("=")
        place = key.split(".")
        if not sign:
            raise UsageError(f"{word!r}: not of the form key=value, such as train.steps=1000")
        kind = _annotation(place)
        at = changed
        for part in place[:-1]:
            if not isinstance(at.get(part), dict):
                at[part] = {}
            at = at[part]
        at[place[-1]] = _value(text, kind, word)
        if key == "process.name":  # parameters of another process mean nothing to this one
            changed["process"] = {"name": at["name"]}
    return changed


def _annotation(place: list[str]) -> Any:
    """Return the type of a key.

    Raises:
        UsageError: there is none, or it is a whole section.
    """
    kind: Any = Recipe
    for i, part in enumerate(place):
        if place[0] == "process" and i == 1 and len(place) == 2:
            return Any  # its parameters depend on its name: `process` knows them
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            raise UsageError(unknown(place))
        if part not in kind.model_fields:
            raise UsageError(unknown(place))
        kind = kind.model_fields[part].annotation
    if place == ["process"] or (isinstance(kind, type) and issubclass(kind, Section)):
        first = next((k for k in keys() if k.startswith(f"{place[0]}.")), "process.name")
        raise UsageError(f"{'.'.join(place)} is a section; set its keys, such as {first}=...")
    return kind


def _value(text: str, kind: Any, word: str) -> Any:
    """Read the text of an override; numbers and names are left to the checks of the schema."""
    names = str(kind)
    if kind in (str, int, float) or "Annotated[str" in names:
        return None if text == "null" and "Optional" in names else text
    try:
        return _Strict(text).get_single_data()
    except yaml.YAMLError as e:
        raise UsageError(f"{word!r}: the value is not YAML, such as 3, true or [1, 2]") from e


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def dump(recipe: Recipe) -> str:
    """Return a recipe with every key as YAML that `load` reads."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
