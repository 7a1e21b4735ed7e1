"""What steers a sampler: classifier-free guidance as it is used today, a classifier, a weak model.

The settings are words and numbers of a preset (`model.Sampling`); what needs another network is
`Steer` or `Weak`. `guided` puts them around a model's denoiser, in the order of the papers, and
refuses what makes no sense together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep import guide
from fewstep.classifier import NoisyClassifier
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.model import Model, Sampling

DIALS: Mapping[str, tuple[str, ...]] = {
    "interval": ("guidance_low", "guidance_high"),
    "rescale": ("guidance_rescale",),
    "apg": ("apg", "apg_radius"),
    "momentum": ("apg_momentum",),
    "threshold": ("threshold",),
}
"""What people set in words, with the fields of `model.Sampling` that it means."""

REFINING = ("interval", "rescale", "apg", "momentum")
"""Dials that change guidance, and so are nothing without it."""

_UNSET = Sampling()


@dataclass(frozen=True)
class Steer:
    """A noisy classifier that guides.

    Attributes:
        model: of the classifier, in evaluation mode, on the device that samples.
        scale: the exponent on p(y | x_t), any finite number.
        name: what to call it.
        weights: SHA-256 of its weights; results are kept under it.
    """

    model: Model
    scale: float = 1.0
    name: str = ""
    weights: str = ""

    def around(self, denoiser: Denoiser, model: Model) -> Denoiser:
        """Return a model's denoiser guided by the classifier.

        Raises:
            UsageError: the model given to steer is no classifier, or one of other images, of
                other classes or of another process.
        """
        classifier, mine = self.model.classifier, self.model
        if classifier is None:
            raise UsageError("the classifier given is a model of images, not a noisy classifier")
        _fits("classifier", mine, model, model.classes or mine.classes)
        base = denoiser if model.classes else guide.Unconditional(denoiser)
        return guide.LogProb(base, classifier.log_prob, self.scale)

    def describe(self) -> dict[str, Any]:
        """Return which classifier guides and how much, as JSON values."""
        named = {"name": self.name, "weights_sha256": self.weights, "scale": self.scale}
        return {"classifier": named}


@dataclass(frozen=True)
class Weak:
    """A weaker model that takes the place of the unconditional one in guidance: autoguidance.

    The scale is that of the settings: 1 is the good model, 0 the weak one.

    Attributes:
        model: smaller or less trained, in evaluation mode, on the device that samples.
        name: what to call it.
        weights: SHA-256 of its weights; results are kept under it.
    """

    model: Model
    name: str = ""
    weights: str = ""

    def around(self, denoiser: Denoiser, model: Model, scale: float) -> Denoiser:
        """Return a model's denoiser guided by the weak one.

        Raises:
            UsageError: the weak model is a classifier, or one of other images, of other classes,
                of other conditions or of another process; the scale is not finite.
        """
        weak = self.model.denoiser
        if isinstance(weak, NoisyClassifier):
            raise UsageError("the weak model given is a noisy classifier, not a model of images")
        _fits("weak model", self.model, model, model.classes)
        return guide.Auto(denoiser, weak, scale)

    def describe(self) -> dict[str, Any]:
        """Return which model guides, as JSON values."""
        return {"weak": {"name": self.name, "weights_sha256": self.weights}}


def _fits(what: str, mine: Model, model: Model, classes: tuple[str, ...]) -> None:
    """Refuse what guides if it knows other images, classes, conditions or another process."""
    told = () if mine.classifier else (("conditions", _conditions(mine), _conditions(model)),)
    for word, own, other in (
        *told,
        ("images of shape", mine.shape, model.shape),
        ("classes", mine.classes, classes),
        ("process", mine.denoiser.process.describe(), model.denoiser.process.describe()),
    ):
        if own != other:
            raise UsageError(
                f"the {what} has {word} {_few(own)}, the model {_few(other)}: take a {what} that "
                "was trained for this model"
            )


def _conditions(model: Model) -> tuple[str, ...]:
    """Return what a model is told beside its classes."""
    text = model.text
    texts = () if text is None else (f"texts of {text.context} tokens",)
    return (*model.inputs, *texts, *(() if model.scales is None else ("a guidance scale",)))


def _few(value: object) -> str:
    """Return a value in few characters."""
    text = ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def dial(where: str, name: str, word: str) -> dict[str, Any]:
    """Return the fields of `model.Sampling` that a word sets.

    Args:
        where: what a message begins with, such as "--threshold 200".
        name: a key of `DIALS`.
        word: LOW..HIGH for the interval (HIGH may be left out), a number for the others, of apg
            the radius, which may be inf; "off" for what the model's settings hold.

    Raises:
        UsageError: not such a word.

    >>> dial("", "interval", "0.3..3"), dial("", "apg", "inf")
    ({'guidance_low': 0.3, 'guidance_high': 3.0}, {'apg': True, 'apg_radius': None})
    """
    if word == "off":
        return {field: getattr(_UNSET, field) for field in DIALS[name]}
    low, sign, high = word.partition("..")
    if name == "interval":
        first, last = _number(low), _number(high or "inf")
        if not (sign and 0 <= first < last):
            raise UsageError(
                f"{where}: must be LOW..HIGH of sigma / alpha with 0 <= LOW < HIGH, such as "
                "0.3..3, or off"
            )
        return {"guidance_low": first, "guidance_high": last if math.isfinite(last) else None}
    value = _number(word)
    allowed = {
        "rescale": (0 <= value <= 1, "a number in 0..1 (0.7 in its paper)"),
        "apg": (value > 0, "the longest difference, a number above 0 or inf,"),
        "momentum": (-1 < value < 1, "a number between -1 and 1 (-0.5 is usual)"),
        "threshold": (0 < value <= 100, "a percentile above 0 and up to 100 (99.5 is usual)"),
    }
    good, wanted = allowed[name]
    if not good:
        raise UsageError(f"{where}: must be {wanted} or off")
    if name == "apg":
        return {"apg": True, "apg_radius": value if math.isfinite(value) else None}
    return {DIALS[name][0]: value + 0.0}  # -0 is 0


def _number(word: str) -> float:
    """Return a number, NaN for what is none."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def dials(sampling: Sampling) -> dict[str, str]:
    """Return the dials that are set, each with the word that sets it.

    >>> dials(Sampling(guidance_low=0.3, threshold=99.5))
    {'interval': '0.3..', 'threshold': '99.5'}
    """
    high = "" if sampling.guidance_high is None else f"{sampling.guidance_high!r}"
    words = {
        "interval": f"{sampling.guidance_low!r}..{high}",
        "rescale": repr(sampling.guidance_rescale),
        "apg": "inf" if sampling.apg_radius is None else repr(sampling.apg_radius),
        "momentum": repr(sampling.apg_momentum),
        "threshold": repr(sampling.threshold),
    }
    return {
        name: words[name].replace(".0..", "..").removesuffix(".0")
        for name, names in DIALS.items()
        if any(getattr(sampling, field) != getattr(_UNSET, field) for field in names)
    }


