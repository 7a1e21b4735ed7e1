"""Writing and checking sealed directories: CK3-CK6, CK13-CK15, CK18, TR2, K1-K6, K9, K10."""

import builtins
import errno
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep.errors import CheckpointError, NumericError, ResourceError, UsageError
from fewstep.train import checkpoint, sealed

PARTS = {
    "w.safetensors": {"a": torch.arange(600.0), "b": torch.ones(3, 4, dtype=torch.bfloat16)},
    "state.json": {"step": 3, "names": ["x", "y"]},
    "card.md": "a model\n",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two whole checkpoints, steps 1 and 2."""
    for step in (1, 2):
        checkpoint.write(checkpoint.place(tmp_path, step), PARTS, step=step)
    return tmp_path


def litter(run: Path) -> list[str]:
    return [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]


def reseal(directory: Path) -> None:
    """Write a manifest that fits the files, as someone with bad intentions would."""
    names = [p for p in directory.iterdir() if p.name != "manifest.json"]
    contents = {p.name: p.read_bytes() for p in names}
    (directory / "manifest.json").write_bytes(sealed._manifest(contents, 2))


def test_round_trip(run):
    files = checkpoint.load(checkpoint.newest(run))
    assert files.step == 2
    assert files.json("state.json") == PARTS["state.json"]
    assert (files.path / "card.md").read_text() == "a model\n"
    for name, value in files.tensors("w.safetensors").items():
        assert torch.equal(value, PARTS["w.safetensors"][name])
        assert value.dtype == PARTS["w.safetensors"][name].dtype
    with pytest.raises(CheckpointError, match=r"no x\.json; this checkpoint holds"):
        files.json("x.json")


def test_shared_and_strided_tensors_are_stored(tmp_path):
    a = torch.arange(12.0).view(3, 4)
    wide = torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last)
    parts = {"t.safetensors": {"a": a, "again": a, "turned": a.T, "wide": wide}}
    checkpoint.write(tmp_path / "m", parts)
    back = checkpoint.load(tmp_path / "m").tensors("t.safetensors")
    assert torch.equal(back["turned"], a.T)
    assert torch.equal(back["again"], a)
    assert torch.equal(back["wide"], wide)


def test_every_flipped_byte_is_noticed_and_the_file_named(run):  # CK3
    rng = random.Random(0)
    directory = checkpoint.place(run, 2)
    files = sorted(directory.iterdir())
    sizes = [f.stat().st_size for f in files]
    # half of the flips by size, half evenly over the files, so that small ones are hit too
    picks = rng.choices(files, weights=sizes, k=100) + rng.choices(files, k=100)
    for path in picks:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError) as e:
            checkpoint.verify(directory)
        assert path.name in str(e.value)
        path.write_bytes(good)
    checkpoint.verify(directory)


@pytest.mark.parametrize("name", ["w.safetensors", "state.json", "card.md", "manifest.json"])
@pytest.mark.parametrize("damage", ["0", "8", "half", "n-1", "extended", "missing", "link"])
def test_a_damaged_file_is_named_and_the_older_checkpoint_used(run, name, damage):  # CK4, K4
    path = checkpoint.place(run, 2) / name
    raw = path.read_bytes()
    lengths = {"0": 0, "8": 7, "half": len(raw) // 2, "n-1": len(raw) - 1}
    if damage in lengths:
        path.write_bytes(raw[: lengths[damage]])
    elif damage == "extended":
        path.write_bytes(raw + b"\n")
    else:
        path.unlink()
        if damage == "link":
            (run / "elsewhere").write_bytes(raw)
            path.symlink_to(run / "elsewhere")
    said: list[str] = []
    assert checkpoint.newest(run, said.append) == checkpoint.place(run, 1)
    assert len(said) == 1
    assert str(path) in said[0]


def test_a_file_too_many_is_named(run):
    (checkpoint.place(run, 2) / "x.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"x\.pkl: not in the manifest"):
        checkpoint.verify(checkpoint.place(run, 2))


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_not(run, tmp_path_factory):  # K1, K2
    for step in (1, 2):
        (checkpoint.place(run, step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000002.*incomplete.*step-00000001"):
        checkpoint.newest(run)
    assert checkpoint.newest(tmp_path_factory.mktemp("empty")) is None
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.verify(run / "nothing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON object is wanted"),
        ('{"format": 1, "format": 1}', "a key occurs twice"),
        ('{"format": NaN}', "NaN is not JSON"),
        ('{"format": 7}', "format version 7; this fewstep reads version 1"),
        ('{"format": 1}', "damaged"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_manifest(run, text, words):  # K3
    (checkpoint.place(run, 2) / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json") as e:
        checkpoint.verify(checkpoint.place(run, 2))
    assert words in str(e.value)


def header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "not safetensors"),
        (header('{"a":{"dtype":"Z9","shape":[1],"data_offsets":[0,1]}}', b"0"), "not safetensors"),
        (header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"0123"), "not safe"),
        (header('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"01"), "not safe"),
        (b"\x80\x04\x95\x0b", "looks like a pickle"),
        (b"PK\x03\x04rest", "looks like a zip archive"),
        (b"<!DOCTYPE html>", "looks like an HTML"),
        (b"version https://git-lfs.github.com", "looks like a git-lfs pointer"),
        (b"", "it is empty"),
    ],
)
def test_what_is_no_safetensors_is_called_by_its_name(run, raw, words):  # K5, K10
    directory = checkpoint.place(run, 2)
    (directory / "w.safetensors").write_bytes(raw)
    if not words.startswith("not"):  # the manifest notices first, and says what it sees
        with pytest.raises(CheckpointError, match=words):
            checkpoint.verify(directory)
    reseal(directory)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(directory).tensors("w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_not_written(tmp_path, value, dtype):  # TR2
    tensor = torch.zeros(50, dtype=dtype)
    tensor[20] = value
    with pytest.raises(NumericError, match="tensor 'theta'") as e:
        checkpoint.write(tmp_path / "c", {"w.safetensors": {"theta": tensor}})
    assert e.value.exit_code == 5
    with pytest.raises(NumericError, match=r"s\.json"):
        checkpoint.write(tmp_path / "c", {"s.json": {"loss": value}})
    assert list(tmp_path.iterdir()) == []


class Trace:
    """Record what is done to files, and fail at the k-th call."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int = 0, code: int = 0) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail_at, self.code = fail_at, code
        real = {"fsync": os.fsync, "replace": os.replace}
        trace = self

        class File:
            def __init__(self, path: Path, mode: str) -> None:
                trace.note("open", path)
                self.f, self.path = builtins.open(path, mode), path  # noqa: SIM115 -- it is closed by the code under test

            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None:
                self.f.close()

            def __getattr__(self, name: str):
                return getattr(self.f, name)

            def write(self, data: bytes) -> None:
                trace.note("write", self.path)
                self.f.write(data)

        def fsync(fd: int) -> None:
            trace.note("fsync", Path(os.readlink(f"/proc/self/fd/{fd}")))
            real["fsync"](fd)

        def replace(a: Path, b: Path) -> None:
            trace.note("rename", b)
            real["replace"](a, b)

        patch.setattr(sealed, "open", File, raising=False)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)

    def note(self, what: str, path: Path) -> None:
        self.calls.append((what, path.name))
        if len(self.calls) == self.fail_at:
            raise OSError(self.code, os.strerror(self.code), str(path))


