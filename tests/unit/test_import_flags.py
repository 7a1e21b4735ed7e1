"""Flags of published programs: what is not said, said wrongly or said against the tensors."""

import pytest

from fewstep.errors import UsageError
from fewstep.interop import catalog, importing, shapes
from fewstep.interop.catalog import CATALOG, parsed
from fewstep.interop.published import ADM, CONSISTENCY, GLIDE, IMPROVED, published_config
from unit.test_importing import state_of


def facts(program: str, **flags: object) -> dict:
    """Return the description of a network of these flags."""
    return catalog.described(program, flags, published_config(program, flags))


def test_glide_has_its_own_default_schedule() -> None:
    """Its programs set cosine for the base network, linear and 256 pixels for the upsampler."""
    assert facts(GLIDE)["process"]["betas"] == "cosine"
    assert facts(GLIDE, noise_schedule="linear")["process"]["betas"] == "linear"
    assert facts(GLIDE, super_res=True, image_size=256)["process"]["betas"] == "linear"
    with pytest.raises(UsageError, match="image_size"):
        importing._config(state_of("glide-upsample"), GLIDE, {})
    assert importing._config(state_of("glide-base"), GLIDE, {}).size == 64
    assert facts(ADM)["process"]["betas"] == "linear"


def test_a_consistency_network_must_say_how_it_was_trained() -> None:
    """The tensors of a teacher and of a student are alike, their readings are not."""
    assert facts(CONSISTENCY, training_mode="edm")["param"] == "EDM"
    assert facts(CONSISTENCY, training_mode="progdist")["param"] == "EDM"
    assert facts(CONSISTENCY, training_mode="consistency_training")["param"] == "CONSISTENCY"
    with pytest.raises(UsageError, match="training_mode"):
        facts(CONSISTENCY)
    with pytest.raises(UsageError, match="did you mean"):
        facts(CONSISTENCY, training_mode="consistency_traning")
    with pytest.raises(UsageError, match=r"sigma_min = 0\.01"):
        facts(CONSISTENCY, training_mode="consistency_training", sigma_min=0.01)


@pytest.mark.parametrize("ts", ["0,22", "22,0,39", "0,22,40", "39", "0,x,39", "0,,39", "-1,39"])
def test_the_steps_of_a_consistency_model_are_indices_of_its_grid(ts: str) -> None:
    with pytest.raises(UsageError, match=r"flag ts = .*: must be rising indices of 40 noise"):
        facts(CONSISTENCY, training_mode="consistency_training", ts=ts, steps=40)


def test_steps_of_a_teacher_are_not_those_of_a_student() -> None:
    assert "tuned" not in facts(CONSISTENCY, training_mode="edm", ts="0,22,39")
    three = facts(CONSISTENCY, training_mode="consistency_training", ts="0,1,2", steps=3)
    assert three["tuned"]["2"]["levels"] == pytest.approx((80.0, 2.51524), abs=1e-4)


def test_without_learned_padding_there_is_no_null() -> None:
    """Such a network does not read the mask: both branches of guidance would be the same."""
    described = facts(GLIDE, xf_padding=False)
    assert not described["null"]
    assert described["sampling"]["guidance_scale"] == 1


WRONG = {
    "image_size": "abc",
    "num_heads": "x",
    "dropout": "abc",
    "diffusion_steps": 100.7,
    "channel_mult": "a",
    "attention_resolutions": "8,0",
    "predict_xstart": "maybe",
    "small_size": "abc",
    "use_fp16": "x",
    "noise_schedule": 5,
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_another_kind(name: str) -> None:
    flags = {"image_size": 64, "num_heads": 4, name: WRONG[name]}
    with pytest.raises(UsageError, match=name):
        importing.convert(state_of("adm-imagenet64"), ADM, flags, {})


AGAINST = [
    ("adm-imagenet64", {"learn_sigma": False}),
    ("adm-imagenet64", {"class_cond": False}),
    ("adm-imagenet64", {"attention_resolutions": "8"}),
    ("adm-imagenet64", {"image_size": 128, "attention_resolutions": "32,16,8"}),
    ("adm-imagenet64", {"large_size": 64}),
    ("adm-lsun-cat", {"class_cond": True}),
    ("adm-classifier64", {"classifier_attention_resolutions": "8"}),
    ("glide-base", {"super_res": True}),
    ("glide-upsample", {"inpaint": True}),
    ("glide-upsample", {"super_res": False}),
]


@pytest.mark.parametrize(("name", "said"), AGAINST)
def test_flags_against_the_tensors(name: str, said: dict) -> None:
    entry = CATALOG[name]
    flags = {**parsed(entry.flags), **said}
    with pytest.raises(UsageError, match=f"{list(said)[-1]}.*the tensors"):
        importing._config(state_of(name), entry.program, flags)


@pytest.mark.parametrize("name", ["edm-imagenet64", "iddpm-cifar10", "adm-imagenet64"])
def test_heads_must_be_said_for_every_program(name: str) -> None:
    entry = CATALOG[name]
    with pytest.raises(UsageError, match="num_heads"):
        importing._config(state_of(name), entry.program, {"image_size": 64})


def test_times_of_other_than_1000_steps_need_the_program() -> None:
    """The two programs tell such a network other numbers, and the tensors do not say whose."""
    state = state_of("iddpm-cifar10")
    with pytest.raises(UsageError, match="--program"):
        importing.program_of(state, {"diffusion_steps": 4000})
    assert importing.program_of(state, {"diffusion_steps": 1000}) == ADM
    said = {"diffusion_steps": 4000, "rescale_timesteps": True}
    assert importing.program_of(state, said) == ADM
    assert facts(ADM, **said)["label"] == facts(IMPROVED, diffusion_steps=4000)["label"]


@pytest.mark.parametrize("text", ["--class_cond --use_fp16", "num_heads=4 --class_cond", "a"])
def test_a_flag_is_no_value(text: str) -> None:
    with pytest.raises(UsageError, match="has no value"):
        parsed(text)


def test_short_truths() -> None:
    assert parsed("a=t b=F c=y d=n e=1") == {"a": True, "b": False, "c": True, "d": False, "e": 1}


@pytest.mark.parametrize(
    "odd",
    [
        {"input_blocks.0.0.weight": (3,)},
        {"time_embed.0.weight": (4,)},
        {"input_blocks.999999999.0.weight": (3,)},
        {"token_embedding.weight": (3, 4)},
        {"token_embedding.weight": (3, 4), "positional_embedding": (3,)},
    ],
)
def test_shapes_of_no_network(odd: dict) -> None:
    whole = {k: tuple(v.shape) for k, v in state_of("adm-imagenet64").items()}
    with pytest.raises(ValueError, match="not a network of guided-diffusion's family"):
        shapes.seen({**whole, **odd})
