"""The Inception network of 2015: the one whose features give FID, KID and IS.

A figure is called FID only if its features come from this network with its own conventions: the
weights that TensorFlow published in 2015 (not torchvision's), bilinear resize to 299x299 without
half-pixel centres and without antialiasing, range (u - 128) / 128, averages that leave the
padding out, a maximum in the last block's pooling branch, 1,008 logits. torch-fidelity has it,
and its layers are what runs here; only the speed differs: the normalisation is folded into the
convolutions, tensors are channels last, and the resize computes every source row once. The
precision "bf16" is for watching a training: its features are off by about a hundredth, so that
its figures are another protocol.

Nothing is downloaded, and the file is read with the loader that runs no code.

Inside: `inception`; `weights_file`, where the file is looked for.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fewstep.data.images import shown_name
from fewstep.errors import DataError, UsageError
from fewstep.metrics.features import INCEPTION, Extractor, Features

SIDE = 299
"""Height and width of what the network sees."""

_PIECE = {"cpu": 50}  # images at once: the first layers hold 8 MB of each
_LAYERS = ("2048", "logits_unbiased")


def inception(
    weights: Path | str | None = None,
    precision: str = "fp32",
    *,
    device: torch.device | str = "cpu",
) -> Extractor:
    """Return the extractor of FID, KID and IS: 2,048 features and 1,008 logits without bias.

    Args:
        weights: the file; None: where torch-fidelity keeps it (see `weights_file`).
        precision: "fp32", or "bf16" for monitoring.
        device: where it runs; features come back on the CPU. A GPU may round float32 to TF32 in
            convolutions: the rule then says so.

    Raises:
        UsageError: no such file or precision, or torch-fidelity is not installed.
        DataError: the file holds code, is damaged or holds another network; (when called) images
            with neither 1 nor 3 channels.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015
        (arXiv 1512.00567), as torch-fidelity has it from the TensorFlow graph of 2015-12-05.
    """
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"inception: precision {precision!r}; allowed are fp32 and bf16")
    source = _source()
    path = weights_file(weights)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"inception: {shown_name(path)} cannot be read ({error.strerror or error})"
        ) from error
    net = _network(source, content, path)
    place = torch.device(device)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    head: Tensor = net.fc.weight.T.to(place)  # logits are float32 in either precision
    trunk = _trunk(source, net).to(place, kind)
    trunk.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] -- documented

    def call(u: Tensor) -> Features:
        if u.shape[1] not in (1, 3):
            raise DataError(
                f"inception: images of {u.shape[1]} channels; allowed are 1 (grey) and 3 (RGB)"
            )
        parts = []
        for part in u.split(_PIECE.get(place.type, 250)):
            x = resize((part.to(place).expand(-1, 3, -1, -1)).float())
            x = ((x - 128) / 128).to(kind, memory_format=torch.channels_last)
            parts.append(trunk(x).float().mean((2, 3)))
        vectors = torch.cat(parts)
        return Features(vectors.cpu(), (vectors @ head).cpu())

    tf32 = place.type == "cuda" and precision == "fp32" and torch.backends.cudnn.allow_tf32
    rule = (
        "grey repeated to RGB; bilinear to 299x299 as in TensorFlow 1; (u - 128) / 128; layers "
        f"{' and '.join(_LAYERS)}; {'tf32' if tf32 else precision}"
    )
    return Extractor(INCEPTION, hashlib.sha256(content).hexdigest(), rule, call)


def weights_file(given: Path | str | None = None) -> Path:
    """Return the file of weights: the one given, else the one in torch hub's cache.

    Raises:
        UsageError: there is none; says where it was looked for and where it is published.
    """
    url: str = _source().URL_INCEPTION_V3
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if given is not None:
        path = Path(given).expanduser()
    if not path.is_file():
        raise UsageError(
            f"inception: no file {shown_name(path)}; fetch {name} from {url} and put it there, or "
            "say where it is: --inception FILE"
        )
    return path


def resize(x: Tensor, side: int = SIDE) -> Tensor:
    """Resize as TensorFlow 1 did: pixel i of the result lies at i * H / side of the source.

    Half-pixel centres, as everywhere else by now, would shift the picture by up to half a pixel.
    Rows are interpolated along x before they are repeated along y: the same operations on the
    same numbers as pixel by pixel, but each source row is done once.

    Args:
        x: float, shape (B, C, H, W).
        side: height and width of the result.

    Returns:
        shape (B, C, side, side), channels last in memory.
    """
    height, width = x.shape[2:]
    x = x.contiguous(memory_format=torch.channels_last)

    def place(size: int) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.arange(side, dtype=x.dtype, device=x.device) * torch.tensor(
            size / side, dtype=torch.float32
        )
        low = at.long()
        return low, (low + 1).clamp_max(size - 1), at - low

    low, high, part = place(width)
    left = x.index_select(3, low)
    x = left + (x.index_select(3, high) - left) * part
    low, high, part = place(height)
    top = x.index_select(2, low)
    return top + (x.index_select(2, high) - top) * part[:, None]


def _source() -> ModuleType:
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except ImportError as e:
        raise UsageError(
            "inception features need torch-fidelity: pip install 'fewstep[eval]'"
        ) from e
    return feature_extractor_inceptionv3


def _network(source: ModuleType, content: bytes, path: Path) -> Any:
    """Return torch-fidelity's network with these weights, or refuse the file in one line."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of any kind makes the loader raise
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds code, {code[1]}" if code else "not a file of weights, or damaged"
        raise DataError(f"inception: {shown_name(path)} is refused: {reason}") from error
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise DataError(f"inception: {shown_name(path)} is refused: not a mapping of tensors")
    # The constructor unpickles without restriction. It gets the very bytes that have just passed
    # the restricted loader, from memory, so that no file can change in between.
    try:
        net = source.FeatureExtractorInceptionV3(INCEPTION, list(_LAYERS), io.BytesIO(content))
    except RuntimeError as error:
        lines = " ".join(str(error).split("\n", 1)[-1].split())
        shown = lines if len(lines) <= 240 else lines[:240] + " ..."
        raise DataError(f"inception: {shown_name(path)} holds another network: {shown}") from error
    if not all(bool(x.isfinite().all()) for x in net.state_dict().values()):
        raise DataError(f"inception: {shown_name(path)} holds numbers that are not finite")
    return net


def _trunk(source: ModuleType, net: Any) -> nn.Sequential:
    """Return the layers up to the last average, normalisation folded into the convolutions."""
    for block in net.modules():
        if type(block) is source.BasicConv2d:
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.bn = nn.Identity()
    layers = dict(net.named_children())
    del layers["AvgPool"], layers["fc"]
    return nn.Sequential(*layers.values())
