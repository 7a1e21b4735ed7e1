"""The networks that the benchmarks compare answer the same."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from benchmarks import pairs

PAIRS = [(pairs.small, "diffusers"), (pairs.adm, "azula")]


@pytest.mark.parametrize(("make", "peer"), PAIRS)
@torch.no_grad()
def test_both_sides_answer_the_same(make: Callable[[], pairs.Pair], peer: str) -> None:
    """The peer's weights in our network give the peer's answer."""
    if find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    pair = make()
    x, label = pairs.noisy(2)
    wanted = pair.ask(pair.peer, x, label)
    assert wanted.std() > 0.1
    assert pairs.deviation(pair.ours(x, label), wanted)[0] < 1e-5
    counts = [sum(p.numel() for p in net.parameters()) for net in (pair.ours, pair.peer)]
    assert counts[0] == counts[1]
