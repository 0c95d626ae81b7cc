"""PushT, filmed: a disc pushes a T-shaped block. Needs `pip install 'colaworld[pusht]'` and libgl1.

Not here: rewards or success. Frames are the env's *observations* (`obs_type="pixels"`), never
`env.render()`: that one paints the last action onto the picture as a red cross, so a model would
read the action instead of inferring it from what moves.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.envs.variation import striped


class PushT:
    """PushT as an `Env`. `size`: pixels per side. Actions are where the disc shall go, (x, y)."""

    name = "pusht"
    fps = 10.0  # the env's control rate
    VARIATIONS: ClassVar = {
        "texture": "stripes of a sixteenth of the side on the white board",
        "layout": "the goal lies at (150, 380), turned by -60 degrees, not at (256, 256) by 45",
    }
    action_range = (0.0, 512.0)  # the board's side in the env's own pixels
    pace = 30.0  # of them: how far ahead a behaviour sends the disc in a step; a hand's way, not a jump

    def __init__(self, *, size: int = 96, vary: Literal["texture", "layout"] | None = None) -> None:
        try:
            import gym_pusht  # noqa: F401  (registers the env)
            import gymnasium
        except ImportError as error:
            raise ImportError(
                "the PushT environment needs gym-pusht: pip install 'colaworld[pusht]' (and libgl1 "
                f"from the system); importing it failed with: {error}"
            ) from error
        from importlib.metadata import version

        if size < 16:
            raise ValueError(f"PushT.size: expected at least 16 pixels, got {size}")
        if vary is not None and vary not in self.VARIATIONS:
            raise ValueError(f"PushT.vary: expected {' or '.join(self.VARIATIONS)}, got {vary!r}")
        self.vary = vary
        self.size = size
        self.version = version("gym-pusht")
        self.action_spec = ActionSpec(
            *("action", "continuous", 2, ("x", "y")),
            units=("px of 512", "px of 512"),
            mode="absolute",  # the place that the disc is driven to
            frame="world",  # of the board: x to the right, y down, (0, 0) at the top left
        )
        self._game = gymnasium.make(
            "gym_pusht/PushT-v0",
            obs_type="pixels",
            observation_width=size,
            observation_height=size,
            disable_env_checker=True,
            max_episode_steps=-1,
        ).unwrapped
        self._seed, self._past = 0, list[np.ndarray]()  # what led to where it is

    def reset(self, seed: int) -> np.ndarray:
        self._seed, self._past = seed, []
        try:
            frame, _ = self._game.reset(seed=seed)
        except AttributeError as error:
            raise RuntimeError(
                "gym-pusht does not run with this pymunk; it needs pip install 'pymunk<7' "
                f"({error})"
            ) from error
        if self.vary == "layout":
            self._game.goal_pose = np.array([150, 380, -np.pi / 3])
            frame = self._game.get_obs()
        return self._seen(frame)

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        frame, _, done, _, _ = self._game.step(self._checked(action))
        return self._seen(frame), bool(done)

    def advance(self, action: np.ndarray) -> None:
        """`step` without its frame: a tenth of the time."""
        given = self._checked(action)
        with _undrawn(self._game):
            self._game.step(given)

    def draw(self) -> np.ndarray:
        """The frame of where it is, uint8 [H, W, 3]."""
        return self._seen(self._game.get_obs())

    def __deepcopy__(self, memo: dict[int, Any]) -> PushT:
        """All steps once more, without their frames: a copy of pymunk's own forgets what touches what, and
        goes another way."""
        twin = copy.copy(self)
        twin._game = copy.copy(self._game)
        with _undrawn(twin._game):
            twin.reset(self._seed)
        for action in self._past:
            twin.advance(action)
        return twin

    def _checked(self, action: int | np.ndarray) -> np.ndarray:
        action = np.asarray(action, np.float32)
        low, high = self.action_range
        if action.shape != (2,) or not ((action >= low) & (action <= high)).all():
            raise ValueError(f"PushT.step: expected (x, y) in {low:g}..{high:g}, got {action}")
        self._past.append(action)
        # in double precision: the solver would otherwise mix single and double
        return action.astype(np.float64)

    def _seen(self, frame: Any) -> np.ndarray:
        frame = np.array(frame, np.uint8)
        if self.vary == "texture":
            board = np.clip((frame.min(-1, keepdims=True) - 215.0) / 40, 0, 1)  # white alone
            frame = striped(frame, max(1, self.size // 16), board)
        return frame

    def state(self) -> dict[str, Any]:
        agent, block = self._game.agent, self._game.block
        places = (np.asarray(body.position, np.float64) for body in (agent, block))
        return dict(zip(("agent", "block"), places, strict=True)) | {"angle": float(block.angle)}


@contextlib.contextmanager
def _undrawn(game: Any) -> Iterator[None]:
    """While open, it moves and shows nothing: drawing takes most of a step."""
    game.get_obs, game._get_coverage = lambda: np.zeros((1, 1, 3)), lambda: 0.0
    try:
        yield
    finally:
        del game.get_obs, game._get_coverage
