"""A classifier of the data at hand: features, and whether an image shows what was asked for.

Inception knows photographs. For digits, textures or scans a small network trained on the real
training split is the better eye: its last hidden layer gives the features of FD-classifier, its
logits the label accuracy. It sees that split only, so that its accuracy on the held-out split
says how far it can be believed. It judges finished images; the noisy classifier that steers
sampling is another one.

The network is a pure function of recipe and data (on one machine: arithmetic differs between
processors and numbers of threads), and stays in the cache folder from then on, as
`classifiers/KEY.safetensors`; machines that share work are given a folder that they share. The
file that is there first wins: processes that train at the same time all end with the same
network. A damaged file is trained again with a warning, never used.

Inside: `classifier`; `Recipe`.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.data import Images, cache
from fewstep.data.images import shown_name
from fewstep.errors import DataError, UsageError
from fewstep.metrics.features import Extractor, Features, state_hash, to_range

WIDTH = 128
"""Number of features."""

_SMALLEST = 8
_PIECE = 512


@dataclass(frozen=True)
class Recipe:
    """How the classifier is built and trained: AdamW, the step falling to 0 as a half cosine.

    Attributes:
        steps: optimizer steps.
        width: channels of the first convolution, doubled up to four times that.
        batch: images in a step, drawn with replacement.
        lr: first step size.
        decay: weight decay.
        drop: dropout before each linear layer.
        smoothing: of the labels.
        seed: of weights, batches and dropout.
        version: of the code, so that another network never has this one's key.
    """

    steps: int = 400
    width: int = 32
    batch: int = 128
    lr: float = 2e-3
    decay: float = 1e-2
    drop: float = 0.3
    smoothing: float = 0.05
    seed: int = 0
    version: int = 1

    @classmethod
    def of(cls, train: Images, seed: int = 0) -> "Recipe":
        """Return the recipe for a data set: more steps for more images, 400 to 1,600."""
        return cls(steps=max(400, min(1600, round(400 * (len(train) / 5000) ** 0.5))), seed=seed)


def classifier(
    train: Images,
    recipe: Recipe | None = None,
    *,
    device: torch.device | str = "cpu",
    tick: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Extractor:
    """Return the extractor that is a classifier of these images, trained now or read back.

    Features are the 128 activations before the last layer, logits one per class. No global random
    state is used or changed.

    Args:
        train: the real training split, with classes.
        recipe: how to train; `Recipe.of(train)` if None.
        device: where the features will be computed; training is on the CPU.
        tick: told (steps done, steps) while training; never called if the network is read back.
        folder: where the network is looked for first, and kept beside the cache.

    Raises:
        UsageError: the images have no classes.
        DataError: no images, images under 8x8, or (when called) images of another shape.
    """
    if len(train.classes) < 2:
        raise UsageError(
            f"classifier: {shown_name(train.name)} has {len(train.classes)} classes, at least 2 "
            "are needed; leave the extractor out, or give a reference with class folders"
        )
    if not len(train) or min(train.shape[1:]) < _SMALLEST:
        raise DataError(
            f"classifier: {len(train)} images of {_size(train.shape)}; expected at least one of "
            f"at least {_SMALLEST}x{_SMALLEST}"
        )
    recipe = recipe or Recipe.of(train)
    net = _network(train.shape, len(train.classes), recipe)
    state = _kept(train, recipe, net, tick, folder)
    net.load_state_dict(state)
    net.eval().requires_grad_(False).to(device)
    shape = train.shape

    def call(u: Tensor) -> Features:
        if tuple(u.shape[1:]) != shape:
            raise DataError(
                f"classifier: images of {_size(tuple(u.shape[1:]))}; it was trained on "
                f"{_size(shape)}"
            )
        vectors = torch.cat([net[:-2](to_range(part.to(device))) for part in u.split(_PIECE)])
        return Features(vectors.cpu(), net[-1](vectors).cpu())

    settings = " ".join(f"{name}={value}" for name, value in asdict(recipe).items())
    rule = (
        f"u / 127.5 - 1; the {WIDTH} activations before the last layer; {settings}; trained on "
        f"{train.fingerprint}"
    )
    return Extractor("classifier", state_hash(state), rule, call)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)


def _network(shape: tuple[int, ...], classes: int, recipe: Recipe) -> nn.Sequential:
    """Return the network: convolutions with stride 2 down to a side of 8, then two linear layers.

    The one before last is a dropout, which evaluation mode makes nothing.
    """
    channels, side, width = shape[0], max(shape[1:]), recipe.width
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed seeds GPUs as well
        layers: list[nn.Module] = []
        stride = 2 if side > _SMALLEST else 1
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
        side = -(-side // stride)
        while side > _SMALLEST:
            wider = min(2 * width, 4 * recipe.width)
            layers += [nn.Conv2d(width, wider, 3, 2, 1), nn.ReLU()]
            side, width = -(-side // 2), wider
        layers += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
        layers += [nn.Flatten(), nn.Dropout(recipe.drop), nn.Linear(2 * width * 16, WIDTH)]
        layers += [nn.ReLU(), nn.Dropout(recipe.drop), nn.Linear(WIDTH, classes)]
    return nn.Sequential(*layers)


def _train(
    train: Images, recipe: Recipe, net: nn.Sequential, tick: Callable[[int, int], None] | None
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=recipe.lr, weight_decay=recipe.decay, fused=True
    )
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    net.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(recipe.seed)  # of dropout
        for done in range(recipe.steps):
            x, y = train.batch(torch.randint(len(train), (recipe.batch,), generator=draw))
            loss = F.cross_entropy(net(x), y, label_smoothing=recipe.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            fall.step()
            if tick is not None:
                tick(done + 1, recipe.steps)
    return {name: x.detach().clone() for name, x in net.state_dict().items()}


def _kept(
    train: Images,
    recipe: Recipe,
    net: nn.Sequential,
    tick: Callable[[int, int], None] | None,
    folder: Path | None,
) -> dict[str, Tensor]:
    """Return the weights that a folder has, or train them and put them there."""
    facts = {
        "recipe": asdict(recipe),
        "data": train.fingerprint,
        "shape": list(train.shape),
        "classes": len(train.classes),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    name = f"{key}.safetensors"

    def make() -> dict[str, Tensor]:
        return _train(train, recipe, net, tick)

    def cached() -> dict[str, Tensor]:
        return _first(cache.folder().parent / "classifiers" / name, net, facts, make)

    return cached() if folder is None else _first(folder / name, net, facts, cached)


def _first(
    path: Path, net: nn.Module, facts: dict[str, Any], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the weights in a file, or make them and return those of the process that is first."""
    state, reason = _read(path, net)
    if state is not None:
        return state
    if reason:
        warnings.warn(
            f"kept classifier {shown_name(path)} is damaged ({reason}); making it again",
            stacklevel=5,
        )
    state = make()
    try:
        _write(path, state, facts, replace=bool(reason))
    except OSError as error:
        warnings.warn(
            f"classifier not kept: {shown_name(path)} cannot be written "
            f"({error.strerror or error}); it will be made again next time",
            stacklevel=5,
        )
        return state
    first, _ = _read(path, net)  # of the process that was first
    return state if first is None else first


