"""What the sources give: digits, folders, idx, parquet, the cache, the batch."""

import hashlib
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import data
from fewstep.data import cache as store
from fewstep.data.table import class_ids
from fewstep.errors import DataError, UsageError
from tests.unit.test_data_bad import good, idx_pair, picture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


# --------------------------------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    found = sklearn.load_digits()
    train, held = data.digits()
    expected = np.round(found.images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    ours = np.concatenate([train.pixels, held.pixels]).reshape(-1, 64)
    labels = np.concatenate([train.labels, held.labels])
    left = np.column_stack([expected, found.target]).tolist()
    assert sorted(left) == sorted(np.column_stack([ours, labels]).tolist())


def test_digits_split_is_fixed_stratified_and_disjoint():
    train, held = data.digits()
    assert (len(train), len(held), train.shape) == (1347, 450, (1, 8, 8))
    assert train.classes == tuple("0123456789")
    for label in range(10):
        ours, theirs = (train.labels == label).sum(), (held.labels == label).sum()
        assert abs(theirs / (ours + theirs) - 0.25) < 0.01
    assert not {p.tobytes() for p in train.pixels} & {p.tobytes() for p in held.pixels}
    # Published figures refer to exactly these images.
    both = train.fingerprint + held.fingerprint
    assert hashlib.sha256(both.encode()).hexdigest()[:16] == "77a9f382160dec1f"


def test_the_door_gives_the_same_digits_whatever_the_split_asked_for():
    expected = [part.fingerprint for part in data.digits()]
    found = data.open("digits", held_out=0.5, seed=7)
    assert [part.fingerprint for part in found] == expected
    large, _ = data.open("digits", size=16, resize="stretch", channels=3)
    assert large.shape == (3, 16, 16)


# --------------------------------------------------------------------------------------- images


def test_batch_is_the_stated_formula():
    train, _ = data.digits()
    ids = np.array([5, 0, 1346, 5])
    x, y = train.batch(ids)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    expected = train.pixels[ids].astype(np.float64) / 127.5 - 1
    assert np.abs(x.numpy() - expected).max() < 1e-6
    assert (x.min(), x.max()) == (-1, 1)  # exactly: 0 and 255 are reachable
    assert y.tolist() == train.labels[ids].tolist()
    again, _ = train.batch(torch.from_numpy(ids))
    assert torch.equal(x, again)
    x.zero_()  # the batch is the caller's own
    assert torch.equal(again, train.batch(ids)[0])


def test_fingerprint_sees_pixels_labels_and_names():
    train, _ = data.digits()
    pixels, labels = train.pixels[:50].copy(), train.labels[:50].copy()
    first = data.Images.of(pixels, labels, train.classes, "x")
    assert first.fingerprint == data.Images.of(pixels, labels, train.classes, "y").fingerprint
    assert first.fingerprint == train.subset(np.arange(50)).fingerprint
    seen = {first.fingerprint}
    pixels[49, 0, 7, 7] ^= 1
    seen.add(data.Images.of(pixels, labels, train.classes, "x").fingerprint)
    labels[0] = (labels[0] + 1) % 10
    seen.add(data.Images.of(pixels, labels, train.classes, "x").fingerprint)
    seen.add(data.Images.of(pixels, labels, ("zero", *train.classes[1:]), "x").fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("pixels", "labels", "named"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int64), "float32"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), r"\(2, 4, 4\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64), r"\(3,\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 2]), r"0 \.\.\. 1"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([-1, 0]), "-1"),
    ],
)
def test_images_refuse_arrays_that_do_not_fit(pixels, labels, named):
    with pytest.raises(ValueError, match=named):
        data.Images(pixels, labels, ("a", "b"), "x", "")


def test_describe():
    train, _ = data.digits()
    facts = train.describe()
    assert facts["images"] == 1347
    assert sum(facts["counts"]) == 1347
    assert facts["fingerprint"] == train.fingerprint


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.5, 0.9])
def test_split_is_a_stratified_partition(held_out):
    labels = np.repeat([0, 1, 2, 3], [100, 40, 2, 1])
    train, held = data.split_ids(labels, held_out, seed=3)
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(143))
    if held_out:
        counts = np.bincount(labels[held], minlength=4).tolist()
        assert counts == [100 * held_out, 40 * held_out, 1, 0]
        other = data.split_ids(labels, held_out, seed=4)[1]
        assert not np.array_equal(held, other)
    assert np.array_equal(held, data.split_ids(labels, held_out, seed=3)[1])


# -------------------------------------------------------------------------------------- folders


