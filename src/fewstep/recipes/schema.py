"""The keys of a recipe, their types and their ranges.

One pydantic model a section; a key that is not here is an error. Each number carries its own
check, whose message names what is allowed, because the message is most of what a user sees of
this file. What one key means for another (image size and network, classes and guidance) is
checked in `build`, where both are known.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from fewstep import denoiser, sampling
from fewstep.errors import UsageError, suggest
from fewstep.labels import LABELS
from fewstep.process import Cosine, from_description

Check = Callable[[Any], Any]


def whole(low: int, high: int, shown: str = "", none: bool = False) -> Check:
    """Return a check for whole numbers in low..high; `none` admits null."""

    def check(value: Any) -> int | None:
        if none and (value is None or value in ("null", "none", "~")):
            return None
        good = isinstance(value, int | str) and not isinstance(value, bool)
        try:
            number = int(value) if good else low - 1
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            also = " or null" if none else ""
            raise ValueError(f"must be a whole number in {shown or f'{low}..{high}'}{also}")
        return number

    return check


def real(
    low: float, high: float, open_low: bool = False, open_high: bool = False, none: bool = False
) -> Check:
    """Return a check for finite numbers between two ends, which `open_*` exclude.

    `none` admits null.
    """

    def check(value: Any) -> float | None:
        if none and (value is None or value in ("null", "none", "~")):
            return None
        good = isinstance(value, int | float | str) and not isinstance(value, bool)
        try:  # YAML reads 1e-4, which has no point, as text
            number = float(value) if good else math.nan
        except ValueError:
            number = math.nan
        inside = low <= number <= high and not (open_low and number == low)
        if not inside or (open_high and number == high):
            first, last = "> " if open_low else ">= ", "< " if open_high else "<= "
            also = " or null" if none else ""
            raise ValueError(f"must be a number {first}{low:g} and {last}{high:g}{also}")
        return number

    return check


def one_of(*allowed: str) -> Check:
    """Return a check for one of these words."""

    def check(value: Any) -> str:
        if value not in allowed:
            near = suggest(str(value), allowed)
            raise ValueError(f"allowed are {', '.join(allowed)}{near}")
        return value

    return check


def auto(check: Check) -> Check:
    """Return a check that also admits "auto": chosen from the images (see `settle`)."""

    def admit(value: Any) -> Any:
        if value == "auto":
            return value
        try:
            return check(value)
        except ValueError as e:
            raise ValueError(f"{e} or auto") from None

    return admit


def text(value: Any) -> str:
    """Return a name as text; YAML reads a folder called 2024 as a number."""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
        raise ValueError("must be text")
    return str(value)


def _levels(value: Any) -> tuple[float, ...] | None:
    """Check falling noise levels."""
    if value is None or value in ("null", "none", "~"):
        return None
    words = value if isinstance(value, list | tuple) else [value]
    try:
        return sampling.ratios("", ",".join(map(str, words)))
    except UsageError as e:
        raise ValueError(str(e).removeprefix(": ")) from None


def _process(value: Any) -> dict[str, Any]:
    """Check name and parameters of a process by building it."""
    if not isinstance(value, dict):
        raise ValueError("must be a section with a name, such as process: {name: Cosine}")
    if value.get("name") == "VE" and value.get("sigma_max") == "auto":
        return {**_process({**value, "sigma_max": 1e9}), "sigma_max": "auto"}
    numbers = {k: _number(k, v) if k in _REAL_PARAMETERS else v for k, v in value.items()}
    return from_description(numbers).describe()


_REAL_PARAMETERS = ("floor", "beta_min", "beta_max", "sigma_min", "sigma_max")


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}={value!r} must be a finite number")
    return number


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Which images.

    Attributes:
        path: "digits", a folder or a file (see `fewstep.data.open`).
        size: height and width in pixels; null keeps the images' own.
        resize: "error", "crop" or "stretch".
        channels: 1 or 3; null detects.
        held_out: share of every class that is kept from training, in [0, 1).
        allow_empty_class: accept classes without images.
        hint: what belongs at `path`, said to who has nothing there; null = nothing special.
    """

    path: Annotated[str, BeforeValidator(text)] = "digits"
    size: Annotated[int | None, BeforeValidator(whole(1, 4096, none=True))] = None
    resize: Annotated[str, BeforeValidator(one_of("error", "crop", "stretch"))] = "error"
    channels: Annotated[int | None, BeforeValidator(whole(1, 3, "1 or 3", none=True))] = None
    held_out: Annotated[float, BeforeValidator(real(0, 1, open_high=True))] = 0.1
    allow_empty_class: bool = False
    hint: Annotated[str, BeforeValidator(text)] | None = None


