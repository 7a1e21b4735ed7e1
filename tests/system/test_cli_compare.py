"""`fewstep compare`: nothing measured is lost, and what is refused is refused at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fewstep
from fewstep import data
from fewstep.cli import judged
from fewstep.cli.resolve import find
from fewstep.report import results
from tests.system.cli_runs import call, refused, train_tiny

pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("some runs") / "tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    place = tmp_path / "a b"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def steps(place: str) -> list[int | None]:
    return [line.steps for line in results.load(Path(place) / "results.json")]


def test_rows_may_join_a_folder_and_never_leave_it(run, capsys) -> None:
    words = ("compare", run, "-n", "40", "-o", "c", "--samplers")
    assert call(capsys, *words, "ddim:2,ddim:3")[0] == 0
    fewer = call(capsys, *words, "ddim:2")
    refused(fewer, 2, "DDIM 3", "would be lost", "-o")
    refused(call(capsys, *words, "ddim:2,ddim:3", "--seed", "5"), 2, "would be lost")
    refused(call(capsys, *words, "ddim:2,ddim:3", "-n", "30"), 2, "would be lost")
    assert steps("c") == [2, 3]
    assert call(capsys, *words, "ddim:2,ddim:3,ddim:4")[0] == 0
    assert steps("c") == [2, 3, 4]
    words = ("compare", run, "c/results.json", "-n", "40", "-o", "c", "--samplers")
    assert call(capsys, *words, "ddim:5")[0] == 0
    assert steps("c") == [2, 3, 4, 5]


def test_earlier_results_alone_overwrite_nothing(run, capsys) -> None:
    for name, rows in (("c", "ddim:2,ddim:3"), ("d", "ddim:2")):
        assert call(capsys, "compare", run, "-n", "40", "-o", name, "--samplers", rows)[0] == 0
    refused(call(capsys, "compare", "d/results.json", "-o", "c"), 2, "would be lost")
    assert steps("c") == [2, 3]
    assert call(capsys, "compare", "d/results.json")[0] == 0
    assert call(capsys, "compare", "c/results.json")[0] == 0
    assert len(list(Path("runs").glob("compare-*/results.json"))) == 2


def test_every_comparison_has_a_folder_of_its_own(run, capsys) -> None:
    words = ("compare", run, "-n", "40", "--samplers", "ddim:2")
    for more in ((), ("--seed", "1"), ()):
        assert call(capsys, *words, *more)[0] == 0
    assert len(list((run / "eval").glob("compare-small-2k-n40-*/results.json"))) == 2


def test_another_protocol_is_refused_before_a_judge_is_trained(run, capsys, monkeypatch) -> None:
    assert call(capsys, "compare", run, "-n", "40", "-o", "c", "--samplers", "ddim:2")[0] == 0
    monkeypatch.setattr(judged, "judge", lambda *_, **__: pytest.fail("a judge was trained"))
    words = ("compare", "c/results.json", run, "--samplers", "ddim:3", "-o", "d")
    refused(call(capsys, *words, "-n", "41"), 2, "different protocols", "n 40 and 41")
    assert not Path("d").exists()


def test_a_model_of_an_array_is_judged_by_what_it_has_not_seen(capsys) -> None:
    """The file it was trained on is parted as it was then; named by hand it is one set."""
    train, _ = data.digits()
    np.savez("all.npz", pixels=train.pixels[:300], labels=train.labels[:300])
    out = train_tiny("r", "data.path=all.npz", "data.held_out=0.2")
    capsys.readouterr()
    reals = judged.reals(None, find(str(out)))
    assert reals.held_out is not None
    assert len(reals.train) + len(reals.held_out) == 300
    assert 50 <= len(reals.held_out) <= 70
    np.savez("other.npz", pixels=train.pixels[300:400], labels=train.labels[300:400])
    assert judged.reals("other.npz", find(str(out))).held_out is None


def test_the_next_command_measures_against_the_same(run, capsys) -> None:
    np.save("real.npy", data.digits()[0].pixels)
    words = ("evaluate", run, "--data", "real.npy", "-n", "40", "--steps", "2", "-o", "e")
    code, out, err = call(capsys, *words)
    assert code == 0, err
    following = out.splitlines()[-1]
    assert "--data real.npy" in following
    assert "-n 40" in following
    assert "-o e" in following


def test_finished_images_have_no_seed(capsys) -> None:
    np.save("made.npy", data.digits()[0].pixels)
    for words in (("--seed", "9"), ("--batch-size", "3")):
        answer = call(capsys, "evaluate", "made.npy", "--data", "digits", "-n", "40", *words)
        refused(answer, 2, words[0], "finished images")


def test_numbers_stand_for_classes_by_index_and_it_is_said(capsys) -> None:
    from PIL import Image

    train, _ = data.digits()
    for i, (x, y) in enumerate(zip(train.pixels[:400], train.labels[:400], strict=True)):
        path = Path("real") / "abcdefghij"[y] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0]).save(path)
    np.savez("made.npz", pixels=train.pixels[400:460], labels=train.labels[400:460])
    code, _, err = call(capsys, "evaluate", "made.npz", "--data", "real", "-o", "e")
    assert code == 0, err
    assert "by index: 0 is a, 1 is b" in err


def test_every_process_says_what_went_wrong(tmp_path) -> None:
    """An error of one chunk happens in one process, which need not be the first."""
    np.save("made.npy", np.full((40, 1, 8, 8), np.nan, dtype=np.float32))
    env = os.environ | {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "PYTHONPATH": str(Path(fewstep.__file__).parent.parent),
    }
    command = [sys.executable, "-m", "fewstep", "evaluate", "made.npy", "--data", "digits"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode not in (0, 70)
    assert "fewstep: error (process 1): " in done.stderr


def test_classifiers_of_two_trainings_are_named(run, capsys) -> None:
    for name in "cd":
        assert call(capsys, "compare", run, "-n", "40", "-o", name, "--samplers", "ddim:2")[0] == 0
    path = Path("d/results.json")
    (line,) = results.load(path)
    protocol = json.loads(json.dumps(line.protocol))
    protocol["extractors"]["classifier"]["weights"] = "0" * 64
    from dataclasses import replace

    results.save(path, [replace(line, protocol=protocol)])
    answer = call(capsys, "compare", "c/results.json", path, "-o", "e")
    refused(answer, 2, "classifier was trained twice", "FOLDER/judge")
