"""What the tests of `fewstep edit` share: a network that answers, pictures, the command."""

import json

import numpy as np
import torch
from PIL import Image

from fewstep.nets.unet import UNet, UNetConfig
from tests.system.cli_runs import call


def answering():
    """Return a network of RGB images, 8x8, that learnt nothing, but answers each differently."""
    config = UNetConfig(3, 3, 8, width=8, mult=(1,), attention=(), heads=1, groups=4)
    torch.manual_seed(0)
    net = UNet(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


def lower_half(path):
    """Write a mask of 8x8 whose lower half is to be painted."""
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save(path)


def pixels(path):
    """Return a picture that is not enlarged, as numbers."""
    return np.asarray(Image.open(path)).astype(int)


def made(capsys, *words):
    """Return what the command says in JSON."""
    code, out, err = call(capsys, *words, "--scale", "1", "-o", "x.png", "--format", "json")
    assert code == 0, err
    return json.loads(out)
