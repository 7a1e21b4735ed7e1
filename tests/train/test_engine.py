"""The machine around the loop: devices, precision, one process, lack of memory."""

import sys

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.train import engine
from train import toy


def test_devices_and_precision():  # C14
    for name in ("cuda:9", "gpu", ""):
        with pytest.raises(UsageError, match="there is: auto, cpu"):
            engine.pick_device(name)
    cpu = engine.pick_device("cpu")
    assert engine.pick_precision("bf16", cpu) == "bf16"
    with pytest.raises(UsageError, match="fp16"):
        engine.pick_precision("fp16", cpu)


@pytest.mark.parametrize("native", [True, False, None])
def test_auto_is_bf16_where_the_device_computes_in_it(monkeypatch, native):
    def gpu(including_emulation=True):  # an old card emulates it
        return bool(native) or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", gpu)
    if native is None:  # a torch that cannot tell
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    expected = "bf16" if native else "fp32"
    for name in ("cpu", "cuda"):
        assert engine.pick_precision("auto", torch.device(name)) == expected
        assert engine.pick_precision("bf16", torch.device(name)) == "bf16"
    assert engine.pick_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(UsageError, match="mps does not support it; use fp32"):
        engine.pick_precision("bf16", torch.device("mps"))


def test_one_process_needs_no_accelerator(tmp_path, monkeypatch):
    """An Accelerator of another device or precision in this process is then not in the way."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it would raise
    toy.train(tmp_path, 1)


def test_a_device_without_kernels_for_lists_can_train(tmp_path, monkeypatch):
    clip = sys.modules["torch.nn.utils.clip_grad"]
    monkeypatch.setattr(clip, "_device_has_foreach_support", lambda *_: False)
    monkeypatch.setattr(clip, "_has_foreach_support", lambda *_: False)
    toy.train(tmp_path, 1)


def test_lack_of_memory_for_the_moments_is_one_line(tmp_path, monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(engine.ResourceError, match="moments; take a smaller network"):
        toy.train(tmp_path, 1)
