"""`fewstep evaluate --likelihood`: the command gives what the library gives."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from fewstep import data, metrics
from fewstep.cli.resolve import SHIPPED
from fewstep.likelihood import bits_per_dim, dequantise, log_density, rademacher
from fewstep.report import results
from fewstep.train import checkpoint
from tests.system.cli_runs import call, refused, run

LIKELIHOOD = ("evaluate", "digits", "--likelihood")


def test_the_likelihood_of_the_shipped_model(tmp_path):
    """As a process of its own, against the parts put together by hand, whatever the batch."""
    code, out, err = run(
        *LIKELIHOOD, "-n", 6, "--ode-steps", 3, "--probes", 2, "-o", "e",
        "--batch-size", 4, "--format", "json", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "6 images (digits, held out), 3 Runge-Kutta steps, 2 probes of the trace" in err
    line = json.loads(out)
    (stored,) = results.load(next((tmp_path / "e").glob("likelihood-*.json")))
    assert stored.plain() == line
    assert line["nfe"] == 12
    images = data.digits()[1]
    images = images.subset(np.random.default_rng(0).permutation(len(images))[:6])
    denoiser = checkpoint.load_model(SHIPPED / "digits").denoiser
    want = metrics.likelihood(denoiser, images, 3, 2)
    (figure,) = stored.figures
    assert figure.name == "bits/dim, ODE"
    assert figure.value == pytest.approx(want.figure.value, rel=1e-5)
    assert stored.detail["standard error by the probes"] == pytest.approx(want.spread, rel=1e-4)
    each = []
    for i in range(6):
        g = torch.Generator().manual_seed(i)
        x = dequantise(torch.from_numpy(images.pixels[i : i + 1]), g)
        v = rademacher(x, 2, g)
        y = torch.from_numpy(images.labels[i : i + 1])
        each.append(bits_per_dim(log_density(denoiser, x, y, 3, v).nats, 64))
    assert figure.value == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)


def test_an_adaptive_solver_and_the_bound_in_one_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torchdiffeq")
    monkeypatch.chdir(tmp_path)
    words = ("--tolerance", "0.05", "-n", 2, "--bits-per-dim", "--terms", 2)
    code, out, err = call(capsys, *LIKELIHOOD, *words)
    assert code == 0, err
    for word in ("bits/dim, small", "digits, likelihood: 2 images", "bits/dim, ODE",
                 "dopri5, tolerance 0.05, 1 probe of the trace", "given the class",
                 "seed 0"):  # fmt: skip
        assert word in out, word
    assert len(list(tmp_path.glob("runs/eval-digits/*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--likelihood", "--steps", "5"], ["--steps", "--likelihood", "--protocol"]),
        (["--likelihood", "--shard", "1/2"], ["--shard"]),
        (["--likelihood", "-n", "1"], ["-n 1", "2..450"]),
        (["--likelihood", "--tolerance", "0"], ["--tolerance 0", "above 0"]),
        (["--likelihood", "--tolerance", "nan"], ["--tolerance", "nan"]),
        (["--likelihood", "--tolerance", "1e-4", "--ode-steps", "4"], ["--ode-steps", "give one"]),
        (["--likelihood", "--terms", "4"], ["--terms 4", "belongs to --bits-per-dim"]),
        (["--probes", "4"], ["--probes 4", "belongs to --likelihood"]),
    ],
)
def test_what_it_cannot_have_is_one_line(tmp_path, capsys, words, named):
    refused(call(capsys, "evaluate", "digits", "-o", tmp_path / "e", *words), 2, *named)
    assert not (tmp_path / "e").exists()


def test_without_torchdiffeq_a_tolerance_is_one_line(tmp_path, capsys, monkeypatch):
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "torchdiffeq" else whole(n, *a)
    )
    words = ("--tolerance", "1e-3", "-o", tmp_path / "e")
    refused(call(capsys, *LIKELIHOOD, *words), 2, "torchdiffeq", "fewstep[likelihood]")
