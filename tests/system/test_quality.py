"""What the package promises of its digits: steered, fast, and close to real ones.

The figures are of the shipped model, which the recipe `digits` made; the whole demo, training
included, is a nightly test. Seeds are fixed, so these are exact repetitions up to rounding and
do not fail by chance; N = 1,000, as in the demo.
"""

import json
import re
from dataclasses import replace

import pytest

from fewstep import data
from fewstep.cli import resolve
from fewstep.cli.main import main
from fewstep.process import Tabulated

pytest.importorskip("torch_fidelity")

from fewstep.report.frontier import Judge, Row, measure


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.of(*data.digits())


@pytest.fixture(scope="module")
def model():
    return resolve.find("digits").model


def figures(model, judge, process=None, **settings):
    preset = replace(model.sampling, **{"eta": 0.0, "spacing": "even", **settings})
    return measure(model, Row("row", preset, 1000, process=process), judge)


def test_the_judge_knows_real_digits(judge) -> None:
    assert judge.accuracy >= 0.97


def test_twenty_guided_steps_show_the_class_asked_for(model, judge) -> None:
    """DDIM, 20 steps, scale 2: accuracy >= 0.98."""
    f = figures(model, judge, sampler="ddim", steps=20, guidance_scale=2.0)
    assert f.nfe == 40
    assert f.accuracy >= 0.98


def test_fifty_steps_come_close_to_real_digits(model, judge) -> None:
    """DDIM-50 at scale 1: within 1.5 floors."""
    f = figures(model, judge, sampler="ddim", steps=50, guidance_scale=1.0)
    assert f.nfe == 50
    assert f.distance <= 1.5 * f.floor


@pytest.mark.parametrize(("steps", "worse"), [(10, 2.5), (50, 1.15)])
def test_sigma_hat_is_worse_than_ddim_as_in_the_talk(model, judge, steps, worse) -> None:
    """On DDPM's linear betas with uniform strides, as the DDIM paper's table was made.

    Over three sets of seeds the ratio is 3.0 to 3.2 at 10 steps and 1.05 to 1.24 at 50, where
    the distance of 1,000 images has a standard deviation of 0.036; the seeds here are fixed.
    """
    row = {"steps": steps, "guidance_scale": 1.0, "spacing": "uniform", "process": Tabulated()}
    ddim = figures(model, judge, sampler="ddim", **row)
    hat = figures(model, judge, sampler="ddpm-large", **row)
    assert ddim.nfe == hat.nfe == steps
    assert hat.distance >= worse * ddim.distance


def test_the_card_states_command_seed_and_figures() -> None:
    card = (resolve.SHIPPED / "digits" / "card.md").read_text()
    for part in ("fewstep train digits", "seed=", "DDIM 50", "| 40 |", "Licence", "CC BY 4.0"):
        assert part in card
    assert (resolve.SHIPPED / "digits" / "weights.safetensors").stat().st_size <= 2 * 2**20


def test_a_short_demo_ends_in_a_report(tmp_path, capsys) -> None:
    """Few steps, few images: every part runs, nothing is promised of the quality."""
    out = tmp_path / "my demo"
    assert main(["demo", "--out", str(out), "--steps", "8", "--images", "20"]) == 0
    said = capsys.readouterr()
    page = (out / "report.html").read_text("utf-8")
    rows = json.loads((out / "results.json").read_text())["rows"]
    steps = [20, 20, 20, 20, 1000, 50, 50, 20, 10, 5, 10, 5, 10, 10, 50, 50]
    assert [r["steps"] for r in rows] == steps
    assert [r["network_evaluations"] for r in rows][:5] == [20, 20, 40, 40, 1000]
    for row in rows:
        assert row["title"].split("(")[0] in said.out
        assert row["title"] in page
    assert page.count("data:image/png;base64,") == len(rows)
    assert re.findall(r"https?://(?!www\.w3\.org/)", page) == []
    assert all(
        link.startswith(("#", "data:")) for link in re.findall(r'(?:src|href)="([^"]*)', page)
    )
    assert "floor" in said.out
    assert said.out.count("next: ") == 1
    assert "fewstep sample" in said.out


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_keeps_its_promises(tmp_path, capsys) -> None:
    """Nightly: the demo as a newcomer runs it."""
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    rows = {
        r["title"]: r for r in json.loads((tmp_path / "demo/results.json").read_text())["rows"]
    }
    assert rows["scale 2"]["label_accuracy"] >= 0.98
    assert rows["DDIM 50"]["fd_pixels"] <= 1.5 * rows["DDIM 50"]["fd_pixels_floor"]
    for steps, worse in ((10, 2.5), (50, 1.15)):
        hat, ddim = (
            rows[f"{name} {steps}, strided"]["fd_pixels"] for name in ("sigma-hat", "DDIM")
        )
        assert hat >= worse * ddim