def guided(model: Model, sampling: Sampling, steer: Steer | Weak | None = None) -> Denoiser:
    """Return a model's denoiser with all that steers it.

    From the inside out: first the difference that guides, between conditional and unconditional
    predictions (plain, rescaled or projected: each takes both branches) or between a good and a
    weak model, or no difference for a student that was taught the sum; then a classifier's
    gradient, which shifts the score of whatever it is given; then the interval, outside which the
    plain conditional model is asked once; then what bounds the predicted image, once and after all
    sums, because bounded branches do not add up; last the known pixels of an image that is
    completed, which thresholding would scale down.

    Args:
        model: its denoiser is wrapped, not changed.
        sampling: the settings.
        steer: a noisy classifier, or a weaker model, that guides.

    Raises:
        UsageError: guidance of a model without classes or without the null condition, settings
            that do not go together, or a classifier or weak model that does not fit; of a
            student, a scale that it was not taught or what needs both branches.

    Source: Dhariwal and Nichol, 2021, eq. 14 (classifier); Lin et al., 2023, section 3.4, and
        Sadat et al., 2024, algorithm 1 (both branches); Karras et al., 2024, eq. 3 (in place of
        the unconditional model); Kynkäänniemi et al., 2024, eq. 5 (1 outside the interval);
        Saharia et al., 2022, section 2.3 (thresholding of the guided prediction).
    """
    s, scale, own = sampling, sampling.guidance_scale, model.denoiser
    assert not isinstance(own, NoisyClassifier)
    _check(s, steer)
    denoiser: Denoiser = own
    if model.scales is not None:
        _check_taught(s, model.scales, steer)
        denoiser = guide.Taught(own, scale)
    elif isinstance(steer, Weak):
        denoiser = steer.around(own, model, scale)
    elif scale != 1:
        if not model.classes and model.text is None:
            raise UsageError(
                f"guidance scale {scale:g}: this model is unconditional (it has no classes); "
                "leave --guidance-scale out"
            )
        denoiser = _classifier_free(own, s)
    if isinstance(steer, Steer):
        denoiser = steer.around(denoiser, model)
    if s.guidance_low or s.guidance_high is not None:
        high = math.inf if s.guidance_high is None else s.guidance_high
        denoiser = guide.Interval(denoiser, own, s.guidance_low, high)
    if s.threshold is not None:
        denoiser = guide.Threshold(denoiser, s.threshold)
    elif s.clip:
        denoiser = guide.Clamp(denoiser)
    return guide.Keep(denoiser) if "known" in model.inputs else denoiser


