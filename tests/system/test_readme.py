"""What the README shows works, and its numbers are those of the stored results."""

import re
import subprocess
import sys

import pytest


def test_the_example_runs(root, tmp_path, monkeypatch, capsys) -> None:
    """The block of Python, with a short training in place of the long one."""
    text = (root / "README.md").read_text("utf-8")
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code = found[1]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20
    assert "steps=1200" in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=1200", "steps=2"), "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    printed = [line for line in said if re.fullmatch(r"\d+ [\d.e-]+ [\d.]+", line)]
    assert len(printed) == 20
    assert printed[-1].startswith("19 0.0 ")


@pytest.mark.parametrize("tool", ["results_table", "classifier_table", "roundtrip_table"])
def test_the_tables_are_the_stored_ones(root, tool) -> None:
    """The tool would write nothing new."""
    answer = subprocess.run([sys.executable, f"tools/{tool}.py", "--check"], cwd=root)
    assert answer.returncode == 0


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_links_point_to_files(root, page) -> None:
    """Every relative link and picture is there."""
    text = (root / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (root / target).exists(), target
