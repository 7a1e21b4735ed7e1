"""Rows from words: what they mean, what is refused, and the talk's table."""

import re
import warnings
from dataclasses import replace

import pytest
import torch

from fewstep import sampling
from fewstep.denoiser import NetDenoiser
from fewstep.errors import UsageError
from fewstep.model import Model, Sampling
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.process import Cosine, Tabulated
from fewstep.report import spec

PRESET = Sampling(sampler="ddim", steps=40, spacing="logsnr", eta=0.3, guidance_scale=1.5)
PLAIN = Sampling()


@pytest.mark.parametrize(
    ("word", "title", "changes"),
    [
        ("ddim:50", "DDIM 50", {}),
        ("ddpm:1000", "DDPM 1000", {"sampler": "ddpm", "steps": 1000}),
        ("ddpm-large:10", "sigma-hat 10", {"sampler": "ddpm-large", "steps": 10}),
        ("ddim:10:eta=0.5", "DDIM 10, eta 0.5", {"steps": 10, "eta": 0.5}),
        ("dpmpp:10", "DPM-Solver++(2M) 10", {"sampler": "dpmpp", "steps": 10}),
        ("heun:9", "Heun 9", {"sampler": "heun", "steps": 9}),
        ("ddim:20:scale=2", "DDIM 20, scale 2", {"steps": 20, "guidance_scale": 2.0}),
        ("ddim:20:w=0.5", "DDIM 20, scale 1.5", {"steps": 20, "guidance_scale": 1.5}),
        ("ddim:20:scale=0", "DDIM 20, scale 0", {"steps": 20, "guidance_scale": 0.0}),
        (" ddim : 20 : clip = no ", "DDIM 20, not clipped", {"steps": 20, "clip": False}),
        ("ddim:20:spacing=trailing", "DDIM 20, trailing", {"steps": 20, "spacing": "trailing"}),
        (
            "ipndm:2:levels=14.6/2/0",
            "iPNDM-4 2, levels 14.6/2",
            {"sampler": "ipndm", "steps": 2, "levels": (14.6, 2.0)},
        ),
    ],
)
def test_a_row_is_the_preset_with_what_is_said(word, title, changes) -> None:
    (row,) = spec.parse(word, PLAIN)
    assert row == spec.Row(title, replace(PLAIN, **changes))


def test_what_is_not_said_is_as_the_model_has_it() -> None:
    """eta is ddim's alone, as in `fewstep sample`."""
    ddim, heun = spec.parse("ddim:10,heun:10", PRESET)
    assert ddim.sampling == replace(PRESET, steps=10)
    assert heun.sampling == replace(PRESET, sampler="heun", steps=10, eta=0.0)


@pytest.mark.parametrize(
    ("word", "process"), [("own", None), ("linear", Tabulated()), ("cosine", Cosine())]
)
def test_a_row_may_run_along_another_process(word, process) -> None:
    (row,) = spec.parse(f"ddim:10:process={word}", PLAIN)
    assert row.process == process
    assert row.settings()["process"] == (process.describe() if process else None)


def test_rows_keep_their_order_and_have_titles_of_their_own() -> None:
    words = (
        "ddpm:1000,ddim:50,ddim:50:eta=0.5,ddim:50:scale=2,ddim:50:clip=no,ddim:50:spacing=karras,"
        "ddim:50:process=linear,ddim:50:eta=0.123456789,ddim:50:eta=0.12345678"
    )
    rows = spec.parse(words, PLAIN)
    assert [row.sampling.sampler for row in rows] == ["ddpm", *["ddim"] * 8]
    assert len({row.title for row in rows}) == len(rows)


