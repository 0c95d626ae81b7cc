"""Recipes by name. A run is a function that returns its configuration."""

from __future__ import annotations

from collections.abc import Callable

from colaworld.config import ConfigError
from colaworld.recipes import nano, opensora, wan
from colaworld.registry import Registry
from colaworld.runs.config import RunConfig

RECIPES: Registry[Callable[[], RunConfig]] = Registry("recipe", ConfigError)
RECIPES |= {
    "nano.pretrain": nano.pretrain,
    "nano.cola": nano.cola,
    "nano.cola_long": nano.cola_long,
    "nano.two_stage": nano.two_stage,
    "nano.naive_joint": nano.naive_joint,
    "nano.frozen_world": nano.frozen_world,
    "opensora.cola": opensora.cola,
    "opensora.two_stage": opensora.two_stage,
    "wan.cola": wan.cola,
}


def register_recipe(name: str, function: Callable[[], RunConfig]) -> None:
    """Make a recipe known by name, for example of your own package. Raises ConfigError if taken."""
    RECIPES.add(name, function)


def recipe(name: str) -> RunConfig:
    """The configuration of the recipe called `name`. Raises ConfigError with the nearest name."""
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"expected a recipe ({', '.join(RECIPES)}), got {name}; a file goes behind it: "
            f"nano.cola --config {name}"
        )
    return RECIPES[name]()
