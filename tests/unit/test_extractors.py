"""Extractors: exact features, identities that change with what matters, the program's figures."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

from architecture.test_imports import BLOCK, EXTRAS
from fewstep import metrics
from fewstep.errors import NumericError, UsageError
from fewstep.metrics.features import state_hash
from unit.striped import SHORT, raw, stripes


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "classifiers"


def test_pixels_are_the_levels_of_the_image():
    u = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).reshape(1, 1, 2, 2)
    found = metrics.pixels()(torch.cat([u, u.flip(3)]))
    want = torch.tensor([[-1.0, 1.0, -0.6, -0.2], [1.0, -1.0, -0.2, -0.6]])
    assert torch.allclose(found.vectors, want, rtol=0, atol=1e-7)
    assert found.vectors[0, :2].tolist() == [-1, 1]  # the ends are exact
    assert found.vectors.dtype == torch.float32
    assert found.logits is None
    assert metrics.pixels().weights == ""


def test_pixels_of_colour_keep_every_channel_in_order():
    u = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    assert torch.equal(metrics.pixels()(u).vectors, u.flatten(1).float() / 127.5 - 1)


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)], ids=["type", "rank"]
)
def test_extractors_take_only_bytes(bad):
    with pytest.raises(ValueError, match=r"expected uint8 \(B, C, H, W\)"):
        metrics.pixels()(bad)


class Two(nn.Module):
    """Features and logits of linear layers, with dropout that evaluation switches off."""

    def __init__(self, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(16, 5)
        self.last = nn.Linear(5, 3)
        self.drop = nn.Dropout(0.5)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=draw)

    def forward(self, x):
        assert x.dtype == torch.float32
        assert x.min() >= -1
        assert x.max() <= 1
        v = self.drop(self.first(x.flatten(1)))
        return v, self.last(v)


def some(n=6) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (n, 1, 4, 4), generator=draw).to(torch.uint8)


def test_a_module_gives_its_features_and_logits():
    net = Two().train()
    found = metrics.module("two", net)(some())
    x = some().float() / 127.5 - 1
    want = net.first(x.flatten(1)).detach()
    assert torch.allclose(found.vectors, want, atol=1e-6)
    assert torch.allclose(found.logits, net.last(want).detach(), atol=1e-5)
    assert net.training  # the copy was switched, not this one
    only = metrics.module("flat", nn.Sequential(nn.Flatten(), nn.Linear(16, 4)))(some())
    assert only.vectors.shape == (6, 4)
    assert only.logits is None


def test_training_a_module_on_leaves_its_extractor_alone():
    net = Two()
    extractor = metrics.module("two", net)
    before = extractor(some()).vectors
    with torch.no_grad():
        net.first.weight.add_(1)
    assert torch.equal(extractor(some()).vectors, before)
    assert metrics.module("two", net).weights != extractor.weights


def test_weights_are_known_by_their_content():
    net, state = Two(), Two().state_dict()
    whole = state_hash(state)
    assert metrics.module("two", net).weights == whole
    assert len(whole) == 64
    assert state_hash(dict(reversed(state.items()))) == whole
    changed = {
        "value": state | {"last.bias": state["last.bias"] + torch.tensor([0.0, 0.0, 1e-6])},
        "type": state | {"last.bias": state["last.bias"].double()},
        "shape": state | {"last.bias": state["last.bias"].reshape(3, 1)},
        "name": {("last.biaz" if k == "last.bias" else k): v for k, v in state.items()},
        "missing": {k: v for k, v in state.items() if k != "last.bias"},
    }
    hashes = {name: state_hash(s) for name, s in changed.items()}
    assert len({whole, *hashes.values()}) == 6, hashes
    layout = {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in state.items()}
    assert state_hash(layout) == whole
    assert state_hash({}) == ""
    assert state_hash({"x": torch.zeros((), dtype=torch.bfloat16)})
    assert metrics.module("two", net, "half size", weights="abc").weights == "abc"
    assert metrics.module("two", net, "half size").rule == "u / 127.5 - 1; half size"


@pytest.mark.parametrize("name", ["pixels", "classifier", "inception"])
def test_our_own_names_are_reserved(name):
    with pytest.raises(UsageError, match=f"{name}.*one of ours"):
        metrics.module(name, Two())


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "two words", "a" * 65, "é", "a\n"])
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(UsageError, match="allowed are 1 to 64 letters"):
        metrics.module(name, Two())


class Gives(nn.Module):
    """Give what it was told to."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        (torch.zeros(6, 2, 2), ValueError, r"features \(6, 2, 2\) of 6 images"),
        (torch.zeros(5, 2), ValueError, r"features \(5, 2\) of 6 images"),
        ([1], ValueError, "features list of 6 images"),
        ((torch.zeros(6, 2), torch.zeros(5, 2)), ValueError, r"logits \(5, 2\)"),
        ((None, torch.zeros(6, 2)), ValueError, "features NoneType"),
        (torch.full((6, 2), float("nan")), NumericError, "features that are not finite"),
        ((torch.zeros(6, 2), torch.full((6, 2), float("inf"))), NumericError, "logits that are"),
    ],
)
def test_what_a_module_returns_is_checked(what, error, text):
    with pytest.raises(error, match=f"odd: .*{text}"):
        metrics.module("odd", Gives(what))(some())


