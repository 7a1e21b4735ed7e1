"""`fewstep import` on tiny files in each published format: the golden networks, as their programs
would have saved them.
"""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fewstep.cli.main import main
from fewstep.cli.resolve import find
from fewstep.cli.told import Said, tell
from fewstep.conditions import Caption, Known, LowRes
from golden.test_networks import bound, fill, run
from system.cli_runs import call, process, refused

GOLDEN = Path(__file__).parents[1] / "golden/data"
ADM = "--image_size 16 --num_head_channels"
GLIDE = "--image_size 16 --num_head_channels 16 --xf_heads 4 --noise_schedule cosine"
UPSAMPLER = "--large_size 16 --small_size 8 --num_head_channels 32"
FLAGS = {
    "adm_unet_updown_adagn_classcond": f"{ADM} 16 --noise_schedule cosine --learn_sigma True",
    "adm_unet_new_attention_order_conv_resample": (
        "--image_size 16 --num_heads 4 --use_new_attention_order True"
    ),
    "adm_superres_unet": UPSAMPLER,
    "adm_classifier_attention_pool": "--image_size 16 --classifier_head_channels 16",
    "glide_text2im_unet": GLIDE,
    "glide_superres_unet": f"{GLIDE} --super_res True",
    "glide_inpaint_unet": f"{GLIDE} --inpaint True",
}
TOLD = {
    "adm_unet_updown_adagn_classcond": ("--label", "3"),
    "adm_superres_unet": ("--low-res", "small.png"),
    "glide_text2im_unet": ("--text", "a red boat", "--guidance-scale", "2"),
    "glide_superres_unet": ("--text", "boat", "--low-res", "small.png"),
    "glide_inpaint_unet": ("--text", "boat", "--image", "photo.png", "--mask", "mask.png"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with every golden network as a .pt file, and pictures."""
    folder = tmp_path_factory.mktemp("published files")
    for name in FLAGS:
        case = json.loads((GOLDEN / f"{name}.json").read_text())
        torch.save(fill(case["weights"]), folder / f"{name}.pt")
    rng = np.random.default_rng(0)
    for name, shape in {"small": (8, 8, 3), "photo": (16, 16, 3)}.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def tokens():
    """Return a table of 97 whole words, as text: byte pairs would need 256."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["a", "red", "boat", *(f"w{i}" for i in range(93)), "<|endoftext|>"]
    table = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    return table.to_str()


@pytest.fixture(scope="module")
def imported(place):
    """Each of them imported, the first one by a process of its own; exit code and output."""
    (place / "tokens.json").write_text(tokens())
    made = {}
    for name, flags in FLAGS.items():
        words = [
            "import",
            f"{place}/{name}.pt",
            "--as",
            f"{place}/models/{name}",
            "--flags",
            flags,
        ]
        words += ["--tokenizer", f"{place}/tokens.json"] if name.startswith("glide") else []
        if made:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                made[name] = (main(words), out.getvalue(), err.getvalue())
        else:
            done = process(*words, cwd=place, stdout=-1, stderr=-1)
            out, err = done.communicate()
            made[name] = (done.returncode, out, err)
    return made


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
        words = ("import", file, "--as", f"m-{file}", "--flags", FLAGS[name], "--format", "json")
        code, out, err = call(capsys, *words)
        assert code == 0, err
        assert json.loads(out)["parameters"] == sum(v.numel() for v in state.values())
        weights.add((place / f"m-{file}" / "weights.safetensors").read_bytes())
    assert len(weights) == 1


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(old, place, tmp_path):
    """CK16: an audit hook sees neither a process, nor an exec, nor an import from the file."""
    state = dict(torch.load(place / "adm_superres_unet.pt", weights_only=True), bomb=Bomb())
    torch.save(state, tmp_path / "bomb.pt", _use_new_zipfile_serialization=not old)
    (tmp_path / "hooked.py").write_text(
        "import sys\n"
        "from fewstep.cli.main import main\n"
        "import fewstep.cli.import_, fewstep.interop.importing, fewstep.interop.weights\n"
        "import torch, torch._weights_only_unpickler, fewstep.train.checkpoint\n"
        "seen = []\n"
        "def hook(event, args):\n"
        "    if event in ('os.system', 'subprocess.Popen', 'pickle.find_class', 'os.exec'):\n"
        "        seen.append(event)\n"
        "sys.addaudithook(hook)\n"
        "code = main(['import', 'bomb.pt', '--flags', 'image_size=16'])\n"
        "print('code', code, 'seen', seen)\n"
    )
    import subprocess

    env = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    done = subprocess.run(
        [sys.executable, "hooked.py"], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "code 4 seen []" in done.stdout, done.stdout + done.stderr
    assert "nothing of it was run" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "exploded").exists()


def test_the_hook_would_see_it(tmp_path):
    """The audit test can fail: read by pickle, the same file does run its command."""
    torch.save({"bomb": Bomb()}, tmp_path / "bomb.pt")
    code = (
        "import os, sys, torch; os.chdir(sys.argv[1]); torch.load('bomb.pt', weights_only=False)"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "exploded").exists()


BAD = {
    "no file": (["nowhere.pt"], 2, ["nowhere.pt", "no such file"]),
    "folder": (["models"], 2, ["a folder"]),
    "nothing": ([], 2, ["--list"]),
    "truncated": (["cut.pt"], 4, ["cut.pt", "damaged or truncated"]),
    "truncated old": (["cutold.pt"], 4, ["cutold.pt", "damaged or truncated"]),
    "truncated safetensors": (["cut.safetensors"], 4, ["damaged or truncated"]),
    "empty": (["empty.pt"], 4, ["no checkpoint"]),
    "a page": (["page.pt"], 4, ["no checkpoint"]),
    "a list": (["list.pt"], 4, ["list"]),
    "a trainer's file": (["trainer.pt"], 4, ["step", "not tensors"]),
    "a module": (["module.pt"], 4, ["more than tensors"]),
    "not finite": (["nan.pt", "--flags", UPSAMPLER], 5, ["NaN"]),
    "unknown": (["other.pt"], 2, ["unknown architecture", "--flags"]),
    "not the family": (["other.pt", "--flags", "image_size=16"], 4, ["unknown architecture"]),
    "half": (["half.pt", "--flags", "image_size=16 num_heads=1"], 4, ["unknown architecture"]),
    "no flags": (["adm_superres_unet.pt"], 2, ["unknown architecture", "--flags"]),
    "no size": (["adm_superres_unet.pt", "--flags", "num_heads=1"], 2, ["image_size"]),
    "no heads": (["adm_superres_unet.pt", "--flags", "large_size=16"], 2, ["num_heads"]),
    "wrong width": (
        ["adm_superres_unet.pt", "--flags", "large_size=16 num_heads=1 num_channels=64"],
        2,
        ["num_channels = 64", "32"],
    ),
    "unknown flag": (
        ["adm_superres_unet.pt", "--flags", "large_size=16 num_heads=1 hats=1"], 4, ["hats"],
    ),
    "flag without value": (["adm_superres_unet.pt", "--flags", "--num_heads"], 2, ["no value"]),
    "unknown schedule": (
        ["adm_superres_unet.pt", "--flags", "large_size=16 num_heads=1 noise_schedule=cosin"],
        2,
        ["cosin", "did you mean"],
    ),
    "another architecture": (
        ["adm_superres_unet.pt", "--architecture", "adm-imagenet64"], 2, ["the tensors say"],
    ),
    "unknown architecture": (
        ["adm_superres_unet.pt", "--architecture", "adm-imagnet64"], 2, ["did you mean"],
    ),
    "both": (["x.pt", "--architecture", "a", "--flags", "b=1"], 2, ["one of them"]),
    "program alone": (["x.pt", "--program", "guided-diffusion"], 2, ["--flags"]),
    "unknown program": (
        ["adm_superres_unet.pt", "--flags", "large_size=16", "--program", "gided-diffusion"],
        2,
        ["did you mean"],
    ),
    "tokenizer for pictures": (
        ["adm_superres_unet.pt", "--flags", UPSAMPLER, "--tokenizer", "tokens.json"],
        2,
        ["reads no text"],
    ),
    "no tokenizer": (
        ["glide_text2im_unet.pt", "--flags", GLIDE, "--tokenizer", "page.pt"], 3, ["no tokenizer"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def broken(place, imported):
    """Files that are no checkpoint, or not a whole one."""
    del imported
    whole = (place / "adm_superres_unet.pt").read_bytes()
    state = torch.load(place / "adm_superres_unet.pt", weights_only=True)
    torch.save(state, place / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, place / "whole.safetensors")
    (place / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (place / "cutold.pt").write_bytes((place / "old.pt").read_bytes()[:90_000])
    (place / "cut.safetensors").write_bytes((place / "whole.safetensors").read_bytes()[:90_000])
    (place / "empty.pt").write_bytes(b"")
    (place / "page.pt").write_text("<html>404</html>")
    torch.save([1, 2], place / "list.pt")
    torch.save({"step": 3, "model": state}, place / "trainer.pt")
    torch.save(torch.nn.Linear(2, 2), place / "module.pt")
    torch.save({"conv_in.weight": torch.zeros(3, 3)}, place / "other.pt")
    torch.save({k: v for k, v in state.items() if "output" not in k}, place / "half.pt")
    nan = {k: v.clone() for k, v in state.items()}
    nan["out.2.bias"][0] = float("nan")
    torch.save(nan, place / "nan.pt")
    return place


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case, broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    words, code, named = BAD[case]
    refused(call(capsys, "import", *words, "--as", "models/bad"), code, *named)
    assert not (broken / "models/bad").exists()


SAY = {
    "no small image": (["adm_superres_unet"], 2, ["--low-res"]),
    "missing small image": (["adm_superres_unet", "--low-res", "no.png"], 3, ["no.png"]),
    "a text": (["adm_superres_unet", "--low-res", "small.png", "--text", "x"], 2, ["no text"]),
    "a label": (["glide_text2im_unet", "--label", "3"], 2, ["--text"]),
    "a small image": (
        ["glide_text2im_unet", "--low-res", "small.png"], 2, ["shown no such image"],
    ),
    "no mask": (["glide_inpaint_unet", "--image", "photo.png"], 2, ["--mask"]),
    "no picture": (
        ["glide_inpaint_unet", "--image", "page.pt", "--mask", "mask.png"], 3, ["page.pt"],
    ),
    "guided to nothing": (
        ["glide_text2im_unet", "--guidance-scale", "3"], 2, ["without a text"],
    ),
    "guided, never saw the null": (
        ["adm_unet_updown_adagn_classcond", "--label", "1", "--guidance-scale", "3"],
        2,
        ["never saw the null"],
    ),
    "no label": (["adm_unet_updown_adagn_classcond"], 2, ["needs a label"]),
    "three for two": (
        ["glide_superres_unet", *("--text", "a") * 3, "--low-res", "two"],
        2,
        ["as many of each"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAY)
def test_what_a_model_cannot_be_told(case, broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    two = broken / "two"
    two.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (two / name).write_bytes((broken / "small.png").read_bytes())
    words, code, named = SAY[case]
    answer = call(
        capsys, "sample", f"models/{words[0]}", *words[1:], "--steps", "2", "-o", "x.png"
    )
    refused(answer, code, *named)


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


def test_the_list(capsys):
    code, out, _ = call(capsys, "import", "--list", "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 39
    assert all(row["licence"] == "MIT" for row in rows)
    code, out, _ = call(capsys, "import", "--list")
    assert all(row["file"] in out and row["name"] in out for row in rows)
