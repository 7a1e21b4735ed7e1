"""A model as people keep it: a denoiser that knows its classes, its shape and how to be sampled.

A `Model` says everything about itself in plain JSON (`describe`) and can be built again from
that, without its weights, by `from_description`: names come from closed tables, so that a file
never names code. Reading and writing files is the business of `train.checkpoint`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fewstep import process
from fewstep.classifier import NoisyClassifier
from fewstep.denoiser import BOTH, PARAMS, NetDenoiser
from fewstep.errors import UsageError, suggest
from fewstep.labels import LABELS
from fewstep.nets.encoder import EncoderConfig, EncoderUNet
from fewstep.nets.extra_inputs import Inpaint, SuperRes
from fewstep.nets.guidance import GuidanceScale
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.nets.text import TextUNet, TextUNetConfig
from fewstep.nets.unet import UNet, UNetConfig

NETS: Mapping[str, tuple[type[nn.Module], type]] = {
    "UNet": (UNet, UNetConfig),
    "MLP": (MLP, MLPConfig),
    "EncoderUNet": (EncoderUNet, EncoderConfig),
    "TextUNet": (TextUNet, TextUNetConfig),
}
"""The networks that a stored model may name, each with its configuration. An `EncoderUNet` makes
the model a noisy classifier."""

INPUTS: Mapping[str, type[Inpaint] | type[SuperRes] | type[GuidanceScale]] = {
    "known": Inpaint,
    "low_res": SuperRes,
    "guidance": GuidanceScale,
}
"""What a network may be told beside its condition, by the wrapper that takes it: further images
(`nets.extra_inputs`) and, innermost, the guidance scale (`nets.guidance`)."""


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled unless the user says otherwise.

    Attributes:
        sampler: name of a solver in `sampling.SAMPLERS`.
        steps: number of steps, >= 1.
        spacing: name of a grid in `sampling.SPACINGS`.
        eta: DDIM's dial, >= 0.
        guidance_scale: the exponent s; 1 = plain conditional.
        clip: whether the predicted image is kept in [-1, 1].
        guidance_low: guide only while sigma / alpha is above this, >= 0.
        guidance_high: and not above this; None = without an upper end.
        guidance_rescale: share of the contrast that is brought back, in [0, 1]; 0 = none.
        apg: whether the part of the guidance that only adds contrast is left out.
        apg_radius: its longest difference, in units of pixel values in [-1, 1]; None = any.
        apg_momentum: of its running sum, in (-1, 1).
        threshold: percentile in (0, 100] of dynamic thresholding, in place of clipping, or None.
        each: Langevin steps at a level of noise, >= 1; None = 5 of annealed-langevin, else 1.
        snr: size of these steps, in (0, 1), see `solvers.PredictorCorrector`; None = by the
            ladder (annealed-langevin), else 0.16, or 0.176 (predictor-corrector-level).
        levels: falling noise levels sigma / alpha > 0, one to a step, in place of the spacing.
    """

    sampler: str = "ddim"
    steps: int = 50
    spacing: str = "even"
    eta: float = 0.0
    guidance_scale: float = 1.0
    clip: bool = True
    guidance_low: float = 0.0
    guidance_high: float | None = None
    guidance_rescale: float = 0.0
    apg: bool = False
    apg_radius: float | None = None
    apg_momentum: float = 0.0
    threshold: float | None = None
    each: int | None = None
    snr: float | None = None
    levels: tuple[float, ...] | None = None

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON values, the fields from `guidance_low` on only where set.

        So files, caches and results made before these fields were there still mean the same.
        """
        unset = {f.name: f.default for f in fields(self)[_FIRST:]}
        said = {k: v for k, v in asdict(self).items() if k not in unset or v != unset[k]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}


_FIRST = [f.name for f in fields(Sampling)].index("guidance_low")


@dataclass(frozen=True)
class Model:
    """A denoiser, or a noisy classifier, with what is needed to use it.

    Attributes:
        denoiser: the network with its process and parametrisation; of a classifier, with its
            process alone: see `classifier`.
        shape: (C, H, W) of one image.
        classes: class names in the order of their indices; empty = unconditional, or conditioned
            by something else.
        sampling: the preset.
        about: where it comes from: data name and fingerprint, licence, steps, free text.
        tuned: presets by number of steps, found for these weights (`tune`).
        student: how a model of few steps was made, as JSON values; empty = it is none. "kind" is
            "guided", "progressive" or "consistency", "steps" what it was made for, "teacher" whose
            student it is, "guidance" the scale that is in its weights, or "scales" their range:
            see `scales`.
    """

    denoiser: NetDenoiser | NoisyClassifier
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    about: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[int, Sampling] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classifier(self) -> NoisyClassifier | None:
        """The noisy classifier that this model is, or None for a denoiser."""
        return self.denoiser if isinstance(self.denoiser, NoisyClassifier) else None

    @property
    def net(self) -> nn.Module:
        """The network without the wrappers of its further inputs."""
        return _unwrapped(self.denoiser.net)[0]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names in `INPUTS` of the further images that the network is shown, outermost first."""
        return tuple(name for name in _unwrapped(self.denoiser.net)[1] if name != "guidance")

    @property
    def scales(self) -> tuple[float, float] | None:
        """Least and largest guidance scale that the network was taught; None = it is told none.

        Raises:
            UsageError: it is told a scale, and `student` does not say which it was taught.
        """
        if "guidance" not in _unwrapped(self.denoiser.net)[1]:
            return None
        match self.student.get("scales"):
            case [int() | float() as low, int() | float() as high] if low <= high:
                return float(low), float(high)
        raise UsageError(
            "this model is told a guidance scale, and its description does not say which it was "
            "taught: student.scales = [low, high], such as [1, 5], is missing or no such pair"
        )

    @property
    def text(self) -> TextUNetConfig | None:
        """What a network that reads captions expects, or None for the others."""
        return self.net.config if isinstance(self.net, TextUNet) else None

    @property
    def learned_variance(self) -> bool:
        """Whether the network says a variance beside every pixel, in a second half of channels."""
        config = getattr(self.net, "config", None)
        channels = getattr(config, "out_channels", None)
        both = isinstance(self.denoiser, NetDenoiser) and self.denoiser.param is BOTH
        return self.classifier is None and channels == 2 * self.shape[0] and not both

    def check(self, s: Sampling) -> None:
        """Refuse to sample a model of few steps in another way than it was made for.

        A progressive student has one way. A consistency student that has levels takes the first
        of them, or any that begin no higher. A copy of the model whose `student` is empty is
        sampled in any way.

        Raises:
            UsageError: it is a student, and these are another's settings; names what differs.
        """
        kind, baked = self.student.get("kind"), self.student.get("guidance", 1.0)
        if kind not in ("progressive", "consistency"):
            return
        why = self._unlike(s) if kind == "progressive" else self._above(s)
        if why:
            raise UsageError(f"{why} (sample --force does it all the same)")
        if s.guidance_scale != 1 and "scales" not in self.student:
            raise UsageError(
                f"guidance scale {s.guidance_scale:g}: this student has guidance scale "
                f"{baked:g} in its weights; leave it out"
            )

    def _unlike(self, s: Sampling) -> str:
        """Return what settings have that this progressive student has not; "" if nothing."""
        own, steps = self.sampling, self.student.get("steps", self.sampling.steps)
        named = [
            f"{name} {theirs if isinstance(theirs, str) else format(theirs, 'g')}"
            for name in ("sampler", "steps", "spacing", "eta")
            if (theirs := getattr(s, name)) != getattr(own, name)
        ]
        if not named and s.levels == own.levels:
            return ""
        made = f"{steps} step{'' if steps == 1 else 's'} of ddim on its own grid, eta {own.eta:g}"
        return (
            f"{', '.join(named) or 'levels'}: this model is a progressive student, made for "
            f"{made}, and no other way fits; leave {'it' if len(named) < 2 else 'them'} out"
        )

    def _above(self, s: Sampling) -> str:
        """Return what settings ask of this consistency student that it never learned; or ""."""
        own, who = self.sampling, "this model is a consistency student"
        if s.sampler != "consistency":
            return (
                f"sampler {s.sampler}: {who}, made for the sampler consistency, and no other way "
                "fits; leave it out"
            )
        if own.levels is None:
            return ""
        n, high = len(own.levels), own.levels[0]
        if s.levels is None:
            many, placed = s.steps > n, s.steps <= n or s.spacing != own.spacing
            named = [f"steps {s.steps}"] * many + [f"spacing {s.spacing}"] * placed
            return (
                f"{', '.join(named)}: {who}, whose steps begin at levels of its own; take 1..{n} "
                f"steps, or other levels that fall from {high:g} or less, as in sample --levels "
                f"{high:g},{high / 100:g}"
            )
        if s.levels[0] > high * (1 + 1e-9):
            return f"level {s.levels[0]:g}: {who} that learned no higher one than {high:g}"
        return ""

    def describe(self) -> dict[str, Any]:
        """Return the model without its weights as JSON values."""
        net, wrappers = _unwrapped(self.denoiser.net)
        names = [name for name, (kind, _) in NETS.items() if type(net) is kind]
        if not names:
            raise ValueError(f"a model with a {type(net).__name__}: only {list(NETS)} are stored")
        return {
            "net": {"name": names[0], **asdict(net.config)},  # pyright: ignore[reportArgumentType] -- both nets have one
            **self.denoiser.describe(),
            **({"inputs": list(wrappers)} if wrappers else {}),
            "shape": list(self.shape),
            "classes": list(self.classes),
            "sampling": self.sampling.plain(),
            "about": dict(self.about),
            **({"student": dict(self.student)} if self.student else {}),
            **(
                {"tuned": {str(n): s.plain() for n, s in self.tuned.items()}} if self.tuned else {}
            ),
        }

    def label_index(self, label: str | int) -> int:
        """Return the index of a class given by name or, where no name is a number, by index.

        With classes called "7" and "3", a 0 is more likely a missing class than the first one.

        Raises:
            UsageError: the model has no classes, or not this one.
        """
        if not self.classes:
            raise UsageError(f"label {label!r}: this model is unconditional, it has no classes")
        text = str(label)
        if text in self.classes:
            return self.classes.index(text)
        numbered = any(name.isdecimal() for name in self.classes)
        if text.isdecimal() and not numbered and int(text) < len(self.classes):
            return int(text)
        shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
        raise UsageError(f"label {label!r}: allowed are {shown}{suggest(text, self.classes)}")


