"""The training loop in this process: CK7, CK8, TR1, TR15, C4, C15, CK19."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep import distill
from fewstep.data import stream
from fewstep.errors import DataError, NumericError, Preempted, UsageError
from fewstep.objectives import Denoising
from fewstep.train import checkpoint, engine, log
from fewstep.train.config import FitConfig, learning_rate
from fewstep.train.fit import fit
from train import toy

FILES = ("weights.safetensors", "train.safetensors")


class Wrapped:
    """The toy's objective with an accident at one step; to the run it is the same objective."""

    def __init__(self, step, accident):
        self.inner, self.at, self.accident = Denoising(), step, accident

    def __repr__(self):
        return repr(self.inner)

    def __call__(self, denoiser, x0, cond, step, noise):
        if step == self.at:
            self.at = -1  # once, not for every micro-batch
            x0 = self.accident(denoiser, x0)
        return self.inner(denoiser, x0, cond, step, noise)


def stop_after(out: Path, step: int, **changes: object) -> None:
    """Train and get SIGTERM in the middle of the step that is then the last one."""

    def accident(denoiser, x0):
        os.kill(os.getpid(), signal.SIGTERM)
        return x0

    once = Wrapped(step - 1, accident)
    config = toy.config(**{"accumulate": 1, **changes})
    with pytest.raises(Preempted, match=f"SIGTERM: saved after step {step} in") as e:
        fit(toy.model(), toy.images(), once, config, out, device="cpu")
    assert e.value.exit_code == 75
    assert checkpoint.newest(out) == checkpoint.place(out, step)


def same_end(a: Path, b: Path, steps: int) -> None:
    for name in FILES:
        ours, theirs = (checkpoint.place(p, steps) / name for p in (a, b))
        assert ours.read_bytes() == theirs.read_bytes(), name
    kept = [
        [(r["step"], r["loss"], r["lr"]) for r in log.read(p / "metrics.jsonl")] for p in (a, b)
    ]
    assert kept[0] == kept[1]
    assert [step for step, *_ in kept[0]] == list(range(1, steps + 1)), "no step twice, none left"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 60 steps that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    toy.train(out, 60, accumulate=1)
    return out


def test_resume_is_bit_exact(whole, tmp_path):  # CK7
    stop_after(tmp_path, 23)
    model = toy.train(tmp_path, 60, accumulate=1)
    same_end(tmp_path, whole, 60)
    stored = checkpoint.load_model(checkpoint.place(whole, 60)).denoiser.state_dict()
    assert all(torch.equal(v, stored[k]) for k, v in model.denoiser.state_dict().items())


@pytest.mark.parametrize("stop", [1, 6, 7, 9, 11], ids=lambda k: f"after-{k}")
def test_resume_at_awkward_points(tmp_path, stop):  # CK8
    """First step, end of the epoch (50 images, 8 a step), warm-up, the step before the last.

    The middle of an accumulation is not among them: a signal is obeyed and a checkpoint written
    between optimizer steps only, so no such state exists.
    """
    toy.train(tmp_path / "whole", 12, accumulate=2)
    stop_after(tmp_path / "cut", stop, steps=12, accumulate=2)
    toy.train(tmp_path / "cut", 12, accumulate=2)
    same_end(tmp_path / "cut", tmp_path / "whole", 12)


def test_a_broken_newest_checkpoint_is_passed_over(whole, tmp_path, capsys):
    toy.train(tmp_path, 60, accumulate=1, checkpoint_every=20)
    (checkpoint.place(tmp_path, 60) / "state.json").write_text("{}")
    toy.train(tmp_path, 60, accumulate=1, checkpoint_every=20)
    assert "skipping a broken checkpoint" in capsys.readouterr().err
    same_end(tmp_path, whole, 60)