def test_class_folders_in_the_order_of_their_names(tmp_path):
    for label, value in (("cat", 10), ("Dog", 20), ("ape", 30)):
        for name in ("2.png", "10.png", "1.png", ".hidden.png"):
            picture(tmp_path / "s" / label / name, value=value + len(name))
    train, held = data.open(tmp_path / "s", held_out=0)
    assert train.classes == ("Dog", "ape", "cat")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert train.pixels[:, 0, 0, 0].tolist() == [25, 26, 25, 35, 36, 35, 15, 16, 15]
    assert len(held) == 0


def test_flat_folder_is_unlabelled(tmp_path):
    for i in range(20):
        picture(tmp_path / "s" / f"{i:02}.png", value=i)
    train, held = data.open(tmp_path / "s", held_out=0.25)
    assert (train.classes, len(train), len(held)) == ((), 15, 5)
    assert not train.labels.any()
    assert sorted([*train.pixels[:, 0, 0, 0], *held.pixels[:, 0, 0, 0]]) == list(range(20))


def test_one_colour_image_makes_three_channels(tmp_path):
    root = good(tmp_path / "s")
    assert data.open(root)[0].shape == (1, 8, 8)
    picture(root / "a" / "red.png", mode="RGB")
    assert data.open(root)[0].shape == (3, 8, 8)
    assert data.open(root, channels=1)[0].shape == (1, 8, 8)


@pytest.mark.parametrize("name", ["test", "val", "valid", "held_out"])
def test_train_and_held_out_folders_are_used(tmp_path, name):
    good(tmp_path / "s" / "train", count=5)
    good(tmp_path / "s" / name, count=2)
    train, held = data.open(tmp_path / "s")
    assert (len(train), len(held), held.classes) == (10, 4, ("a", "b"))
    assert data.check(tmp_path / "s").images == 14


# -------------------------------------------------------------------------------- idx and parquet


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_pair_from_folder_and_from_either_file(tmp_path, end):
    pixels = idx_pair(tmp_path / "s", end=end)
    for path in ("", f"train-images-idx3-ubyte{end}", f"train-labels-idx1-ubyte{end}"):
        train, _ = data.open(tmp_path / "s" / path, held_out=0)
        assert np.array_equal(train.pixels[:, 0], pixels)
        assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert train.classes == ("0", "1", "2")


def test_idx_train_and_test(tmp_path):
    idx_pair(tmp_path / "s", stem="train-")
    idx_pair(tmp_path / "s", stem="t10k-", labels=(2, 1, 0))
    train, held = data.open(tmp_path / "s")
    assert (len(train), held.labels.tolist()) == (6, [2, 1, 0])


def test_mnist(shared):
    folder = shared / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST files in {folder}")
    train, held = data.open(folder)
    assert (len(train), len(held), train.shape) == (9000, 1000, (1, 28, 28))
    everything, _ = data.open(folder, held_out=0)
    # The first test digit is the well-known 7; black background, white strokes.
    assert everything.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert everything.pixels[:, 0, 0, 0].max() == 0
    assert 30 < everything.pixels.mean() < 36


def png_bytes(value, tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path)
    return path.read_bytes()


def pyarrow_modules():
    """Import pyarrow or skip: it is an extra, and may not fit the installed NumPy."""
    pyarrow = pytest.importorskip(
        "pyarrow", reason="pyarrow cannot be imported", exc_type=ImportError
    )
    return pyarrow, pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_of_bytes(tmp_path, nested):
    pyarrow, parquet = pyarrow_modules()
    images = [png_bytes(10 * i, tmp_path) for i in range(9)]
    column = [{"bytes": b, "path": None} for b in images] if nested else images
    table = pyarrow.table({"image": column, "label": [i % 3 for i in range(9)]})
    names = '{"info": {"features": {"label": {"names": ["x", "y", "z"]}}}}'
    if nested:
        table = table.replace_schema_metadata({"huggingface": names})
    path = tmp_path / "train.parquet"
    parquet.write_table(table, path, row_group_size=4)
    train, _ = data.open(path, held_out=0)
    assert train.classes == (("x", "y", "z") if nested else ("0", "1", "2"))
    assert train.pixels[:, 0, 0, 0].tolist() == [10 * i for i in range(9)]
    assert train.labels.tolist() == [0, 1, 2] * 3
    parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    assert len(data.open(tmp_path)[1]) == 9


