"""An environment seen differently in one factor, for data that a model was not trained on.

Not here: other dynamics. The same seed gives the same states and actions; only the picture changes, by one factor:

    colour    every hue is turned by 120 degrees; brightness and greys stay
    texture   stripes on the floor, the ground or the desk
    layout    other places: of the camera, or of what stands about
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from colaworld.envs.base import Env

Factor = Literal["colour", "texture", "layout"]
COLOUR = "hue turned by 120 degrees: (red, green, blue) show (green, blue, red)"


class Recoloured:
    """`env` with turned hues. Everything else is the env's own."""

    def __init__(self, env: Env) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name == "_env":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self._env, name)

    def reset(self, seed: int) -> np.ndarray:
        return _turned(self._env.reset(seed))

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        frame, done = self._env.step(action)
        return _turned(frame), done


def _turned(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frame[..., [1, 2, 0]])


def striped(picture: np.ndarray, width: int, amount: np.ndarray | float = 1.0) -> np.ndarray:
    """[.., H, W, 3] uint8 under diagonal stripes, `width` pixels each, every second at 60 % of its brightness.

    `amount` [H, W, 1] in 0..1: where they show.
    """
    y, x = np.mgrid[: picture.shape[-3], : picture.shape[-2]]
    dark = 0.4 * ((x + y) // width % 2)[..., None]
    return (picture * (1 - dark * amount)).astype(np.uint8)
