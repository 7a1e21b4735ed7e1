"""The small files of a run folder, each written whole or not at all."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from fewstep.errors import ResourceError
from fewstep.files import replacing


def text(path: Path, content: str) -> None:
    """Write a text file under another name and rename it to its place.

    Raises:
        ResourceError: the disk refuses.
    """
    try:
        with replacing(path) as aside:
            aside.write_text(content, encoding="utf-8")
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror}") from e


def json_file(path: Path, value: dict[str, Any]) -> None:
    """Write a strict JSON file."""
    text(path, json.dumps(value, allow_nan=False, indent=1) + "\n")


def environment(device: str) -> dict[str, Any]:
    """Return what a run must know of the machine to be repeated on another."""
    import torch

    from fewstep.train.sealed import versions

    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "command": sys.argv,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