# torch-fidelity's own program on our extractors


class Rows(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def extractors():
    return {
        "pixels": metrics.pixels,
        "classifier": lambda: metrics.classifier(stripes(), SHORT),
        "module": lambda: metrics.module("two", Two()),
    }


@pytest.mark.parametrize("name", extractors())
def test_the_program_gives_the_same_figures_on_our_extractors(name):
    """To 1e-6 relative; of the kernel distance, of the kernels whose means it subtracts.

    The program computes kernels in float32. Subsets are the whole sets: their order plays no part.
    """
    fidelity = pytest.importorskip("torch_fidelity")
    side = 4 if name == "module" else 8
    real, made = (raw(stripes(90, 1, side, side, seed=s)) for s in (7, 8))
    real, made = real[:80], (made.float() * 0.9).round().to(torch.uint8)[:80]
    extractor = extractors()[name]()
    registered = metrics.register(extractor)
    classes = name != "pixels"
    want = fidelity.calculate_metrics(
        input1=Rows(made), input2=Rows(real), feature_extractor=registered, cuda=False,
        isc=classes, fid=True, kid=True, prc=True, kid_subset_size=80, kid_subsets=1,
        isc_splits=4, save_cpu_ram=True, verbose=False, cache=False, batch_size=32,
    )  # fmt: skip
    r, m = extractor(real), extractor(made)
    precision, recall = metrics.precision_recall(r.vectors, m.vectors)
    kernel = metrics.kernel_distance(r.vectors, m.vectors, 80, 1)
    size = ((r.vectors @ m.vectors.T / r.vectors.shape[1] + 1) ** 3).mean().item()
    program = want.pop("kernel_inception_distance_mean")
    assert kernel.mean == pytest.approx(program, rel=1e-6, abs=1e-6 * size)
    assert abs(kernel.mean) > 1e-3 * size  # not a difference of nothing
    del want["f_score"], want["kernel_inception_distance_std"]
    got = {
        "frechet_inception_distance": metrics.frechet_distance(r.vectors, m.vectors),
        "precision": precision,
        "recall": recall,
    }
    if classes:
        got["inception_score_mean"], got["inception_score_std"] = metrics.inception_score(
            m.logits, 4
        )
    assert got == pytest.approx(want, rel=1e-6)
    assert min(got.values()) > 0, got


def test_registering_again_is_allowed_and_identity_is_in_the_name():
    pytest.importorskip("torch_fidelity")
    one, two = (metrics.register(metrics.module("two", Two(i))) for i in (0, 1))
    assert one != two
    assert one == metrics.register(metrics.module("two", Two(0)))
    assert one != metrics.register(metrics.module("two", Two(0), "another rule"))


def test_the_program_is_told_that_pixels_have_no_classes():
    fidelity = pytest.importorskip("torch_fidelity")
    name = metrics.register(metrics.pixels())
    with pytest.raises(UsageError, match="pixels has no classes"):
        fidelity.calculate_metrics(
            input1=Rows(some()), feature_extractor=name, isc=True, cuda=False, verbose=False,
            save_cpu_ram=True,
        )  # fmt: skip


MISSING = """
from fewstep import metrics
from fewstep.errors import UsageError
from fewstep.metrics import fidelity, inception, pixels
for call in (inception, lambda: fidelity.register(pixels())):
    try:
        call()
    except UsageError as e:
        print(e)
"""


def test_without_the_extra_one_line_says_what_to_install():
    code = BLOCK.format(blocked=EXTRAS) + MISSING
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("pip install 'fewstep[eval]'" in line for line in lines), lines


def test_extractors_are_functions_of_the_package():
    for name in ("pixels", "module", "classifier", "inception"):
        assert inspect.isfunction(getattr(metrics, name))
