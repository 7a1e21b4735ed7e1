"""Sweeps over guidance scales: their rows, what keeps them apart, their curves and figure."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

from fewstep import sampling
from fewstep.classifier import NoisyClassifier
from fewstep.errors import UsageError
from fewstep.metrics.figures import Figure
from fewstep.model import Model, Sampling
from fewstep.nets.encoder import EncoderConfig, EncoderUNet
from fewstep.process import Cosine
from fewstep.report import sections, spec, sweep, table
from fewstep.report.cells import Cell, Labels, Maker
from fewstep.report.work import Item, Subject
from fewstep.steer import Steer, Weak
from unit import made_lines
from unit.test_steer import random_model

pytest.importorskip("matplotlib")

MODEL = replace(random_model(), sampling=Sampling(steps=3, guidance_scale=2.0))
PLAIN = replace(random_model(classes=0), sampling=Sampling(steps=3))
WEAK = Weak(random_model(1), "weak", "e" * 64)
SCALES = [0.0, 0.5, 1.0, 2.0]


def judge(seed=0, classes=4) -> Steer:
    torch.manual_seed(seed)
    config = EncoderConfig(1, classes, 8, width=8, mult=(1,), depth=1, attention=(), heads=1,
                           groups=4)  # fmt: skip
    net = EncoderUNet(config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model = Model(NoisyClassifier(net.eval(), Cosine()), (1, 8, 8), tuple("abcd"[:classes]))
    return Steer(model, 1.0, "judge", f"{seed}" * 64)


JUDGE = judge()


def swept(model=MODEL, classifier=JUDGE, base="ddim:3", weak=None) -> list[spec.Row]:
    (row,) = spec.parse(base, model.sampling, None, weak)
    return sweep.rows(model, row, SCALES, classifier)


def item(row, tmp_path, model=MODEL) -> Item:
    return Item.of_row(row, Subject(model, "m", "f" * 64, Labels((1,) * 4)), tmp_path)


def images(row, model=MODEL) -> torch.Tensor:
    asked = model.classes or isinstance(row.steer, Steer)
    labels = Labels((1,) * 4) if asked else Labels()
    cell = Cell(model, "m", "f" * 64, row.sampling, row.process, labels, 3, row.steer)
    return torch.from_numpy(Maker(cell).make(0, 4).pixels)


# ---------------------------------------------------------------- rows
def test_every_scale_has_a_row_of_each_guidance() -> None:
    rows = swept()
    assert [r.title for r in rows] == [
        *(f"scale {s}" for s in ("0", "0.5", "1", "2")),
        *(f"classifier scale {s}" for s in ("0", "0.5", "1", "2")),
    ]
    free, judged = rows[:4], rows[4:]
    assert [r.sampling.guidance_scale for r in free] == SCALES
    assert {r.steer for r in free} == {None}
    assert {r.sampling.guidance_scale for r in judged} == {0.0}
    assert [r.steer.scale for r in judged if isinstance(r.steer, Steer)] == SCALES
    assert {r.group for r in rows} == {
        "Classifier-free guidance: DDIM 3", "Classifier guidance: DDIM 3",
    }  # fmt: skip
    assert len(swept(classifier=None)) == 4
    plain = swept(PLAIN)
    assert [r.title for r in plain] == [r.title for r in judged]
    assert {r.sampling.guidance_scale for r in plain} == {1.0}
    auto = swept(classifier=None, base="ddim:3:weak=yes", weak=WEAK)
    assert {r.group for r in auto} == {"Autoguidance: DDIM 3, weak model"}


def test_the_ends_of_both_curves_are_the_same_images() -> None:
    """At 0 both are the unconditional model, at 1 classifier-free guidance is the plain one."""
    rows = swept()
    null = torch.full((4,), -1)
    settings = replace(MODEL.sampling, guidance_scale=1.0)
    alone = {}
    for name, labels in (("conditional", [0, 1, 2, 3]), ("null", null.tolist())):
        *_, last = sampling.walk(MODEL, settings, labels, 4, 3)
        alone[name] = sampling.to_uint8(last.x)
    assert torch.equal(images(rows[0]), alone["null"])
    assert torch.equal(images(rows[4]), alone["null"])
    assert torch.equal(images(rows[2]), alone["conditional"])
    assert not torch.equal(images(rows[6]), alone["null"])
    plain = swept(PLAIN)
    *_, last = sampling.walk(PLAIN, PLAIN.sampling, None, 4, 3)
    assert torch.equal(images(plain[0], PLAIN), sampling.to_uint8(last.x))
    assert not torch.equal(images(plain[3], PLAIN), images(plain[0], PLAIN))


def test_refinements_are_of_their_own_guidance_and_nothing_at_one() -> None:
    rows = swept(base="ddim:3:interval=0.3..3:rescale=0.7")
    refined = [(r.sampling.guidance_low, r.sampling.guidance_rescale) for r in rows]
    assert refined == [(0.3, 0.7), (0.3, 0.7), (0.0, 0.0), (0.3, 0.7), *[(0.0, 0.0)] * 4]
    assert torch.equal(images(rows[2]), images(swept()[2]))
    assert rows[0].group == "Classifier-free guidance: DDIM 3, interval 0.3..3, rescale 0.7"
    for row in rows:
        images(row)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("guidance", "no scales; write guidance=0,1,2,4"),
        ("guidance=", "no scales"),
        ("guidance=1,nan", 'scale "nan": must be a finite number'),
        ("guidance=inf", 'scale "inf"'),
        ("guidance=1,,2", 'scale ""'),
        ("guidance=1,two", 'scale "two"'),
        ("guidance=0,-0", 'scale "-0" is given twice'),
        ("guidence=1", '"guidence": allowed is guidance .did you mean "guidance"'),
        ("", '"": allowed is guidance'),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_line(text, said) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        sweep.scales(text)
    assert "\n" not in str(caught.value)


def test_a_sweep_reads_its_scales_in_their_order() -> None:
    assert sweep.scales(" guidance = 4, 0 ,-1,0.5") == [4.0, 0.0, -1.0, 0.5]


def test_what_a_sweep_decides_is_not_said_twice() -> None:
    with pytest.raises(UsageError, match="leave scale= and w= out"):
        swept(base="ddim:3:scale=3")
    (row,) = spec.parse("ddim:3:classifier=2", MODEL.sampling, JUDGE)
    with pytest.raises(UsageError, match="leave classifier= out"):
        sweep.rows(MODEL, row, SCALES, JUDGE)
    with pytest.raises(UsageError, match=r"unconditional .* --classifier RUN"):
        swept(PLAIN, classifier=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ddim:3:classifier=2", "classifier: which one. give --classifier RUN"),
        ("ddim:3:weak=yes", "weak: which model. give --weak RUN"),
        ("ddim:3:weak=true", 'weak "true": allowed are yes, no'),
        ("ddim:3:classifier=nan", 'classifier "nan": must be a finite number'),
        ("ddim:3:classifier=1:weak=yes", "classifier and weak: give one"),
        ("ddim:3:clip=no:threshold=99", "clip and threshold: give one"),
        ("ddim:3:interval=3..1", 'interval "3..1": must be LOW..HIGH'),
        ("ddim:3:apg=0", 'apg "0": must be'),
        ("ddim:3:rescael=1", '"rescael": allowed are .*mean "rescale"'),
    ],
)
def test_rows_with_guidance_that_cannot_be(text, said) -> None:
    with pytest.raises(UsageError, match=said):
        spec.parse(text, MODEL.sampling)


def test_rows_of_all_guidances_are_told_apart() -> None:
    words = (
        "ddim:3,ddim:3:interval=0.3..3,ddim:3:rescale=0.7,ddim:3:apg=15,ddim:3:apg=15:momentum=-0.5,"
        "ddim:3:threshold=99.5,ddim:3:weak=yes,ddim:3:classifier=1,ddim:3:classifier=2,ddim:4:weak=no"
    )  # fmt: skip
    rows = spec.parse(words, MODEL.sampling, JUDGE, WEAK)
    assert len({r.title for r in rows}) == len(rows) == 10
    assert rows[1].title == "DDIM 3, scale 2, interval 0.3..3"
    assert rows[6].settings()["weak"]["weights_sha256"] == WEAK.weights
    with pytest.raises(UsageError, match="the same settings"):
        spec.parse("ddim:3:classifier=1,ddim:3:classifier=1.0", MODEL.sampling, JUDGE)


# ---------------------------------------------------------------- what is kept
def test_images_are_kept_under_the_weights_of_what_guides(tmp_path) -> None:
    """Another classifier, scale or weak model is another cell; another name of one is not."""
    base = swept()[6]
    other = judge(1)
    ways = [
        base,
        replace(base, steer=replace(JUDGE, scale=2.0)),
        replace(base, steer=other),
        replace(base, steer=WEAK),
        replace(base, steer=replace(WEAK, weights="d" * 64)),
        replace(base, steer=None),
    ]
    folders = {item(way, tmp_path).store.folder for way in ways}
    assert len(folders) == len(ways)
    renamed = replace(base, steer=replace(JUDGE, name="another", scale=1.0))
    assert item(renamed, tmp_path).store.folder == item(base, tmp_path).store.folder
    with pytest.raises(ValueError, match="SHA-256"):
        item(replace(base, steer=replace(JUDGE, weights="")), tmp_path)


def test_the_cell_of_plain_settings_is_where_it_was(tmp_path) -> None:
    """Its name is a hash of what decides the images: no field may join it unasked."""
    identity = Cell(MODEL, "m", "f" * 64, MODEL.sampling).identity()
    assert set(identity) == {
        "weights", "denoiser", "sampling", "process", "labels", "classes", "seed",
    }  # fmt: skip
    assert set(identity["sampling"]) == {
        "sampler", "steps", "spacing", "eta", "guidance_scale", "clip",
    }  # fmt: skip


# ---------------------------------------------------------------- curves, table, figure
def lines(model=MODEL, classifier=JUDGE, **change) -> list:
    """A measured sweep: distance 1 + s of the one, 2 + s of the other guidance."""
    found = []
    for k, row in enumerate(swept(model, classifier)):
        s = SCALES[k % 4]
        figures = (
            Figure("FD-pixels", 1 + k // 4 + s, 0.9 + k // 4 + s, 1.2 + k // 4 + s, 0.5, 450),
            Figure("precision-pixels", 0.7 + s / 10, 0.6, 0.95, 0.9, 450, "higher"),
            Figure("recall-pixels", 0.8 - s / 10, 0.5, 0.85, 0.91, 450, "higher"),
            Figure("accuracy", 0.9, 0.88, 0.92, 0.99, 450, "higher"),
            Figure("diversity-classifier", 0.9, 0.88, 0.92, 0.99, 450, "higher"),
        )
        found.append(made_lines.line(row, 1.0, 3, figures=figures, **change))
    return found


def test_curves_hold_each_scale_in_its_place() -> None:
    found = sweep.curves(lines())
    assert list(found) == ["Classifier-free guidance", "Classifier guidance"]
    for k, members in enumerate(found.values()):
        assert [s for s, _ in members] == SCALES
        assert [x.figure("FD-pixels").value for _, x in members] == [1 + k + s for s in SCALES]
    two = sweep.curves([*lines(), *lines(classifier=judge(1))])
    judged = ["Classifier guidance (00000000)", "Classifier guidance (11111111)"]
    assert list(two) == ["Classifier-free guidance", *judged]
    (row,) = spec.parse("ddim:4", MODEL.sampling)
    more = [made_lines.line(r, 1.0, 3) for r in sweep.rows(MODEL, row, SCALES)]
    free = ["Classifier-free guidance: DDIM 3", "Classifier-free guidance: DDIM 4"]
    assert list(sweep.curves([*lines(classifier=None), *more])) == free
    named = [replace(line, model="other") for line in lines(classifier=None)]
    models = ["digits: Classifier-free guidance", "other: Classifier-free guidance"]
    assert list(sweep.curves([*lines(classifier=None), *named])) == models
    assert sweep.is_sweep(lines())
    assert not sweep.is_sweep([*lines(), made_lines.foreign()])
    assert not sweep.is_sweep(made_lines.frontier())
    assert not sweep.is_sweep(lines()[:1])


def test_the_table_shows_what_guidance_trades() -> None:
    found = lines()
    names = sweep.columns(found, "FD-pixels")
    assert names == ["FD-pixels", "precision-pixels", "recall-pixels", "accuracy"]
    text = sweep.markdown(found)
    assert text.splitlines()[0].split("|")[5:-1] == [f" {name} " for name in names]
    assert "**Classifier guidance: DDIM 3**" in text
    assert table.frontier(found, names=names)[0].split()[-4:] == names


@pytest.mark.parametrize("place", ["FILE", "WIDE", "NARROW"])
def test_the_figure_shows_both_curves_and_marks_the_ends(place) -> None:
    from fewstep.report import chart

    svg = sweep.figure(lines(), "FD-pixels", getattr(chart, place))
    ET.fromstring(svg)
    text = " ".join(re.findall(r"<text[^>]*>([^<]*)<", svg))
    for word in (
        "Classifier-free guidance", "Classifier guidance", "real images", "plain", "ignored",
        "precision-pixels (higher is better)", "recall-pixels (higher is better)",
        "FD-pixels (lower is better)",
    ):  # fmt: skip
        assert word in text, word
    assert "http" not in svg.replace("http://www.w3.org/", "")


def test_the_points_of_the_figure_are_the_figures(monkeypatch) -> None:
    """What is drawn, by what matplotlib was told: scale and distance, recall and precision."""
    from fewstep.report import chart

    seen = {}

    def keep(draw, place, form):
        from matplotlib.figure import Figure as Drawing

        drawing = Drawing(figsize=place.size)
        draw(drawing)
        seen["axes"] = drawing.axes
        return b"<svg ></svg>"

    monkeypatch.setattr(chart, "rendered", keep)
    sweep.figure(lines(), "FD-pixels")
    left, right = seen["axes"]
    one, other = (c.lines[0] for c in left.containers)
    assert list(one.get_xdata()) == list(other.get_xdata()) == SCALES
    assert list(one.get_ydata()) == [1 + s for s in SCALES]
    assert list(other.get_ydata()) == [2 + s for s in SCALES]
    points = right.containers[0].lines[0]
    assert list(points.get_xdata()) == [0.8 - s / 10 for s in SCALES]
    assert list(points.get_ydata()) == [0.7 + s / 10 for s in SCALES]
    bars = left.containers[0].lines[2][0].get_segments()
    assert [bar[0][1] for bar in bars] == pytest.approx([0.9 + s for s in SCALES])
    assert [bar[1][1] for bar in bars] == pytest.approx([1.2 + s for s in SCALES])


def test_the_page_of_a_sweep_has_its_figure_and_not_that_of_costs() -> None:
    (section,) = sections.measured(lines(), "FD-pixels")
    assert section.body.count("<svg ") == 2
    assert "Chart: FD-pixels against guidance scale and precision against recall" in section.body
    assert "against their cost" not in section.body
