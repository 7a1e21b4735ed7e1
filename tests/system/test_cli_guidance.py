"""Guidance from the command line: what it makes, what is said of it, what is refused."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.model import Sampling
from fewstep.report import results, sweep
from fewstep.report.picture import read_settings
from tests.system.cli_runs import call, checkpoints, process, refused, train_tiny
from tests.system.test_cli_classifier import SMALL, untrained

pytest.importorskip("torch_fidelity")

SAMPLE = ("-n", "2", "--steps", "4", "--label", "7")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Checkpoints at 3 and 6; its own settings guide at scale 2."""
    return train_tiny(tmp_path_factory.mktemp("some runs") / "tiny", "train.lr=0.02")


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    from fewstep.cli.main import main

    out = tmp_path_factory.mktemp("some runs") / "judge"
    words = [f"out={out}", "train.steps=12", *SMALL]
    assert main(["train", "digits-classifier", *words]) == 0
    return out


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- sample
@pytest.mark.parametrize(
    ("words", "settings", "nfe", "said"),
    [
        (["--guidance-interval", "0.5..3"], {"guidance_low": 0.5, "guidance_high": 3.0}, 6,
         "interval 0.5..3"),
        (["--guidance-rescale", "0.7"], {"guidance_rescale": 0.7}, 8, "rescale 0.7"),
        (["--apg", "2", "--apg-momentum", "-0.5"],
         {"apg": True, "apg_radius": 2.0, "apg_momentum": -0.5}, 8, "apg 2, momentum -0.5"),
        (["--threshold", "90"], {"threshold": 90.0}, 8, "threshold 90"),
    ],
)  # fmt: skip
def test_refinements_make_other_images_and_lie_in_the_file(
    run, capsys, words, settings, nfe, said
) -> None:
    assert call(capsys, "sample", run, *SAMPLE, "-o", "plain.png")[0] == 0
    code, out, err = call(capsys, "sample", run, *SAMPLE, *words, "-o", "fine.png")
    assert code == 0, err
    assert said in out
    facts = read_settings(Path("fine.png"))
    base = {"sampler": "ddim", "steps": 4, "spacing": "even", "eta": 0.0, "guidance_scale": 2.0,
            "clip": True, "guidance_w": 1.0}  # fmt: skip
    assert facts["sampling"] == {**base, **settings}
    assert facts["nfe"] == nfe
    assert Path("fine.png").read_bytes() != Path("plain.png").read_bytes()
    assert pixels("fine.png") != pixels("plain.png")
    assert read_settings(Path("plain.png"))["sampling"] == base


def pixels(path: str) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def test_an_interval_of_everything_and_no_rescale_are_plain_guidance(run, capsys) -> None:
    assert call(capsys, "sample", run, *SAMPLE, "-o", "plain.png")[0] == 0
    for words in (("--guidance-interval", "0..inf"), ("--guidance-rescale", "0")):
        assert call(capsys, "sample", run, *SAMPLE, *words, "-o", "same.png")[0] == 0
        assert Path("same.png").read_bytes() == Path("plain.png").read_bytes()


def test_an_earlier_checkpoint_is_a_weak_model(run, capsys) -> None:
    earlier, newest = checkpoints(run)
    assert call(capsys, "sample", run, *SAMPLE, "-o", "plain.png")[0] == 0
    words = ("sample", run, *SAMPLE, "--weak")
    code, out, err = call(capsys, *words, earlier, "-o", "auto.png")
    assert code == 0, err
    assert "away from tiny/step-00000003" in out
    facts = read_settings(Path("auto.png"))
    manifest = json.loads((earlier / "manifest.json").read_text())
    assert facts["weak"] == {
        "name": "tiny/step-00000003",
        "weights_sha256": manifest["files"]["weights.safetensors"]["sha256"],
    }
    assert facts["nfe"] == 8
    assert pixels("auto.png") != pixels("plain.png")
    assert call(capsys, *words, newest, "-o", "itself.png")[0] == 0
    one = ("sample", run, *SAMPLE, "--guidance-scale", "1", "-o", "one.png")
    assert call(capsys, *one)[0] == 0
    assert pixels("itself.png") == pixels("one.png")
    any_class = ("sample", run, "-n", "2", "--steps", "4", "--weak", earlier, "-o", "any.png")
    assert call(capsys, *any_class)[0] == 0
    assert read_settings(Path("any.png"))["sampling"]["guidance_scale"] == 2


