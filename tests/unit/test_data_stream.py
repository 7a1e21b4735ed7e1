"""Laws of the data order: permutations, resumption, ranks."""

import hashlib

import numpy as np
import pytest

from fewstep.data import batch_ids, order, rank_slice


@pytest.mark.parametrize("n", [1, 2, 7, 1797])
@pytest.mark.parametrize("epoch", [0, 1, 50])
def test_an_epoch_is_a_permutation(n, epoch):
    assert np.array_equal(np.sort(order(3, epoch, n)), np.arange(n))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    first = order(0, 0, 500)
    assert np.array_equal(first, order(0, 0, 500))
    for other in (order(1, 0, 500), order(0, 1, 500), order(2**64 - 1, 0, 500)):
        # Two random permutations of 500 agree in about one place.
        assert (first == other).sum() < 12


def test_order_is_uniform():
    """Position 0 is every image equally often: chi-square over 4,000 seeds, 10 images."""
    counts = np.bincount([order(seed, 0, 10)[0] for seed in range(4000)], minlength=10)
    chi = ((counts - 400) ** 2 / 400).sum()
    assert chi < 33.7  # P = 1e-4 at 9 degrees of freedom


def test_order_is_pinned():
    """A change here breaks the resumption of every existing run."""
    text = order(0, 0, 1347).tobytes() + order(5, 3, 100).tobytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "12ce42d9ca1e9fd5"


@pytest.mark.parametrize(("batch", "n"), [(4, 10), (10, 10), (3, 10), (25, 10), (1, 1), (7, 3)])
def test_batches_cut_the_chain_of_epochs(batch, n):
    """Batches 0 ... k - 1, end to end, are epoch 0, epoch 1, ...: nothing lost or repeated."""
    steps = 3 * n
    chain = np.concatenate([batch_ids(9, step, batch, n) for step in range(steps)])
    epochs = [order(9, epoch, n) for epoch in range(steps * batch // n + 1)]
    assert np.array_equal(chain, np.concatenate(epochs)[: steps * batch])


def test_a_step_can_be_asked_for_alone():
    before = [batch_ids(1, step, 32, 100) for step in range(20)]
    for step in (19, 3, 11):  # in any order, as after a resumption
        assert np.array_equal(batch_ids(1, step, 32, 100), before[step])


def test_callers_cannot_change_the_order():
    first = batch_ids(0, 0, 8, 64)
    first[:] = 0
    order(0, 0, 64)[:] = 0
    assert len(set(batch_ids(0, 0, 8, 64).tolist())) == 8


@pytest.mark.parametrize("world", [1, 2, 4])
def test_rank_slices_are_disjoint_and_make_the_batch(world):
    ids = batch_ids(0, 5, 16, 40)
    slices = [rank_slice(ids, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate(slices), ids)
    assert {len(each) for each in slices} == {16 // world}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: order(0, 0, 0), "n=0"),
        (lambda: order(0, -1, 5), "epoch=-1"),
        (lambda: batch_ids(0, -1, 5, 5), "step=-1"),
        (lambda: batch_ids(0, 0, 0, 5), "batch_size=0"),
        (lambda: rank_slice(np.arange(10), 0, 3), "10"),
        (lambda: rank_slice(np.arange(10), 2, 2), "rank 2"),
    ],
)
def test_wrong_arguments_are_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