class Net(Section):
    """The U-Net; channels, size and classes come from the data (see `nets.unet.UNetConfig`).

    Attributes:
        width: base number of channels.
        mult: channels of each level over `width`, finest first.
        depth: residual blocks per level.
        attention: resolutions in pixels that get self-attention.
        heads: attention heads, where `head_channels` is null.
        head_channels: channels of each head; null = channels / `heads`.
        attention_order: layout of q, k and v, "new" or "legacy"; for published weights.
        groups: groups of the normalisations; null = the largest of 32, 16, 8, ... that fits.
        dropout: in [0, 1).
        updown: resample in residual blocks, else as `resample_conv` says.
        resample_conv: without `updown`, resample by convolutions, else by averages alone.
        scale_shift: adaptive group normalisation, else an added embedding.
        rescale: divide every residual sum by sqrt(2).
        recompute: compute features again in the backward pass: less memory, more time, the same
            numbers, so that a continued run may change it.
        learn_variance: twice the output channels, for the objectives hybrid and bound.
        pool: what a classifier reads its features with: attention, adaptive, spatial, spatial_v2.
    """

    width: Annotated[int, BeforeValidator(whole(2, 4096))] = 64
    mult: tuple[Annotated[float, BeforeValidator(real(0, 64, open_low=True))], ...] = (1, 2)
    depth: Annotated[int, BeforeValidator(whole(1, 32))] = 2
    attention: tuple[Annotated[int, BeforeValidator(whole(1, 4096))], ...] = ()
    heads: Annotated[int, BeforeValidator(whole(1, 64))] = 4
    head_channels: Annotated[int | None, BeforeValidator(whole(1, 4096, none=True))] = None
    attention_order: Literal["new", "legacy"] = "new"
    groups: Annotated[int | None, BeforeValidator(whole(1, 1024, none=True))] = None
    dropout: Annotated[float, BeforeValidator(real(0, 1, open_high=True))] = 0.0
    updown: bool = True
    resample_conv: bool = True
    scale_shift: bool = True
    rescale: bool = False
    recompute: bool = False
    learn_variance: bool = False
    pool: Literal["adaptive", "attention", "spatial", "spatial_v2"] = "attention"


KINDS = ("simple", "hybrid", "bound", "score", "sliced", "sliced-vr")
"""Kinds of objectives; the last three match scores."""


class Objective(Section):
    """What is minimised.

    Attributes:
        kind: "simple" (`objectives.Denoising`), or for a learned variance "hybrid", the simple
            loss in eps with a thousandth of the bound, or "bound", the bound alone; "score"
            (`objectives.DenoisingScore`, NCSN's), "sliced" and "sliced-vr" (`SlicedScore`).
        view: in which view the error is taken; of simple and hybrid.
        levels: L of NCSN's ladder of noise levels, for score and sliced along a VE process; null =
            as `times` says; "auto" = by NCSNv2's technique 2.
        directions: law of the random directions of sliced.
        projections: their number for each image.
        times: law of the training times; "importance" is for the bound.
        weight: factor of the squared error.
        drop: probability that a label is replaced by the null condition; guidance needs > 0.
    """

    kind: Annotated[str, BeforeValidator(one_of(*KINDS))] = "simple"
    view: Annotated[str, BeforeValidator(one_of("v", "eps", "x0", "score"))] = "v"
    times: Annotated[str, BeforeValidator(one_of("uniform", "log-normal", "importance"))] = (
        "uniform"
    )
    weight: Annotated[str, BeforeValidator(one_of("one", "min-snr", "edm"))] = "one"
    levels: Annotated[int | str | None, BeforeValidator(auto(whole(1, 10**5, none=True)))] = None
    directions: Annotated[
        str, BeforeValidator(one_of("rademacher", "gaussian", "sphere", "unit"))
    ] = "rademacher"
    projections: Annotated[int, BeforeValidator(whole(1, 1000))] = 1
    drop: Annotated[float, BeforeValidator(real(0, 1))] = 0.1


