"""Presets per card: how the recipes of the published video models fit into 24, 48, 80 or 141 GB.

A preset changes how an update is computed, never how many clips it sees: `batch_size` x `accumulate`
stays. What else it changes is said with it. `batch_size` is the largest power of two up to 16 that the
planner (memory.py) lets through, without recomputing where that leaves at least 4 clips; a test asks
it again. No card has confirmed it. Not here: the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from colaworld.config import ConfigError
from colaworld.runs.config import RunConfig


@dataclass(frozen=True)
class Preset:
    """Changes to a recipe for one kind of card."""

    batch_size: int
    """Clips in a pass; `accumulate` follows."""
    recompute: Literal["none", "blocks"] = "none"
    """See `training.recompute`: the same gradients for a third more work."""
    half_tokenizer: bool = False
    """The tokenizer computes in bf16: latents differ by bf16's steps."""
    averaged: bool = True
    """Whether averaged weights are kept (4 bytes a parameter that trains). Without, the weights at
    the end are the last ones."""


_SQUEEZED: dict[str, Any] = {"recompute": "blocks", "half_tokenizer": True, "averaged": False}

# GB of the card, as it is sold -> changes. Behind each: the planner's peak in GiB, and which phase.
PRESETS: dict[str, dict[str, Preset]] = {
    "opensora.cola": {
        "24": Preset(1, **_SQUEEZED),  # 19.8, joint
        "48": Preset(16, recompute="blocks"),  # 36.3, joint
        "80": Preset(8),  # 68.2, joint
        "141": Preset(16),  # 112.6, joint
    },
    "opensora.two_stage": {
        "24": Preset(4, **_SQUEEZED),  # 19.9, world
        "48": Preset(4),  # 35.3, world
        "80": Preset(8),  # 48.4, world
        "141": Preset(16),  # 74.6, world
    },
    # None for 24 GB: weights, gradients and moments of 1.4 B parameters alone are 20.5 GiB.
    "wan.cola": {
        "48": Preset(16, recompute="blocks"),  # 39.2, joint
        "80": Preset(4),  # 50.5, joint
        "141": Preset(16),  # 116.1, joint
    },
}


def with_preset(config: RunConfig, card: str) -> RunConfig:
    """The run changed for a card ("24", "48", "80", "141"). ConfigError where there is none."""
    known = PRESETS.get(config.recipe, {})
    if card not in known:
        have = f"has presets for {', '.join(known)} GB" if known else "has none"
        raise ConfigError(
            f"--preset: {config.recipe} {have}, got {card!r}; colaworld plan-memory "
            f"{config.recipe} --gpu GB says what to change for another card"
        )
    preset, training, model = known[card], config.training, config.model
    clips = training.batch_size * training.accumulate
    if clips % preset.batch_size:
        raise ConfigError(
            f"--preset {card}: passes of {preset.batch_size} clips do not make up the {clips} of an "
            "update (training.batch_size x training.accumulate)"
        )
    if preset.half_tokenizer and hasattr(model.tokenizer, "dtype"):
        half = replace(model.tokenizer, dtype="bfloat16")  # type: ignore[call-arg]
        model = replace(model, tokenizer=half)
    training = replace(
        training,
        batch_size=preset.batch_size,
        accumulate=clips // preset.batch_size,
        recompute=preset.recompute,
        ema_decay=training.ema_decay if preset.averaged else 0.0,
    )
    return replace(config, model=model, training=training)
