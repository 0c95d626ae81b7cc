"""How diffusion times are drawn, videos generated and the loss averaged. Imports no torch, so that a command line
can tell its options at once.

Not here: doing any of it (path.py, samplers.py, loss.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from colaworld.config import Checked, Positive, Range, Share

Average = Literal["frames", "clips"]


@dataclass(frozen=True)
class TimestepConfig(Checked, at="objective.times."):
    """How diffusion times are drawn in training: logit-normal, then shifted toward noise."""

    mean: Annotated[float, Range(ge=-100, le=100)] = 0.0
    """Mean of the normal before the logistic function."""
    std: Annotated[float, Range(ge=0, le=100)] = 1.0
    """Its deviation."""
    shift: Positive | None = 1.0
    """r in t' = r t / (1 + (r - 1) t); above 1 moves times toward noise. None: as the generator was
    pre-trained, for clips of this size."""


@dataclass(frozen=True)
class SamplerConfig(Checked, at="sampler."):
    """How frames are generated from noise, and how a rollout remembers the frames before them."""

    steps: Annotated[int, Range(ge=1, le=10000)] = 10
    """Denoising steps (paper: 10, for planning 3)."""
    method: Literal["euler", "heun"] = "euler"
    """heun calls the video model twice a step and is second-order accurate."""
    shift: Positive = 1.0
    """Above 1 spends more steps near noise (same formula as in training)."""
    guidance: Annotated[float, Range(ge=-1000, le=1000)] = 1.0
    """Classifier-free guidance on the action; 1 = off (paper: 4.0, planning 1)."""
    guidance_passes: Literal["one", "two"] = "one"
    """one: both velocities of guidance as one batch of twice the clips; two: half the memory."""
    context_noise: Share = 0.0
    """Time in [0, 1) to which frames already seen are noised, and which the generator is told."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep keys and values of frames already seen: where the video model allows it, always, never."""
    on_slide: Literal["exact", "keep"] = "exact"
    """When the window slides, encode what stays anew (as without a cache), or keep what is held."""

    @staticmethod
    def paper() -> SamplerConfig:
        """As the paper samples video: 10 steps, guidance 4."""
        return SamplerConfig(steps=10, guidance=4.0)

    @staticmethod
    def planning() -> SamplerConfig:
        """As the paper samples while planning: 3 steps, no guidance."""
        return SamplerConfig(steps=3, guidance=1.0)
