"""Compare names, shapes and sizes with the inventory of every published checkpoint in the golden
directory.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from fewstep.interop.published import (
    from_published,
    published_config,
    published_names,
    to_published,
)
from fewstep.nets.published import PUBLISHED, build

DEFAULT = Path(__file__).parent / "data"
DIRECTORY = Path(os.environ.get("FEWSTEP_GOLDEN") or DEFAULT) / "checkpoints"
CASES = sorted(DIRECTORY.glob("*.json"))

# Exact numbers of parameters: Dhariwal & Nichol 2021, tables 11-13; the released GLIDE networks.
COUNTS = {
    "adm-lsun256": 552_814_086,
    "adm-imagenet64": 295_904_454,
    "adm-imagenet128": 421_529_606,
    "adm-imagenet256": 553_838_086,
    "adm-imagenet256-uncond": 552_814_086,
    "adm-imagenet512": 558_997_638,
    "adm-upsample-64-256": 311_795_910,
    "adm-upsample-128-512": 308_835_270,
    "adm-classifier64": 65_438_568,
    "adm-classifier128": 42_568_040,
    "adm-classifier256": 54_096_360,
    "adm-classifier512": 54_448_360,
    "glide-base": 385_030_726,
    "glide-upsample": 398_361_286,
    "glide-base-inpaint": 385_037_638,
    "glide-upsample-inpaint": 398_368_198,
    "cd-imagenet64": 295_899_267,
}


def test_cases_exist() -> None:
    """The golden directory holds inventories: an empty one would pass silently."""
    if DIRECTORY != DEFAULT / "checkpoints" and not CASES:
        pytest.skip(f"no *.json in {DIRECTORY}")
    assert CASES, f"no *.json in {DIRECTORY}"


def test_every_published_network_has_a_count() -> None:
    """No configuration goes untested."""
    assert set(COUNTS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    """The published networks have exactly their published number of parameters, and every one of
    them has one name.
    """
    config = PUBLISHED[name]
    with torch.device("meta"):
        state = build(config).state_dict()
    assert sum(p.numel() for p in state.values()) == COUNTS[name]
    names = published_names(config)
    assert set(names) == set(state)
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_inventory(path: Path) -> None:
    """Built from the published flags, our network has the names and shapes of the published file,
    in both directions.
    """
    case = json.loads(path.read_text())
    config = published_config(case["source"], case["published_flags"])
    published = {}
    for entry in case["parameters"]:
        key, _, dims = entry.rpartition(":")
        published[key] = torch.empty([int(d) for d in dims.split("x")], device="meta")
    with torch.device("meta"):
        net = build(config)
    ours = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == case["total_parameters"]
    loaded = from_published(published, config)
    assert {k: v.shape for k, v in loaded.items()} == {k: v.shape for k, v in ours.items()}
    back = to_published(case["source"], ours, config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in published.items()}
