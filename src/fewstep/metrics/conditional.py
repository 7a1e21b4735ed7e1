"""Does a generated image show what was asked for? Ask a classifier trained on real images.

The classifier sees the real training split only, so its accuracy on the real held-out split says
how far it can be believed. It judges finished images; the noisy classifier that steers sampling
is another one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.metrics.features import quantise


def train_classifier(
    x: Tensor, y: Tensor, classes: int, steps: int = 400, seed: int = 0
) -> nn.Module:
    """Train a small convolutional classifier on real images.

    Two 3x3 convolutions, pooling to 4x4 and two linear layers with dropout; AdamW on batches of
    128. No global random state is used.

    Args:
        x: images in [-1, 1], shape (N, C, H, W), H and W >= 4.
        y: class indices, shape (N,), int64.
        classes: number of classes.
        steps: optimizer steps.
        seed: of weights and batches.

    Returns:
        a module from (B, C, H, W) to logits (B, classes), in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        net = nn.Sequential(
            nn.Conv2d(x.shape[1], 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 16, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, classes),
        )
        draw = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,), generator=draw)
            loss = F.cross_entropy(net(x[rows]), y[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            fall.step()
    return net.eval().requires_grad_(False)


def accuracy(classifier: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of 8-bit images that the classifier assigns to the wanted class.

    Args:
        classifier: from (B, C, H, W) to logits (B, K).
        x: images meant for [-1, 1], shape (N, C, H, W).
        y: wanted classes, shape (N,).

    Returns:
        a share in [0, 1].
    """
    place = next(classifier.parameters()).device
    with torch.no_grad():
        parts = quantise(x).to(place).split(512)
        guess = torch.cat([classifier(part).argmax(1) for part in parts])
    return (guess == y.to(place)).float().mean().item()
