"""Scene: a square on a textured floor that scrolls, in closed form. For tests and known answers.

Not here: physics, randomness after the first frame, or any dependency but numpy. Each frame is a
function of (seed, camera, square) alone: `Scene.draw` can be called with any state, so a test can
compute the frame it expects instead of storing it.

    action      noop    left     right    up       down
    moves       -       (-1,0)   (+1,0)   (0,-1)   (0,+1)      times `speed` pixels

`moves="camera"`: the floor scrolls under the square. `moves="square"`: the square moves and wraps.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.envs.variation import striped

MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # (x, y) per action
NAMES = ("noop", "left", "right", "up", "down")
_PERIOD = 64  # side of the floor's tile in pixels: it repeats seamlessly


class Scene:
    """The scene as an `Env`. Sizes in pixels; `speed` in pixels per move."""

    name = "scene"
    version = "1"
    fps = 10.0
    VARIATIONS: ClassVar = {
        "texture": "stripes of 4 px on the floor",
        "layout": "the square stands a quarter of the frame up and left of the centre",
    }

    def __init__(
        self,
        *,
        height: int = 32,
        width: int = 32,
        speed: int = 3,
        square: int = 6,
        moves: Literal["camera", "square"] = "camera",
        vary: Literal["texture", "layout"] | None = None,
    ) -> None:
        if min(height, width) < square + 2:
            raise ValueError(
                f"Scene: a square of {square} px needs at least {square + 2} px each way, "
                f"got height={height}, width={width}"
            )
        if moves not in ("camera", "square"):
            raise ValueError(f"Scene.moves: expected 'camera' or 'square', got {moves!r}")
        self.height, self.width, self.speed, self.square = height, width, speed, square
        self.moves = moves
        if vary is not None and vary not in self.VARIATIONS:
            raise ValueError(f"Scene.vary: expected {' or '.join(self.VARIATIONS)}, got {vary!r}")
        self.vary = vary
        self.action_spec = ActionSpec("action", "discrete", len(NAMES), NAMES)
        self._floor = np.zeros((_PERIOD, _PERIOD, 3), np.uint8)
        self._camera = np.zeros(2, np.int64)  # x, y of the top-left pixel on the floor
        self._position = np.zeros(2, np.int64)  # x, y of the square's corner on the screen

    def reset(self, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        self._floor = _floor(rng)
        if self.vary == "texture":
            self._floor = striped(self._floor, 4)
        self._camera = rng.integers(0, _PERIOD, 2)
        centre = np.array([self.width - self.square, self.height - self.square]) // 2
        if self.moves == "camera":
            self._position = centre
        else:
            self._position = rng.integers(0, (self.width, self.height))
        return self.draw(self._camera, self._position)

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        action = int(action)
        if not 0 <= action < len(MOVES):
            raise ValueError(f"Scene.step: expected an action in 0..{len(MOVES) - 1}, got {action}")
        move = self.speed * np.array(MOVES[action])
        if self.moves == "camera":
            self._camera = (self._camera + move) % _PERIOD
        else:
            self._position = (self._position + move) % (self.width, self.height)
        return self.draw(self._camera, self._position), False

    def state(self) -> dict[str, Any]:
        return {"camera": self._camera.copy(), "square": self._position.copy()}

    def draw(self, camera: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The frame of a state: uint8 [H, W, 3]. `camera` and `position` are (x, y) in pixels."""
        rows = (np.arange(self.height) + int(camera[1])) % _PERIOD
        columns = (np.arange(self.width) + int(camera[0])) % _PERIOD
        frame = self._floor[rows[:, None], columns[None, :]]
        if self.vary == "layout":
            position = position - np.array([self.width, self.height]) // 4
        y = (np.arange(self.square) + int(position[1])) % self.height
        x = (np.arange(self.square) + int(position[0])) % self.width
        frame[y[:, None], x[None, :]] = (250, 240, 40)
        return frame


def _floor(rng: np.random.Generator) -> np.ndarray:
    """A seamless texture of few slow waves and faint cells, [64, 64, 3]: no two offsets alike."""
    y, x = np.meshgrid(np.arange(_PERIOD), np.arange(_PERIOD), indexing="ij")
    floor = np.zeros((_PERIOD, _PERIOD, 3))
    for channel in range(3):
        for _ in range(3):
            fx, fy = rng.integers(-3, 4, 2)
            phase = rng.uniform(0, 2 * np.pi)
            floor[..., channel] += np.sin(2 * np.pi * (fx * x + fy * y) / _PERIOD + phase)
    cells = np.kron(rng.uniform(-1, 1, (_PERIOD // 8, _PERIOD // 8)), np.ones((8, 8)))[..., None]
    return np.clip(110 + 25 * floor + 30 * cells, 0, 215).astype(np.uint8)
