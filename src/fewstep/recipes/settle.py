"""Settle what a recipe leaves to the images: the ladder of noise levels and the Langevin steps.

The rules are NCSNv2's techniques 1, 2 and 4 (`langevin.ladder`). A settled recipe holds numbers
alone, so that a run keeps them; the same images and seed settle it the same way.
"""

import math

import torch

from fewstep.data import Images
from fewstep.errors import UsageError
from fewstep.langevin import ladder
from fewstep.process import VE
from fewstep.recipes.schema import Recipe
from fewstep.solvers.named import EACH

_COMPARED = 10_000  # images whose distances are measured


def settle(recipe: Recipe, images: Images) -> tuple[Recipe, str]:
    """Return the recipe with numbers where it said auto, and a line that tells them.

    Args:
        recipe: checked key by key.
        images: the training images.

    Returns:
        the recipe itself and no text if nothing was left to settle.

    Raises:
        UsageError: an auto that has nothing to go by.
    """
    process, goal, preset = dict(recipe.process), recipe.objective, recipe.sampling
    if "auto" not in (process.get("sigma_max"), goal.levels, preset.steps, preset.snr):
        return recipe, ""
    if process["name"] != VE.__name__:
        raise UsageError(
            f"objective.levels, sampling.steps or sampling.snr=auto: by the ladder of the process "
            f"VE, not of {process['name']}; give numbers, or process.name=VE"
        )
    if process["sigma_max"] == "auto":
        process["sigma_max"] = round(_largest(images, recipe.seed), 3)
    high, low = process["sigma_max"], process["sigma_min"]
    count = goal.levels
    if count == "auto":
        count = ladder.count_for(high, low, math.prod(images.shape))
    steps = preset.steps
    if steps == "auto":
        if not isinstance(count, int) or count < 2:
            raise UsageError(
                "sampling.steps=auto: from level to level of a ladder; give objective.levels, a "
                f"number above 1 or auto, not {count}"
            )
        steps = count - 1
    sigmas = ladder.geometric(high, low, max(int(steps) + 1, 2))
    snr, each = preset.snr, preset.each or EACH
    if snr == "auto":
        snr = round(ladder.snr_for(sigmas, each), 4)
    line = (
        f"ladder: noise {high:g} to {low:g}; training on {count or 'any'} levels; sampling with "
        f"{len(sigmas)}, ratio {float(sigmas[0] / sigmas[1]):.3f}, snr {snr}, {each} Langevin "
        "steps at each"
    )
    update = {
        "process": process,
        "objective": goal.model_copy(update={"levels": count}),
        "sampling": preset.model_copy(update={"steps": steps, "snr": snr}),
    }
    return recipe.model_copy(update=update), line


def _largest(images: Images, seed: int) -> float:
    """Return the largest distance of two training images, of many of a part (technique 1)."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randperm(len(images), generator=draw)[:_COMPARED]
    return ladder.largest_distance(images.batch(ids)[0], draw)
