"""Cells, their files and the work on them: what is made once is made the same everywhere."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fewstep import data, sampling
from fewstep.data import Images
from fewstep.denoiser import NetDenoiser
from fewstep.errors import DataError, NumericError
from fewstep.metrics import pixels
from fewstep.model import Model, Sampling
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import Cosine, Tabulated
from fewstep.report import cells, kept
from fewstep.report.cells import Cell, Chunk, Labels, Maker, Store, passes, ranges

pytest.importorskip("torch_fidelity")

from fewstep.report.judge import Judge, Reals, protocol
from fewstep.report.spec import Row
from fewstep.report.work import Item, Subject, Work, absent


@pytest.fixture(scope="module")
def model() -> Model:
    """Untrained and tiny; its classes are those of the digits."""
    torch.manual_seed(0)
    config = UNetConfig(in_channels=1, out_channels=1, size=8, width=8, mult=(1,), depth=1,
                        attention=(), heads=1, classes=10, groups=4)  # fmt: skip
    net = UNet(config)
    for p in net.parameters():  # its last layer begins at zero: then all settings look alike
        torch.nn.init.normal_(p, std=0.2)
    names = tuple(str(i) for i in range(10))
    return Model(NetDenoiser(net.eval(), Cosine()), (1, 8, 8), names, Sampling(steps=3))


@pytest.fixture(scope="module")
def reals() -> Reals:
    return Reals("digits", *data.digits())


def one(model, **settings) -> Cell:
    return Cell(
        model, "tiny", "0" * 64, replace(model.sampling, **settings), None, Labels((1,) * 10)
    )


def work_on(model, reals, place, n=600, share=(0, 1), rows=("ddim", "heun")) -> Work:
    judge = Judge(protocol("small-1k", n), reals, [pixels()])
    subject = Subject(model, "tiny", "0" * 64, Labels(reals.counts("held_out")))
    ways = [Row(name, replace(model.sampling, sampler=name)) for name in rows]
    return Work(judge, [Item.of_row(way, subject, place) for way in ways], share)


def figures(work: Work) -> list:
    return [work.line(item, work.n).figures for item in work.items]


@pytest.mark.parametrize("counts", [(5, 5, 5), (50, 48, 52), (30, 10), (7, 0, 2), (1, 1000)])
def test_labels_follow_the_reference(counts) -> None:
    """In turn where balanced, else within one image of the share; a prefix stays a prefix."""
    rule, n = Labels(counts), 300
    labels = rule.first(n)
    assert np.array_equal(labels[:17], rule.first(17))
    if max(counts) <= 1.1 * min(counts):
        assert np.array_equal(labels, np.arange(n) % len(counts))
    for size in (10, 100, n):
        got = np.bincount(labels[:size], minlength=len(counts))
        if max(counts) > 1.1 * min(counts):
            assert np.abs(got - size * np.array(counts) / sum(counts)).max() <= 1
        assert all(g == 0 for g, c in zip(got, counts, strict=True) if c == 0)


def test_no_classes_ask_for_nothing() -> None:
    assert Labels().first(3).tolist() == [-1, -1, -1]


def test_chunks_cover_every_image_once() -> None:
    for n in (1, 249, 250, 251, 1000):
        found = ranges(n)
        assert found[0][0] == 0
        assert found[-1][1] == n
        assert all(a[1] == b[0] for a, b in pairwise(found))


def test_passes_double_the_images_of_every_row() -> None:
    class Named:
        pass

    order = passes([Named(), Named()], 2000)
    assert [len(p) for p in order] == [2, 2, 4, 8]
    assert sorted(c for p in order for c in p) == [(i, *r) for i in (0, 1) for r in ranges(2000)]
    upto = [max(end for _, _, end in p) for p in order]
    assert upto == [250, 500, 1000, 2000]


def test_an_image_does_not_depend_on_chunk_or_batch(model) -> None:
    """Image 37 alone is that of a large batch, and that of `sampling.walk` with seed + 37."""
    settings = {"sampler": "ddim", "eta": 1.0}
    whole = Maker(one(model, **settings)).make(0, 60)
    small = Maker(one(model, **settings), batch_size=7).make(0, 60)
    assert np.array_equal(whole.pixels, small.pixels)
    part = Maker(one(model, **settings)).make(30, 45)
    assert np.array_equal(whole.pixels[30:45], part.pixels)
    assert np.array_equal(whole.labels[30:45], part.labels)
    for step in sampling.walk(model, replace(model.sampling, eta=1.0), [7], 1, seed=37):
        x = step.x
    assert np.array_equal(sampling.to_uint8(x).numpy()[0], whole.pixels[37])
    assert whole.seconds > 0


def test_a_process_of_its_own_changes_the_images_and_the_name(model) -> None:
    plain = one(model)
    other = replace(plain, process=Tabulated())
    assert plain.id != other.id
    a, b = (Maker(c).make(0, 5).pixels for c in (plain, other))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    "change",
    [{"steps": 4}, {"eta": 0.1}, {"guidance_scale": 3.0}, {"spacing": "karras"}, {"clip": False}],
)
def test_every_setting_is_part_of_the_name(model, change) -> None:
    assert one(model).id != one(model, **change).id


def test_seed_and_weights_are_part_of_the_name(model) -> None:
    plain = one(model)
    assert plain.id != replace(plain, seed=1).id
    assert plain.id != replace(plain, weights="1" * 64).id
    assert plain.id == replace(plain, name="another name of the same thing").id


def test_images_that_are_not_finite_are_refused(model) -> None:
    broken = replace(model, denoiser=NetDenoiser(UNet(model.denoiser.net.config), Cosine()))
    with torch.no_grad():
        next(broken.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(NumericError, match=r"images 10\.\.13: step 1 of .* not finite"):
        Maker(one(broken)).make(10, 14)


def test_a_chunk_comes_back_as_it_was(tmp_path) -> None:
    store = Store(tmp_path, "cell", {"seed": 0})
    chunk = Chunk(np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8), np.array([3, 4]), 1.5)
    assert store.missing(2) == [(0, 2)]
    store.write(0, 2, chunk)
    back = store.read(0, 2)
    assert back is not None
    assert all(np.array_equal(a, b) for a, b in zip(chunk, back, strict=True))
    assert store.missing(2) == []
    assert [p.name for p in store.folder.iterdir() if "part" in p.name] == []


def test_a_damaged_chunk_is_none_and_gone(tmp_path) -> None:
    """Cut anywhere, or of another cell: never taken for images."""
    store = Store(tmp_path, "cell", {})
    chunk = Chunk(np.full((2, 1, 8, 8), 7, dtype=np.uint8), np.array([3, 4]), 1.5)
    store.write(0, 2, chunk)
    path = store.path(0, 2)
    good = path.read_bytes()
    for at in range(0, len(good), 10):
        path.write_bytes(good[:at])
        with pytest.warns(UserWarning, match="damaged"):
            assert store.read(0, 2) is None
        assert not path.exists()
    other = Store(tmp_path, "other", {})
    other.write(0, 2, chunk)
    other.path(0, 2).replace(path)
    assert store.read(0, 2) is None
    assert store.missing(2) == [(0, 2)]


def test_a_folder_of_other_images_is_refused(tmp_path) -> None:
    Store(tmp_path, "cell", {"seed": 0}).open()
    with pytest.raises(DataError, match="made in another way"):
        Store(tmp_path, "cell", {"seed": 1})


@pytest.mark.filterwarnings("ignore:.*damaged")
def test_work_that_lost_chunks_ends_the_same(model, reals, tmp_path) -> None:
    work = work_on(model, reals, tmp_path)
    done = list(work.make())
    assert [d.images for d in done if d.last] == [250, 500, 600]
    before = figures(work)
    for i, path in enumerate(sorted(tmp_path.rglob("*.npz"))):
        if i % 2:
            path.write_bytes(path.read_bytes()[:100])  # damaged
        elif i % 3 == 0:
            path.unlink()
    again = work_on(model, reals, tmp_path)
    list(again.make())
    assert figures(again) == before


def test_nothing_is_made_twice(model, reals, tmp_path, monkeypatch) -> None:
    list(work_on(model, reals, tmp_path).make())
    again = work_on(model, reals, tmp_path)
    assert again.cost() == 0
    monkeypatch.setattr(Maker, "make", lambda *_: pytest.fail("made again"))
    list(again.make())
    figures(again)


def test_shards_are_one_work(model, reals, tmp_path) -> None:
    """Three parts, made in any order by other objects, end as one process does."""
    alone = work_on(model, reals, tmp_path / "alone")
    list(alone.make())
    for i in (2, 0, 1):
        part = work_on(model, reals, tmp_path / "parts", share=(i, 3))
        if i == 0:
            assert part.missing()
        list(part.make())
    whole = work_on(model, reals, tmp_path / "parts")
    assert whole.missing() == 0
    assert whole.cost() == 0
    for a, b in zip(figures(alone), figures(whole), strict=True):
        for x, y in zip(a, b, strict=True):
            assert y.value == pytest.approx(x.value, rel=1e-6)
            assert (y.low, y.high) == pytest.approx((x.low, x.high), rel=1e-6)


def test_more_images_keep_the_first_ones(model, reals, tmp_path) -> None:
    list(work_on(model, reals, tmp_path, 250).make())
    more = work_on(model, reals, tmp_path, 500)
    assert [(s, e) for _, s, e in absent(more.items, 500)] == [(250, 500)] * 2


def test_images_made_elsewhere_are_measured_alike(model, reals, tmp_path) -> None:
    """The same pixels, from a cell and from outside: the same figures."""
    work = work_on(model, reals, tmp_path / "a", rows=("ddim",))
    list(work.make())
    made = work.pixels(work.items[0], range(600)).numpy()
    given = Images.of(made, np.arange(600) % 10, reals.classes, "elsewhere")
    judge = Judge(protocol("small-1k", 600), reals, [pixels()])
    other = Work(judge, [Item.of_images(given, "elsewhere", 600, tmp_path / "b")])
    list(other.make())
    assert figures(other) == figures(work)
    assert other.outline().protocol == work.outline().protocol


def test_figures_do_not_depend_on_where_features_lie(model, reals, tmp_path, monkeypatch) -> None:
    """In memory or mapped from a file: digit for digit."""
    work = work_on(model, reals, tmp_path, rows=("ddim",))
    list(work.make())
    before = figures(work)
    monkeypatch.setattr(kept, "_IN_MEMORY", 0)
    assert figures(work) == before


def test_a_verdict_has_classes_and_copies(model, reals, tmp_path) -> None:
    """A generator that repeats the training set is found out."""
    judge = Judge(protocol("small-1k", 300), reals, [pixels()])
    copied = reals.train.subset(np.arange(300))
    work = Work(judge, [Item.of_images(copied, "copies", 300, tmp_path)])
    list(work.make())
    line, verdict = work.verdict(work.items[0])
    rate = line.figure("copy rate")
    assert rate is not None
    assert rate.value == 1.0
    assert rate.real == pytest.approx(0.05, abs=0.01)
    assert [a == b for a, b, _ in verdict.pairs] == [True] * len(verdict.pairs)
    assert len(verdict.per_class) == 10


def test_what_cannot_be_judged_is_refused(reals) -> None:
    reals.check((1, 8, 8), reals.classes, "tiny")
    reals.check((1, 8, 8), (), "without labels")
    for shape in ((3, 8, 8), (1, 16, 16)):
        with pytest.raises(DataError, match="x".join(map(str, shape))):
            reals.check(shape, reals.classes, "tiny")
    with pytest.raises(DataError, match="another order"):
        reals.check((1, 8, 8), tuple(reversed(reals.classes)), "tiny")
    with pytest.raises(DataError, match="new: eleven"):
        reals.check((1, 8, 8), (*reals.classes[:9], "eleven"), "tiny")
    few = Reals("few", reals.train.subset(np.arange(5)))
    with pytest.raises(DataError, match="5 real images are too few"):
        few.check((1, 8, 8), reals.classes, "tiny")


def test_numbers_of_an_array_stand_for_classes_by_index(reals) -> None:
    named = replace(reals, train=replace(reals.train, classes=tuple("abcdefghij")))
    named.check((1, 8, 8), tuple("0123"), "batch.npz")
    with pytest.raises(DataError, match="other classes"):
        named.check((1, 8, 8), tuple("1230"), "batch.npz")


def test_a_record_says_what_made_the_number(model, reals, tmp_path) -> None:
    work = work_on(model, reals, tmp_path, 20, rows=("ddim",))
    list(work.make())
    plain = json.loads(json.dumps(work.line(work.items[0], 20).plain()))
    assert plain["protocol"]["reference"]["fingerprint"] == reals.held_out.fingerprint
    assert plain["protocol"]["extractors"]["pixels"]["rule"]
    assert plain["protocol"]["n"] == 20
    assert plain["settings"]["eta"] == 0
    assert plain["settings"]["spacing"] == "even"
    assert plain["settings"]["guidance_scale"] == 1
    assert plain["nfe"] == 3
    assert plain["record"]["seeds"] == "image i: 0 + i"
    assert len(plain["record"]["times"]) == 4
    assert f"torch {torch.__version__}" in plain["record"]["sampled on"]
    assert plain["record"]["labels"] == "classes in turn"
    assert set(plain["record"]["measured with"]) >= {"torch", "fewstep", "torch-fidelity"}


def test_the_size_of_a_chunk_is_part_of_the_format() -> None:
    """Folders of users hold chunks of this size; another size would make them again."""
    assert cells.CHUNK == 250
