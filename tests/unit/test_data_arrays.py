"""Images in arrays: every accepted format gives the same bytes (bad ones: the file beside)."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewstep import data
from fewstep.errors import DataError, UsageError

N, SIZE = 6, 5
LABELS = np.array([0, 2, 1, 2, 0, 1])
GREY = np.random.default_rng(1).integers(0, 256, (N, 1, SIZE, SIZE), dtype=np.uint8)
COLOUR = np.random.default_rng(3).integers(0, 256, (N, 3, SIZE, SIZE), dtype=np.uint8)
LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def last(pixels):
    """Return the channels as the last axis, in memory too."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def floats(pixels, kind=np.float32):
    return (pixels / 127.5 - 1).astype(kind)


def tensors(path, **arrays):
    save_file({k: torch.as_tensor(np.ascontiguousarray(v)) for k, v in arrays.items()}, path)


def images_of(pixels, root):
    root.mkdir()
    for i, each in enumerate(pixels):
        Image.fromarray(each[0] if len(each) == 1 else each.transpose(1, 2, 0)).save(
            root / f"{i:03d}.png"
        )
    return root


FORMATS = {
    "npz of ADM": ("s.npz", lambda f, p: np.savez(f, last(p), LABELS)),
    "npz of ADM, packed": ("s.npz", lambda f, p: np.savez_compressed(f, last(p), LABELS)),
    "npz of ADM, int32 labels": ("s.npz", lambda f, p: np.savez(f, last(p), LABELS.astype("i4"))),
    "npz of ADM with statistics": (
        "s.npz",
        lambda f, p: np.savez(f, last(p), LABELS, mu=LABELS, sigma=p, mu_s=p, sigma_s=p),
    ),
    "npz of ADM, floats": ("s.npz", lambda f, p: np.savez(f, last(floats(p)), LABELS)),
    "npz of ours": (
        "s.npz",
        lambda f, p: np.savez(f, pixels=p, labels=LABELS, seconds=1.5, cell="x"),
    ),
    "npz, upper case": ("S.NPZ", lambda f, p: np.savez(f, pixels=p, labels=LABELS)),
    "npz, Fortran order": (
        "s.npz",
        lambda f, p: np.savez(f, np.asfortranarray(last(p)), LABELS),
    ),
    "npz, Fortran order, packed": (
        "s.npz",
        lambda f, p: np.savez_compressed(f, np.asfortranarray(last(p)), LABELS),
    ),
    "safetensors": ("s.safetensors", lambda f, p: tensors(f.name, images=p, labels=LABELS)),
    "safetensors, floats": (
        "s.safetensors",
        lambda f, p: tensors(f.name, images=floats(p), labels=LABELS),
    ),
    "safetensors, bfloat16": (
        "s.safetensors",
        lambda f, p: save_file(
            {
                "images": torch.from_numpy(floats(p)).bfloat16(),
                "labels": torch.from_numpy(LABELS),
            },
            f.name,
        ),
    ),
}
UNLABELLED = {
    "npz of ADM": ("s.npz", lambda f, p: np.savez(f, last(p))),
    "npz of ours": ("s.npz", lambda f, p: np.savez(f, pixels=p)),
    "npy": ("s.npy", lambda f, p: np.save(f, p)),
    "npy, channels last": ("s.npy", lambda f, p: np.save(f, last(p))),
    "npy, Fortran order": ("s.npy", lambda f, p: np.save(f, np.asfortranarray(p))),
    "npy, float64": ("s.npy", lambda f, p: np.save(f, floats(p, np.float64))),
    "npy, float16": ("s.npy", lambda f, p: np.save(f, last(floats(p, np.float16)))),
    "npy, big-endian": ("s.npy", lambda f, p: np.save(f, floats(p, ">f4"))),
    "one tensor": ("s.safetensors", lambda f, p: tensors(f.name, anything=p)),
}


def written(tmp_path, case, pixels):
    name, write = case
    path = tmp_path / name
    with path.open("wb") as file:
        write(file, pixels)
    return path


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("case", FORMATS)
def test_every_labelled_format_gives_the_same_set(tmp_path, case, pixels):
    images = data.load(written(tmp_path, FORMATS[case], pixels))
    expected = data.Images.of(pixels, LABELS, ("0", "1", "2"), "")
    assert np.array_equal(images.pixels, pixels)
    assert images.labels.tolist() == LABELS.tolist()
    assert images.classes == ("0", "1", "2")
    assert images.fingerprint == expected.fingerprint
    x, y = images.batch(np.array([3, 1]))
    assert torch.equal(x, expected.batch(np.array([3, 1]))[0])
    assert y.tolist() == [2, 2]


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("case", UNLABELLED)
def test_every_unlabelled_format_gives_the_same_set(tmp_path, case, pixels):
    images = data.load(written(tmp_path, UNLABELLED[case], pixels))
    assert np.array_equal(images.pixels, pixels)
    assert (images.classes, images.labels.tolist()) == ((), [0] * N)
    assert images.fingerprint == data.Images.of(pixels, images.labels, (), "").fingerprint


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8"])
def test_all_256_levels_survive_as_floats(tmp_path, kind):
    np.save(tmp_path / "s.npy", floats(LEVELS, kind))
    assert np.array_equal(data.load(tmp_path / "s.npy").pixels, LEVELS)


