"""The README.md of an exported world: what it is, how healthy its codebook is, how to load it.

Plain text from values; a number that was not measured is said to be missing. Not here: files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from colaworld.models.latent_action.quantizers import build_quantizer
from colaworld.runs.config import RunConfig
from colaworld.runs.estimates import error_told

_CHOOSE = """
# Actions of your own choice: entries of the codebook.
indices = torch.randint(world.codebook_size, (1, frames.shape[1] - 1, world.tokens), generator=rng)
chosen = world.lookup(indices)
other = world.rollout(frames[:, :1], chosen, generator=rng).frames
"""
_MISSING = "not evaluated: run `colaworld evaluate` before the export"
_MISSHAPEN = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)  # an evaluation.json of others


def model_card(
    described: Mapping[str, Any], config: RunConfig, evaluation: Mapping[str, Any] | None
) -> str:
    """Markdown with the metadata block that hubs read."""
    model, frames = config.model, described["frames"]
    size = f"{frames['height']}x{frames['width']}" if frames.get("height") else "as recorded"
    with torch.device("meta"):  # its size alone is asked
        count = build_quantizer(model.quantizer, model.idm.dim).codebook_size
    codes = "continuous" if count is None else f"{count} codes"
    shape = f"1, {frames['frames_per_clip']}, 3, {frames.get('height') or 64}, {frames.get('width') or 64}"
    known = config.action_contract
    actions = "" if known is None else f"\n| real actions | {known.told()} |"
    if (error := described.get("action_head_error")) is not None:
        actions += f"\n| real actions estimated of latent ones | {error_told(error)} |"
    choose = "" if count is None else _CHOOSE
    return f"""---
library_name: colaworld
tags: [world-model, latent-action, video-generation]
---
# A controllable video generator ({config.recipe})

Trained with colaworld {described["colaworld"]} after CoLA-World (arXiv 2510.26433): latent actions are
inferred from video alone, through the video model they steer.

| | |
|---|---|
| generator | {described["backbone_weights"] or "trained from random weights"} ({model.backbone.kind}, width {model.backbone.width}) |
| phases | {", ".join(config.schedule)} |
| latent action | {model.idm.tokens} token(s) of {model.idm.dim} numbers, quantizer `{model.quantizer.kind}`, {codes} |
| frames | {size} pixels, clips of {frames["frames_per_clip"]} frames, every {frames["stride"]} |
| sampler | {config.sampler.steps} steps, guidance {config.sampler.guidance:g} |{actions}

## Codebook health
{_health(evaluation)}

## Control on held-out video
{_control(evaluation)}

## Use
```python
import torch

import colaworld

world = colaworld.from_pretrained("PATH OR HUB ID")
rng = torch.Generator().manual_seed(0)
frames = torch.rand({shape})  # your video in its place: [B, T, 3, H, W] in [0, 1], or uint8
actions = world.infer_actions(frames)  # .codes, and .indices where there is a codebook
video = world.rollout(frames[:, :1], actions.codes, generator=rng).frames  # [B, T, 3, H, W]
{choose}```
The weights take over the licence of the video model and of the videos they were trained on.
"""


def _health(evaluation: Mapping[str, Any] | None) -> str:
    lines = [
        "| | utilisation | most used code | entropy / log K | perplexity |",
        "|---|---|---|---|---|",
    ]
    try:
        health = (evaluation or {})["codebook"]
        named = [(f"token {i}", part) for i, part in enumerate(health["positions"])]
        for name, part in [*named, ("tokens together", health["joint"])]:
            lines.append(
                f"| {name} | {part['utilisation']:.2f} | {part['max_usage']:.2f} | "
                f"{part['entropy_normalised']:.2f} | {part['perplexity']:.2f} |"
            )
    except _MISSHAPEN:
        return _MISSING
    return "\n".join(lines)


def _control(evaluation: Mapping[str, Any] | None) -> str:
    """A line for each number that is there."""
    lines = []
    for line in (_gains, _probe, _counts):
        with contextlib.suppress(*_MISSHAPEN):
            lines.append(line(evaluation or {}))
    return "\n".join(filter(None, lines)) or _MISSING


def _gains(evaluation: Mapping[str, Any]) -> str:
    return "\n".join(
        f"- inferred actions over {'no action' if name == 'none' else f'{name} ones'}: {_number(gain['mean'])} dB "
        f"[{_number(gain['low'])}, {_number(gain['high'])}]"
        for name, gain in evaluation["delta_psnr"].items()
    )


def _probe(evaluation: Mapping[str, Any]) -> str:
    probe = evaluation["probe"]
    if probe["kind"] != "accuracy":
        return ""
    score = probe["score"]
    return (
        f"- linear probe of real actions: {_number(score['mean'])} [{_number(score['low'])}, "
        f"{_number(score['high'])}], chance {probe['chance']:.2f}, pixel difference "
        f"{probe['pixel_difference']:.2f}"
    )


def _counts(evaluation: Mapping[str, Any]) -> str:
    counts = evaluation["counts"]
    return (
        f"\n{counts['clips']:d} clips of {counts['episodes']:d} episodes, {counts['horizon']:d} "
        "frames ahead; 95 % intervals over episodes."
    )


def _number(value: float | None) -> str:
    """An evaluation stores what is not finite (a sampler gone astray) as null."""
    return "-" if value is None else f"{value:.2f}"