def test_parquet_faults(tmp_path):
    pyarrow, parquet = pyarrow_modules()
    path = tmp_path / "x.parquet"
    image = png_bytes(5, tmp_path)

    def refused(**columns):
        parquet.write_table(pyarrow.table(columns), path)
        with pytest.raises(DataError) as caught:
            data.open(path)
        assert str(caught.value).isprintable()
        return str(caught.value)

    assert "0 columns of encoded images" in refused(label=[1], text=["a"])
    assert "2 columns" in refused(one=[image], two=[image], label=[0])
    assert "row 1 has label '-1'" in refused(image=[image] * 2, label=[0, -1])
    text = refused(image=[image, None], label=[0, 1])
    assert "x.parquet row 1: has no image bytes" in text
    path.write_bytes(b"PAR1 and nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        data.open(path)


def test_parquet_without_pyarrow_says_how_to_install_it(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'fewstep\[parquet\]'"):
        data.open(path)


def test_cifar_rows(shared, tmp_path):
    pyarrow, parquet = pyarrow_modules()
    source = shared / "data" / "cifar10-jpeg" / "train.parquet"
    if not source.is_file():
        pytest.skip(f"no file {source}")
    few = next(parquet.ParquetFile(source).iter_batches(batch_size=600))
    parquet.write_table(pyarrow.Table.from_batches([few]), tmp_path / "few.parquet")
    train, _ = data.open(tmp_path / "few.parquet", held_out=0)
    assert train.shape == (3, 32, 32)
    assert np.array_equal(train.labels, few["label"].to_numpy())
    first = tmp_path / "first.jpg"
    first.write_bytes(few["image"][17].as_py()["bytes"])
    expected = np.asarray(Image.open(first).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(train.pixels[17], expected)


@pytest.mark.parametrize(
    ("values", "names", "named"),
    [
        ([0, 1, 3], None, "label 2"),
        ([0, -1], None, "row 1 has label '-1'"),
        ([0, 1.0], None, "row 1 has label '1.0'"),
        ([0, "a"], None, "row 1 has label 'a'"),
        ([0, None], None, "row 1 has label 'None'"),
        ([0, 2], ["a", "b"], r"integers 0 \.\.\. 1"),
        ([0, 0], ["a", "b"], r"label 1 \(b\)"),
        ([0, 10**9], None, "1000000000"),
    ],
)
def test_b20_labels_that_are_not_allowed(values, names, named):
    with pytest.raises(DataError, match=named):
        class_ids(values, names, "file", False)


def test_string_labels_name_the_classes():
    labels, classes = class_ids(["cat", "ape", "cat"], None, "file", False)
    assert (labels.tolist(), classes) == ([1, 0, 1], ("ape", "cat"))


# ---------------------------------------------------------------------------------------- cache


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_second_opening_reads_the_map_and_not_the_files(tmp_path, cache, monkeypatch):
    root = good(tmp_path / "s")
    first = data.open(root)
    assert {name[-4:] for name in files(cache)} == {".npy", "json"}
    monkeypatch.setattr("fewstep.data.source.decode", None)
    monkeypatch.setattr("fewstep.data.source.header", None)
    second = data.open(root)
    for a, b in zip(first, second, strict=True):
        assert a.fingerprint == b.fingerprint
        assert np.array_equal(a.pixels, b.pixels)
    assert not second[0].pixels.flags.owndata
    assert not second[0].pixels.flags.writeable


def test_changed_files_and_options_are_decoded_anew(tmp_path, cache):
    root = good(tmp_path / "s")
    first, _ = data.open(root, held_out=0)
    picture(root / "a" / "0.png", value=200)
    later = time.time_ns() + 10**9
    os.utime(root / "a" / "0.png", ns=(later, later))
    second, _ = data.open(root, held_out=0)
    assert (first.pixels[0].max(), second.pixels[0].max()) == (0, 200)
    assert data.open(root, size=4, resize="crop")[0].shape == (1, 4, 4)
    assert len(files(cache)) == 6


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "seal", "lost"])
def test_a_damaged_entry_is_rebuilt_with_a_warning(tmp_path, cache, harm):
    root = good(tmp_path / "s")
    expected = data.open(root)[0].fingerprint
    (array,) = cache.glob("*.npy")
    (seal,) = cache.glob("*.json")
    content = bytearray(array.read_bytes())
    if harm == "flip":
        content[-3] ^= 1
        array.write_bytes(content)
    elif harm == "lost":
        array.unlink()
    elif harm == "seal":
        seal.write_text("{}")
    else:
        array.write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    with pytest.warns(UserWarning, match="damaged"):
        found, _ = data.open(root)
    assert found.fingerprint == expected
    assert data.open(root)[0].fingerprint == expected  # and now it is whole: no warning


def test_an_interrupted_write_leaves_no_entry(tmp_path, cache, monkeypatch):
    root = good(tmp_path / "s")

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        data.open(root)
    assert files(cache) == []


def test_without_a_cache_folder_images_stay_in_memory(tmp_path, monkeypatch):
    root = good(tmp_path / "s")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("FEWSTEP_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="working in memory"):
        train, held = data.open(root)
    assert len(train) + len(held) == 8


def test_cache_folder(monkeypatch, tmp_path):
    assert store.folder() == tmp_path / "cache" / "data"
    monkeypatch.delenv("FEWSTEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.folder() == tmp_path / "xdg" / "fewstep" / "data"
