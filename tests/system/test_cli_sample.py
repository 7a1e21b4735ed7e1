"""`fewstep sample`: the right images, where they come from, and one line for what cannot be."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import made, resolve
from fewstep.denoiser import NetDenoiser
from fewstep.model import Model, Sampling
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import Cosine
from fewstep.report.picture import read_settings
from fewstep.train import checkpoint
from tests.system.cli_runs import call, checkpoints, copy, refused, train_tiny


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder whose name holds a space."""
    place = tmp_path / "a b"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train once: 6 steps, checkpoints at 3 and 6."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "tiny")


def untrained(where, classes=(), null=True):
    """Save a model that learnt nothing."""
    config = UNetConfig(
        1,
        1,
        8,
        width=8,
        mult=(1,),
        attention=(),
        heads=1,
        groups=4,
        classes=len(classes),
        null=null,
    )
    model = Model(NetDenoiser(UNet(config), Cosine(), null=null), (1, 8, 8), classes)
    checkpoint.save_model(replace(model, sampling=Sampling(steps=2)), where)
    return where


def tiles(path, columns, scale, gap=0):
    """Cut a grid back into its images."""
    sheet = np.asarray(Image.open(path))
    side = 8 * scale + gap
    rows = [sheet[r : r + 8 * scale] for r in range(0, len(sheet), side)]
    cut = [row[:, c * side : c * side + 8 * scale] for row in rows for c in range(columns)]
    return [tile[::scale, ::scale] for tile in cut]


# ---------------------------------------------------------------- what it makes
def test_same_command_same_bytes(capsys, run):  # DE1
    words = ["sample", run, "--label", "7", "-n", "4", "--steps", "4", "--eta", "1"]
    for name in ("one.png", "two.png"):
        assert call(capsys, *words, "-o", name)[0] == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert call(capsys, *words, "--seed", "1", "-o", "three.png")[0] == 0
    assert Path("one.png").read_bytes() != Path("three.png").read_bytes()


def test_an_image_can_be_made_again_alone(capsys, run):
    words = ["sample", run, "--label", "3", "--steps", "4", "--sampler", "ddpm", "--scale", "1"]
    assert call(capsys, *words, "-n", "4", "--seed", "5", "-o", "four.png")[0] == 0
    four = tiles("four.png", 2, 1)
    for i in range(4):
        assert call(capsys, *words, "-n", "1", "--seed", 5 + i, "-o", "one.png")[0] == 0
        np.testing.assert_array_equal(np.asarray(Image.open("one.png")), four[i])
    assert not np.array_equal(four[0], four[1])


def test_batches_change_nothing(capsys, run, monkeypatch):
    words = ["sample", run, "--label", "3,8", "-n", "3", "--steps", "3", "--eta", "1"]
    assert call(capsys, *words, "-o", "one.png")[0] == 0
    monkeypatch.setattr(made, "_BATCH_PIXELS", 4 * 64)  # four images, then two
    assert call(capsys, *words, "-o", "two.png")[0] == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_settings_lie_in_the_file(capsys, run):
    words = ["--label", "7,1", "-n", "3", "--steps", "4", "--guidance-w", "1.5", "--seed", "9"]
    code, out, err = call(capsys, "sample", run, *words, "-o", "out.png", "--format", "json")
    assert (code, err) == (0, "")
    facts, said = read_settings(Path("out.png")), json.loads(out)
    assert b"tEXtfewstep\x00" in Path("out.png").read_bytes()
    assert facts["version"]
    assert facts["images"] == [{"seed": 9 + i, "label": "7" if i < 3 else "1"} for i in range(6)]
    assert facts["sampling"]["guidance_scale"] == 2.5
    assert facts["sampling"]["guidance_w"] == 1.5
    assert (facts["steps"], facts["nfe"]) == (4, 8)
    assert facts["grid"] == {"rows": 2, "columns": 3, "scale": 8, "gap": 2}
    manifest = json.loads((checkpoints(run)[-1] / "manifest.json").read_text())
    assert facts["weights_sha256"] == manifest["files"]["weights.safetensors"]["sha256"]
    assert said["files"] == ["out.png"]
    assert said["seeds"] == [9, 10, 11, 12, 13, 14]
    with Image.open("out.png") as image:
        assert image.size == (3 * 66 - 2, 2 * 66 - 2)


