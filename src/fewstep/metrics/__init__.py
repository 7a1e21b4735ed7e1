"""Metrics: how good, how obedient and how new generated images are.

`features` has what images are measured on (`pixels`, `classifier`, `inception` or any module),
`quality` the arithmetic on features, which is torch-fidelity's, `intervals` how far it can be
trusted, `reference` the figures of a set of images with their floors, `conditional` those by
class, `copies` how many images repeat the training set, `bound` and `likelihood` how many bits
real images cost a model.
"""

from fewstep.metrics.bound import Bits, bits
from fewstep.metrics.classifier import classifier
from fewstep.metrics.conditional import accuracy, confusion, label_figures, per_class
from fewstep.metrics.copies import Copies, copies
from fewstep.metrics.features import Extractor, Features, module, pixels, quantise
from fewstep.metrics.fidelity import register
from fewstep.metrics.figures import Figure
from fewstep.metrics.inception import inception
from fewstep.metrics.likelihood import Likelihood, likelihood
from fewstep.metrics.moments import Moments
from fewstep.metrics.quality import (
    expected_distance,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from fewstep.metrics.reference import Reference, Split

__all__ = [
    "Bits",
    "Copies",
    "Extractor",
    "Features",
    "Figure",
    "Likelihood",
    "Moments",
    "Reference",
    "Split",
    "accuracy",
    "bits",
    "classifier",
    "confusion",
    "copies",
    "expected_distance",
    "frechet_distance",
    "inception",
    "inception_score",
    "kernel_distance",
    "label_figures",
    "likelihood",
    "module",
    "per_class",
    "pixels",
    "precision_recall",
    "quantise",
    "register",
]
