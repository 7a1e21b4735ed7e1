"""`fewstep import` on tiny files in each published format: the golden networks, as their programs
would have saved them.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fewstep.cli.resolve import find
from fewstep.cli.told import Said, tell
from fewstep.conditions import Caption, Known, LowRes
from fewstep.interop import catalog
from golden.test_networks import bound, run
from system.cli_runs import call, refused
from system.published_flags import FLAGS, GOLDEN

TOLD = {
    "adm_unet_updown_adagn_classcond": ("--label", "3"),
    "adm_superres_unet": ("--low-res", "small.png"),
    "glide_text2im_unet": ("--text", "a red boat", "--guidance-scale", "2"),
    "glide_superres_unet": ("--text", "boat", "--low-res", "small.png"),
    "glide_inpaint_unet": ("--text", "boat", "--image", "photo.png", "--mask", "mask.png"),
}


def condition(name, given):
    """Return the condition of a golden case as the model takes it."""
    inner = given.get("y")
    if "tokens" in given:
        inner = Caption(
            given["tokens"], given.get("mask", torch.ones_like(given["tokens"]).bool())
        )
    if "low_res" in given:
        inner = LowRes(given["low_res"], inner)
    if "inpaint_mask" in given:
        inner = Known(given["inpaint_image"], given["inpaint_mask"], inner)
    return None if "classifier" in name else inner


@pytest.mark.parametrize("name", FLAGS)
def test_an_imported_network_gives_the_golden_output(name, imported, place):
    """Import, open, ask: the numbers are those of the reference program."""
    code, out, err = imported[name]
    assert code == 0, err
    assert "licence" in out
    assert "next: " in out
    model = find(str(place / "models" / name), classifier="classifier" in name).model
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    given = {k.removeprefix("in."): v for k, v in tensors.items() if k.startswith("in.")}
    outputs = run(model.denoiser.net, given, condition(name, given))
    expected = {k: v for k, v in tensors.items() if k.startswith("out")}
    assert set(outputs) == set(expected)
    tolerance = json.loads((GOLDEN / f"{name}.json").read_text())["tolerance"]
    for key, value in expected.items():
        assert (outputs[key] - value).abs().max().item() <= bound(tolerance, value)


@pytest.mark.parametrize("name", TOLD)
def test_an_imported_model_makes_images(name, imported, place, capsys, monkeypatch):
    """Sample each as its kind is told: class, text, small image, partial image."""
    del imported
    monkeypatch.chdir(place)
    words = ["sample", f"models/{name}", *TOLD[name], "-n", "2", "--steps", "3", "--scale", "1"]
    code, out, err = call(capsys, *words, "-o", f"{name}.png", "--format", "json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["steps"] == 3
    assert facts["nfe"] == (6 if "--guidance-scale" in TOLD[name] or "glide_inp" in name else 3)
    pixels = np.asarray(Image.open(place / f"{name}.png"))
    assert pixels.std() > 1
    if "--mask" in TOLD[name]:  # black stays: the left half of every image is the photo's
        photo = np.asarray(Image.open(place / "photo.png"))
        left = pixels[:16, :8].astype(int)
        assert np.abs(left - photo[:, :8]).max() <= 1
        assert np.abs(pixels[:16, 8:16].astype(int) - photo[:, 8:]).max() > 16


def test_the_unconditional_one_needs_no_word(imported, place, capsys, monkeypatch):
    del imported
    monkeypatch.chdir(place)
    name = "adm_unet_new_attention_order_conv_resample"
    code, _, err = call(
        capsys, "sample", f"models/{name}", "-n", "1", "--steps", "2", "-o", "u.png"
    )
    assert code == 0, err


def test_a_classifier_guides_its_model(imported, place, capsys, monkeypatch):
    """ADM's pair: five classes, one process, both imported."""
    del imported
    monkeypatch.chdir(place)
    name = "adm_classifier_attention_pool"
    words = ("import", f"{name}.pt", "--as", "models/judge", "--flags")
    code, _, err = call(capsys, *words, f"{FLAGS[name]} --noise_schedule cosine")
    assert code == 0, err
    words = ("sample", "models/adm_unet_updown_adagn_classcond", "--label", "1", "--steps", "2")
    code, out, err = call(capsys, *words, "-n", "1", "--classifier", "models/judge", "-o", "g.png")
    assert code == 0, err
    assert "classifier judge scale 1" in out
    # the classifier above was imported without its schedule: linear, the programs' default
    answer = call(capsys, *words, "--classifier", f"models/{name}")
    refused(answer, 2, "process", "linear")