def _read(path: Path, net: nn.Module) -> tuple[dict[str, Tensor] | None, str]:
    """Return (weights, "") or (None, what is wrong with the file; "" if there is none)."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None, ""
    try:
        with safe_open(str(path), "pt") as file:
            names = list(file.keys())  # an open file is no mapping, one cannot iterate over it
            state = {name: file.get_tensor(name) for name in names}
            said = json.loads((file.metadata() or {}).get("classifier", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        return None, " ".join(str(error).split())
    if said.get("sha256") != state_hash(state):
        return None, "its content does not match its hash"
    want = {name: (x.shape, x.dtype) for name, x in net.state_dict().items()}
    if {name: (x.shape, x.dtype) for name, x in state.items()} != want:
        return None, "it holds another network"
    return state, ""


def _write(path: Path, state: dict[str, Tensor], facts: dict[str, Any], *, replace: bool) -> None:
    """Write a file that is whole or not there; one that is there already stays.

    Args:
        path: of the file.
        state: the weights.
        facts: what they were trained with, for a human reader.
        replace: put it in the place of a damaged one.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    # One key: safetensors writes several in an order that changes from call to call.
    said = {"classifier": json.dumps({"sha256": state_hash(state), **facts}, sort_keys=True)}
    handle, name = tempfile.mkstemp(prefix=".classifier.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save(state, said))
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(name, path)
            return
        try:
            os.link(name, path)  # fails if another process was first
        except FileExistsError:
            return
        except OSError:  # a file system without links: the last one wins
            os.replace(name, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