def test_a_scale_is_named_where_the_model_has_one() -> None:
    one, own = spec.parse("ddim:10:scale=1,ddim:10", PRESET)
    assert one.title == "DDIM 10, eta 0.3, scale 1"
    assert own.title == "DDIM 10, eta 0.3, scale 1.5"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty row"),
        ("ddim:10,,ddim:5", "an empty row"),
        ("dim:10", 'row "dim:10": sampler "dim": allowed are ddim, .*did you mean "ddim"'),
        ("ddim", 'row "ddim": the number of steps is missing; write ddim:50'),
        ("ddim:eta=1", "the number of steps is missing"),
        ("ddim:0", r'steps "0": must be a whole number in 1\.\.100000'),
        ("ddim:100001", r"in 1\.\.100000"),
        ("ddim:1e2", 'steps "1e2"'),
        ("ddim:²", "steps"),
        ("ddim:-5", 'steps "-5"'),
        ("ddim:10:etta=1", 'key "etta": allowed are eta, scale, .*did you mean "eta"'),
        ("ddim:10:50", 'key "50": allowed are'),
        ("ddim:10:eta", 'key "eta" has no value; write eta=VALUE'),
        ("ddim:10:eta=", 'eta "": must be a number >= 0'),
        ("ddim:10:eta=-0.1", 'eta "-0.1": must be a number >= 0'),
        ("ddim:10:eta=nan", "must be a number >= 0"),
        ("ddim:10:scale=inf", 'scale "inf": must be a finite number'),
        ("ddim:10:w=x", 'w "x": must be a finite number'),
        ("ddim:10:eta=0.5:eta=0.6", 'key "eta" is given twice'),
        ("ddim:10:scale=2:w=1", "scale and w: give one of them"),
        ("heun:10:eta=0.5", "eta: only the sampler ddim has this dial, not heun"),
        ("ddim:10:spacing=quad", 'allowed are even, .*did you mean "quadratic"'),
        ("ddim:2:levels=1/2", 'levels "1/2": must be falling noise levels .*14.6/2/0.3'),
        ("ddim:5:levels=3/2", 'row "ddim:5:levels=3/2": levels "3/2": 2 noise levels .*not 5'),
        ("ddim:2:levels=2/1:spacing=even", "spacing and levels: give one of them"),
        ("ddim:10:clip=true", 'clip "true": allowed are yes, no'),
        ("ddim:10:process=lin", 'allowed are own, linear, cosine .did you mean "linear"'),
        ("ddim:10,ddim:10:eta=0", 'row "ddim:10:eta=0": the same settings as the row "ddim:10"'),
        ("ddim:10,ddim:5,ddim:10", "the same settings"),
    ],
)
def test_refuses_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        spec.parse(text, PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
def test_the_talks_table_has_its_25_cells(spacing: str) -> None:
    rows = spec.ddim_table(replace(PRESET, clip=False), spacing)
    assert len(rows) == 25
    said = [(r.sampling.sampler, r.sampling.eta, r.sampling.steps) for r in rows]
    etas = [("ddim", 0.0), ("ddim", 0.2), ("ddim", 0.5), ("ddim", 1.0), ("ddpm-large", 0.0)]
    assert said == [(*eta, s) for eta in etas for s in (10, 20, 50, 100, 1000)]
    assert len({r.title for r in rows}) == 25
    for row in rows:
        assert row.process == Tabulated("linear", 1000)
        assert row.sampling.spacing == spacing
        assert row.sampling.guidance_scale == 1
        assert row.sampling.clip is False
        assert f"{spacing} strides, predictions not clipped" in row.group


def test_a_model_with_a_table_of_its_own_keeps_it() -> None:
    assert all(r.process is None for r in spec.ddim_table(PLAIN, own=Tabulated("cosine", 4000)))
    short = spec.ddim_table(PLAIN, own=Tabulated("linear", 100))
    assert all(r.process == Tabulated() for r in short)
    assert all(r.process == Tabulated() for r in spec.ddim_table(PLAIN, own=Cosine()))


def test_the_talks_table_takes_its_two_strides_only() -> None:
    with pytest.raises(UsageError, match=r'"quad".* quadratic or uniform.*mean "quadratic"'):
        spec.ddim_table(PLAIN, "quad")


def test_presets_by_name() -> None:
    for name in spec.PRESETS:
        rows = spec.preset(name, PRESET)
        assert len({r.title for r in rows}) == len(rows) > 1
    assert {r.process for r in spec.preset("ddim-table", PLAIN, Tabulated())} == {None}
    assert spec.preset("ddim-table", PLAIN, None, "uniform")[0].sampling.spacing == "uniform"
    assert all(r.sampling.eta == 0 for r in spec.preset("frontier", PRESET))
    with pytest.raises(UsageError, match=r'"ddim-tabel": allowed are .*mean "ddim-table"'):
        spec.preset("ddim-tabel", PLAIN)


def test_the_rows_of_the_demo() -> None:
    """Three groups: scales 0, 1, 2, 4; from 1000 steps to 5; the talk's strided rows."""
    rows = spec.preset("demo", PRESET)
    assert [r.title for r in rows[:4]] == ["scale 0", "scale 1", "scale 2", "scale 4"]
    assert [r.sampling.steps for r in rows] == [
        20, 20, 20, 20, 1000, 50, 50, 20, 10, 5, 10, 5, 10, 10, 50, 50
    ]  # fmt: skip
    assert [r.title for r in rows[4:]] == [
        "DDPM 1000", "DDPM 50", "DDIM 50", "DDIM 20", "DDIM 10", "DDIM 5", "DPM-Solver++(2M) 10",
        "DPM-Solver++(2M) 5", "DDIM 10, strided", "sigma-hat 10, strided", "DDIM 50, strided",
        "sigma-hat 50, strided",
    ]  # fmt: skip
    assert all(r.process == Tabulated() and r.sampling.spacing == "uniform" for r in rows[-4:])
    assert all(r.sampling.guidance_scale == 1 for r in rows[4:])
    assert len({r.group for r in rows}) == 3


@pytest.mark.parametrize("name", spec.PRESETS)
def test_every_row_of_a_preset_can_be_sampled(name: str) -> None:
    """As far as a plan: grid, solver and cost; nothing is sampled."""
    net = MLP(MLPConfig(classes=2))
    for row in spec.preset(name, PLAIN):
        model = Model(NetDenoiser(net, row.process or Cosine()), (1, 2, 1), ("a", "b"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quadratic strides drop duplicates and say so
            plan = sampling.plan(model, row.sampling)
        assert torch.isfinite(plan.times).all()
        assert plan.nfe > 0


def test_the_published_figures_are_those_of_the_talk(shared) -> None:
    text = (shared / "talk.txt").read_text("utf-8")
    found = []
    for line in text[text.index("FID Scores on CIFAR10 and CelebA") :].splitlines():
        numbers = re.findall(r"\d+\.\d\d(?!\d)", line)
        if len(numbers) == 10:
            found.append([float(x) for x in numbers])
    assert len(found) == 5
    for eta, row in zip(spec.ETAS, found, strict=True):
        assert [spec.PUBLISHED["CIFAR-10"][eta, s] for s in spec.STEPS] == row[:5]
        assert [spec.PUBLISHED["CelebA"][eta, s] for s in spec.STEPS] == row[5:]


def test_the_published_figures_have_the_shape_that_is_claimed() -> None:
    """Also where the talk's text is absent: eta 0 best at S = 10 and 20, sigma-hat worst."""
    for values in spec.PUBLISHED.values():
        assert len(values) == 25
        for s in (10, 20):
            column = [values[eta, s] for eta in spec.ETAS]
            assert column == sorted(column)
        assert values["sigma-hat", 1000] == min(values["sigma-hat", s] for s in spec.STEPS)
