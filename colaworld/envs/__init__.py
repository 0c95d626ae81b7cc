"""Simulators that can be filmed, and the behaviours that act in them."""

from __future__ import annotations

from typing import Any

from colaworld.envs.base import Env
from colaworld.envs.episodes import ConstantClipError, Episode, play
from colaworld.envs.variation import Factor, Recoloured

NAMES = ("crafter", "point-mass", "pusht", "robodesk", "scene")


def make(name: str, *, vary: Factor | None = None, **options: Any) -> Env:
    """The environment called `name`; options go to its class. Simulators are imported here only.

    `vary`: the factor in which it is seen differently (variation.py).
    """
    if vary == "colour":
        return Recoloured(make(name, **options))
    if vary is not None:
        options["vary"] = vary
    if name == "scene":
        from colaworld.envs.scene import Scene

        return Scene(**options)
    if name == "point-mass":
        from colaworld.envs.point_mass import PointMass

        return PointMass(**options)
    if name == "crafter":
        from colaworld.envs.crafter import Crafter

        return Crafter(**options)
    if name == "pusht":
        from colaworld.envs.pusht import PushT

        return PushT(**options)
    if name == "robodesk":
        from colaworld.envs.robodesk import RoboDesk

        return RoboDesk(**options)
    raise ValueError(f"unknown environment {name!r}; expected one of {', '.join(NAMES)}")


__all__ = ["NAMES", "ConstantClipError", "Env", "Episode", "make", "play"]
