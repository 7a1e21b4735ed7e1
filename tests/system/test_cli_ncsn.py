"""`fewstep train digits-ncsn` and the samplers with Langevin steps, from the command line."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fewstep.cli.main import main
from fewstep.report import results
from tests.system.cli_runs import call, process, refused

SMALL = (
    "device=cpu", "net.width=8", "net.depth=1", "net.heads=1", "net.mult=[1,2]",
    "net.attention=[4]", "train.batch_size=16", "train.warmup=2", "train.checkpoint_every=3",
)  # fmt: skip
LEVELS = 20  # of the digits: proposed from the largest distance of two of them


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run of the recipe, by a process of its own."""
    place = tmp_path_factory.mktemp("some runs")
    words = ["train", "digits-ncsn", "out=r", "train.steps=4", *SMALL]
    done = process(*words, cwd=place, stdout=-1, stderr=-1)
    _, err = done.communicate()
    assert done.returncode == 0, err
    assert err.count("ladder: noise 9.599 to 0.03; training on 20 levels; ") == 1
    assert "ratio 1.355, snr 0.3454, 5 Langevin steps at each" in err
    return place / "r"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.text["fewstep"])  # pyright: ignore[reportAttributeAccessIssue] -- PNG has it


def test_a_run_keeps_what_was_settled(run, capsys) -> None:
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["process"] == {"name": "VE", "sigma_min": 0.03, "sigma_max": 9.599}
    assert kept["objective"]["levels"] == LEVELS
    chosen = {k: kept["sampling"][k] for k in ("sampler", "steps", "each", "snr")}
    assert chosen == {
        "sampler": "annealed-langevin", "steps": LEVELS - 1, "each": 5, "snr": 0.3454,
    }  # fmt: skip
    code, _, err = call(capsys, "train", run, "train.steps=5")
    assert code == 0, err
    assert "ladder" not in err
    assert yaml.safe_load((run / "config.yaml").read_text()) == {
        **kept, "out": str(run), "train": {**kept["train"], "steps": 5},
    }  # fmt: skip
    again = call(capsys, "train", "digits-ncsn", f"out={run}", "train.steps=5", *SMALL)
    assert again[0] == 0, again[2]
    other = ("process.sigma_max=9", "train.steps=5", *SMALL)
    refused(call(capsys, "train", "digits-ncsn", f"out={run}", *other), 2, "sigma_max")


@pytest.mark.parametrize(
    ("words", "nfe", "said"),
    [
        ((), LEVELS * 5 + 1, {"each": 5, "snr": 0.3454}),
        (("--each", "2"), LEVELS * 2 + 1, {"each": 2}),
        (("--steps", "9"), 10 * 5 + 1, {"each": 5}),
        (("--snr", "0.2"), LEVELS * 5 + 1, {"each": 5, "snr": 0.2}),
        (("--sampler", "predictor-corrector", "--steps", "6"), 7 + 6 + 1, {}),
        (("--sampler", "predictor-corrector-ddim", "--steps", "6"), 7 + 6 + 1, {}),
        (("--sampler", "predictor-corrector-level", "--snr", "0.3"), 20 + 19 + 1, {"snr": 0.3}),
        (("--sampler", "ddim"), LEVELS - 1, {}),
    ],
)
def test_samples_say_how_they_were_made(run, capsys, words, nfe, said) -> None:
    plain = ("--guidance-scale", "1", "--label", "3", "-n", "2", "-o", "s.png")
    code, out, err = call(capsys, "sample", run, *words, *plain)
    assert code == 0, err
    facts = settings(Path("s.png"))
    assert facts["nfe"] == nfe
    assert {k: facts["sampling"][k] for k in ("each", "snr") if k in facts["sampling"]} == said
    for name, value in said.items():
        assert f"{name} {value:g}" in out


def test_any_model_takes_langevin_steps(capsys) -> None:
    """The shipped model is no NCSN: its process ends clean and it is told the noise level."""
    words = ("sample", "digits", "--sampler", "annealed-langevin", "--steps", "8", "-n", "1")
    assert call(capsys, *words, "--label", "3", "--guidance-scale", "1", "-o", "s.png")[0] == 0
    assert settings(Path("s.png"))["nfe"] == 8 * 5 + 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sampler", "ddim", "--snr", "0.2"), ("snr", "not of the sampler ddim")),
        (("--sampler", "heun", "--each", "2"), ("each", "annealed-langevin")),
        (("--snr", "0"), ("snr 0", "between 0 and 1")),
        (("--snr", "2"), ("--snr", "<= 1")),
        (("--each", "0"), ("--each", "1..99999")),
        (("--steps", "1", "--sampler", "annealed-langevin", "--eta", "1"), ("eta 1", "ddim")),
    ],
)
def test_settings_that_say_nothing_are_refused(run, capsys, words, said) -> None:
    refused(call(capsys, "sample", run, "-n", "1", "-o", "s.png", *words), 2, *said)


def test_rows_of_compare_take_langevin_steps(run, capsys) -> None:
    pytest.importorskip("torch_fidelity")
    same = "annealed-langevin:4:each=2"
    rows = f"{same},{same}:snr=0.2,{same}:snr=0.3454,predictor-corrector:3"
    code, _, err = call(capsys, "compare", run, "-n", "20", "-o", "c", "--samplers", rows)
    assert code == 0, err
    lines = results.load(Path("c/results.json"))
    assert [line.nfe for line in lines] == [*[5 * 2 + 1] * 3, 4 + 3 + 1]
    assert [line.title for line in lines] == [
        "annealed Langevin 4, each 2", "annealed Langevin 4, each 2, snr 0.2",
        "annealed Langevin 4, each 2, snr 0.3454", "predictor-corrector 3",
    ]  # fmt: skip
    code, out, err = call(capsys, "evaluate", run, "-n", "20", "-o", "c")
    assert code == 0, err
    assert re.search(r"sampler annealed-langevin, steps 19, .*each 5, snr 0\.3454", out)
    for row, said in (("ddim:4:each=2", "not of the sampler ddim"), ("ddim:4:snr=x", "finite")):
        refused(call(capsys, "compare", run, "-o", "d", "--samplers", row), 2, said)


def test_sliced_score_matching_trains(capsys) -> None:
    words = ["train", "digits-ncsn", "out=r", "objective.kind=sliced-vr", "train.steps=2", *SMALL]
    assert main(words) == 0
    again = call(capsys, "train", "r", "train.steps=3")
    assert again[0] == 0, again[2]
    logged = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2, 3]
