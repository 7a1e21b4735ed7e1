"""The page about editing says what the program does: its commands run, its files are there."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from fewstep.cli.edit import app
from fewstep.cli.main import main
from fewstep.edit.measure import LUMINANCE
from fewstep.report.picture import read_settings
from tools import editing_pictures

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/editing.md").read_text("utf-8")
COMMANDS = editing_pictures.commands(TEXT)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: w[w.index("-o") + 1])
def test_a_command_makes_the_picture_that_is_shown(tmp_path, monkeypatch, words):
    """The one in the repository was made elsewhere: a value may round the other way."""
    shutil.copytree(ROOT / "docs/images", tmp_path / "docs/images")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    target = Path(words[words.index("-o") + 1])
    made, stored = editing_pictures.shown(target), ROOT / f"docs/images/edit-{target.name}"
    a, b = (np.asarray(Image.open(path)).astype(int) for path in (made, stored))
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 3
    ours, theirs = (read_settings(path)["sampling"] for path in (made, stored))
    assert ours == theirs
    assert f"(images/edit-{target.name})" in TEXT


def test_every_verb_and_option_on_the_page_exists():
    verbs = get_command(app).commands
    named = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(named) == sorted(verbs)
    assert {words[1] for words in COMMANDS} == set(verbs) - {"colorize"}
    known = {name for verb in verbs.values() for each in verb.params for name in each.opts}
    words = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", re.sub(r"\]\([^)]*\)", "", TEXT)))
    assert {"--repeat", "--jump", "--strength", "--factor", "--mask", "--eta"} <= words
    assert words - known == {"--image", "--sampler"}  # of fewstep sample


def test_links_and_numbers():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    assert "{:.4f} R + {:.4f} G + {:.4f} B".format(*LUMINANCE) in TEXT
    assert len(TEXT.splitlines()) <= 250
