"""The source keeps its own rules: budgets, docstrings, layers, safe loaders, version floors."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools import check_source


@pytest.mark.parametrize("rule", check_source.RULES, ids=lambda rule: rule.__name__)
def test_rule_is_kept(root, rule):
    found = [str(finding) for source in check_source.read(root) for finding in rule(source)]
    assert found == [], "\n".join(found)


def layers(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the layer check on the tree in `folder`."""
    code = f"import sys; sys.path.insert(0, {str(folder / 'src')!r}); import check_layers as c; "
    return subprocess.run(
        [sys.executable, "-c", code + "sys.exit(c.main())"],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "tools"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def copy(root: Path, tmp_path: Path) -> Path:
    """Copy what the layer check reads."""
    for name in ("src", "tools"):
        shutil.copytree(
            root / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc", "models")
        )
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_point_down_the_layers(root):
    result = layers(root)
    assert result.returncode == 0, result.stdout + result.stderr


PLANTED = {
    "shapes.py": ("fewstep.prediction", "imports point down the layers"),
    "guide.py": ("fewstep.solvers", "imports point down the layers"),
    "nets/unet.py": ("fewstep.process", "networks and data know no diffusion"),
    "later.py": ("math", "later"),
}


@pytest.mark.parametrize("place", PLANTED)
def test_planted_import_breaks_the_contract(root, tmp_path, place):
    module, contract = PLANTED[place]
    tree = copy(root, tmp_path)
    file = tree / "src" / "fewstep" / place
    before = file.read_text() if file.exists() else ""
    file.write_text(f"{before}\n\nimport {module}\n")
    result = layers(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert contract in result.stdout


def project(root: Path) -> dict:
    """Return the project table of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def requirements(root: Path) -> list[Requirement]:
    """Return every requirement, those of the extras included."""
    table = project(root)
    extras = [text for texts in table["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in [*table["dependencies"], *extras]]


FLOORS = {"torch": "2.11", "safetensors": "0.8", "pillow": "12.3", "diffusers": "0.38"}


@pytest.mark.parametrize("name", FLOORS)
def test_version_floor(root, name):
    floors = [
        Version(spec.version)
        for requirement in requirements(root)
        if requirement.name == name
        for spec in requirement.specifier
        if spec.operator == ">="
    ]
    assert floors
    assert min(floors) >= Version(FLOORS[name])


def test_every_requirement_is_pinned_inside_its_range(root):
    pins: dict[str, set[str]] = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (spec,) = pin.specifier
            assert spec.operator == "==", line
            assert pin.url is None, line
            pins.setdefault(pin.name.lower().replace("_", "-"), set()).add(spec.version)
    for requirement in requirements(root):
        name = requirement.name.lower().replace("_", "-")
        if name == "fewstep":
            continue
        assert name in pins, f"{name} is not in constraints.txt"
        assert all(requirement.specifier.contains(pin) for pin in pins[name]), requirement
        if name != "setuptools":  # see the bench extra
            assert not any(spec.operator in ("<", "<=", "==") for spec in requirement.specifier)
