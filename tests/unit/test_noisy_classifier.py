"""The noisy classifier: its probabilities, its training, its files, and what it is not."""

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep import data, guide, sampling
from fewstep.classifier import NoisyClassifier
from fewstep.errors import UsageError
from fewstep.exact import Mixture
from fewstep.labels import index
from fewstep.model import Model, from_description
from fewstep.nets.encoder import EncoderConfig, EncoderUNet
from fewstep.objectives import Classification, accuracy_by_noise, noised
from fewstep.objectives.times import Uniform
from fewstep.process import Cosine, Tabulated
from fewstep.train import checkpoint
from fewstep.train.config import FitConfig
from fewstep.train.fit import fit

CONFIG = EncoderConfig(
    in_channels=1, out_channels=10, size=8, width=16, mult=(1, 2), depth=1, attention=(4,),
    heads=1, groups=8, pool="attention",
)  # fmt: skip


def fresh() -> Model:
    torch.manual_seed(0)
    classes = tuple(str(i) for i in range(10))
    return Model(NoisyClassifier(EncoderUNet(CONFIG), Cosine()), (1, 8, 8), classes)


class Bayes(nn.Module):
    """The exact logits of a mixture, behind the interface of a network."""

    def __init__(self, exact: Mixture) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        t = (label.expand(len(x)).double() + 1) / 1000
        each = [torch.full((len(x),), c) for c in range(2)]
        known = torch.stack([self.exact.log_prob(x, t, y) for y in each], dim=1)
        return known + x.square().sum(1, keepdim=True)  # means nothing to a softmax