def test_a_recipe_may_hold_refinements_and_an_option_takes_them_out(run, capsys) -> None:
    more = ("sampling.guidance_high=3", "sampling.threshold=95", "seed=1")
    out = train_tiny("r", *more, steps=2, every=2)
    assert call(capsys, "sample", out, *SAMPLE, "-o", "own.png")[0] == 0
    own = read_settings(Path("own.png"))["sampling"]
    assert (own["guidance_high"], own["threshold"]) == (3.0, 95.0)
    off = ("--guidance-interval", "off", "--threshold", "off")
    assert call(capsys, "sample", out, *SAMPLE, *off, "-o", "off.png")[0] == 0
    settings = read_settings(Path("off.png"))["sampling"]
    del settings["guidance_w"]
    assert settings == Sampling(steps=4, guidance_scale=2.0).plain()
    assert call(capsys, "sample", out, "-n", "1", "-o", "any.png")[0] == 0  # no label, no guidance


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--guidance-interval", "3..0.3"], ("--guidance-interval 3..0.3", "LOW..HIGH")),
        (["--guidance-interval", "2"], ("--guidance-interval 2", "0.3..3")),
        (["--guidance-interval", "nan..2"], ("nan..2", "0 <= LOW < HIGH")),
        (["--guidance-rescale", "1.5"], ("--guidance-rescale 1.5", "0..1")),
        (["--guidance-rescale", "nan"], ("--guidance-rescale nan", "0..1")),
        (["--apg", "0"], ("--apg 0", "above 0")),
        (["--apg", "x"], ("--apg x", "above 0")),
        (["--apg", "2", "--apg-momentum", "1"], ("--apg-momentum 1", "between -1 and 1")),
        (["--apg-momentum", "-0.5"], ("momentum -0.5", "apg")),
        (["--apg", "2", "--apg-momentum", "-0.5", "--sampler", "heun"], ("heun", "momentum")),
        (["--apg", "2", "--guidance-rescale", "0.7"], ("rescale and apg",)),
        (["--threshold", "101"], ("--threshold 101", "up to 100")),
        (["--guidance-scale", "1", "--guidance-interval", "0.3..3"], ("scale 1 is none",)),
        (["--weak", "digits", "--guidance-scale", "1"], ("--weak digits", "scale 1")),
        (["--weak", "digits", "--guidance-rescale", "0.7"], ("rescale 0.7", "weak")),
        (["--weak", "digits", "--apg", "2"], ("apg 2", "weak")),
        (["--weak", "dgits"], ("dgits", "digits")),
        (["--weak", "m.pt"], ("m.pt", "never loaded")),
    ],
)
def test_bad_guidance(run, capsys, words, named) -> None:
    code = 4 if words[-1] == "dgits" else 2
    refused(call(capsys, "sample", run, *SAMPLE, *words, "-o", "x.png"), code, *named)
    assert not list(Path().iterdir())


def test_refinements_without_a_label_are_not_ignored(run, capsys) -> None:
    words = ("sample", run, "-n", "1", "-o", "x.png", "--guidance-interval")
    refused(call(capsys, *words, "0.3..3"), 2, "interval 0.3..3", "--label")
    assert call(capsys, *words, "off")[0] == 0


def test_what_is_no_weak_model_of_this_one_is_refused(run, judge, capsys) -> None:
    from fewstep.process import VP

    untrained("large", tuple("0123456789"), size=16)
    untrained("others", tuple("abcdefghij"))
    untrained("plain")
    untrained("noise", tuple("0123456789"), process=VP())
    words = ("sample", run, *SAMPLE, "-o", "x.png", "--weak")
    refused(call(capsys, *words, "large"), 2, "weak model has images of shape 1, 16, 16")
    refused(call(capsys, *words, "others"), 2, "weak model has classes a, b, c")
    refused(call(capsys, *words, "plain"), 2, "weak model has classes none")
    refused(call(capsys, *words, "noise"), 2, "weak model has process", "VP")
    refused(call(capsys, *words, judge), 2, "noisy classifier")
    both = ("--classifier", judge)
    refused(call(capsys, *words, "digits", *both), 2, "--classifier", "--weak", "one of them")
    interval = (*words[:-1], *both, "--guidance-interval", "0.3..3")
    refused(call(capsys, *interval), 2, "interval 0.3..3", "classifier")
    assert not Path("x.png").exists()


