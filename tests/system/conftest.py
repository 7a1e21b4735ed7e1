"""Files in each published format: the golden networks, as their programs would have saved them."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewstep.cli.main import main
from golden.test_networks import fill
from system.cli_runs import process
from system.published_flags import FLAGS, GOLDEN


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
    for name in ("a.png", "b.png"):
        (place / "two").mkdir(exist_ok=True)
        (place / "two" / name).write_bytes((place / "small.png").read_bytes())
    torch.save({k: v for k, v in state.items() if "output" not in k}, place / "half.pt")
    nan = {k: v.clone() for k, v in state.items()}
    nan["out.2.bias"][0] = float("nan")
    torch.save(nan, place / "nan.pt")
    bias = state["out.2.bias"]
    for name, odd in {
        "whole": bias.long(), "complex": bias.cfloat(), "sparse": bias.to_sparse(),
        "meta": bias.to("meta"), "single": bias.sum(), "none": bias[:0],
    }.items():  # fmt: skip
        torch.save({**state, "out.2.bias": odd}, place / f"{name}.pt")
    text = torch.load(place / "glide_text2im_unet.pt", weights_only=True)
    del text["padding_embedding"]
    torch.save(text, place / "nopad.pt")
    return place
