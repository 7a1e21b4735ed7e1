"""Features kept on disk: made once, never believed when they are damaged."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep import data
from fewstep.errors import ResourceError
from fewstep.files import replacing
from fewstep.metrics import Extractor, Features
from fewstep.report import cells, kept
from fewstep.report.cells import Chunk, Store

pytest.importorskip("torch_fidelity")

from fewstep.report.judge import Judge, Reals, protocol


@pytest.fixture(scope="module")
def reals() -> Reals:
    return Reals("digits", *data.digits())


def counted() -> tuple[Extractor, list[int]]:
    """An extractor that counts the images it is given."""
    seen: list[int] = []

    def call(u: torch.Tensor) -> Features:
        seen.append(len(u))
        return Features(u.flatten(1).float(), u.flatten(1)[:, :10].float())

    return Extractor("counted", "abc", "none", call), seen


def test_features_of_real_images_are_made_once(reals, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    extractor, seen = counted()
    first = kept.real_features(extractor, reals.train)
    assert sum(seen) == len(reals.train)
    again = kept.real_features(extractor, reals.train)
    assert sum(seen) == len(reals.train)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first.vectors, torch.from_numpy(reals.train.pixels).flatten(1).float())
    kept.real_features(extractor, reals.held_out)
    kept.real_features(replace(extractor, weights="other"), reals.train)
    assert sum(seen) == 2 * len(reals.train) + len(reals.held_out)


def test_damaged_features_are_made_again(reals, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    extractor, seen = counted()
    first = kept.real_features(extractor, reals.held_out)
    paths = sorted((tmp_path / "features").rglob("*.npz"))
    assert len(paths) == 2
    for path in paths:
        whole = path.read_bytes()
        path.write_bytes(whole[:69] + bytes([102]) + whole[70:])  # the length of numpy's header
        with pytest.warns(UserWarning, match="damaged"):
            again = kept.real_features(extractor, reals.held_out)
        assert torch.equal(first.vectors, again.vectors)
    assert sum(seen) == 900


@pytest.mark.filterwarnings("ignore:.*damaged")
def test_no_damaged_byte_is_believed(tmp_path) -> None:
    """Every byte of a file in four ways, and every length: what is read is right or nothing."""
    path = tmp_path / "a.npz"
    right = {"vectors": np.arange(6, dtype=np.float32), "seconds": np.float64(1.5)}
    np.savez(path, **right)
    whole = path.read_bytes()
    damaged = [
        whole[:i] + bytes([(whole[i] ^ flip)]) + whole[i + 1 :]
        for i in range(len(whole))
        for flip in (1, 16, 54, 255)
    ]
    believed = 0
    for content in [*damaged, *(whole[:i] for i in range(len(whole)))]:
        path.write_bytes(content)
        found = cells.loaded(path)
        for name in found.keys() & right.keys():
            assert np.array_equal(found[name], right[name])
        believed += found.keys() == right.keys()
    assert believed < len(damaged)  # times and attributes of members are nobody's business


def test_a_chunk_that_cannot_be_read_is_not_removed(tmp_path, monkeypatch) -> None:
    """A full table of files, or files of another user: an error, and the chunk stays."""
    store = Store(tmp_path, "x", {"a": 1})
    store.write(0, 2, Chunk(np.zeros((2, 1, 8, 8), np.uint8), np.array([3, 4]), 1.5))

    def refuse(path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ResourceError, match="Too many open files"):
        store.read(0, 2)
    assert store.path(0, 2).exists()


def test_features_of_real_images_go_on_where_they_were(reals, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    extractor, seen = counted()

    def stop(done: int, total: int) -> None:
        assert total == len(reals.train)
        if done == 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.real_features(extractor, reals.train, stop)
    kept.real_features(extractor, reals.train)
    assert sum(seen) == len(reals.train)


def test_a_cache_that_cannot_be_written_is_a_warning(reals, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = kept.real_features(counted()[0], reals.held_out)
    assert len(found.vectors) == 450
    mine = [str(w.message) for w in said if "features are not kept" in str(w.message)]
    assert len(mine) == 1


def test_no_room_for_features_is_said(reals, tmp_path, monkeypatch) -> None:
    """A disk that fills while it is mapped kills a process without a word."""

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "_IN_MEMORY", 0)
    found = kept.real_features(counted()[0], reals.held_out)
    assert found.vectors.shape == (450, 64)
    monkeypatch.setattr(kept.os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match=r"no room for .* TMPDIR"):
        kept.real_features(counted()[0], reals.held_out)


def test_a_judge_looks_at_real_images_once(reals, tmp_path, monkeypatch) -> None:
    """However many rows it judges, and even where nothing can be kept."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    extractor, seen = counted()
    extractor = replace(extractor, name="classifier")  # of which most is asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = Judge(protocol("small-1k", 40), reals, [extractor])
    assert sum(seen) == len(reals.train) + len(reals.held_out)
    features = {"classifier": extractor(torch.from_numpy(reals.train.pixels[:40]))}
    before = sum(seen)
    for _ in range(2):
        judge.verdict(features, torch.from_numpy(reals.train.labels[:40]))
    assert sum(seen) == before


def test_two_writers_of_one_file_have_names_of_their_own(tmp_path) -> None:
    """Also with one process number, as processes of two machines may have."""
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            assert second != first
            second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
