"""From a recipe and its images to what `fit` takes.

Here is where the data and the network meet: channels, size and classes of the network come from
the images, and what does not fit is said in the words of the recipe's keys. The weights are drawn
from the recipe's seed, so a run that starts again before its first checkpoint starts the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep import process, sampling
from fewstep.classifier import NoisyClassifier
from fewstep.data import Images, check_batch
from fewstep.denoiser import PARAMS, NetDenoiser
from fewstep.errors import UsageError
from fewstep.labels import LABELS
from fewstep.model import Model
from fewstep.model import Sampling as Preset
from fewstep.nets.encoder import EncoderConfig, EncoderUNet
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.objectives import (
    Bound,
    Classification,
    Denoising,
    DenoisingScore,
    Hybrid,
    LossSecondMoment,
    Objective,
    SlicedScore,
    times,
    weights,
)
from fewstep.recipes.schema import Net, Recipe
from fewstep.recipes.settle import settle
from fewstep.train.config import FitConfig

TIMES: Mapping[str, Callable[[], times.Times]] = {
    "uniform": times.Uniform,
    "log-normal": times.LogNormal,
}
WEIGHTS: Mapping[str, Callable[[], weights.Weight]] = {
    "one": weights.One,
    "min-snr": weights.MinSNR,
    "edm": weights.Edm,
}


@dataclass(frozen=True)
class Built:
    """What a recipe means for its images.

    Attributes:
        model: with fresh weights.
        objective: what is minimised.
        config: the settings of `fit`.
    """

    model: Model
    objective: Objective
    config: FitConfig


def build(recipe: Recipe, images: Images) -> Built:
    """Return the model, the objective and the settings of a recipe.

    Args:
        recipe: checked key by key.
        images: the training images.

    Raises:
        UsageError: keys that do not fit one another or the images.
        DataError: fewer images than a batch.
    """
    recipe, _ = settle(recipe, images)
    check_batch(images, recipe.train.batch_size, replacement=recipe.train.replacement)
    config = _unet(recipe, images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = EncoderUNet(config) if isinstance(config, EncoderConfig) else UNet(config)
    net.recompute = recipe.net.recompute
    noising, label = process.from_description(recipe.process), LABELS[recipe.label]
    objective = _objective(recipe, noising)
    if isinstance(config, EncoderConfig):
        denoiser = NoisyClassifier(net, noising, label)
    else:
        denoiser = NetDenoiser(net, noising, PARAMS[recipe.param], label, null=config.null)
    settings = recipe.train.model_dump(exclude={"replacement"})
    model = Model(
        denoiser,
        images.shape,
        images.classes,
        Preset(**recipe.sampling.model_dump()),  # settled: without auto
        {"recipe": recipe.name, "data": _source(images)},
    )
    if model.classifier is None:
        sampling.plan(model, model.sampling)  # a preset that cannot be sampled is refused now
    return Built(model, objective, FitConfig(**settings, seed=recipe.seed))


def _source(images: Images) -> dict[str, object]:
    """Return what a model says of its data; the folder's place on a disk is nobody's business."""
    facts = images.describe()
    return {
        "name": Path(images.name).name,
        "images": facts["images"],
        "fingerprint": facts["fingerprint"],
    }


def _objective(recipe: Recipe, noising: process.Process) -> Objective:
    """Return the objective; refuse keys that mean nothing together."""
    goal, kind = recipe.objective, recipe.objective.kind
    if goal.times == "importance" and (kind != "bound" or recipe.kind == "classifier"):
        raise UsageError(
            "objective.times=importance: for objective.kind=bound alone; take uniform"
        )
    if recipe.kind == "classifier":
        return Classification(TIMES[goal.times]())
    learned = recipe.net.learn_variance
    if learned != (kind in ("hybrid", "bound")):
        raise UsageError(
            f"objective.kind={kind} with net.learn_variance={str(learned).lower()}: hybrid and "
            "bound train a learned variance, the others cannot; change one of the two"
        )
    if kind in ("score", "sliced", "sliced-vr"):
        return _matching(recipe, noising)
    for key in ("levels", "directions", "projections"):
        if (value := getattr(goal, key)) != type(goal).model_fields[key].default:
            raise UsageError(
                f"objective.{key}={value}: not of objective.kind={kind}; it is of score "
                "(levels alone), sliced and sliced-vr"
            )
    if kind == "simple":
        return Denoising(goal.view, TIMES[goal.times](), WEIGHTS[goal.weight](), goal.drop)
    if not isinstance(noising, process.Tabulated):
        raise UsageError(
            f"objective.kind={kind} with process.name={type(noising).__name__}: the bound runs "
            "along a table of steps; take process.name=Tabulated (process.betas=linear or cosine)"
        )
    if goal.weight != "one":
        raise UsageError(f"objective.weight={goal.weight}: for objective.kind=simple alone")
    if kind == "hybrid":
        if goal.view != "eps":
            raise UsageError(
                f"objective.view={goal.view}: the simple loss of objective.kind=hybrid is that "
                "of eps; give objective.view=eps"
            )
        return Hybrid(times=TIMES[goal.times](), drop=goal.drop)
    if goal.times == "log-normal":
        raise UsageError(
            "objective.times=log-normal: the mean over such times is no bound; take uniform or "
            "importance"
        )
    learns = goal.times == "importance"
    law = LossSecondMoment(noising.steps) if learns else TIMES[goal.times]()
    return Bound(times=law, drop=goal.drop)


def _matching(recipe: Recipe, noising: process.Process) -> Objective:
    """Return an objective that matches scores."""
    goal, kind = recipe.objective, recipe.objective.kind
    if goal.weight != "one":
        raise UsageError(f"objective.weight={goal.weight}: for objective.kind=simple alone")
    if goal.levels is None:
        law = TIMES[goal.times]()
    elif goal.times != "uniform":
        raise UsageError(
            f"objective.levels={goal.levels} with objective.times={goal.times}: all levels are "
            "equally likely; take times=uniform, or levels=null"
        )
    elif not isinstance(noising, process.VE):
        raise UsageError(
            f"objective.levels={goal.levels} with process.name={type(noising).__name__}: a ladder "
            "of noise levels is that of process.name=VE; give levels=null for any other"
        )
    else:
        law = times.Ladder(int(goal.levels))
    if kind == "score":
        return DenoisingScore(law, drop=goal.drop)
    if recipe.net.recompute:
        raise UsageError(
            f"objective.kind={kind} with net.recompute=true: it differentiates the network twice; "
            "give net.recompute=false"
        )
    reduced = kind == "sliced-vr"
    return SlicedScore(law, goal.directions, goal.projections, reduced, goal.drop)


def _unet(recipe: Recipe, images: Images) -> UNetConfig:
    """Return the configuration of the network for these images."""
    (c, h, w), net = images.shape, recipe.net
    factor = 2 ** (len(net.mult) - 1)
    if h % factor or w % factor:
        low = min(h, w) // factor * factor
        sizes = " or ".join(str(n) for n in (low, low + factor) if n)
        raise UsageError(
            f"images of {w}x{h} pixels: a network of {len(net.mult)} levels (net.mult) needs a "
            f"multiple of {factor}; nearest: {sizes}; give data.size and data.resize=crop or "
            "stretch, or fewer levels"
        )
    classes = len(images.classes)
    shared = {
        "in_channels": c, "size": max(h, w), "width": net.width, "mult": net.mult,
        "depth": net.depth, "attention": net.attention, "heads": net.heads,
        "head_channels": net.head_channels, "attention_order": net.attention_order,
        "dropout": net.dropout, "updown": net.updown, "groups": net.groups or _groups(net),
        "resample_conv": net.resample_conv, "scale_shift": net.scale_shift,
        "rescale": net.rescale,
    }  # fmt: skip
    if recipe.kind == "classifier" and classes < 2:
        raise UsageError(
            f"kind=classifier: {images.name} has {classes} classes, at least 2 are needed; give "
            "a folder of class folders"
        )
    if recipe.kind == "classifier" and net.pool == "attention" and h != w:
        raise UsageError(
            f"net.pool=attention: images of {w}x{h} pixels are not square; take net.pool=adaptive"
        )
    try:
        if recipe.kind == "classifier":
            return EncoderConfig(**shared, out_channels=classes, pool=net.pool)
        null = not classes or recipe.objective.drop > 0
        out = 2 * c if net.learn_variance else c
        return UNetConfig(**shared, out_channels=out, classes=classes, null=null)
    except ValueError as e:
        said = str(e).replace("UNetConfig:", "net:").replace("EncoderConfig:", "net:")
        raise UsageError(said) from e


def _groups(net: Net) -> int:
    """Return the largest of 32, 16, 8, ... that divides the channels of every level."""
    channels = [int(m * net.width) for m in net.mult]
    return next(g for g in (32, 16, 8, 4, 2, 1) if all(n % g == 0 for n in channels))