def test_order_of_calls(run, monkeypatch):  # CK14
    trace = Trace(monkeypatch)
    checkpoint.write(checkpoint.place(run, 3), PARTS, step=3)
    names = [*PARTS, "manifest.json"]
    files = [(what, name) for name in names for what in ("open", "write", "fsync")]
    assert trace.calls[: len(files)] == files
    rest = trace.calls[len(files) :]
    assert [what for what, _ in rest] == ["fsync", "rename", "fsync"]
    assert rest[0][1].startswith(".staging-step-00000003-")
    assert [name for _, name in rest[1:]] == ["step-00000003", "checkpoints"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_or_locked_disk_costs_nothing(run, monkeypatch, code):  # CK5, CK6
    calls = 4 * 3 + 2  # open, write, fsync of each file; fsync, rename of the folder
    for k in range(1, calls + 1):
        with monkeypatch.context() as patch:
            Trace(patch, k, code)
            with pytest.raises(ResourceError) as e:
                checkpoint.write(checkpoint.place(run, 3), PARTS, step=3)
            assert e.value.exit_code == 6
            assert "step-00000003" in str(e.value)
        assert litter(run) == []
        assert checkpoint.newest(run) == checkpoint.place(run, 2)


def test_a_failed_replacement_keeps_the_old_one(run, monkeypatch):
    calls = 3 * 3 + 3  # open, write, fsync of each file; fsync of the folder; two renames
    for k in range(1, calls + 1):
        with monkeypatch.context() as patch:
            Trace(patch, k, errno.ENOSPC)
            with pytest.raises(ResourceError):
                checkpoint.write(checkpoint.place(run, 2), {"a.json": {}, "b.json": {}}, step=2)
        assert set(checkpoint.load(checkpoint.place(run, 2)).files) == set(PARTS)
        assert litter(run) == []


def test_a_file_size_limit_in_a_real_process(run):  # CK5
    program = f"""
import resource, sys, torch
from fewstep.errors import FewstepError
from fewstep.train import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
parts = {{"w.safetensors": {{"w": torch.zeros(9999)}}}}
try:
    checkpoint.write({str(checkpoint.place(run, 3))!r}, parts)
except FewstepError as e:
    print(e)
    sys.exit(e.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert "may not grow so large" in done.stdout
    assert litter(run) == []
    assert checkpoint.newest(run) == checkpoint.place(run, 2)


def test_foreign_places_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "full", "link", "pipe"):
        with pytest.raises(UsageError, match=name):
            checkpoint.write(tmp_path / name, {"a.json": {}})
    with pytest.raises(ResourceError):
        checkpoint.write(tmp_path / "file" / "below", {"a.json": {}})
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="file name"):
        checkpoint.write(tmp_path / "new", {"../a.json": {}})


@pytest.mark.parametrize("keep", [2, 3, 10])
def test_retention_comes_after_the_write_and_keeps_whole_ones(run, keep):  # CK13
    for step in range(3, 8):
        checkpoint.write(checkpoint.place(run, step), PARTS, step=step)
    (checkpoint.place(run, 7) / "card.md").unlink()  # broken: does not count
    checkpoint.retain(run, keep)
    whole = [p for p in checkpoint.listed(run) if (p / "card.md").exists()]
    assert [int(p.name[5:]) for p in whole] == list(range(6, 0, -1))[:keep]
    assert litter(run) == []


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_keeping_fewer_than_two_is_refused(run, keep):  # CK13
    with pytest.raises(UsageError, match=f"keep={keep}"):
        checkpoint.retain(run, keep)
    assert len(checkpoint.listed(run)) == 2


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):  # CK15
    before = os.umask(mask)
    try:
        checkpoint.write(tmp_path / "c", PARTS)
        (tmp_path / "own").write_text("")
    finally:
        os.umask(before)
    own = (tmp_path / "own").stat().st_mode
    assert {p.stat().st_mode for p in (tmp_path / "c").iterdir()} == {own}


def test_only_stale_leftovers_of_our_own_are_swept(run):  # CK18
    folder, host = run / "checkpoints", sealed._HOST
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = [
        f".staging-step-00000003-{gone.pid}-{host}00000001",
        f".trash-x-{gone.pid}-{host}00000002",
    ]
    kept = [
        f".staging-step-00000003-{os.getppid()}-{host}00000003",  # alive
        f".staging-step-00000003-{gone.pid}-ffffff00000004",  # another host
        ".staging-notes",
        ".hidden",
    ]
    replaced = f".old-step-00000009-{gone.pid}-{host}00000005"
    for name in (*stale, *kept, replaced):
        (folder / name).mkdir()
    assert sorted(checkpoint.sweep(run)) == sorted([*stale, replaced])
    assert sorted(litter(run)) == sorted(kept)
    assert (folder / "step-00000009").is_dir(), "what was being replaced comes back"
