"""What a simulator must offer to be filmed: the `Env` protocol, and nothing else.

Not here: who chooses the actions (behaviours.py) or how an episode is played (episodes.py).
Frames are RGB, height first; the frame that `step` returns is the one its action led to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from colaworld.contracts import ActionSpec


@runtime_checkable
class Env(Protocol):
    """A simulator whose frames follow from `reset(seed)` and the actions alone.

    The same seed and the same actions give the same bytes, on any machine and in any process.
    """

    name: str  # as in `colaworld record NAME`
    version: str  # of the simulator behind it
    fps: float  # frames per second that a recording states; nominal for a turn-based game
    action_spec: ActionSpec

    def reset(self, seed: int) -> np.ndarray:
        """A new episode. Returns the first frame, uint8 [H, W, 3]."""
        ...

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        """Act once. Returns (frame uint8 [H, W, 3], whether the episode is over)."""
        ...

    def state(self) -> Mapping[str, Any]:
        """The exact state, for scripted behaviours and tests; the keys are the env's."""
        ...
