"""Every bad file of arrays gets one line that names what is wrong, and nothing is written."""

import io
import json
import random
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep import data
from fewstep.errors import DataError, ResourceError

N, SIZE = 6, 5
LABELS = np.array([0, 2, 1, 2, 0, 1])
GREY = np.random.default_rng(1).integers(0, 256, (N, 1, SIZE, SIZE), dtype=np.uint8)
COLOUR = np.random.default_rng(3).integers(0, 256, (N, 3, SIZE, SIZE), dtype=np.uint8)


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


def npz(**arrays):
    def write(path):
        np.savez(path / "s.npz", **arrays)
        return path / "s.npz"

    return write


def adm(images, labels=None):
    return npz(arr_0=images) if labels is None else npz(arr_0=images, arr_1=labels)


def npy(values):
    def write(path):
        np.save(path / "s.npy", values)
        return path / "s.npy"

    return write


def safe(**arrays):
    def write(path):
        tensors(path / "s.safetensors", **arrays)
        return path / "s.safetensors"

    return write


def raw(name, content):
    def write(path):
        (path / name).write_bytes(content)
        return path / name

    return write


def cut(write, keep):
    """Keep so many bytes of a file, or take so many from its end."""

    def build(path):
        file = write(path)
        file.write_bytes(file.read_bytes()[:keep])
        return file

    return build


def objects(path):
    values = np.array([None] * 3, dtype=object)
    np.savez(path / "s.npz", values)  # NumPy pickles it
    return path / "s.npz"


def npy_bytes(shape, kind="|u1", body=b""):
    file = io.BytesIO()
    facts = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue() + body


def zipped(content, packing=zipfile.ZIP_DEFLATED, claim=None):
    """Write an .npz with one member; `claim` is the unpacked size that its list promises."""

    def write(path):
        with zipfile.ZipFile(path / "s.npz", "w", packing) as archive:
            archive.writestr("arr_0.npy", content)
        if claim:
            held = bytearray((path / "s.npz").read_bytes())
            struct.pack_into("<I", held, held.rindex(b"PK\1\2") + 24, claim)
            (path / "s.npz").write_bytes(held)
        return path / "s.npz"

    return write


def flipped(path):
    np.savez(path / "s.npz", last(COLOUR.repeat(2000, axis=0)))
    held = bytearray((path / "s.npz").read_bytes())
    held[-5000] ^= 1
    (path / "s.npz").write_bytes(held)
    return path / "s.npz"


def other_checksum(path):
    np.savez_compressed(path / "s.npz", last(COLOUR.repeat(2000, axis=0)))
    held = bytearray((path / "s.npz").read_bytes())
    held[held.rindex(b"PK\1\2") + 16] ^= 1
    (path / "s.npz").write_bytes(held)
    return path / "s.npz"


