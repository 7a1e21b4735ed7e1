"""A run knows its own, also when this version describes a network by more words than then."""

from dataclasses import replace

import pytest
import torch

from fewstep import data
from fewstep.denoiser import NetDenoiser
from fewstep.errors import UsageError
from fewstep.model import Model
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.objectives import Denoising
from fewstep.process import Cosine
from fewstep.train.state import check_identity, identity, renewed

CONFIG = UNetConfig(1, 1, 8, width=8, mult=(1,), depth=1, attention=(), heads=1, groups=4)


def run(config: UNetConfig) -> dict:
    model = Model(NetDenoiser(UNet(config), Cosine()), (1, 8, 8))
    return identity(model, data.digits()[0], Denoising(), {"lr": 0.1})


@pytest.mark.parametrize("field", ["rescale", "resample_conv", "tokens"])
def test_a_run_of_an_earlier_version_goes_on(field: str) -> None:
    now = run(CONFIG)
    before = run(CONFIG)
    del before["model"]["net"][field]
    with pytest.raises(UsageError, match=field):
        check_identity(before, now, "r")
    check_identity(renewed(before), now, "r")
    assert renewed(now) == now


def test_another_network_is_still_another() -> None:
    before = run(replace(CONFIG, depth=2))
    del before["model"]["net"]["rescale"]
    with pytest.raises(UsageError, match="depth 2 -> 1"):
        check_identity(renewed(before), run(CONFIG), "r")


def test_what_cannot_be_read_is_left_to_the_comparison() -> None:
    now = run(CONFIG)
    strange = {**now, "model": {"net": {"name": "Other"}}}
    assert renewed(strange) == strange
    with torch.random.fork_rng(), pytest.raises(UsageError):
        check_identity(renewed(strange), now, "r")