class Train(Section):
    """How to train: the settings of `train.FitConfig`, whose seed is the recipe's."""

    steps: Annotated[int, BeforeValidator(whole(1, 10**8))] = 10_000
    batch_size: Annotated[int, BeforeValidator(whole(1, 10**6))] = 128
    accumulate: Annotated[int, BeforeValidator(whole(1, 10**6))] = 1
    lr: Annotated[float, BeforeValidator(real(0, 10, open_low=True))] = 1e-3
    warmup: Annotated[int, BeforeValidator(whole(0, 10**8))] = 100
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Annotated[float, BeforeValidator(real(0, 10))] = 0.01
    clip: Annotated[float, BeforeValidator(real(0, 1e12, open_low=True))] = 1.0
    ema_decay: Annotated[float, BeforeValidator(real(0, 1, open_high=True))] = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    flip: bool = False
    replacement: bool = False
    checkpoint_every: Annotated[int, BeforeValidator(whole(1, 10**8))] = 1000
    keep: Annotated[int, BeforeValidator(whole(2, 10**6))] = 3
    sample_every: Annotated[int, BeforeValidator(whole(1, 10**8))] = 1000
    log_every: Annotated[int, BeforeValidator(whole(1, 10**8))] = 10


class Sampling(Section):
    """How the model is sampled unless the user says otherwise (see `model.Sampling`).

    Attributes:
        steps: "auto" = from level to level of the ladder, objective.levels - 1.
        snr: "auto" = by NCSNv2's technique 4.
    """

    sampler: Annotated[str, BeforeValidator(one_of(*sampling.SAMPLERS))] = "ddim"
    steps: Annotated[int | str, BeforeValidator(auto(whole(1, sampling.MAX_STEPS)))] = 50
    spacing: Annotated[str, BeforeValidator(one_of(*sampling.SPACINGS))] = "even"
    eta: Annotated[float, BeforeValidator(real(0, 1e6))] = 0.0
    guidance_scale: Annotated[float, BeforeValidator(real(-1e6, 1e6))] = 1.0
    clip: bool = True
    guidance_low: Annotated[float, BeforeValidator(real(0, 1e12))] = 0.0
    guidance_high: Annotated[float | None, BeforeValidator(real(0, 1e12, none=True))] = None
    guidance_rescale: Annotated[float, BeforeValidator(real(0, 1))] = 0.0
    apg: bool = False
    apg_radius: Annotated[float | None, BeforeValidator(real(0, 1e12, none=True))] = None
    apg_momentum: Annotated[float, BeforeValidator(real(-1, 1))] = 0.0
    threshold: Annotated[float | None, BeforeValidator(real(0, 100, none=True))] = None
    each: Annotated[int | None, BeforeValidator(whole(1, 99_999, none=True))] = None
    snr: Annotated[
        float | str | None, BeforeValidator(auto(real(0, 1, open_low=True, none=True)))
    ] = None
    levels: Annotated[tuple[float, ...] | None, BeforeValidator(_levels)] = None


class Recipe(Section):
    """A training run.

    Attributes:
        kind: "generator", or "classifier" for a noisy classifier that guides one; it takes no
            heed of param, sampling, net.learn_variance and all of objective but times.
        name: what to call it; also the default folder, runs/NAME.
        out: the run folder; null = runs/NAME.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        seed: of weights, data order and random numbers.
        process: name and parameters of the noising process; of VE, sigma_max may be "auto": by
            NCSNv2's technique 1.
        param: what the network's output means.
        label: what the network is told about the noise level.
    """

    kind: Annotated[str, BeforeValidator(one_of("generator", "classifier"))] = "generator"
    name: Annotated[str, BeforeValidator(text)] = "run"
    out: Annotated[str, BeforeValidator(text)] | None = None
    device: Annotated[str, BeforeValidator(text)] = "auto"
    seed: Annotated[int, BeforeValidator(whole(0, 2**64 - 1, "0..2^64-1"))] = 0
    data: Data = Data()
    net: Net = Net()
    process: Annotated[dict[str, Any], BeforeValidator(_process)] = Cosine().describe()
    param: Annotated[str, BeforeValidator(one_of(*denoiser.PARAMS))] = "V"
    label: Annotated[str, BeforeValidator(one_of(*LABELS))] = "angle"
    objective: Objective = Objective()
    train: Train = Train()
    sampling: Sampling = Sampling()

    @property
    def folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"
