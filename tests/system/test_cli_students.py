"""Students of all kinds of teachers, by the real command, and what is refused of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import data
from fewstep.cli import demo
from fewstep.cli.resolve import find
from fewstep.denoiser import BOTH, EDM, EPS, NetDenoiser, V
from fewstep.model import Model, Sampling
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import EDM as EDMProcess
from fewstep.process import Cosine, Tabulated
from fewstep.report import picture
from fewstep.report.judge import Reals
from fewstep.train import checkpoint
from tests.system import distilling
from tests.system.cli_runs import call, refused, train_tiny
from tests.system.distilling import described

ONE = ("--label", "a", "-n", "1", "-o", "x.png")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder whose name holds a space, in a hurry."""
    monkeypatch.setattr("fewstep.cli.climb._worse", lambda *_: False)
    return distilling.settle(tmp_path, monkeypatch)


def teacher(where, param=V, process=None, shape=(1, 8, 8), classes=("a", "b"), outputs=1):
    """Save a tiny teacher of random weights, and images beside it; return both."""
    gen = np.random.default_rng(0)
    pixels = gen.integers(0, 256, (60, *shape[1:], shape[0]), dtype=np.uint8)
    labels = {"arr_1": np.arange(60) % len(classes)} if classes else {}
    np.savez("images.npz", arr_0=pixels, **labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UNetConfig(
            in_channels=shape[0], out_channels=outputs * shape[0], width=8, mult=(1, 2), depth=1,
            groups=4, classes=len(classes),
        )  # fmt: skip
        net = UNet(config)
        torch.nn.init.normal_(net.head.weight, std=0.05)
    denoiser = NetDenoiser(net, process or Cosine(), param).eval()
    scale = 2.0 if classes else 1.0
    model = Model(denoiser, shape, classes, Sampling(steps=4, guidance_scale=scale))
    checkpoint.save_model(model, Path(where))
    return where, "--data", "images.npz"


def distilled(capsys, words, *more, to=2, method="progressive", images=40 * 32):
    """Distill; return what was printed."""
    way = ("--to", to, "--method", method, "--images", images, "-n", "20", "-o", "st u")
    code, out, err = call(capsys, "distill", *words, *way, *more)
    assert code == 0, err
    return out, err


def numbered(count):
    return tuple(str(i) for i in range(count))


KINDS = {
    "eps, learned variance": {"param": EPS, "process": Tabulated(), "outputs": 2},
    "edm": {"param": EDM, "process": EDMProcess()},
    "unconditional": {"classes": ()},
    "colours": {"shape": (3, 8, 8)},
}


@pytest.mark.parametrize("method", ["progressive", "ect", "consistency-distillation"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_every_kind_of_teacher(capsys, kind, method):
    given = {"classes": numbered(2), **KINDS[kind]}
    words = teacher("a teacher", **given)
    start = "8" if kind.startswith("eps") else "4"  # in two stages: a student of a student
    way = ("--start", start) if method == "progressive" else ()
    distilled(capsys, words, *way, method=method, images=60 * 32)
    said = described("st u/student")
    classes, steps = given["classes"], 2
    assert said["classes"] == list(classes)
    assert (said["student"]["method"], said["sampling"]["steps"]) == (method, steps)
    if kind.startswith("eps"):
        assert said["param"] == "BOTH"
        assert said["net"]["out_channels"] == 2
        assert checkpoint.load_model(Path("st u/student")).denoiser.param is BOTH
    levels = said["sampling"].get("levels")
    if kind == "edm":
        assert levels is not None
        assert levels[0] == pytest.approx(80.0)
    elif method == "progressive":
        assert levels is None
    label = ("--label", "1") if classes else ()
    code, out, err = call(capsys, "sample", "st u", *label, "-n", "1", "-o", "x.png")
    assert code == 0, err
    assert "2 steps, 2 network evaluations each" in out
    table = json.loads(Path("st u/results.json").read_text())["lines"]
    spacings = {line["settings"]["spacing"] for line in table if "DDIM" in line["title"]}
    assert spacings == {"karras" if kind == "edm" else "even"}
    baked = 1.0 if method == "ect" or not classes else 2.0
    assert said["student"]["guidance"] == baked


def test_fewer_steps_make_the_images_that_the_table_measures(capsys):
    """Row "ect k" is of the very images of `sample --steps k`; no step begins elsewhere."""
    words = teacher("a teacher", classes=())
    distilled(capsys, words, to=3, method="ect")
    lines = json.loads(Path("st u/results.json").read_text())["lines"]
    rows = {line["title"]: line["settings"] for line in lines if line["title"].startswith("ect")}
    assert sorted(rows) == ["ect 1", "ect 2", "ect 3"]
    own = described("st u/student")["sampling"]["levels"]
    for k in (1, 2, 3):
        settings = rows[f"ect {k}"]
        assert settings["levels"] == own[:k]
        found = [
            np.load(place.parent / "000000-000020.npz")["pixels"]
            for place in Path("st u/eval/samples").glob("consistency-*/cell.json")
            if (said := json.loads(place.read_text()))["sampling"]["levels"] == own[:k]
            and said["seed"] == 0
        ]
        assert len(found) == 1
        sheet = ("-n", "20", "--scale", "1", "-o", f"{k}/")
        code, out, err = call(capsys, "sample", "st u", "--steps", k, *sheet)
        assert code == 0, err
        plural = "" if k == 1 else "s"
        assert f"consistency {k} step{plural}, {k} network evaluation{plural} each" in out
        files = sorted(Path(str(k)).iterdir())
        assert picture.read_settings(files[0])["sampling"]["levels"] == own[:k]
        made = np.stack([np.asarray(Image.open(path)) for path in files]).astype(int)
        assert np.abs(made - found[0][:, 0]).max() <= 1  # another batch rounds in another way
    more = ("steps 4: ", "consistency student", "1..3 steps", "--levels 80,", "--force")
    refused(call(capsys, "sample", "st u", "-n", "1", "--steps", "4"), 2, *more)
    refused(
        call(capsys, "sample", "st u", "-n", "1", "--levels", "99"), 2, "level 99: ", "than 80"
    )
    refused(call(capsys, "evaluate", "st u", "--steps", "4", "-n", "20"), 2, *more)
    for way in (("--steps", "4", "--force"), ("--levels", "80,9,1,0.1")):
        code, out, err = call(capsys, "sample", "st u", "-n", "1", *way, "-o", "x.png")
        assert code == 0, err
        assert "4 network evaluations each" in out


# ---------------------------------------------------------------- a student is no other model
@pytest.fixture
def student(capsys):
    """A one-step student in "st u", guidance 2 in its weights."""
    words = teacher("a teacher", classes=numbered(2))
    distilled(capsys, words, "--start", "2", to=1, images=20 * 32)
    return "st u"


def test_a_student_is_sampled_as_it_was_made(student, capsys):  # A15
    words = ("sample", student, "--label", "1", "-n", "1", "-o", "x.png")
    made = "a progressive student, made for 1 step of ddim"
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert "x.png: 1 image, ddim 1 step, 1 network evaluation each, guidance scale 2, in" in out
    assert "in its weights, seeds" in out
    assert picture.read_settings(Path("x.png"))["guidance_in_weights"] == 2
    code, out, _ = call(capsys, "sample", student, "--explain", "--label", "1")
    assert "ddim, 1 step, spacing even, eta 0, guidance scale 2, in its weights" in out
    Path("x.png").unlink()
    refused(call(capsys, *words, "--steps", "50"), 2, "steps 50: ", made, "--force")
    refused(call(capsys, *words, "--sampler", "heun"), 2, "sampler heun: ", made)
    refused(call(capsys, *words, "--spacing", "karras"), 2, "spacing karras: ", made)
    refused(call(capsys, *words, "--eta", "1"), 2, "eta 1: ", made, "eta 0, and no other way")
    refused(call(capsys, *words, "--levels", "9"), 2, "levels: ", made)
    both = ("--eta", "1", "--steps", "3")
    refused(call(capsys, *words, *both), 2, "steps 3, eta 1: ", made, "leave them out")
    scale = ("guidance scale 3", "guidance scale 2 in its weights", "leave it out")
    refused(call(capsys, *words, "--guidance-scale", "3"), 2, *scale)
    refused(call(capsys, "sample", student, "-o", "x.png"), 2, "needs a label", "in its weights")
    assert not Path("x.png").exists()
    code, _, err = call(capsys, *words, "--force", "--steps", "50")
    assert code == 0, err
    assert err.count("fewstep: warning: --force: a progressive student is sampled in a way") == 1
    assert picture.read_settings(Path("x.png"))["sampling"]["steps"] == 50
    refused(call(capsys, "sample", "a teacher", "--force", "-n", "1"), 2, "is no student")


def test_other_verbs_on_a_student(student, capsys):
    before = distilling.everything(student)
    again = ("a progressive student", "nothing to tune", "a teacher")
    refused(call(capsys, "tune", student, "--steps", "3"), 2, *again)
    refused(call(capsys, "tune", student, "--steps", "3", "-o", "new"), 2, *again)
    refused(call(capsys, "train", student), 2, "a distillation", "distill 'st u'")
    where = str(Path("a teacher").absolute())
    twice = ("distill", "st u/student", "--to", "1")
    refused(call(capsys, *twice), 2, "a progressive student already", f"teacher, {where}")
    for word in ("--likelihood", "--bits-per-dim"):
        none = (word, "a progressive student", "no likelihood", f"teacher, {where}")
        refused(call(capsys, "evaluate", student, word), 2, *none)
    scales = ("--sweep", "guidance=1,2", "-n", "20")
    named = ("guidance scale 2 in its weights", "--guidance-range")
    refused(call(capsys, "compare", student, *scales), 2, *named)
    code, _, err = call(capsys, "sample", "a teacher", "--label", "1", "-n", "1", "-o", "x.png")
    assert code == 0, err
    made = ("a progressive student", "1 step of ddim")
    words = ("--label", "1", "-o", "y.png")
    none = ("a progressive student", "follow no ODE", "a teacher", "two seeds")
    refused(call(capsys, "edit", "encode", student, "x.png", *words), 2, *none)
    refused(call(capsys, "edit", "interpolate", student, "x.png", "x.png", *words), 2, *none)
    square = ("--mask", "x.png")
    refused(
        call(capsys, "edit", "inpaint", student, "x.png", *square, *words, "--eta", "1"),
        2,
        "eta 1: ",
        *made,
    )
    more = ("--samplers", "ddim:50", "-n", "20")
    refused(call(capsys, "compare", student, *more), 2, "steps 50: ", *made)
    refused(call(capsys, "evaluate", student, "--steps", "8", "-n", "20"), 2, *made)
    seeds = ("edit", "interpolate", student, "1", "2", "--label", "1", "-o", "z.png")
    code, _, err = call(capsys, *seeds)
    assert code == 0, err
    assert distilling.everything(student) == before
    assert not Path("y.png").exists()


def test_one_student_for_a_range_of_scales(capsys):
    words = teacher("a teacher", classes=numbered(2))
    out, err = distilled(
        capsys, words, "--guidance-range", "1..3", "--start", "4", to=2, images=80 * 32
    )
    assert "scales 1 to 3" in err
    assert [line for line in out.splitlines() if "copy error" in line] == []  # climb._worse
    assert Path("st u/stages/guided").is_dir()
    said = described("st u/student")
    assert said["student"]["scales"] == [1.0, 3.0]
    assert said["sampling"]["guidance_scale"] == 2.0
    one = ("--label", "1", "-n", "1", "-o", "x.png")
    for scale in ("1.5", "3", "1"):
        code, out, err = call(capsys, "sample", "st u", *one, "--guidance-scale", scale)
        assert code == 0, err
        assert "2 steps, 2 network evaluations each" in out
        assert f"guidance scale {scale}" in out
    refused(call(capsys, "sample", "st u", *one, "--guidance-scale", "5"), 2, "5", "1 to 3")
    refused(call(capsys, "sample", "st u", *one, "--steps", "50"), 2, "made for 2 steps of ddim")


def test_the_students_of_the_demo_go_on_and_are_judged(capsys, monkeypatch):
    """They are distillations like others, wherever one stands."""
    monkeypatch.setattr(demo, "STUDENTS", {"progressive": 3200, "consistency-distillation": 640})
    monkeypatch.setattr(demo, "_START", 4)
    run = train_tiny("a demo")
    train, held_out = data.digits()
    reals = Reals("digits", train, held_out)
    ways = demo._students(run, find(str(run)), reals, None, 0, 20)
    assert [row.sampling.steps for _, row in ways] == [2, 1, 1]
    here = Path.cwd()
    Path("else").mkdir()
    monkeypatch.chdir("else")
    for name in ("progressive", "consistency-distillation"):
        place = here / "a demo" / name
        before = distilling.weights(place / "student")
        code, out, err = call(capsys, "evaluate", place, "-n", "20")
        assert code == 0, err
        assert "digits" in out
        code, out, err = call(capsys, "distill", place)
        assert code == 0, err
        assert "steps 0 to" not in err  # what is trained stays
        assert "protocol small-1k: 20 images" in out
        assert distilling.weights(place / "student") == before