# ---------------------------------------------------------------- compare --sweep
def test_a_sweep_of_both_guidances(run, judge, tmp_path, capsys) -> None:
    """As a process of its own: rows, columns, figure; and its results make the figure again."""
    words = ("compare", run, "--sweep", "guidance=0,1,3", "--classifier", judge)
    words = (*words, "--samplers", "ddim:2", "-n", "40", "-o", "s")
    done = process(
        *words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    lines = results.load(Path("s/results.json"))
    assert [line.nfe for line in lines] == [2, 2, 4, 2, 2, 2]
    assert sweep.is_sweep(lines)
    zero = [x.figures for x in lines if x.title in ("scale 0", "classifier scale 0")]
    assert zero[0] == zero[1]
    for word in ("FD-pixels", "precision-pixels", "recall-pixels", "accuracy"):
        assert word in out
    assert Path("s/guidance.png").read_bytes()[:4] == b"\x89PNG"
    assert not Path("s/frontier.svg").exists()
    assert Path("s/report.html").read_text().count("against guidance scale") == 2
    assert call(capsys, "compare", "s/results.json", "-o", "again")[0] == 0
    assert Path("again/guidance.svg").read_bytes() == Path("s/guidance.svg").read_bytes()


def test_rows_of_another_classifier_are_other_rows(run, judge, capsys) -> None:
    """The same folder, the same scale, another classifier of the same name: nothing is mixed."""
    from fewstep.cli.main import main

    assert main(["train", "digits-classifier", "out=judge", "train.steps=4", *SMALL]) == 0
    words = ("compare", run, "-n", "40", "--samplers", "ddim:2:classifier=9", "-o", "c")
    for which in (judge, Path("judge")):
        code, _, err = call(capsys, *words, "--classifier", which, *(
            ["c/results.json"] if which != judge else []
        ))  # fmt: skip
        assert code == 0, err
    first, second = results.load(Path("c/results.json"))
    assert first.settings["classifier"]["name"] == second.settings["classifier"]["name"]
    assert first.settings != second.settings
    assert first.figures != second.figures
    assert len(list(Path("c/samples").iterdir())) == 2


def test_rows_of_a_weak_model_and_of_refinements(run, capsys) -> None:
    rows = "ddim:4:weak=yes,ddim:4:interval=0.5..3,ddim:4:apg=2:momentum=-0.5,ddim:4:rescale=0.7"
    words = ("compare", run, "--samplers", rows, "--weak", checkpoints(run)[0], "-n", "40")
    code, _, err = call(capsys, *words, "-o", "c")
    assert code == 0, err
    lines = results.load(Path("c/results.json"))
    assert [line.nfe for line in lines] == [8, 6, 8, 8]
    assert lines[0].settings["weak"]["name"] == "tiny/step-00000003"
    assert lines[1].settings["guidance_low"] == 0.5


def test_a_model_without_classes_is_swept_by_a_classifier_alone(judge, capsys) -> None:
    untrained("plain")
    words = ("compare", "plain", "--data", "digits", "-n", "40", "--sweep", "guidance=0,4")
    refused(call(capsys, *words), 2, "unconditional", "--classifier RUN")
    code, _, err = call(capsys, *words, "--classifier", judge, "-o", "s")
    assert code == 0, err
    lines = results.load(Path("s/results.json"))
    assert [line.title for line in lines] == ["classifier scale 0", "classifier scale 4"]
    assert all(line.figure("accuracy") for line in lines)
    assert lines[0].figures != lines[1].figures


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--sweep", "guidance=1,nan"], ('scale "nan"', "finite")),
        (["--sweep", "guidance=inf"], ('scale "inf"', "finite")),
        (["--sweep", "guidance="], ("no scales", "guidance=0,1,2,4")),
        (["--sweep", "guidance"], ("no scales",)),
        (["--sweep", "steps=1,2"], ('--sweep "steps"', "guidance")),
        (["--sweep", "guidance=1,1"], ('"1" is given twice',)),
        (["--sweep", "guidance=1", "--preset", "frontier"], ("--sweep and --preset",)),
        (["--sweep", "guidance=1", "--samplers", "ddim:2,ddim:3"], ("2 rows; give one",)),
        (["--sweep", "guidance=1", "--samplers", "ddim:2:scale=3"], ("leave scale=",)),
        (["--sweep", "guidance=1,2", "--classifier", "digits"], ("not a noisy classifier",)),
        (["--sweep", "guidance=1,2", "--weak", "digits"], ("--weak digits", "weak=yes")),
        (["--classifier", "{judge}"], ("--classifier", "no row asks for it")),
        (["--samplers", "ddim:2:classifier=2"], ("give --classifier RUN",)),
        (["--samplers", "ddim:2:weak=yes"], ("give --weak RUN",)),
        (["--samplers", "ddim:2:interval=2..1"], ('interval "2..1"', "LOW..HIGH")),
    ],
)
def test_bad_sweeps(run, judge, capsys, words, named) -> None:
    words = [w.format(judge=judge) for w in words]
    refused(call(capsys, "compare", run, "-n", "40", "-o", "c", *words), 2, *named)
    assert not Path("c").exists()