def test_scale_only_enlarges(capsys, run):
    words = ["sample", run, "--label", "all", "-n", "2", "--steps", "2"]
    assert call(capsys, *words, "-o", "big.png")[0] == 0
    assert call(capsys, *words, "--scale", "1", "-o", "raw.png")[0] == 0
    for big, raw in zip(tiles("big.png", 2, 8, 2), tiles("raw.png", 2, 1), strict=True):
        np.testing.assert_array_equal(big, raw)


def test_single_files(capsys, run):
    words = ["sample", run, "--label", "2", "-n", "3", "--steps", "2", "--scale", "1"]
    assert call(capsys, *words, "-o", "grid.png")[0] == 0
    assert call(capsys, *words, "-o", "many/")[0] == 0
    assert call(capsys, *words, "-o", "img-{i}.png")[0] == 0
    names = sorted(p.name for p in Path("many").iterdir())
    assert names == ["0-seed0.png", "1-seed1.png", "2-seed2.png"]
    for i, tile in enumerate(tiles("grid.png", 2, 1)[:3]):
        for path in (Path("many", names[i]), Path(f"img-{i}.png")):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), tile)
            assert read_settings(path)["images"] == [{"seed": i, "label": "2"}]


def test_without_o_a_new_file_is_made_each_time(capsys, run):
    for _ in range(2):
        assert call(capsys, "sample", run, "--label", "7", "-n", "1", "--steps", "1")[0] == 0
    assert sorted(os.listdir()) == ["tiny-7-seed0-2.png", "tiny-7-seed0.png"]


def test_explain_prints_the_times_and_samples_nothing(capsys, run):
    words = ["sample", run, "--label", "7", "--steps", "5", "--spacing", "quadratic", "--explain"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    # floor(linspace(0, sqrt(800), 5)^2), noisiest first, then clean: the talk's quadratic subset.
    assert [row[2] for row in rows] == ["800", "450", "200", "50", "0", "-"]
    assert "network evaluations per image: 10" in out  # 5 steps, guidance 2: two each
    assert os.listdir() == []
    code, out, _ = call(capsys, *words, "--format", "json", "--guidance-scale", "1")
    assert json.loads(out)["nfe"] == 5
    assert len(json.loads(out)["times"]) == 6


def test_guidance_names_are_one_number(capsys, run):
    words = ["sample", run, "--label", "7", "-n", "2", "--steps", "3"]
    assert call(capsys, *words, "--guidance-scale", "3", "-o", "s.png")[0] == 0
    assert call(capsys, *words, "--guidance-w", "2", "-o", "w.png")[0] == 0
    assert Path("s.png").read_bytes() == Path("w.png").read_bytes()
    both = call(capsys, *words, "--guidance-scale", "3", "--guidance-w", "2")
    refused(both, 2, "--guidance-scale 3", "--guidance-w 2")


def test_huge_guidance_warns_and_stays_finite(capsys, run):  # C11
    code, _, err = call(
        capsys, "sample", run, "--label", "7", "-n", "2", "--guidance-scale", "1e9", "-o", "x.png"
    )
    assert code == 0
    assert err.startswith("fewstep: warning: guidance scale 1e+09")


@pytest.mark.skipif("digits" not in resolve.shipped(), reason="no digits model in this tree")
def test_the_shipped_model_works_at_once(capsys):
    code, _, err = call(capsys, "sample", "digits", "--label", "7", "-n", "16")
    assert code == 0, err
    assert len(os.listdir()) == 1


# ---------------------------------------------------------------- what cannot be: rows C
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--stepz", "3"], ("--stepz", '"--steps"')),  # C1
        (["--steps", "0"], ("--steps 0", "1..100000")),  # C3, C7
        (["--steps", "-1"], ("--steps -1", "1..100000")),
        (["--steps", "1.5"], ("--steps 1.5", "whole number")),
        (["--steps", "ten"], ("--steps ten", "whole number")),
        (["--steps", "1000000000"], ("--steps 1000000000", "1..100000")),
        (["--steps", "1001", "--spacing", "quadratic"], ("1001", "1..1000")),  # C7
        (["--eta", "-0.5"], ("eta -0.5", ">= 0")),  # C8
        (["--eta", "nan"], ("--eta nan", "finite")),
        (["--eta", "30"], ("eta 30", "largest legal eta is")),
        (["--eta", "1", "--sampler", "heun"], ("eta 1", "heun")),
        (["--label", "cat"], ("cat", "0, 1, 2")),  # C10
        (["--label", "10"], ("10", "0, 1, 2")),
        (["--guidance-scale", "nan"], ("--guidance-scale nan", "finite")),  # C11
        (["--guidance-w", "inf"], ("--guidance-w inf", "finite")),
        (["--device", "cuda:9"], ("cuda:9", "cpu")),  # C14
        (["--seed", "-1"], ("--seed -1", "0..2^64-1")),  # C16
        (["--seed", "18446744073709551616"], ("--seed 18446744073709551616", "2^64-1")),
        (["--seed", "abc"], ("--seed abc", "2^64-1")),
        (["-n", "0"], ("0", "1..100000")),
        (["--sampler", "eulr"], ("eulr", '"euler"')),
        (["--spacing", "quadratik"], ("quadratik", '"quadratic"')),
        (["-o", "no/where.png"], ("no/where.png", "no such folder")),
        (["-o", "x.jpg"], ("x.jpg", ".png")),
        (["-o", ""], ("-o ''", ".png")),
        (["--format", "xml"], ("xml", "json")),
        (["and", "more"], ("and more",)),
    ],
)
def test_bad_options(capsys, run, words, named):
    label = [] if "--label" in words else ["--label", "7"]
    refused(call(capsys, "sample", run, *label, "-n", "1", *words), 2, *named)
    assert os.listdir() == []