def test_a_finished_run_returns_at_once_and_a_longer_one_goes_on(tmp_path):
    seen = []

    def count(step, model):
        seen.append((step, model.about["weights"], model.denoiser.training))

    for steps in (4, 4, 6):
        config = toy.config(steps, sample_every=3)
        fit(
            toy.model(), toy.images(), Denoising(), config, tmp_path, device="cpu", on_sample=count
        )
    assert seen == [(3, "ema", False), (4, "ema", False), (6, "ema", False)]
    assert [r["step"] for r in log.read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_sampling_changes_nothing_in_training(whole, tmp_path):
    def greedy(step, model):
        torch.manual_seed(step)
        torch.rand(100)
        model.denoiser(torch.randn(2, 1, 8, 8), 0.5)

    config = toy.config(60, accumulate=1, sample_every=7)
    fit(toy.model(), toy.images(), Denoising(), config, tmp_path, device="cpu", on_sample=greedy)
    same_end(tmp_path, whole, 60)


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    model, before = toy.model(), torch.get_rng_state()
    fit(model, toy.images(), Denoising(), toy.config(2), tmp_path, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_accumulation_gives_the_same_gradient(tmp_path):
    class Plain:  # no random numbers: only then do micro-batches see the same problem
        def __call__(self, denoiser, x0, cond, step, noise):
            return denoiser(x0, 0.5, cond).x0.square().flatten(1).mean(1)

        def __repr__(self):
            return "Plain()"

    norms = []
    for k in (1, 2, 8):
        model = toy.model()
        for module in model.denoiser.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        out = tmp_path / str(k)
        config = toy.config(3, accumulate=k, flip=False)
        fit(model, toy.images(), Plain(), config, out, device="cpu")
        norms.append([r["grad_norm"] for r in log.read(out / "metrics.jsonl")])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert norms[2] == pytest.approx(norms[0], rel=1e-4)


def poison(value):
    def accident(denoiser, x0):
        x0 = x0.clone()
        x0[3, 0, 2, 2] = value
        return x0

    return accident


def one_gradient(denoiser, x0):
    next(denoiser.net.parameters()).register_hook(
        lambda g: g.index_fill(0, torch.tensor([0]), torch.nan)
    )
    return x0


@pytest.mark.parametrize(
    "accident",
    [poison(float("nan")), poison(float("inf")), poison(-float("inf")), one_gradient],
    ids=["nan", "+inf", "-inf", "one-gradient"],
)
def test_what_is_not_finite_never_reaches_the_weights(tmp_path, accident):  # TR1
    model, before = toy.model(), {}

    def note(denoiser, x0):
        before.update({k: v.clone() for k, v in denoiser.net.state_dict().items()})
        return accident(denoiser, x0)

    config = toy.config(20, accumulate=1, checkpoint_every=4)
    with pytest.raises(NumericError) as e:
        fit(model, toy.images(), Wrapped(9, note), config, tmp_path, device="cpu")
    assert e.value.exit_code == 5
    after = model.denoiser.net.state_dict()
    assert before
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    ids = stream.batch_ids(0, 9, 8, 50).tolist()
    named = str(ids[0]) if accident is one_gradient else f"such a loss: {ids[3]};"
    for word in ("step 10:", "loss ", "gradient norm ", named):
        assert word in str(e.value)
    assert checkpoint.newest(tmp_path) == checkpoint.place(tmp_path, 8)
    assert log.read(tmp_path / "metrics.jsonl")[-1]["step"] == 9


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("a", "b"), "missing"),
        (("a", "b", "c", "d"), "new"),
        (("a", "x", "c"), '"x"'),
        (("b", "a", "c"), "order"),
    ],
)
def test_the_class_map_is_stable(tmp_path, classes, words):  # TR15
    toy.train(tmp_path, 2)
    images = toy.images()
    images = replace(images, classes=classes, labels=images.labels.clip(max=len(classes) - 1))
    for model in (toy.model(), toy.model(classes)):  # the old model, and one for the new classes
        with pytest.raises(DataError, match=words) as e:
            fit(model, images, Denoising(), toy.config(4), tmp_path, device="cpu")
        assert e.value.exit_code == 3


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    toy.train(tmp_path, 2)
    with pytest.raises(UsageError, match=r"holds another run: train\.lr 0\.001 -> 0\.002;"):
        toy.train(tmp_path, 4, lr=0.002)
    with pytest.raises(UsageError, match=r"model\.net\.width 8 -> 16"):
        fit(toy.model(width=16), toy.images(), Denoising(), toy.config(4), tmp_path, device="cpu")
    with pytest.raises(UsageError, match=r"data "):
        toy.train(tmp_path, 4, data=toy.images(51))
    with pytest.raises(UsageError, match=r"objective "):
        fit(toy.model(), toy.images(), Denoising("eps"), toy.config(4), tmp_path, device="cpu")
    toy.train(tmp_path, 4, keep=5, checkpoint_every=1, sample_every=3, log_every=2)


