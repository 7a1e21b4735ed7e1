"""The training objective of the noisy classifier: name the class behind the noise."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.conditions import Cond, classes
from fewstep.denoiser import Told
from fewstep.errors import UsageError
from fewstep.objectives.denoising import noised
from fewstep.objectives.times import Times, Uniform


@dataclass(frozen=True)
class Classification:
    """Measure the cross-entropy of the class of a noised image.

    Args:
        times: the law of the training times; that of the model that will be guided, uniform in t,
            is what the paper takes.

    Source: Dhariwal and Nichol, 2021, section 4 and appendix H (arXiv 2105.05233).
    """

    times: Times = field(default_factory=Uniform)

    def __call__(
        self, classifier: Told, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch, in nats.

        Args:
            classifier: the model in training: classifier(x_t, t) -> logits (B, K).
            x0: clean batch, shape (B, *).
            cond: class indices, shape (B,).
            step: number of the optimizer step; unused here.
            noise: the only source of randomness, on the device of x0.

        Returns:
            shape (B,), in the dtype of x0.

        Raises:
            UsageError: images without classes.
        """
        del step
        told = classes(cond)
        if told is None:
            raise UsageError("a classifier needs images with classes")
        t = self.times(classifier.process, len(x0), noise)
        truth = noised(classifier, x0, t, noise)
        return F.cross_entropy(classifier(truth.x_t, t), told, reduction="none")


@torch.no_grad()
def accuracy_by_noise(
    classifier: Told, x0: Tensor, cond: Tensor, noise: torch.Generator, parts: int = 4
) -> list[float]:
    """Return the accuracy of a noisy classifier in equal parts of the time, cleanest first.

    Every image is classified once in each part, at times spread evenly over it.

    Args:
        classifier: in evaluation mode: classifier(x_t, t) -> logits (B, K).
        x0: clean images, shape (B, *).
        cond: their classes, shape (B,).
        noise: generator on the device of x0.
        parts: how many; ADM's logs have four, by which the guided model's use of it is judged.

    Returns:
        shares in [0, 1], one for each part.
    """
    n, found = len(x0), []
    spread = (torch.randperm(n, generator=noise, device=noise.device) + 0.5) / n
    for part in range(parts):
        truth = noised(classifier, x0, (part + spread.to(x0)) / parts, noise)
        guess = classifier(truth.x_t, (part + spread.to(x0)) / parts).argmax(1)
        found.append(float((guess == cond).double().mean()))
    return found
