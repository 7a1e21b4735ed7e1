"""The two sides of the rows on distillation ask their networks about the same images."""

import pytest
import torch
from benchmarks import distillation
from benchmarks.__main__ import PARTS
from torch import nn

from fewstep.denoiser import NetDenoiser


@pytest.mark.parametrize(("name", "images"), [("D2", 3), ("D3", 2), ("D4", 5), ("D6", 4)])
def test_the_arithmetic_counts_every_image(name: str, images: int) -> None:
    """A step of distillation asks as many as the plain step and the passes that are added."""
    work, asked = distillation.small(), [0]

    def count(net: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        asked[0] += len(args[0])

    assert isinstance(work.model.denoiser, NetDenoiser)
    work.model.denoiser.net.register_forward_pre_hook(count)  # its copies have it as well
    sides, times = distillation.sides(name, work), distillation.LESSONS[name].passes
    found: dict[str, int] = {}
    for side, run in sides.items():
        asked[0] = 0
        run()
        found[side] = asked[0] // distillation.BATCH
    assert found["ours"] == found["plain"] + times * found["forward"] == images


def test_the_rows_are_listed() -> None:
    """The part measures what it says it does."""
    (part,) = (part for part in PARTS if part.module == "distillation")
    assert part.rows == ("D2", "D3", "D4", "D5", "D6")