def from_description(description: Mapping[str, Any], *, empty: bool = False) -> Model:
    """Build the model that `Model.describe` described, with fresh weights.

    Args:
        description: JSON values.
        empty: leave the weights undefined, for a caller who fills all of them: large networks
            take longer to draw than to read.

    Raises:
        UsageError: a name, parameter or number that this version does not know.
    """
    values = dict(description.get("net", {}))
    kind_name = values.pop("name", None)
    classifies = kind_name == "EncoderUNet"
    needed = {"net", "process", "label", "shape", *(() if classifies else ("param",))}
    missing = needed - set(description)
    if missing:
        raise UsageError(f"model description: {', '.join(sorted(missing))} missing")
    kind, config = _known("net", kind_name, NETS)
    built = _build(config, values, "net")
    with _Undrawn() if empty else nullcontext():
        net = kind(built)
    shape = tuple(int(n) for n in description["shape"])
    for name in reversed(description.get("inputs", ())):
        wrapper = _known("input", name, INPUTS)
        net = Inpaint(net, shape[0]) if wrapper is Inpaint else wrapper(net)
    noising = process.from_description(dict(description["process"]))
    label = _known("label", description["label"], LABELS)
    if classifies:
        model: NetDenoiser | NoisyClassifier = NoisyClassifier(net, noising, label)
    else:
        param = _known("param", description["param"], PARAMS)
        model = NetDenoiser(net, noising, param, label, bool(description.get("null", True)))
    return Model(
        model,
        shape,
        tuple(str(c) for c in description.get("classes", ())),
        _build(Sampling, description.get("sampling", {}), "sampling"),
        dict(description.get("about", {})),
        {int(n): _build(Sampling, s, "tuned") for n, s in description.get("tuned", {}).items()},
        dict(description.get("student", {})),
    )


class _Undrawn(TorchFunctionMode):
    """Leave weights as they lie in memory.

    The device "meta" does the same, but its arithmetic imports the compiler: seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        named = dict(kwargs or {})
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **named)


def _unwrapped(net: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the network inside the wrappers, and their names, outermost first."""
    names: list[str] = []
    while isinstance(net, tuple(INPUTS.values())):
        names += [name for name, kind in INPUTS.items() if type(net) is kind]
        net = net.net
    return net, tuple(names)


def _known(what: str, name: Any, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise UsageError(
            f"{what} {name!r}: allowed are {', '.join(table)}{suggest(str(name), table)}"
        )
    return table[name]


def _build(kind: type, values: Mapping[str, Any], what: str) -> Any:
    names = [f.name for f in fields(kind)]
    for key in values:
        if key not in names:
            raise UsageError(f"{what} has no field {key!r}{suggest(key, names)}")
    listed = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**listed)


def parameter_count(module: nn.Module) -> int:
    """Return the number of trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters())
