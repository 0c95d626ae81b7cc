"""Point mass: a dot that is pushed over a plane, in closed form. For planning and known answers.

Not here: walls, friction or any dependency but numpy. With an acceleration a in [-1, 1]^2,

    velocity += step * a,   position += velocity

so after h actions position = p0 + h v0 + step * sum_j (h - j) a_j: linear in the actions, and the
best plan for a squared distance is a least-squares problem. The picture wraps: a dot that leaves it at one side
comes in at the other, while its state goes on counting.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.envs.variation import striped


class PointMass:
    """The point mass as an `Env`. The picture is the unit square, y downwards.

    Args:
        height, width: pixels.
        step: change of velocity under a full push, in widths of the square a step.
        radius: of the dot, in the same unit.
    """

    name = "point-mass"
    version = "1"
    fps = 10.0
    VARIATIONS: ClassVar = {
        "texture": "stripes of 4 px over the plane",
        "layout": "everything stands a quarter of the picture up and left",
    }

    def __init__(
        self,
        *,
        height: int = 32,
        width: int = 32,
        step: float = 0.02,
        radius: float = 0.08,
        vary: Literal["texture", "layout"] | None = None,
    ) -> None:
        if min(height, width) < 8:
            raise ValueError(f"PointMass: expected at least 8 px each way, got {height}x{width}")
        if not 0 < step <= 1 or not 0 < radius <= 0.5:
            raise ValueError(
                f"PointMass: expected step in (0, 1] and radius in (0, 0.5], got {step} and {radius}"
            )
        if vary is not None and vary not in self.VARIATIONS:
            raise ValueError(
                f"PointMass.vary: expected {' or '.join(self.VARIATIONS)}, got {vary!r}"
            )
        self.vary = vary
        self.height, self.width, self.acceleration, self.radius = height, width, step, radius
        self.action_spec = ActionSpec("action", "continuous", 2, ("x", "y"), mode="relative")
        self.action_range = (np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))
        self.position = np.full(2, 0.5)
        self.velocity = np.zeros(2)

    def reset(self, seed: int) -> np.ndarray:
        self.position = np.random.default_rng(seed).uniform(0.25, 0.75, 2)
        self.velocity = np.zeros(2)
        return self.draw(self.position)

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        push = np.asarray(action, float)
        if push.shape != (2,) or not np.isfinite(push).all() or np.abs(push).max() > 1 + 1e-6:
            raise ValueError(
                f"PointMass.step: expected two numbers in [-1, 1], got {np.asarray(action)!r:.80}"
            )
        self.velocity = self.velocity + self.acceleration * push
        self.position = self.position + self.velocity
        return self.draw(self.position), False

    def state(self) -> dict[str, Any]:
        return {"position": self.position.copy(), "velocity": self.velocity.copy()}

    def draw(self, position: np.ndarray) -> np.ndarray:
        """The frame of a position (x, y): a light dot with a soft edge, uint8 [H, W, 3]."""
        shift = 0.25 if self.vary == "layout" else 0.0
        y = _nearest((np.arange(self.height) + 0.5) / self.height + shift - position[1])
        x = _nearest((np.arange(self.width) + 0.5) / self.width + shift - position[0])
        share = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * (self.radius / 2) ** 2))
        dark, light = np.array([25.0, 30.0, 45.0]), np.array([250.0, 240.0, 120.0])
        frame = (dark + share[..., None] * (light - dark)).round().astype(np.uint8)
        return striped(frame, 4) if self.vary == "texture" else frame


def _nearest(distance: np.ndarray) -> np.ndarray:
    """Distances on a line that wraps after 1: between -0.5 and 0.5."""
    return (distance + 0.5) % 1 - 0.5
