"""The Inception path, proven without the published weights: random ones, and the program itself.

A weight file made here goes through our extractor and through torch-fidelity's own command, on
the same pictures as PNG files.
"""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fewstep import metrics
from fewstep.errors import DataError, UsageError
from fewstep.metrics.inception import resize

fidelity = pytest.importorskip("torch_fidelity")

from benchmarks.evaluation import images, peer, random_inception  # noqa: E402 -- after importorskip
from torch_fidelity import metric_kid  # noqa: E402 -- after importorskip

N = 24
FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    random_inception(path)
    return path


@pytest.fixture(scope="module")
def extractor(weights):
    return metrics.inception(weights)


@pytest.fixture(scope="module")
def theirs(weights):
    """torch-fidelity's extractor as it comes."""
    return peer(weights)


def real() -> torch.Tensor:
    return images(N, seed=1)


def made() -> torch.Tensor:
    return (images(N, seed=2).float() * 0.8 + 30).round().to(torch.uint8)


def png(folder, u):
    folder.mkdir()
    for i, image in enumerate(u):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


def command(weights, made, real) -> subprocess.Popen[str]:
    """Start torch-fidelity's command for all figures on two folders."""
    options = (
        "--cpu --json --silent --no-cache --save-cpu-ram --isc --fid --kid --prc "
        f"--kid-subset-size {N} --kid-subsets 1 --isc-splits 3 --batch-size 10 "
        f"--feature-extractor inception-v3-compat --feature-extractor-weights-path {weights}"
    )
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch_fidelity.fidelity", *options.split(),
            "--input1", str(made), "--input2", str(real),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


@pytest.mark.timeout(600)  # two processes of half a minute; a busy machine is not a failure
def test_the_figures_are_those_of_the_programs_own_command(tmp_path, weights, extractor):
    """FID, IS, precision and recall to 1e-6 relative; KID to 1e-6 of the kernels' mean.

    The features agree to 5e-6 of their size: folding the normalisation changes the rounding, and
    a random network enlarges it. The figures average it out: 1e-7 is seen. KID is a difference of
    means of kernels, 40 times smaller than they are, which the command computes in float32 and
    we in float64; in its own arithmetic our features give its KID to 1e-6 as well.
    """
    program = command(weights, png(tmp_path / "made", made()), png(tmp_path / "real", real()))
    r, m = extractor(real()), extractor(made())
    score, spread = metrics.inception_score(m.logits, 3)
    precision, recall = metrics.precision_recall(r.vectors, m.vectors)
    distance = metrics.frechet_distance(r.vectors, m.vectors)
    kernel = metrics.kernel_distance(r.vectors, m.vectors, N, 1)  # the whole sets in any order
    single = metric_kid.kid_features_to_metric(
        m.vectors, r.vectors, kid_subset_size=N, kid_subsets=1, verbose=False
    )
    size = ((r.vectors @ m.vectors.T / 2048 + 1) ** 3).mean().item()
    out, said = program.communicate(timeout=500)
    assert program.returncode == 0, said
    want = json.loads(out)
    kid = want["kernel_inception_distance_mean"]
    assert distance == pytest.approx(want["frechet_inception_distance"], rel=1e-6)
    assert score == pytest.approx(want["inception_score_mean"], rel=1e-6)
    assert spread == pytest.approx(want["inception_score_std"], abs=1e-6 * score)
    assert (precision, recall) == pytest.approx((want["precision"], want["recall"]), rel=1e-6)
    assert kernel.mean == pytest.approx(kid, abs=1e-6 * size)
    assert single["kernel_inception_distance_mean"] == pytest.approx(kid, rel=1e-6)
    # The pictures test something.
    assert distance > 1
    assert score > 1.1
    assert 0 < precision < 1
    assert 0 < recall < 1
    assert abs(kid) > 0.01 * size


def relative(x, y) -> float:
    return ((x - y).abs().max() / y.abs().max()).item()


@pytest.mark.parametrize("size", [(32, 32), (20, 45), (299, 299)], ids=str)
def test_features_are_those_of_the_network_as_it_comes(extractor, theirs, size):
    u = images(4, seed=5, size=max(size))[:, :, : size[0], : size[1]]
    with torch.no_grad():
        vectors, logits = theirs(u)
    found = extractor(u)
    assert relative(found.vectors, vectors) < 1e-5
    assert relative(found.logits, logits) < 1e-5
    assert found.vectors.shape == (4, 2048)
    assert found.logits.shape == (4, 1008)
    assert found.vectors.dtype == found.logits.dtype == torch.float32


def test_grey_is_repeated(extractor):
    grey = images(2, seed=6)[:, :1]
    assert torch.equal(extractor(grey).vectors, extractor(grey.repeat(1, 3, 1, 1)).vectors)


def test_pieces_do_not_change_features(monkeypatch, extractor):
    """Five images, two at a time and all at once."""
    u = images(5, seed=7)
    whole = extractor(u)
    monkeypatch.setitem(sys.modules["fewstep.metrics.inception"]._PIECE, "cpu", 2)
    parts = extractor(u)
    assert relative(parts.vectors, whole.vectors) < 1e-5
    assert relative(parts.logits, whole.logits) < 1e-5


