"""What sampling cannot do is said in one line, whatever the verb: rows C7 to C11 and NU11."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.denoiser import NetDenoiser
from fewstep.model import Model, Sampling
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import Cosine, Tabulated
from fewstep.train import checkpoint
from system.cli_runs import call, refused


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that learnt nothing: with DDPM's betas, and with numbers that no float holds."""
    place = tmp_path_factory.mktemp("models")
    for name, process, fill in (("betas", Tabulated(), None), ("huge", Cosine(), 1e30)):
        config = UNetConfig(1, 1, 8, width=8, mult=(1,), attention=(), heads=1, groups=4)
        net = UNet(config)
        if fill is not None:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.fill_(fill)
        model = Model(NetDenoiser(net, process), (1, 8, 8))
        checkpoint.save_model(replace(model, sampling=Sampling(steps=4, clip=False)), place / name)
    return place


# MODEL stands for the model with DDPM's table of 1000 betas
MANY = ("--steps", "1001", "--spacing", "trailing")
ONE = ("sample", "MODEL", "-n", "1", "-o", "x.png")
EVALUATE = ("evaluate", "digits", "-n", "20", "-o", "out")
COMPARE = ("compare", "digits", "-n", "20", "-o", "out", "--samplers")
STROKE = ("edit", "stroke", "MODEL", "a.png", "-o", "x.png")
TABLE = ("train", "digits", "out=run", "process.name=Tabulated")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*ONE, *MANY), ("steps 1001", "1..1000", "use the spacing even")),  # C7
        ((*STROKE, *MANY), ("steps 1001", "1..1000")),
        ((*EVALUATE, *MANY), ("steps 1001", "1..1000")),
        ((*COMPARE, "ddim:1001:spacing=trailing"), ("steps 1001", "1..1000")),
        ((*ONE, "--steps", "0"), ("--steps 0", "1..100000")),
        ((*STROKE, "--steps", "0"), ("--steps 0", "1..100000")),
        ((*EVALUATE, "--steps", "0"), ("--steps 0", "1..100000")),
        ((*COMPARE, "ddim:0"), ("ddim:0", "1..100000")),
        *(((*ONE, "--eta", eta), (f"eta {eta}",)) for eta in ("-1", "nan", "inf")),  # C8
        *(((*STROKE, "--eta", eta), (f"eta {eta}",)) for eta in ("-1", "nan", "inf")),
        *(((*EVALUATE, "--eta", eta), (f"eta {eta}",)) for eta in ("-1", "nan", "inf")),
        *(((*COMPARE, f"ddim:5:eta={eta}"), (f'eta "{eta}"',)) for eta in ("-1", "nan", "inf")),
        ((*ONE, "--eta", "9"), ("eta 9", "the largest legal eta is 1.0")),
        ((*STROKE, "--eta", "9"), ("eta 9", "the largest legal eta is 1.0")),
        ((*EVALUATE, "--eta", "9"), ("eta 9", "the largest legal eta is 1.0")),
        ((*COMPARE, "ddim:5:eta=9"), ("eta 9", "the largest legal eta is 1.0")),
        ((*TABLE, "process.betas=[0.1,1.0]"), ("beta[1] = 1", "above 0 and below 1")),  # C9
        ((*TABLE, "process.betas=[0.0,0.1]"), ("beta[0] = 0", "above 0 and below 1")),
        ((*TABLE, "process.betas=[0.1,-0.2]"), ("beta[1] = -0.2", "above 0 and below 1")),
        ((*TABLE, "process.betas=[0.1]"), ("steps 1", "at least 2")),
        ((*TABLE, "process.steps=1"), ("steps 1", "at least 2")),
        ((*TABLE, "process.steps=9"), ("beta[", "above 0 and below 1", "at least 21")),
        ((*ONE, "--guidance-scale", "2"), ("scale 2", "unconditional")),  # C10
        ((*ONE, "--label", "3"), ("3", "unconditional")),
        ((*STROKE, "--guidance-scale", "2"), ("scale 2", "unconditional")),
        ((*STROKE, "--label", "3"), ("--label 3", "no classes")),
        (("sample", "digits", "--guidance-scale", "2"), ("scale 2", "--label")),
        (("sample", "digits", "--label", "10"), ("'10'", "allowed are 0, 1, 2")),
        *(  # C11
            ((*verb, "--guidance-scale", word), (f"--guidance-scale {word}", "finite"))
            for verb in (ONE, STROKE, EVALUATE)
            for word in ("nan", "inf")
        ),
        ((*COMPARE, "ddim:5:scale=nan"), ('scale "nan"', "finite")),
        ((*COMPARE[:-1], "--sweep", "guidance=nan"), ('scale "nan"', "finite")),
        ((*ONE, "--classifier", "x", "--classifier-scale", "nan"), ("nan", "finite")),
    ],
)
def test_bad_numbers_are_refused(capsys, models, words, named):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("a.png")
    answer = call(capsys, *(models / "betas" if w == "MODEL" else w for w in words))
    refused(answer, 2, *named)
    assert os.listdir() == ["a.png"]


def test_the_largest_eta_that_is_named_is_taken(capsys, models):
    words = ("sample", models / "betas", "-n", "1", "-o", "x.png", "--eta")
    named = refused(call(capsys, *words, "9"), 2, "largest").rpartition(" ")[2]
    assert call(capsys, *words, named)[0] == 0
    assert call(capsys, *words, float(named) + 1e-3)[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "digits", "-l", "7", "-n", "2", "--steps", "3", "-o", "x.png"),
        ("edit", "stroke", "digits", "a.png", "-l", "7", "--steps", "3", "-o", "x.png"),
        ("edit", "interpolate", "digits", "1", "2", "-l", "7", "--steps", "3", "-o", "x.png"),
    ],
)
def test_huge_guidance_warns_and_stays_finite(capsys, words):  # C11
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("a.png")
    code, _, err = call(capsys, *words, "--guidance-scale", "1e9")
    assert code == 0, err
    assert err.count("warning: guidance scale 1e+09") == 1
    assert Path("x.png").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "MODEL", "-n", "2", "-o", "x.png"),
        ("edit", "stroke", "MODEL", "a.png", "-o", "x.png"),
        ("edit", "inpaint", "MODEL", "a.png", "--mask", "m.png", "-o", "x.png"),
        ("edit", "superres", "MODEL", "a.png", "--factor", "2", "-o", "x.png"),
    ],
)
def test_what_is_not_finite_is_told_with_its_step(capsys, models, words):  # NU11
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("a.png")
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save("m.png")
    answer = call(capsys, *(models / "huge" if w == "MODEL" else w for w in words))
    refused(answer, 5, "step 1 of", "from t = ", "not finite", "nothing was written")
    assert sorted(os.listdir()) == ["a.png", "m.png"]
