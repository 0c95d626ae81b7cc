"""How an evaluation is done, and on how much. Not here: doing it (`evaluate.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, unique

from colaworld.metrics.probe import ProbeConfig


@unique
class RandomStream(IntEnum):
    """Who draws under an evaluation's seed: each from a stream of its own, so that a new one moves
    no number of another. A number that was given stays; those from 1000 on are for measures of
    your own."""

    ROLLOUT_NOISE = 1
    CODES = 2
    PROBE = 3
    GRID_NOISE = 4
    SHARED_INTERVALS = 5
    NMSE = 6
    BOUNDS = 7
    COMPARISON = 8
    TEXT_EFFECT = 11


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and on how much."""

    clips: int = 64
    """Held-out clips rolled out, four times each; the cost of an evaluation grows with it."""
    probe_clips: int = 256
    """Held-out clips whose actions are inferred, for the probe and for codebook health."""
    history: int = 1
    """Frames given at the start of every rollout."""
    horizon: int | None = None
    """Frames predicted after them; by default all that a clip holds."""
    batch_size: int = 16
    """Clips per call of the world."""
    bootstrap_samples: int = 1000
    """Resampled sets of episodes behind each 95 % interval."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The linear probe from latent to real actions."""
    shown_clips: int = 4
    """Clips shown as strips in the report."""
    shown_starts: int = 3
    """Start frames in the grid "same start, every code"."""
    shown_codes: int = 16
    """Codes in that grid, at most."""
    text_effect: bool = False
    """Also measure what the pre-trained video model loses without its cross-attention (paired flow
    loss, null caption against removed); its weights must hold a text path."""
    seed: int = 0
    """Of the noise, the wrong actions, the probe's split and the intervals."""

    def __post_init__(self) -> None:
        if self.clips < 2:
            raise ValueError(f"evaluation.clips: expected >= 2, got {self.clips}")
        counts = ("probe_clips", "history", "batch_size", "bootstrap_samples")
        for name in (*counts, "shown_clips", "shown_starts", "shown_codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name}: expected >= 1, got {getattr(self, name)}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"evaluation.horizon: expected >= 1 or none, got {self.horizon}")