def test_bfloat16_is_near_and_another_protocol(weights, extractor):
    low = metrics.inception(weights, "bf16")
    u = images(8, seed=8)
    right, near = extractor(u), low(u)
    off = ((near.vectors - right.vectors).norm() / right.vectors.norm()).item()
    assert 1e-4 < off < 0.05  # rounding of bfloat16, and not float32 under another name
    assert near.vectors.dtype == torch.float32
    assert low.weights == extractor.weights
    assert low.rule != extractor.rule
    assert "bf16" in low.rule
    assert "fp32" in extractor.rule


def test_what_is_said_beside_a_figure(weights, extractor):
    assert extractor.name == "inception"
    assert extractor.named("FD") == "FID"
    assert extractor.weights == hashlib.sha256(weights.read_bytes()).hexdigest()
    for word in ("grey repeated", "299", "TensorFlow", "(u - 128) / 128", "2048", "logits_unb"):
        assert word in extractor.rule


@pytest.mark.parametrize("shape", [(32, 32), (5, 7), (299, 299), (400, 310), (1, 2)], ids=str)
def test_resize_is_the_programs_bit_for_bit(shape):
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as reference,
    )

    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    want = reference(x, size=(299, 299), align_corners=False)
    assert torch.equal(resize(x), want)


def test_resize_of_a_checkerboard_is_the_closed_form():
    """Pixel i lies at i / 2: 0, 0.5, 1 and, beyond the last one, 1 again; no half pixels."""
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 1, 2, 2)
    line = torch.tensor([0.0, 0.5, 1.0, 1.0])
    a, b = line[None], line[:, None]
    assert torch.equal(resize(x, 4)[0, 0], a + b - 2 * a * b)


# bad input: one line each


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable()
    assert len(text) < 500
    return text


def test_missing_weights_name_file_place_address_and_option(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with pytest.raises(UsageError) as caught:
        metrics.inception()
    text = one_line(caught.value)
    for word in (FILE, str(tmp_path / "hub" / "checkpoints" / FILE), URL, "--inception FILE"):
        assert word in text
    with pytest.raises(UsageError) as caught:
        metrics.inception(tmp_path / "none.pth")
    text = one_line(caught.value)
    assert str(tmp_path / "none.pth") in text
    assert URL in text
    with pytest.raises(UsageError, match="no file"):
        metrics.inception(tmp_path)  # a folder


def test_weights_in_the_hubs_cache_are_found(tmp_path, monkeypatch, weights, extractor):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    os.link(weights, tmp_path / "checkpoints" / FILE)
    assert metrics.inception().weights == extractor.weights


class Code:
    """A pickle of this runs a command."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


FIRST = "Conv2d_1a_3x3.conv.weight"
WRONG = {
    "code": (lambda state: {FIRST: Code()}, "it holds code, .*mkdir"),
    "a list": (lambda state: [1, 2], "not a mapping of tensors"),
    "no tensors": (lambda state: {FIRST: 3}, "not a mapping of tensors"),
    "a name missing": (lambda state: without(state, FIRST), f"another network: Missing.*{FIRST}"),
    "a name more": (lambda state: state | {"more": torch.zeros(1)}, "another network: .*more"),
    "a shape": (
        lambda state: state | {"fc.weight": torch.zeros(1000, 2048)},
        r"another network: size mismatch for fc\.weight.*1000",
    ),
    "another network": (lambda state: {"a.weight": torch.zeros(1)}, "another network: Missing"),
    "not finite": (
        lambda state: state | {"fc.bias": torch.full((1008,), float("nan"))},
        "numbers that are not finite",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, monkeypatch, weights, kind):
    monkeypatch.chdir(tmp_path)
    change, text = WRONG[kind]
    path = tmp_path / "wrong.pth"
    state = torch.load(weights, weights_only=True)
    torch.save(change(state), path)
    with pytest.raises(DataError, match=text) as caught:
        metrics.inception(path)
    assert str(path) in one_line(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>" * 99, b"\x80\x02}", b"PK\3\4" + b"0" * 99],
    ids=["empty", "page", "cut", "zip"],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a file of weights, or damaged") as caught:
        metrics.inception(path)
    assert str(path) in one_line(caught.value)


def test_a_file_that_was_cut_is_refused(tmp_path, weights):
    path = tmp_path / FILE
    path.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(DataError, match="not a file of weights, or damaged"):
        metrics.inception(path)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_no_rule_covers_are_refused(extractor, channels):
    with pytest.raises(DataError, match=rf"images of {channels} channels; allowed are 1 .* and 3"):
        extractor(torch.zeros(1, channels, 8, 8, dtype=torch.uint8))


def test_an_unknown_precision_is_refused(weights):
    with pytest.raises(UsageError, match="precision 'fp16'; allowed are fp32 and bf16"):
        metrics.inception(weights, "fp16")
