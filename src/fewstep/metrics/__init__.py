"""Metrics: how good and how obedient generated images are.

`quality` has the Frechet distance and its real-against-real floor, `conditional` the accuracy of
labels, `features` what they are measured on.
"""

from fewstep.metrics.conditional import accuracy, train_classifier
from fewstep.metrics.features import pixels, quantise
from fewstep.metrics.quality import floor, frechet_distance

__all__ = ["accuracy", "floor", "frechet_distance", "pixels", "quantise", "train_classifier"]
