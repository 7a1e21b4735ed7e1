"""Read the tensors of a file that somebody else wrote, and nothing but tensors.

A `.pt` file is a pickle, which may run code when it is opened. Torch's reader for weights builds
tensors and plain containers only, and refuses everything else before it happens.
"""

from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import CheckpointError, UsageError

_SHOWN = 5  # names of what is not a tensor


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pt, .pth, .ckpt, .bin or .safetensors file, by name.

    Args:
        path: the file; a new-style .pt stays on disk, memory-mapped.

    Raises:
        UsageError: no such file.
        CheckpointError: damaged, not of tensors alone, or with code in it; nothing of it is run.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}; give the checkpoint that you downloaded, such as a .pt")
    found = _safe(path) if path.suffix == ".safetensors" else _torch(path)
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not tensors by name")
    odd = [str(k) for k, v in found.items() if not isinstance(v, Tensor) or not isinstance(k, str)]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} of its {len(found)} entries are not tensors "
            f"({', '.join(odd[:_SHOWN])}); give the file with the (EMA) weights alone"
        )
    odd = [
        f"{k}: {v.dtype}, {v.layout}, on {v.device}, {list(v.shape)}"
        for k, v in found.items()
        if not (v.is_floating_point() and v.layout is torch.strided and v.device.type == "cpu")
        or not v.ndim
        or not v.numel()
    ]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} of its {len(found)} tensors are no weights ({odd[0]}): real "
            "numbers along one axis or more; give the file with the (EMA) weights alone"
        )
    return found


def _torch(path: Path) -> object:
    """Open a file of `torch.save`."""
    import warnings

    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # neither an archive nor a pickle
        raise CheckpointError(f"{path}: no checkpoint at all; download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to whoever writes such files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK")
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise CheckpointError(
                f"{path}: holds more than tensors, which may run code when it is opened; refused, "
                "nothing of it was run; give the file with the (EMA) weights alone"
            ) from error
        raise CheckpointError(f"{path}: damaged or truncated; download it again") from error


def _safe(path: Path) -> object:
    """Open a file of safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or truncated; download it again") from error