def tensor_header(**facts):
    text = json.dumps({"x": {"dtype": "U8", "shape": [2, 1, 4, 4], **facts}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(32)


def lost(value, *where):
    values = floats(last(GREY))
    for i in where:
        values[i, 1, 1, 0] = value
    return values


BIG = 2**31
U8 = np.uint8
BAD = {
    "wrong keys": (npz(x=GREY, y=LABELS), ["holds x, y;", "arr_0", "arr_1"]),
    "keys of both": (npz(arr_0=GREY, pixels=GREY), ["holds arr_0, pixels;"]),
    "a third array": (npz(arr_0=GREY, arr_1=LABELS, arr_2=LABELS), ["arr_2", "expected"]),
    "labels only": (npz(arr_1=LABELS), ["holds arr_1;", "arr_0"]),
    "statistics only": (npz(mu=LABELS, sigma=GREY), ["mu, sigma (statistics, no images)"]),
    "many keys": (npz(**{f"k{i}": LABELS for i in range(20)}), ["k15 and 12 more"]),
    "no member": (npz(), ["holds nothing"]),
    "wrong tensors": (safe(a=GREY, b=LABELS), ["holds a, b;", "one tensor"]),
    "NaN": (adm(lost(np.nan, 3)), ["arr_0: image 3 has", "not finite", "1 of 6 images"]),
    "two infinite": (adm(lost(-np.inf, 1, 4)), ["image 1 has", "2 of 6 images"]),
    "NaN and 0...1": (npy(np.full((4, 1, 4, 4), np.nan)), ["image 0 has", "4 of 4"]),
    "0...1": (npy(GREY / 255), ["float64 from 0", "ambiguous", "uint8"]),
    "0 and more": (npy(floats(GREY).clip(0)), ["float32 from 0", "ambiguous"]),
    "0...255 floats": (npy(GREY.astype("f4")), ["ambiguous", "give uint8"]),
    "beyond 1": (npy(floats(GREY) * 2), ["allowed is [-1, 1]", "clip"]),
    "only beyond 1": (npy(floats(GREY) * 0.8 + 0.3), ["allowed is [-1, 1]"]),
    "below -1": (npy(floats(GREY) - 0.5), ["allowed is [-1, 1]"]),
    "int64": (npy(GREY.astype("i8")), ["int64 values", "uint8"]),
    "bool": (npy(GREY > 9), ["holds bool", "uint8"]),
    "text": (npy(np.array(["a"])), ["holds <U1"]),
    "complex": (npy(GREY * 1j), ["holds complex128"]),
    "bool tensor": (safe(x=GREY > 9), ["holds BOOL", "U8"]),
    "objects": (objects, ["Python objects (a pickle)", "never loaded", "arr_0"]),
    "empty": (npy(GREY[:0]), ["no images", "(0, 1, 5, 5)"]),
    "no rows of pixels": (adm(np.zeros((4, 0, 5, 3), U8)), ["no images", "(4, 0, 5, 3)"]),
    "scalar": (npy(U8(3)), ["no images", "()"]),
    "empty tensor": (safe(x=GREY[:0]), ["no images", "(0, 1, 5, 5)"]),
    "2 channels": (adm(np.zeros((4, 5, 5, 2), U8)), ["2 channels", "1 (grey) and 3 (RGB)"]),
    "4 channels": (adm(np.zeros((4, 5, 5, 4), U8)), ["4 channels", "alpha"]),
    "4 channels, npy": (npy(np.zeros((4, 4, 5, 5), U8)), ["neither axis 1 nor axis 3"]),
    "4 channels, tensor": (safe(x=np.zeros((4, 4, 5, 5), U8)), ["4 channels", "(N, C, H, W)"]),
    "channels first in arr_0": (adm(COLOUR), ["(6, 3, 5, 5)", "(N, H, W, C)", "transpose"]),
    "channels last in pixels": (npz(pixels=last(COLOUR)), ["(N, C, H, W)", "transpose"]),
    "channels last in tensor": (safe(x=last(COLOUR)), ["(N, C, H, W)", "transpose"]),
    "ambiguous": (npy(np.zeros((4, 3, 5, 3), U8)), ["ambiguous", "axis 1 or axis 3"]),
    "3 axes": (npy(GREY[:, 0]), ["has 3 axes", "4 are needed"]),
    "5 axes": (adm(last(GREY)[None]), ["has 5 axes", "arr_0"]),
    "labels too short": (adm(last(GREY), LABELS[:5]), ["arr_1", "(5,)", "shape (6,)"]),
    "labels one-hot": (adm(last(GREY), np.eye(6, dtype=int)), ["(6, 6)", "shape (6,)"]),
    "labels negative": (adm(last(GREY), LABELS - 1), ["arr_1: row 0 has label '-1'"]),
    "labels float": (adm(last(GREY), LABELS * 1.0), ["arr_1", "float64", "int64"]),
    "labels huge": (adm(last(GREY), LABELS * 10**7), ["arr_1: row 1 has label '20000000'"]),
    "labels of safetensors": (safe(images=GREY, labels=LABELS * 0.5), ["labels: labels are fl"]),
    "torch file": (raw("s.pt", b"PK\3\4"), ["a .pt file", "pickles", ".safetensors or .npz"]),
    "torch checkpoint": (raw("s.PTH", b""), ["a .pth file", "never loaded"]),
    "empty file npz": (raw("s.npz", b""), ["not an .npz file", "empty file"]),
    "empty file npy": (raw("s.npy", b""), ["not a .npy file", "empty file"]),
    "empty file tensor": (raw("s.safetensors", b""), ["not a safetensors file", "empty file"]),
    "html": (raw("s.npz", b"<html>"), ["not an .npz file", "'<htm'"]),
    "npz called npy": (lambda p: adm(GREY)(p).rename(p / "t.npy"), ["t.npy: not a .npy", "PK"]),
    "npy called npz": (lambda p: npy(GREY)(p).rename(p / "t.npz"), ["t.npz: not an .npz", "NUM"]),
    "pickle called npz": (raw("s.npz", b"\x80\x04\x95N."), ["not an .npz file"]),
    "truncated zip": (cut(adm(last(COLOUR), LABELS), -30), ["truncated or damaged zip"]),
    "zip cut early": (cut(adm(last(COLOUR)), 90), ["truncated or damaged zip"]),
    "npy cut": (cut(npy(COLOUR), -7), ["truncated", "450 bytes, 443 are there"]),
    "npy cut in its header": (cut(npy(COLOUR), 40), ["not a NumPy array", "EOF"]),
    "npy too long": (raw("s.npy", npy_bytes((1, 1, 2, 2), body=bytes(5))), ["too long"]),
    "npy that runs code": (raw("s.npy", npy_bytes("exit()")), ["not a NumPy array"]),
    "flipped bit": (flipped, ["arr_0", "damaged", "CRC"]),
    "other checksum": (other_checksum, ["arr_0", "damaged", "CRC"]),
    "member is no array": (zipped(b"hello"), ["arr_0: not a NumPy array"]),
    "bomb in the header": (zipped(npy_bytes((BIG, 64, 64, 3))), ["truncated", "are there"]),
    "bomb in the header, npy": (raw("s.npy", npy_bytes((BIG, 64, 64, 3))), ["truncated"]),
    "bomb in the list": (
        zipped(npy_bytes((BIG, 1, 1, 1)), claim=BIG + 128),
        ["more than the", "packed bytes can hold"],
    ),
    "list promises more": (
        zipped(npy_bytes((9, 5, 5, 3), body=bytes(600)), claim=128 + 675),
        ["arr_0", "damaged", "600 of 675"],
    ),
    "stored list promises more": (
        zipped(npy_bytes((9, 5, 5, 3), body=bytes(600)), zipfile.ZIP_STORED, 128 + 675),
        ["arr_0: damaged"],
    ),
    "negative shape": (raw("s.npy", npy_bytes((-2, -1, 4, 4))), ["no images", "(-2, -1, 4, 4)"]),
    "tensor cut": (cut(safe(x=COLOUR), -7), ["truncated", "443 are there"]),
    "tensor header cut": (cut(safe(x=COLOUR), 30), ["not a safetensors file, or truncated"]),
    "tensor header of 2**63": (raw("s.safetensors", b"\0" * 7 + b"\x80"), ["or truncated"]),
    "tensor header no JSON": (raw("s.safetensors", b"\2" + bytes(7) + b"[["), ["not a safet"]),
    "tensor header a list": (raw("s.safetensors", b"\2" + bytes(7) + b"[]"), ["not a safetens"]),
    "tensor no offsets": (raw("s.safetensors", tensor_header()), ["x: damaged header"]),
    "tensor overflow": (
        raw("s.safetensors", tensor_header(data_offsets=[0, 32], shape=[BIG, 1, 4, 4])),
        ["x: truncated", "32 are there"],
    ),
    "tensor behind the end": (
        raw("s.safetensors", tensor_header(data_offsets=[64, 96])),
        ["x: damaged header (bytes 64 to 96)"],
    ),
    "tensor type": (
        raw("s.safetensors", tensor_header(data_offsets=[0, 32], dtype="Z9")),
        ["x: holds Z9"],
    ),
    "missing": (lambda p: p / "samples.npz", ["no such file: ", "samples.npz"]),
    "near miss": (
        lambda p: adm(last(GREY))(p).with_name("t.npz"),
        ["no such file", 'did you mean "s.npz"?'],
    ),
    "too large for its name": (lambda p: p / ("x" * 260 + ".npz"), ["is no path"]),
    "empty folder": (lambda p: p, ["no images under"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_get_one_line(case, tmp_path, cache):
    build, named = BAD[case]
    path = build(tmp_path)
    for read in (data.load, data.open):
        with pytest.raises(DataError) as caught:
            read(path)
        assert type(caught.value) is DataError
        text = str(caught.value)
        assert text.isprintable()
        assert len(text) < 700
        for words in (*named, path.name[:60]):
            assert words in text
    assert not cache.exists()


def test_a_packed_array_that_memory_cannot_hold(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "s.npz", last(COLOUR))

    def full(size):
        raise MemoryError

    monkeypatch.setattr("fewstep.data.container.bytearray", full, raising=False)
    with pytest.raises(ResourceError, match=r"arr_0: unpacking needs .* GiB"):
        data.load(tmp_path / "s.npz")


def packed(path):
    np.savez_compressed(path / "s.npz", last(GREY), LABELS)
    return path / "s.npz"


@pytest.mark.parametrize("write", [adm(last(GREY), LABELS), packed, safe(images=GREY)])
def test_damage_anywhere_is_refused_or_harmless(tmp_path, write):
    path = write(tmp_path)
    whole, rng = path.read_bytes(), random.Random(0)
    texts = []
    for _ in range(150):
        held = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.choice([1, 2, 8])):
            if held:
                held[rng.randrange(len(held))] = rng.randrange(256)
        path.write_bytes(held)
        try:
            data.load(path)
        except DataError as error:
            texts.append(str(error))
    assert len(texts) > 60
    assert all(text.isprintable() for text in texts)