def test_a_model_without_classes_takes_no_label(capsys):  # C10
    plain = untrained("plain")
    refused(call(capsys, "sample", plain, "--label", "7"), 2, "7", "unconditional")
    model = replace(checkpoint.load_model(plain), sampling=Sampling(steps=20))
    checkpoint.save_model(model, "more")
    answer = call(capsys, "sample", "more", "--guidance-scale", "2", "--steps", "30")
    refused(answer, 2, "2", "unconditional")
    assert "guided evaluations" not in answer[2]
    assert call(capsys, "sample", plain, "-n", "2", "-o", "x.png")[0] == 0


def test_images_of_any_class_are_said_to_be_so(capsys, run):
    words = ["sample", run, "-n", "1", "--steps", "1", "-o", "x.png"]
    line = "no --label: images of any class, without guidance; --label all for every class\n"
    assert call(capsys, *words)[2] == line
    assert call(capsys, *words, "--label", "7")[2] == ""
    assert call(capsys, "sample", untrained("plain"), "-o", "x.png")[2] == ""


def test_a_model_without_the_null_condition_is_not_guided(capsys):  # C12
    model = untrained("nonull", classes=("cat", "dog"), null=False)
    answer = call(capsys, "sample", model, "--label", "cat", "--guidance-scale", "2")
    refused(answer, 2, "never saw the null condition", "objective.drop")
    refused(call(capsys, "sample", model), 2, "never saw the null condition", "--label cat")
    assert call(capsys, "sample", model, "--label", "dog", "-n", "1", "-o", "x.png")[0] == 0


def test_a_file_is_no_folder_and_an_input_stays(capsys, run):
    Path("afile").write_text("mine")
    refused(call(capsys, "sample", run, "-n", "1", "-o", "afile/"), 2, "afile/: a file, not")
    for name in ("afile/x.png", "afile/d/"):
        refused(call(capsys, "sample", run, "-n", "1", "-o", name), 2, "afile is a file, not a")
    words = ("sample", run, "-n", "1", "--image", "3.png", "--mask", "3.png", "-o", "3.png")
    Path("3.png").write_text("mine")
    refused(call(capsys, *words), 2, "-o 3.png: is the input 3.png")
    assert (Path("3.png").read_text(), Path("afile").read_text()) == ("mine", "mine")


@pytest.mark.parametrize(("scale", "guided"), [("0", 0), ("1", 0), ("3", 1)])
def test_scale_0_is_not_guided(capsys, scale, guided):
    model = checkpoint.load_model(untrained("old", classes=("cat", "dog")))
    checkpoint.save_model(replace(model, sampling=Sampling(steps=20)), "m")
    words = ("--explain", "--steps", "30", "--label", "cat", "--guidance-scale", scale)
    code, _, err = call(capsys, "sample", "m", *words)
    assert (code, err.count("evaluations (docs")) == (0, 1)
    assert err.count("guided evaluations") == guided