def _classifier_free(denoiser: Denoiser, s: Sampling) -> Denoiser:
    """Return the guidance that needs both branches."""
    scale = s.guidance_scale
    if s.apg:
        radius = math.inf if s.apg_radius is None else s.apg_radius
        return guide.Projected(denoiser, scale, radius=radius, momentum=s.apg_momentum)
    if s.guidance_rescale:
        return guide.Rescaled(denoiser, scale, s.guidance_rescale)
    return guide.ClassifierFree(denoiser, scale)


def _check_taught(s: Sampling, scales: tuple[float, float], steer: Steer | Weak | None) -> None:
    """Refuse what a student that says the guided prediction itself cannot do."""
    low, high = scales
    said, span = dials(s), f"{low:g} to {high:g}"
    if isinstance(steer, Weak):
        raise UsageError(
            "a weak model: this model was taught guidance and is told its scale, which would mean "
            "two things; leave the weak model out"
        )
    if not low <= s.guidance_scale <= high:
        raise UsageError(
            f"guidance scale {s.guidance_scale:g}: this model was taught those from {span}; give "
            "one of them"
        )
    if "interval" in said and not low <= 1 <= high:
        raise UsageError(
            f"interval {said['interval']}: outside it guidance scale 1 is asked for, and this "
            f"model was taught those from {span}; leave it out"
        )
    for name in (n for n in ("rescale", "apg", "momentum") if n in said):
        raise UsageError(
            f"{name} {said[name]}: compares with the unconditional prediction, and this model was "
            "taught to say the guided one alone; leave it out"
        )


def _check(s: Sampling, steer: Steer | Weak | None) -> None:
    """Refuse settings that do not go together, rather than pass one over."""
    said = dials(s)
    if "momentum" in said and "apg" not in said:
        raise UsageError(f"momentum {said['momentum']}: belongs to apg; give apg with it")
    twice = s.sampler in ("heun", "heun-churn") or s.sampler.startswith(
        ("annealed-", "predictor-")
    )
    if "momentum" in said and twice:
        raise UsageError(
            f"momentum {said['momentum']}: the sampler {s.sampler} asks twice at one time, which "
            "begins the running sum anew; take ddim or dpmpp"
        )
    if "rescale" in said and "apg" in said:
        raise UsageError("rescale and apg: both bring contrast back; give one of them")
    for name in (n for n in REFINING if n in said):
        if s.guidance_scale == 1:
            raise UsageError(
                f"{name} {said[name]}: changes guidance, and guidance scale 1 is none; give "
                "another scale"
            )
        if name != "interval" and isinstance(steer, Weak):
            raise UsageError(
                f"{name} {said[name]}: compares with the unconditional model, and a weak model "
                "stands in its place; leave one of them out"
            )
        if name == "interval" and isinstance(steer, Steer):
            raise UsageError(
                f"interval {said[name]}: of classifier-free guidance and of a weak model, not of "
                "a classifier; leave one of them out"
            )
