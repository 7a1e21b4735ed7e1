"""Models on disk: what does not fit is refused, what fits comes back bit for bit."""

import pytest
import torch

from fewstep.errors import CheckpointError, NumericError, UsageError
from fewstep.train import checkpoint
from train import toy


@pytest.fixture
def saved(tmp_path):
    checkpoint.save_model(toy.model(), tmp_path / "m", extra={"card.md": "# toy\n"})
    return tmp_path / "m"


def rewrite(directory, change, description=None):
    files = checkpoint.load(directory)
    tensors = files.tensors("weights.safetensors")
    change(tensors)
    parts = {"model.json": description or files.json("model.json")}
    checkpoint.write(directory, parts | {"weights.safetensors": tensors})


def test_a_model_comes_back(saved):
    ours, back = toy.model(), checkpoint.load_model(saved)
    assert back.describe() == ours.describe()
    assert not back.denoiser.training
    for a, b in zip(
        ours.denoiser.state_dict().items(), back.denoiser.state_dict().items(), strict=True
    ):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ".PT", ".bin"])
@pytest.mark.parametrize("exists", [True, False])
def test_pickle_files_are_never_loaded(tmp_path, suffix, exists):  # K9
    path = tmp_path / f"model{suffix}"
    if exists:
        path.write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match=r"never loaded.*convert it to a model folder") as e:
        checkpoint.load_model(path)
    assert path.name in str(e.value)


def test_a_missing_model_and_a_lone_file(tmp_path):  # K1
    with pytest.raises(CheckpointError, match=r"nowhere: no such checkpoint"):
        checkpoint.load_model(tmp_path / "nowhere")
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a file; give the folder"):
        checkpoint.load_model(tmp_path / "w.safetensors")


def test_names_and_shapes_that_do_not_fit_are_listed(saved):  # K6
    def change(tensors):
        names = sorted(tensors)
        for name in names[:7]:
            del tensors[name]
        tensors["stray"] = torch.zeros(2)
        tensors[names[8]] = torch.zeros(1, 2, 3)

    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=r"7 missing: .*, \.\.\.; 1 unexpected: stray") as e:
        checkpoint.load_model(saved)
    assert "1 other shape: " in str(e.value)
    assert "(1, 2, 3) for " in str(e.value)


def test_weights_that_are_not_finite_are_refused(saved, monkeypatch):  # K7
    monkeypatch.setattr("fewstep.train.sealed._plain", lambda name, tensors: dict(tensors))

    def change(tensors):
        next(iter(tensors.values())).view(-1)[0] = float("nan")

    rewrite(saved, change)
    with pytest.raises(NumericError, match="holds NaN or infinity; not loaded"):
        checkpoint.load_model(saved)


@pytest.mark.parametrize(
    "change",
    [{"net": {"name": "os.system"}}, {"shape": "x"}, {"process": {}}, {"param": "Z"}, {"net": 3}],
)
def test_a_description_that_cannot_be_built(saved, change):
    described = checkpoint.load(saved).json("model.json") | change
    rewrite(saved, lambda tensors: None, described)
    with pytest.raises(CheckpointError, match=r"model\.json: cannot build"):
        checkpoint.load_model(saved)


def test_saving_over_a_model_replaces_it(saved):
    other = toy.model()
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1)
    checkpoint.save_model(other, saved)
    back = checkpoint.load_model(saved)
    assert torch.equal(next(back.denoiser.parameters()), next(other.denoiser.parameters()))
    assert [p.name for p in saved.parent.iterdir()] == ["m"]
