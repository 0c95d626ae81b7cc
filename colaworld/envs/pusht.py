"""PushT, filmed: a disc pushes a T-shaped block. Needs `pip install 'colaworld[pusht]'` and libgl1.

Not here: rewards or success. Frames are the env's *observations* (`obs_type="pixels"`), never
`env.render()`: that one paints the last action onto the picture as a red cross, so a model would
read the action instead of inferring it from what moves.
"""

from __future__ import annotations

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
        )
        self._info: dict[str, Any] = {}

    def reset(self, seed: int) -> np.ndarray:
        try:
            frame, self._info = self._game.reset(seed=seed)
        except AttributeError as error:
            raise RuntimeError(
                "gym-pusht does not run with this pymunk; it needs pip install 'pymunk<7' "
                f"({error})"
            ) from error
        if self.vary == "layout":
            inner: Any = self._game.unwrapped
            inner.goal_pose = np.array([150, 380, -np.pi / 3])
            frame = inner.get_obs()
        return self._seen(frame)

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        action = np.asarray(action, np.float32)
        low, high = self.action_range
        if action.shape != (2,) or not ((action >= low) & (action <= high)).all():
            raise ValueError(f"PushT.step: expected (x, y) in {low:g}..{high:g}, got {action}")
        # in double precision: the solver would otherwise mix single and double
        frame, _, done, _, self._info = self._game.step(action.astype(np.float64))
        return self._seen(frame), bool(done)

    def _seen(self, frame: Any) -> np.ndarray:
        frame = np.array(frame, np.uint8)
        if self.vary == "texture":
            board = np.clip((frame.min(-1, keepdims=True) - 215.0) / 40, 0, 1)  # white alone
            frame = striped(frame, max(1, self.size // 16), board)
        return frame

    def state(self) -> dict[str, Any]:
        pose = np.asarray(self._info["block_pose"], np.float64)
        agent = np.asarray(self._info["pos_agent"], np.float64)
        return {"agent": agent, "block": pose[:2], "angle": float(pose[2])}