def test_safetensors_and_old_files_are_read_too(imported, place, capsys, monkeypatch):
    """The same tensors in the three containers make the same weights."""
    del imported
    monkeypatch.chdir(place)
    name = "adm_unet_updown_adagn_classcond"
    state = torch.load(f"{name}.pt", weights_only=True)
    torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, "new.safetensors")
    weights = set()
    for file in (f"{name}.pt", "old.pt", "new.safetensors"):
        made = f"m-{file.partition('.')[0]}"
        words = ("import", file, "--as", made, "--flags", FLAGS[name], "--format", "json")
        code, out, err = call(capsys, *words)
        assert code == 0, err
        assert json.loads(out)["parameters"] == sum(v.numel() for v in state.values())
        weights.add((place / made / "weights.safetensors").read_bytes())
    assert len(weights) == 1


def test_a_folder_of_small_images_each_with_its_text(broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    words = ("--text", "a", "--text", "boat", "--low-res", "two", "--steps", "2", "-o", "t.png")
    code, out, err = call(
        capsys, "sample", "models/glide_superres_unet", *words, "--format", "json"
    )
    assert code == 0, err
    assert len(json.loads(out)["seeds"]) == 2
    with Image.open("t.png") as picture:
        facts = json.loads(picture.info["fewstep"])
    assert [image["label"] for image in facts["images"]] == ["a", "boat"]


def test_a_text_reaches_the_network_beside_a_small_image(broken):
    """Each image has its small image, its text and, where one is completed, its known pixels."""
    found = find(str(broken / "models/glide_superres_unet"))
    said = Said(texts=["a", "boat"], low_res=broken / "small.png")
    cond = tell(found, found.model, said, 2).cond
    assert isinstance(cond, LowRes)
    assert isinstance(cond.cond, Caption)
    assert cond.image.shape == (4, 3, 8, 8)
    assert cond.cond.tokens[:, 0].tolist() == [0, 0, 2, 2]
    found = find(str(broken / "models/glide_inpaint_unet"))
    said = Said(texts=["boat"], image=broken / "photo.png", mask=broken / "mask.png")
    cond = tell(found, found.model, said, 3).cond
    assert isinstance(cond, Known)
    assert isinstance(cond.cond, Caption)
    assert cond.cond.tokens[:, 0].tolist() == [2, 2, 2]
    assert cond.mask[:, 0, 0].tolist() == [[1.0] * 8 + [0.0] * 8] * 3


def test_another_name_is_said(imported, place, capsys, monkeypatch):
    """A network of one's own may have the shapes of a published one: not its licence."""
    del imported
    monkeypatch.chdir(place)
    name = "adm_unet_updown_adagn_classcond"
    flags = f"{FLAGS[name]} --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 "
    flags += "--attention_resolutions 8 --resblock_updown True --num_classes 5"
    for file, notes in ((f"{name}.pt", 0), ("published.pt", 1)):
        entry = catalog.Entry(file, "a tiny one", catalog.ADM, flags)
        monkeypatch.setitem(catalog.CATALOG, "tiny", entry)
        code, out, err = call(capsys, "import", f"{name}.pt", "--as", "models/tiny")
        assert code == 0, err
        assert "licence of the weights: MIT" in out
        assert err.count("by its tensors alone") == notes


def test_the_list(capsys):
    code, out, _ = call(capsys, "import", "--list", "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 39
    assert all(row["licence"] == "MIT" for row in rows)
    code, out, _ = call(capsys, "import", "--list")
    assert all(row["file"] in out and row["name"] in out for row in rows)