def test_guidance_without_a_label_is_not_ignored(capsys, run):
    refused(call(capsys, "sample", run, "--guidance-scale", "3"), 2, "3", "--label")


# ---------------------------------------------------------------- broken models: rows K
def k3_not_json(c):
    (c / "manifest.json").write_text("{")
    return "manifest.json", "not JSON"


def k3_future(c):
    manifest = json.loads((c / "manifest.json").read_text())
    (c / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    return "manifest.json", "99", "version 1"


def k3_list(c):
    (c / "manifest.json").write_text("[]")
    return "manifest.json", "list"


def k4_missing(c):
    (c / "weights.safetensors").unlink()
    return "weights.safetensors", "missing"


def k4_extra(c):
    (c / "more.json").write_text("{}")
    return "more.json", "manifest"


def k4_size(c):
    with open(c / "weights.safetensors", "ab") as f:
        f.write(b"x")
    return "weights.safetensors", "bytes"


def k4_hash(c):
    data = bytearray((c / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (c / "weights.safetensors").write_bytes(data)
    return "weights.safetensors", "SHA-256"


def k6_shape(c):
    parts = checkpoint.load(c)
    tensors = parts.tensors("weights.safetensors")
    first, second, *_ = sorted(tensors)
    tensors[first], tensors["stranger"] = tensors[first].reshape(-1)[:1], tensors.pop(second)
    files = {"model.json": parts.json("model.json"), "weights.safetensors": tensors}
    shutil.rmtree(c)
    checkpoint.write(c, files)
    return first, second, "stranger", "missing", "unexpected", "shape"


FAULTS = [k3_not_json, k3_future, k3_list, k4_missing, k4_extra, k4_size, k4_hash, k6_shape]


@pytest.mark.parametrize("harm", FAULTS)
def test_a_broken_model_is_not_used(capsys, run, harm):
    model = copy(checkpoints(run)[-1], "model")
    named = harm(model)
    refused(call(capsys, "sample", model, "-o", "x.png"), 4, "model", *named)
    assert not Path("x.png").exists()


@pytest.mark.parametrize("harm", FAULTS[:-1])  # a sealed model of another network is whole
def test_a_run_falls_back_to_the_checkpoint_before(capsys, run, harm):
    broken = copy(run, "broken")
    named = harm(checkpoints(broken)[-1])
    code, _, err = call(capsys, "sample", broken, "-n", "1", "--steps", "1", "-o", "x.png")
    assert code == 0, err
    assert "step-00000006" in err
    assert all(name in err for name in named)
    manifest = json.loads((checkpoints(run)[0] / "manifest.json").read_text())
    weights = manifest["files"]["weights.safetensors"]["sha256"]
    assert read_settings(Path("x.png"))["weights_sha256"] == weights


def test_only_incomplete_checkpoints(capsys, run):  # K2
    broken = copy(run, "broken")
    for path in checkpoints(broken):
        (path / "manifest.json").unlink()
    for verb in (["sample", broken], ["train", broken]):
        answer = call(capsys, *verb)
        refused(answer, 4, "step-00000003", "step-00000006", "incomplete")
    for path in checkpoints(broken):
        shutil.rmtree(path)
    refused(call(capsys, "sample", broken), 4, "no checkpoint yet")


def test_nothing_of_that_name(capsys, monkeypatch):  # K1
    shutil.copytree(untrained("m"), "shelf/numbers")
    monkeypatch.setattr(resolve, "SHIPPED", Path("shelf"))
    refused(call(capsys, "sample", "numbres"), 4, "numbres", '"numbers"')
    refused(call(capsys, "sample", "runs/none"), 4, "runs/none")
    Path("empty").mkdir()
    refused(call(capsys, "sample", "empty"), 4, "empty", "manifest.json")
    assert call(capsys, "sample", "numbers", "-n", "1", "-o", "x.png")[0] == 0


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pkl"])
def test_pickles_are_refused_by_name(capsys, suffix):  # K9
    path = Path(f"model{suffix}")
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    refused(call(capsys, "sample", path), 2, path, "never loaded")
