"""The classifier of the data: it knows digits, and its cache is safe."""

import random
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from fewstep import data, metrics
from fewstep.data import Images, cache
from fewstep.errors import DataError, UsageError
from fewstep.metrics.classifier import Recipe
from unit.striped import SHORT, accuracy, raw, stripes


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "classifiers"


def test_the_classifier_knows_digits():
    """Held-out accuracy at least 0.985 (0.991 as written), with 128 features."""
    train, held_out = data.digits()
    steps = []
    extractor = metrics.classifier(train, tick=lambda done, total: steps.append((done, total)))
    assert steps == [(i + 1, 400) for i in range(400)]
    assert accuracy(extractor, held_out) >= 0.985
    found = extractor(raw(held_out)[:9])
    assert found.vectors.shape == (9, 128)
    assert found.logits.shape == (9, 10)
    assert found.vectors.min() >= 0  # after the rectifier
    assert extractor.name == "classifier"
    assert train.fingerprint in extractor.rule
    assert "steps=400" in extractor.rule


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 17), (1, 28, 28), (3, 32, 32), (3, 8, 40)])
def test_any_size_and_one_or_three_channels(shape):
    extractor = metrics.classifier(stripes(120, *shape), SHORT)
    assert accuracy(extractor, stripes(60, *shape, seed=1)) >= 0.95
    assert extractor(raw(stripes(5, *shape))).vectors.shape == (5, 128)


def test_steps_grow_with_the_data():
    def steps(n):
        pixels = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (n, 1, 1, 1))
        labels = np.zeros(n, np.int64)
        return Recipe.of(Images(pixels, labels, ("a",), "x", "y")).steps

    assert [steps(n) for n in (10, 5000, 20000, 10**6)] == [400, 400, 800, 1600]


def test_pieces_do_not_change_features():
    extractor = metrics.classifier(stripes(), SHORT)
    u = raw(stripes(1030, seed=2))
    whole, parts = extractor(u), [extractor(part) for part in u.split(300)]
    for i in (0, 1):
        assert torch.allclose(whole[i], torch.cat([p[i] for p in parts]), atol=1e-5)


def test_the_second_call_reads_the_network_back(folder):
    steps = []

    def call():
        return metrics.classifier(stripes(), SHORT, tick=lambda *done: steps.append(done))

    first, trained = call(), len(steps)
    (kept,) = folder.iterdir()
    content = kept.read_bytes()
    second = call()
    assert trained == len(steps) == 40
    assert (first.weights, first.rule) == (second.weights, second.rule)
    u = raw(stripes(20, seed=5))
    assert torch.equal(first(u).vectors, second(u).vectors)
    assert torch.equal(first(u).logits, second(u).logits)
    assert kept.read_bytes() == content
    assert [p.name for p in folder.iterdir()] == [kept.name]


def state_of_the_world():
    return (
        torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(),
        torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
    )  # fmt: skip


def test_no_global_state_goes_in_or_out(folder):
    torch.manual_seed(1)
    before = state_of_the_world()
    first = metrics.classifier(stripes(), SHORT)
    assert state_of_the_world() == before
    (kept,) = folder.iterdir()
    content = kept.read_bytes()
    kept.unlink()
    torch.manual_seed(2)
    with torch.no_grad():
        second = metrics.classifier(stripes(), SHORT)
    assert first.weights == second.weights
    assert kept.read_bytes() == content


def test_other_data_or_another_recipe_is_another_entry(folder):
    one = stripes()
    swapped = Images.of(one.pixels, 1 - one.labels, one.classes, one.name)
    recipes = [SHORT, Recipe(steps=41, width=8), Recipe(steps=40, width=8, seed=1)]
    found = [metrics.classifier(one, r) for r in recipes]
    found += [metrics.classifier(swapped, SHORT), metrics.classifier(stripes(seed=9), SHORT)]
    assert len({e.weights for e in found}) == 5
    assert len({e.rule for e in found}) == 5
    assert len(list(folder.iterdir())) == 5


def flipped(content: bytes) -> bytes:
    """The last byte belongs to a tensor."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda b: b[:-9], lambda b: b"", lambda b: b"x" * 99],
    ids=["flipped", "cut", "empty", "other"],
)
def test_a_damaged_entry_is_trained_again(folder, damage):
    first = metrics.classifier(stripes(), SHORT)
    (kept,) = folder.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(damage(content))
    steps = []
    with pytest.warns(UserWarning, match=r"kept classifier .* is damaged .*making it again"):
        again = metrics.classifier(stripes(), SHORT, tick=lambda *done: steps.append(done))
    assert len(steps) == 40
    assert again.weights == first.weights
    assert kept.read_bytes() == content
    metrics.classifier(stripes(), SHORT)  # no warning: it is whole again


def test_an_entry_of_another_network_is_not_used(folder):
    """A sound file under the wrong name."""
    metrics.classifier(stripes(), SHORT)
    (small,) = folder.iterdir()
    content = small.read_bytes()
    small.unlink()
    metrics.classifier(stripes(), Recipe(steps=2, width=16))
    (other,) = folder.iterdir()
    other.write_bytes(content)
    with pytest.warns(UserWarning, match="another network"):
        metrics.classifier(stripes(), Recipe(steps=2, width=16))


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="classifier not kept"):
        extractor = metrics.classifier(stripes(), SHORT)
    assert accuracy(extractor, stripes()) == 1


def test_the_process_that_was_first_wins(folder, monkeypatch):
    """Two processes train at once, with other rounding: both end with the file."""
    code: ModuleType = sys.modules["fewstep.metrics.classifier"]
    first = metrics.classifier(stripes(), SHORT)
    (kept,) = folder.iterdir()
    content = kept.read_bytes()
    kept.unlink()
    train = code._train

    def slower(*arguments):
        state = train(*arguments)
        kept.write_bytes(content)  # the other one has finished meanwhile
        return {name: x + 1e-6 for name, x in state.items()}

    monkeypatch.setattr(code, "_train", slower)
    assert metrics.classifier(stripes(), SHORT).weights == first.weights
    assert kept.read_bytes() == content
    assert [p.name for p in folder.iterdir()] == [kept.name]


def test_the_folder_is_beside_the_decoded_images(folder):
    metrics.classifier(stripes(), SHORT)
    assert folder.parent == cache.folder().parent
    (kept,) = folder.iterdir()
    assert kept.suffix == ".safetensors"
    assert len(kept.stem) == 64


def test_images_that_cannot_train_a_classifier_are_refused():
    one = stripes(10)
    plain = Images.of(one.pixels, np.zeros(10, np.int64), (), "plain")
    with pytest.raises(UsageError, match=r"plain has 0 classes, at least 2 are needed"):
        metrics.classifier(plain)
    single = Images.of(one.pixels, np.zeros(10, np.int64), ("a",), "single")
    with pytest.raises(UsageError, match=r"single has 1 classes"):
        metrics.classifier(single)
    with pytest.raises(DataError, match=r"10 images of 1x7x9; expected .* at least 8x8"):
        metrics.classifier(stripes(10, 1, 7, 9))
    with pytest.raises(DataError, match=r"0 images"):
        metrics.classifier(one.subset(np.arange(0)))


def test_images_of_another_shape_are_refused():
    extractor = metrics.classifier(stripes(), SHORT)
    for shape in ((3, 8, 8), (2, 8, 8), (1, 8, 9), (1, 16, 16)):
        want = "x".join(map(str, shape))
        with pytest.raises(DataError, match=f"images of {want}; it was trained on 1x8x8"):
            extractor(torch.zeros(2, *shape, dtype=torch.uint8))