def test_a_model_that_never_saw_the_null_is_not_swept(judge, capsys) -> None:
    out = train_tiny("r", "objective.drop=0", "sampling.guidance_scale=1", steps=2, every=2)
    words = ("compare", out, "-n", "40", "-o", "c", "--sweep")
    refused(call(capsys, *words, "guidance=1,2"), 2, "scale 2", "never saw the null")
    both = (*words, "guidance=1", "--classifier", judge)
    refused(call(capsys, *both), 2, "scale 0", "never saw the null")
    assert not Path("c").exists()


# ---------------------------------------------------------------- a student of guidance
def test_a_student_is_asked_once_a_step_for_the_scales_of_its_range(run, capsys, tmp_path) -> None:
    """Before its first step it is its teacher at scale 1; then the scale changes the images."""
    from fewstep.distill import student
    from fewstep.train.checkpoint import load_model, save_model
    from unit.random_nets import randomise

    made = student(load_model(checkpoints(run)[-1]), 1.0, 4.0)
    save_model(made, tmp_path / "fresh")
    randomise(made.denoiser.net)
    save_model(made, tmp_path / "taught")
    teacher = sampled(capsys, run, "--guidance-scale", "1")
    assert sampled(capsys, "fresh", "--guidance-scale", "1") == teacher
    assert sampled(capsys, "fresh", "--guidance-scale", "3") == teacher
    seen = {sampled(capsys, "taught", "--guidance-scale", s) for s in ("1", "2", "4")}
    assert len(seen) == 3
    facts = read_settings(Path("x.png"))
    assert (facts["nfe"], facts["sampling"]["guidance_scale"]) == (4, 4.0)
    for words, named in (
        (("--guidance-scale", "5"), "taught those from 1 to 4"),
        (("--guidance-rescale", "0.7"), "taught to say the guided one alone"),
        (("--weak", run), "weak model"),
    ):
        refused(call(capsys, "sample", "taught", *SAMPLE, *words, "-o", "y.png"), 2, named)
    refused(call(capsys, "sample", "taught", "-n", "2", "-o", "y.png"), 2, "label")
    halved = {**made.student, "kind": "progressive", "steps": 2}
    two = replace(made, student=halved, sampling=replace(made.sampling, steps=2))
    save_model(two, tmp_path / "halved")
    refused(call(capsys, "sample", "halved", *SAMPLE, "-o", "y.png"), 2, "progressive student")
    assert sampled(capsys, "halved", "--guidance-scale", "4", "--force") in seen


def sampled(capsys, *words) -> bytes:
    code, _, err = call(capsys, "sample", *words, *SAMPLE, "-o", "x.png")
    assert code == 0, err
    return pixels("x.png")
