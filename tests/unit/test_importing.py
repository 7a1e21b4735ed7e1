"""Which network a published file holds: told from its name, its tensors or its flags."""

import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep import sampling
from fewstep.errors import CheckpointError, UsageError
from fewstep.interop import catalog, importing, shapes
from fewstep.interop.catalog import CATALOG, parsed
from fewstep.interop.published import (
    CONSISTENCY,
    GLIDE,
    published_config,
    to_published,
)
from fewstep.model import from_description
from fewstep.nets.encoder import EncoderConfig
from fewstep.nets.layout import UNetConfig
from fewstep.nets.published import PUBLISHED, build
from fewstep.nets.text import TextUNetConfig
from fewstep.solvers import Consistency

INVENTORIES = sorted((Path(__file__).parents[1] / "golden/data/checkpoints").glob("*.json"))


def inventory(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a published file, without their numbers."""
    state = {}
    for entry in json.loads(path.read_text())["parameters"]:
        name, _, dims = entry.rpartition(":")
        state[name] = torch.empty([int(d) for d in dims.split("x")], device="meta")
    return state


@lru_cache
def shell(config: UNetConfig) -> dict[str, Tensor]:
    """Return our tensors of a network, without their numbers; many entries share one."""
    with torch.device("meta"):
        return build(config).state_dict()


def state_of(name: str) -> dict[str, Tensor]:
    """Return the tensors of an entry's file, without their numbers."""
    entry = CATALOG[name]
    config = published_config(entry.program, parsed(entry.flags))
    return to_published(entry.program, shell(config), config)


def test_there_are_inventories() -> None:
    assert len(INVENTORIES) >= 7


@pytest.mark.parametrize("path", INVENTORIES, ids=lambda p: p.stem)
def test_published_files_are_identified_by_their_tensors(path: Path) -> None:
    """The published name decides; renamed, the tensors do, or the candidates are named."""
    state, wanted = inventory(path), path.stem
    entry = next(
        (k for k, e in CATALOG.items() if e.file.removesuffix(".pt") == wanted),
        {"glide_base": "glide-base", "glide_upsample": "glide-upsample"}.get(wanted),
    )
    assert entry is not None
    assert importing.identify(CATALOG[entry].file, state) == entry
    same = [name for name in CATALOG if importing._fits(CATALOG[name], state)]
    assert entry in same
    if len(same) == 1:
        assert importing.identify("renamed.pt", state) == entry
    else:
        with pytest.raises(UsageError, match="--architecture"):
            importing.identify("renamed.pt", state)


@pytest.mark.parametrize("name", CATALOG)
def test_shapes_say_what_the_flags_say(name: str) -> None:
    """Told only what shapes cannot say, the network is that of the whole command line."""
    entry, state = CATALOG[name], state_of(name)
    flags = parsed(entry.flags)
    whole = published_config(entry.program, flags)
    hidden = {"image_size", "large_size", "small_size", "num_heads", "num_head_channels"}
    hidden |= {"use_new_attention_order", "noise_schedule", "dropout"}
    told = {k: v for k, v in flags.items() if k in hidden}
    assert importing._config(state, entry.program, told) == whole
    assert importing._config(state, entry.program, flags) == whole
    assert importing.program_of(state, {}) == (
        entry.program if entry.program in (CONSISTENCY, GLIDE) else "openai/guided-diffusion"
    )


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_is_a_whole_model(name: str) -> None:
    """Process, reading, label and preset of each are ours, and its channels fit its images."""
    entry = CATALOG[name]
    flags = parsed(entry.flags)
    config = published_config(entry.program, flags)
    facts = catalog.described(entry.program, flags, config)
    with torch.device("meta"):
        model = from_description({**facts, "net": importing._net(config)})
    assert model.describe()["process"] == facts["process"]
    assert model.shape == (3, config.size, config.size)
    assert model.inputs == tuple(
        (["known"] if "inpaint" in name else []) + (["low_res"] if "upsample" in name else [])
    )
    assert (model.classifier is not None) == isinstance(config, EncoderConfig)
    assert (model.text is not None) == isinstance(config, TextUNetConfig)
    assert len(model.classes) == (1000 if "classes" in entry.what or model.classifier else 0) or (
        "no classes" in entry.what
    )


def test_the_catalog_and_the_networks_agree() -> None:
    """Every network of `nets.published` is that of an entry, field by field."""
    ours = {published_config(e.program, parsed(e.flags)) for e in CATALOG.values()}
    missing = [name for name, config in PUBLISHED.items() if config not in ours]
    assert missing == []


def test_facts_of_the_programs() -> None:
    """What the programs' pages say, entry by entry where they differ."""

    def facts(name: str) -> dict:
        entry = CATALOG[name]
        flags = parsed(entry.flags)
        return catalog.described(entry.program, flags, published_config(entry.program, flags))

    assert facts("adm-imagenet64")["process"]["betas"] == "cosine"
    assert facts("adm-imagenet256")["process"]["betas"] == "linear"
    assert facts("adm-classifier64")["process"] == facts("adm-imagenet64")["process"]
    assert facts("adm-classifier512")["process"] == facts("adm-imagenet512")["process"]
    assert facts("iddpm-cifar10")["process"]["steps"] == 4000
    assert facts("iddpm-cifar10")["label"] == "index_of_thousand"
    assert facts("iddpm-imagenet64-cond")["label"] == "index"
    assert facts("glide-base")["process"]["betas"] == "cosine"
    assert facts("glide-upsample")["process"]["betas"] == "linear"
    assert facts("glide-base")["null"]
    assert not facts("adm-imagenet64")["null"]
    assert facts("edm-imagenet64")["param"] == "EDM"
    assert facts("cd-lpips-imagenet64")["param"] == "CONSISTENCY"
    assert facts("ct-cat256")["sampling"]["steps"] == 1
    assert facts("ct-cat256")["sampling"]["sampler"] == "consistency"
    assert facts("edm-bedroom256")["sampling"]["sampler"] == "heun"


def test_two_steps_of_the_consistency_models_go_over_the_published_level() -> None:
    """The levels that the authors found by search, as sigma; of cats distilled they name none."""
    found = {
        "cd-l2-imagenet64": 1.382, "cd-lpips-imagenet64": 1.382, "ct-imagenet64": 1.913,
        "cd-lpips-bedroom256": 4.366, "cd-l2-bedroom256": 3.520, "ct-bedroom256": 3.991,
        "ct-cat256": 5.249, "cd-l2-cat256": None, "cd-lpips-cat256": None, "edm-cat256": None,
    }  # fmt: skip
    for name, level in found.items():
        entry = CATALOG[name]
        flags = parsed(entry.flags)
        config = published_config(entry.program, flags)
        facts = catalog.described(entry.program, flags, config)
        with torch.device("meta"):
            model = from_description({**facts, "net": importing._net(config)})
        if level is None:
            assert not model.tuned
            continue
        assert list(model.tuned) == [2]
        plan = sampling.plan(model, model.tuned[2])
        assert isinstance(plan.solver, Consistency)
        assert plan.solver.least == 0.002
        ratios = model.denoiser.process.sigma(plan.times)
        assert ratios.tolist() == pytest.approx([80, level, 0], abs=5e-4)
        one = sampling.plan(model, model.sampling)
        assert (one.nfe, one.times.tolist()) == (1, pytest.approx([1.0, 0.0]))


def test_files_are_named_once() -> None:
    assert len({entry.file for entry in CATALOG.values()}) == len(CATALOG)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("--class_cond True --num_heads 4", {"class_cond": True, "num_heads": 4}),
        ("class_cond=False sigma_max=80.5", {"class_cond": False, "sigma_max": 80.5}),
        ("--attention_resolutions 32,16", {"attention_resolutions": "32,16"}),
        ("", {}),
    ],
)
def test_flags_as_text(text: str, flags: dict) -> None:
    assert parsed(text) == flags


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_head_channels": 64}, "image_size"),
        ({"image_size": 64}, "num_heads"),
        ({"image_size": 64, "num_heads": 4, "num_channels": 128}, "the tensors say 192"),
        ({"image_size": 64, "num_heads": 4, "channel_mult": "1,2"}, "the tensors say 1,2,3,4"),
        ({"image_size": 64, "num_heads": 4, "learn_sigm": True}, "learn_sigm"),
        ({"image_size": 64, "num_heads": 5}, "heads"),
    ],
)
def test_flags_that_do_not_do(flags: dict, said: str) -> None:
    with pytest.raises((UsageError, CheckpointError), match=said):
        importing._config(state_of("adm-imagenet64"), "openai/guided-diffusion", flags)


@pytest.mark.parametrize(
    "missing", ["input_blocks.0.0.weight", "out.2.weight", "middle_block.1.qkv.weight"]
)
def test_files_that_lack_a_tensor(missing: str) -> None:
    state = state_of("adm-imagenet64")
    del state[missing]
    with pytest.raises(CheckpointError, match="unknown architecture"):
        importing._config(state, "openai/guided-diffusion", {"image_size": 64, "num_heads": 4})


def test_another_network_is_none_of_ours() -> None:
    with pytest.raises(ValueError, match="not a network of guided-diffusion's family"):
        shapes.seen({"conv_in.weight": (128, 3, 3, 3)})
    with pytest.raises(UsageError, match="did you mean"):
        importing.entry_of("adm-imagnet64")