def bayes() -> tuple[Mixture, NoisyClassifier]:
    means = torch.tensor([[2.0, 0.0], [-2.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
    exact = Mixture(Tabulated(), means, 0.3, torch.tensor([0, 0, 1]))
    return exact, NoisyClassifier(Bayes(exact), Tabulated(), index)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_with_exact_logits_it_guides_as_the_exact_classifier(scale: float) -> None:
    """Logits are known up to a constant; guidance equals classifier-free guidance to 1e-10."""
    exact, classifier = bayes()
    draw = torch.Generator().manual_seed(0)
    for i in (1, 200, 700, 1000):
        t = i / 1000
        x = torch.randn(16, 2, generator=draw, dtype=torch.float64)
        y = torch.arange(16) % 2
        got = guide.LogProb(guide.Unconditional(exact), classifier.log_prob, scale)(x, t, y)
        want = guide.ClassifierFree(exact, scale)(x, t, y)
        size = 1 + float(want.eps.abs().max())
        assert float((got.eps - want.eps).abs().max()) < 1e-10 * size


def test_probabilities_are_of_all_classes_and_the_null_has_no_gradient() -> None:
    classifier = fresh().classifier
    assert classifier is not None
    for p in classifier.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(4, 1, 8, 8).requires_grad_()
    each = [classifier.log_prob(x, 0.3, torch.full((4,), c)).exp() for c in range(10)]
    assert torch.allclose(torch.stack(each).sum(0), torch.ones(4), atol=1e-5)
    classifier.log_prob(x, 0.3, torch.tensor([3, -1, 5, -1])).sum().backward()
    assert x.grad is not None
    moved = x.grad.flatten(1).abs().amax(1) > 0
    assert moved.tolist() == [True, False, True, False]


def test_it_learns_and_sees_less_in_more_noise(tmp_path) -> None:
    """160 steps on digits: far above chance where it is clean, at chance where all is noise."""
    train, held_out = data.digits()
    config = FitConfig(
        steps=160, batch_size=64, lr=3e-3, warmup=20, precision="fp32", ema_decay=0.95,
        checkpoint_every=80,
    )  # fmt: skip
    model = fit(fresh(), train, Classification(), config, tmp_path / "run", device="cpu")
    classifier = model.classifier
    assert classifier is not None
    pixels, labels = torch.from_numpy(held_out.pixels), torch.from_numpy(held_out.labels)
    noise = torch.Generator().manual_seed(0)
    found = accuracy_by_noise(classifier, pixels / 127.5 - 1, labels, noise)
    assert found[0] > 0.7
    assert found[0] > found[2] > found[3]
    assert found[3] < 0.4
    again = checkpoint.load_model(checkpoint.newest(tmp_path / "run"))
    assert again.classifier is not None
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again.classifier(x, 0.5), classifier(x, 0.5))
    assert again.describe() == model.describe()


def test_a_description_makes_it_again() -> None:
    model = fresh()
    twin = from_description(model.describe())
    assert twin.describe() == model.describe()
    assert isinstance(twin.denoiser, NoisyClassifier)
    with pytest.raises(UsageError, match="process"):
        from_description({k: v for k, v in model.describe().items() if k != "process"})


def test_it_makes_no_images() -> None:
    model = fresh()
    with pytest.raises(UsageError, match="noisy classifier of 10 classes"):
        sampling.plan(model, model.sampling)


def test_it_needs_classes() -> None:
    model = fresh()
    noise = torch.Generator().manual_seed(0)
    with pytest.raises(UsageError, match="images with classes"):
        Classification()(model.denoiser, torch.zeros(2, 1, 8, 8), None, 0, noise)


def test_the_loss_is_minus_the_log_probability_at_the_noise_of_each_image() -> None:
    """An exact classifier, against the mixture's own probabilities on the same draws."""
    exact, classifier = bayes()
    draw = torch.Generator().manual_seed(1)
    x0 = torch.randn(24, 2, generator=draw, dtype=torch.float64)
    y = torch.arange(24) % 2
    got = Classification()(classifier, x0, y, 0, torch.Generator().manual_seed(2))
    noise = torch.Generator().manual_seed(2)
    t = Uniform()(classifier.process, 24, noise)
    want = -exact.log_prob(noised(classifier, x0, t, noise).x_t, t, y)
    assert float((got - want).abs().max()) < 1e-5
    assert float(got.std()) > 0.1


def test_accuracy_is_told_part_by_part_from_the_cleanest() -> None:
    """Each image once in each part, noised as it is told, at times spread over the part."""

    class Early(nn.Module):
        """Sees class 1 in the first half of the time, class 0 in the second."""

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            seen.append(label.sort().values / 1000)
            signal = 1e3 * (label * math.pi / 2000).cos()
            assert float((x[:, 0] - signal).abs().max()) < 10  # ten sigma
            return torch.stack([label - 500, 500 - label], dim=1)

    seen: list[Tensor] = []
    classifier = NoisyClassifier(Early(), Cosine())
    noise = torch.Generator().manual_seed(0)
    x0, y = torch.full((8, 1), 1e3), torch.ones(8, dtype=torch.long)
    assert accuracy_by_noise(classifier, x0, y, noise) == [1.0, 1.0, 0.0, 0.0]
    want = (torch.arange(32) + 0.5) / 32
    assert float((torch.cat(seen) - want).abs().max()) < 1e-3


def test_half_precision_loses_no_class() -> None:
    """Logits in bfloat16 are summed in float32: the probabilities add up to 1."""

    class Even(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return torch.linspace(0, 1, 1000).to(x.dtype).expand(len(x), -1)

    classifier = NoisyClassifier(Even(), Cosine())
    x = torch.zeros(1000, 1, dtype=torch.bfloat16)
    known = classifier.log_prob(x, 0.5, torch.arange(1000))
    assert known.dtype == torch.float32
    assert float(known.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_a_fresh_one_knows_nothing() -> None:
    """The loss of a network that says the same of every image is log 10."""
    torch.manual_seed(0)
    config = EncoderConfig(**{**CONFIG.__dict__, "pool": "adaptive"})
    classifier = NoisyClassifier(EncoderUNet(config), Cosine())
    noise = torch.Generator().manual_seed(0)
    loss = Classification()(classifier, torch.zeros(4, 1, 8, 8), torch.arange(4), 0, noise)
    assert torch.allclose(loss, torch.full((4,), math.log(10.0)))