def test_a_second_trainer_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):  # CK19
    program = f"""
import time
from pathlib import Path
from fewstep.train import engine
with engine.locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(15)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"{other.pid}@"):
            toy.train(tmp_path, 2)
        other.kill()
    toy.train(tmp_path, 2)


def test_out_that_cannot_be_a_folder(tmp_path):  # C15
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="a file is in the way"):
        toy.train(tmp_path / "file", 2)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0), ("steps", -1), ("steps", 1.5), ("steps", "ten"), ("steps", 10**9),
        ("lr", 0), ("lr", -1e-3), ("lr", float("nan")), ("lr", float("inf")), ("lr", "1e-4x"),
        ("seed", -1), ("seed", 2**64), ("seed", "abc"), ("keep", 1), ("decay", "exponential"),
        ("ema_decay", 1.0), ("steps", True),
    ],
)  # fmt: skip
def test_bad_settings(key, value):  # C3, C4, C16
    with pytest.raises(UsageError, match=f"train.{key}="):
        FitConfig(**{key: value})


def test_a_batch_that_cannot_be_shared_out(tmp_path):  # C5
    with pytest.raises(UsageError, match=r"batch_size=8.*3 micro-batches; nearest: 6, 9"):
        toy.train(tmp_path, 2, accumulate=3)


def test_learning_rate_is_a_function_of_the_step():
    config = FitConfig(steps=110, warmup=10, lr=1.0)
    assert [learning_rate(config, k) for k in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert learning_rate(config, 60) == pytest.approx(0.5)
    assert 0 < learning_rate(config, 109) < 1e-3
    assert learning_rate(FitConfig(decay="constant", warmup=0, lr=0.5), 7) == 0.5


def test_bf16_trains_with_fp32_weights(tmp_path):
    model = toy.train(tmp_path, 3, precision="bf16")
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}


def test_lack_of_memory_is_one_line(tmp_path):
    def accident(denoiser, x0):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    config = toy.config(4, accumulate=2)
    with pytest.raises(engine.ResourceError, match="4 images at a time are too many; raise"):
        fit(toy.model(), toy.images(), Wrapped(1, accident), config, tmp_path, device="cpu")


def test_a_log_that_cannot_be_cut_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log.Metrics(path).write({"step": 1, "loss": 1.0})

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(engine.ResourceError, match=r"metrics\.jsonl: No space left"):
        log.truncate(path, 1)


def test_the_log_survives_a_cut_line(tmp_path):  # TR17, FI24
    path = tmp_path / "metrics.jsonl"
    metrics = log.Metrics(path)
    for step in range(1, 6):
        metrics.write({"step": step, "loss": 1 / step})
    raw = path.read_bytes()
    for n in range(len(raw) + 1):
        path.write_bytes(raw[:n])
        steps = [r["step"] for r in log.read(path)]
        whole_lines = raw[:n].count(b"\n")
        assert steps[:whole_lines] == list(range(1, whole_lines + 1))
        assert len(steps) <= whole_lines + 1
    path.write_bytes(raw[:-4])
    log.truncate(path, 3)
    metrics.write({"step": 4, "loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="JSON"):
        metrics.write({"step": 5, "loss": float("nan")})


def test_progress_speaks_in_plain_lines_where_there_is_no_terminal(capsys):
    with log.Progress(100, 10, images=8, every=0.0) as progress:
        for step in (11, 12):
            progress.update(step, 0.25)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("step 11/100  loss 0.2500  ")
    assert all(word in lines[1] for word in ("steps/s", "images/s", "ETA "))


def test_progress_on_a_terminal():
    class Terminal:
        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    with log.Progress(4, stream=terminal) as progress:
        progress.update(4, 0.5)
        progress.say("saved [ok]")
    assert "4/4" in terminal.text
    assert "loss 0.5000" in terminal.text
    assert "saved [ok]" in terminal.text


def test_auto_precision_asks_the_objective(tmp_path, monkeypatch):
    """A consistency objective loses its signal in bf16: auto is fp32 for it, bf16 is bf16."""
    monkeypatch.setattr(engine, "_native_bf16", lambda _: True)
    ends = {}
    for name in ("auto", "fp32", "bf16"):
        for goal in (distill.PRESETS["ect"](None, 4), Denoising()):
            out = tmp_path / f"{name}-{type(goal).__name__}"
            settings = toy.config(4, precision=name)
            trained = fit(toy.model(), toy.images(), goal, settings, out, device="cpu")
            ends[out.name] = trained.denoiser.net.head.weight.detach()
    assert torch.equal(ends["auto-Consistency"], ends["fp32-Consistency"])
    assert not torch.equal(ends["bf16-Consistency"], ends["fp32-Consistency"])
    assert torch.equal(ends["auto-Denoising"], ends["bf16-Denoising"])
    assert not torch.equal(ends["auto-Denoising"], ends["fp32-Denoising"])


def test_an_objective_that_takes_fp32_has_all_its_digits_on_a_gpu(tmp_path):
    """cuDNN would convolve in TF32; the caller's setting comes back."""

    class Looks:
        def __init__(self, goal):
            self.goal, self.precision = goal, getattr(goal, "precision", "auto")
            self.seen = set()

        def __call__(self, *args):
            self.seen.add(torch.backends.cudnn.allow_tf32)
            return self.goal(*args)

    assert torch.backends.cudnn.allow_tf32
    for goal, short in ((distill.PRESETS["ect"](None, 4), False), (Denoising(), True)):
        looks, out = Looks(goal), tmp_path / str(short)
        fit(toy.model(), toy.images(), looks, toy.config(1), out, device="cpu")
        assert looks.seen == {short}
    assert torch.backends.cudnn.allow_tf32
