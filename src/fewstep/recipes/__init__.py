"""Recipes: typed configuration of a training run.

A recipe is a YAML file; every key is checked (`schema`), read and overridden (`read`), settled
where it leaves something to the images (`settle`), turned into a model, an objective and the
settings of `fit` (`build`), or proposed for a folder of images (`propose`). No key names code:
names come from closed tables.
"""

from fewstep.recipes.build import Built, build
from fewstep.recipes.propose import propose
from fewstep.recipes.read import dump, load, override, parse, shipped
from fewstep.recipes.schema import Recipe
from fewstep.recipes.settle import settle

__all__ = [
    "Built",
    "Recipe",
    "build",
    "dump",
    "load",
    "override",
    "parse",
    "propose",
    "settle",
    "shipped",
]