def test_floats_are_rounded_and_never_truncated(tmp_path):
    u = np.array([-0.4, 0.4, 0.6, 9.4, 9.6, 254.4, 254.6, 255]).clip(0)
    x = (u / 127.5 - 1).reshape(1, 1, 2, 4)
    np.save(tmp_path / "s.npy", x)
    assert data.load(tmp_path / "s.npy").pixels.ravel().tolist() == [
        0, 0, 1, 9, 10, 254, 255, 255,
    ]  # fmt: skip


def test_bytes_are_mapped_and_not_copied(tmp_path, cache):
    np.save(tmp_path / "a.npy", COLOUR)
    np.savez(tmp_path / "b.npz", last(COLOUR), LABELS)
    tensors(tmp_path / "c.safetensors", images=COLOUR)
    for name in ("a.npy", "b.npz", "c.safetensors"):
        base = data.load(tmp_path / name).pixels
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)
        assert not base.flags.writeable
    assert not cache.exists()


def test_size_and_channels_as_for_other_data(tmp_path):
    np.savez(tmp_path / "s.npz", last(GREY), LABELS)
    colour = data.load(tmp_path / "s.npz", channels=3)
    assert np.array_equal(colour.pixels, GREY.repeat(3, axis=1))
    assert data.load(tmp_path / "s.npz", size=SIZE, resize="crop").pixels.base is not None
    small = data.load(tmp_path / "s.npz", size=4, resize="stretch")
    folder = data.load(images_of(GREY, tmp_path / "f"), size=4, resize="stretch")
    assert np.array_equal(small.pixels, folder.pixels)
    with pytest.raises(DataError, match="not 4x4"):
        data.load(tmp_path / "s.npz", size=4)
    with pytest.raises(UsageError, match="did you mean"):
        data.load(tmp_path / "s.npz", size=4, resize="strech")


def test_folders_digits_and_tables_are_loaded_whole(tmp_path):
    assert len(data.load("digits")) == 1797
    train, held = data.digits()
    every = np.concatenate([train.pixels, held.pixels])
    assert sorted(map(bytes, data.load("digits").pixels)) == sorted(map(bytes, every))
    flat = data.load(images_of(COLOUR, tmp_path / "flat"))
    assert np.array_equal(flat.pixels, COLOUR)
    for label in range(3):
        (tmp_path / "classes").mkdir(exist_ok=True)
        images_of(GREY[np.flatnonzero(label == LABELS)], tmp_path / "classes" / "xyz"[label])
    (tmp_path / "classes" / "xx").mkdir()  # a class that the other program never made
    images = data.load(tmp_path / "classes")
    assert images.classes == ("x", "xx", "y", "z")
    assert np.bincount(images.labels).tolist() == [2, 0, 2, 2]
    for kind, values in (("images-idx3", GREY[:, 0]), ("labels-idx1", LABELS.astype(np.uint8))):
        head = struct.pack(f">I{values.ndim}I", 0x800 | values.ndim, *values.shape)
        (tmp_path / f"train-{kind}-ubyte").write_bytes(head + values.tobytes())
    idx = data.load(tmp_path / "train-images-idx3-ubyte")
    assert np.array_equal(idx.pixels, GREY)
    assert idx.classes == ("0", "1", "2")


def test_parquet_is_loaded_whole(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    encoded = []
    for each in GREY[:, 0]:
        file = io.BytesIO()
        Image.fromarray(each).save(file, format="PNG")
        encoded.append(file.getvalue())
    parquet.write_table(pyarrow.table({"image": encoded[:4]}), tmp_path / "a-0.parquet")
    parquet.write_table(pyarrow.table({"image": encoded[4:]}), tmp_path / "a-1.parquet")
    assert np.array_equal(data.load(tmp_path).pixels, GREY)
    parquet.write_table(pyarrow.table({"image": encoded[4:]}), tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match="files of one part only"):
        data.load(tmp_path)


def test_two_parts_are_refused_by_name(tmp_path):
    (tmp_path / "s").mkdir()
    images_of(GREY, tmp_path / "s" / "train")
    images_of(GREY, tmp_path / "s" / "test")
    with pytest.raises(DataError) as caught:
        data.load(tmp_path / "s")
    for part in ("train", "test"):
        assert str(tmp_path / "s" / part) in str(caught.value)
        assert len(data.load(tmp_path / "s" / part)) == N


def test_arrays_are_training_data_too(tmp_path):
    many = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "s.npz", last(many), np.arange(40) % 4)
    train, held = data.open(tmp_path / "s.npz", held_out=0.25)
    ours, theirs = data.split_ids(np.arange(40) % 4, 0.25, 0)
    assert np.array_equal(train.pixels, many[ours])
    assert np.array_equal(held.pixels, many[theirs])
    assert data.check(tmp_path / "s.npz").ok
    np.savez(tmp_path / "gap.npz", last(many), np.arange(40) % 4 * 2)
    with pytest.raises(DataError, match="no row has label 1"):
        data.open(tmp_path / "gap.npz")
    made = data.load(tmp_path / "gap.npz")
    assert made.classes == tuple("0123456")
    with pytest.raises(DataError, match="class"):
        data.check_classes(tuple("0123456789"), made.classes)
