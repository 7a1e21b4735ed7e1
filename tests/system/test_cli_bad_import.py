"""`fewstep import` and what an imported model cannot be told: one line each, and no code run."""

import os
import subprocess
import sys

import pytest
import torch

from system.cli_runs import call, refused
from system.published_flags import GLIDE, UPSAMPLER


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
    **{
        f"{kind} numbers": ([f"{kind}.pt", "--flags", UPSAMPLER], 4, ["out.2.bias", "weights"])
        for kind in ("whole", "complex", "sparse", "meta", "single", "none")
    },
    "a name that is never opened": (
        ["adm_superres_unet.pt", "--flags", UPSAMPLER, "--as", "models/x.pt"], 2, [".pt"],
    ),
    "unknown": (["other.pt"], 2, ["unknown architecture", "--flags"]),
    "not the family": (["other.pt", "--flags", "image_size=16"], 4, ["unknown architecture"]),
    "half": (["half.pt", "--flags", "image_size=16 num_heads=1"], 4, ["not complete"]),
    "no flags": (["adm_superres_unet.pt"], 2, ["unknown architecture", "--flags"]),
    "no size": (["adm_superres_unet.pt", "--flags", "num_heads=1"], 2, ["image_size"]),
    "no heads": (["adm_superres_unet.pt", "--flags", "large_size=16"], 2, ["num_heads"]),
    "wrong width": (
        ["adm_superres_unet.pt", "--flags", "large_size=16 num_heads=1 num_channels=64"],
        2,
        ["num_channels = 64", "32"],
    ),
    "unknown flag": (
        ["adm_superres_unet.pt", "--flags", "large_size=16 num_heads=1 use_fp17=1"],
        2,
        ["use_fp17", "did you mean"],
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


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case, broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    words, code, named = BAD[case]
    refused(call(capsys, "import", "--as", "models/bad", *words), code, *named)
    assert not (broken / "models/x.pt").exists()
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
    "weak of small images": (
        ["adm_unet_new_attention_order_conv_resample", "--weak", "models/adm_superres_unet",
         "--guidance-scale", "2"],
        2,
        ["conditions low_res", "none"],
    ),
    "weak of no small images": (
        ["adm_superres_unet", "--low-res", "small.png", "--guidance-scale", "2",
         "--weak", "models/adm_unet_new_attention_order_conv_resample"],
        2,
        ["conditions none", "low_res"],
    ),
    "weak of other conditions": (
        ["glide_text2im_unet", "--text", "a", "--weak", "models/glide_superres_unet",
         "--guidance-scale", "2"],
        2,
        ["conditions"],
    ),
    "three for two": (
        ["glide_superres_unet", *("--text", "a") * 3, "--low-res", "two"],
        2,
        ["as many of each"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAY)
def test_what_a_model_cannot_be_told(case, broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    words, code, named = SAY[case]
    answer = call(
        capsys, "sample", f"models/{words[0]}", *words[1:], "--steps", "2", "-o", "x.png"
    )
    refused(answer, code, *named)


@pytest.mark.parametrize("name", ["glide_text2im_unet", "glide_inpaint_unet", "adm_superres_unet"])
@pytest.mark.parametrize("verb", ["evaluate", "compare"])
def test_what_real_images_cannot_tell_is_not_measured(name, verb, broken, capsys, monkeypatch):
    """Asked without its text, a model would be judged by a guidance that it did not get."""
    monkeypatch.chdir(broken)
    words = ("--data", "digits", "-o", "measured")
    refused(call(capsys, verb, f"models/{name}", *words), 2, name, "a text or an image")
    assert not (broken / "measured").exists()


def test_a_text_network_without_padding_needs_texts(broken, capsys, monkeypatch):
    """It does not read the mask, so the empty text would be 128 times the first token."""
    monkeypatch.chdir(broken)
    words = ("nopad.pt", "--flags", GLIDE, "--tokenizer", "tokens.json", "--as", "models/nopad")
    code, _, err = call(capsys, "import", *words)
    assert code == 0, err
    words = ("sample", "models/nopad", "--steps", "2", "-n", "1", "-o", "nopad.png")
    code, _, err = call(capsys, *words, "--text", "boat")
    assert code == 0, err
    refused(call(capsys, *words), 2, "--text")
    refused(call(capsys, *words, "--text", "boat", "--text", ""), 2, "--text")
    answer = call(capsys, *words, "--text", "boat", "--guidance-scale", "2")
    refused(answer, 2, "never saw the null")


def test_a_small_image_under_home(broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    monkeypatch.setenv("HOME", str(broken))
    words = ("sample", "models/adm_superres_unet", "--low-res", "~/small.png", "--steps", "2")
    code, _, err = call(capsys, *words, "-o", "home.png")
    assert code == 0, err
