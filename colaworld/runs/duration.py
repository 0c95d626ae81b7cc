"""How long will a run take on this machine? A guess before the first step, and said to be one.

The matrix products of a step are counted from sizes and tokens, which takes no time; how fast the
machine multiplies is tried for a twentieth of a second. A step is as long as its products would be at
a share of that speed. Shares were measured: `mfu` of the rows nano.cola.joint in
benchmarks/results/training_cpu.json, .48 (eager) to .79 (default+compile). No GPU was measured, so
nothing is said of one. Not counted: tokenizers with weights, data, previews, checkpoints.
Not here: memory (fits.py).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from colaworld.models.layers.attention import AxialAttention, HasBackends
from colaworld.models.tokenizers.tokenizer import latent_frames
from colaworld.models.world_model import WorldModel
from colaworld.runs.config import RunConfig
from colaworld.runs.fits import smaller_frames
from colaworld.training.config import OBJECTIVES
from colaworld.training.phases import Phase
from colaworld.training.step import uses_bf16

log = logging.getLogger(__name__)

# Shares of the speed of products. The lower is half of what was measured: larger frames than those
# rows have leave the caches, and other work runs beside.
SHARES = (0.24, 0.8)
_PROBE = 0.05  # seconds
_LONG = 60.0  # seconds of a step that are worth a warning


def matmul_rate(*, bf16: bool = False) -> float:
    """Floating-point operations a second of square products on the CPU, as it is now."""
    square = torch.ones(512, 512, dtype=torch.bfloat16 if bf16 else torch.float32)
    torch.mm(square, square)  # the first one makes threads and buffers
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < _PROBE or not count:
        torch.mm(square, square)
        count += 1
    return count * 2 * 512**3 / max(elapsed, 1e-9)


def step_operations(
    config: RunConfig, model: WorldModel, phase: Phase, *, height: int, width: int
) -> float:
    """Floating-point operations in the matrix products of a step, forward and backward.

    Every weight meets every token of its part once; those that embed times or actions meet fewer,
    which is little beside the rest.
    """
    tokenizer, frames = model.tokenizer, config.data.frames_per_clip
    latents = latent_frames(frames, tokenizer.temporal_stride)
    down, across = (tokenizer.spatial_stride * n for n in model.backbone.patch[1:])
    grids = {"backbone": (latents, (height // down) * (width // across))}  # frames, tokens of each
    needs = OBJECTIVES[phase.objective].needs
    # A latent action model with a forward model of its own trains without the video model.
    runs = {*needs} if needs and "conditioner" not in needs else {*needs, "backbone"}
    total = 0.0
    for name, part in model.named_children():
        if name not in runs | {*phase.train}:
            continue
        patch = getattr(getattr(part, "config", None), "patch", None)
        if isinstance(patch, int):
            grids[name] = frames, (height // patch) * (width // patch)
        # Two operations a product: forward, for the inputs' gradient and for the weights' own.
        passes = 2 * (2 + (name in phase.train) + (config.training.recompute == "blocks"))
        total += passes * _products(part, *grids.get(name, (frames, 1)), model.backbone.width)
    return total * config.training.batch_size * config.training.accumulate


def _products(part: nn.Module, frames: int, space: int, width: int) -> float:
    """Multiplications of one forward pass over a clip."""
    tokens, found = frames * space, 0.0
    for module in part.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            found += tokens * module.weight.numel()
        elif isinstance(module, AxialAttention):
            keys = space if module.axis == "spatial" else frames
            found += 2 * tokens * keys * module.qkv.in_features
        elif isinstance(module, HasBackends):  # among all tokens of a clip
            found += 2 * tokens * tokens * width
    return found


def check_time(
    config: RunConfig,
    model: WorldModel,
    phases: Sequence[Phase],
    *,
    height: int,
    width: int,
    device: torch.device,
    progress: Mapping[str, Any] | None = None,
    rate: float | None = None,
) -> str | None:
    """How long the run takes, in words; None where nobody knows. Warns of steps above a minute.

    Args:
        config, model, phases: the run's, as long as they are.
        height, width: of its frames, in pixels.
        device: where it trains.
        progress: of the checkpoint that it goes on from.
        rate: operations a second; None tries this machine.
    """
    if device.type != "cpu":
        return None
    at, done = (0, 0) if progress is None else (progress["phase"], progress["step"])
    left = {p.name: p.steps - (done if i == at else 0) for i, p in enumerate(phases) if i >= at}
    left = {name: steps for name, steps in left.items() if steps > 0}
    if not left:
        return None
    rate = rate or matmul_rate(bf16=uses_bf16(config.training.autocast, device.type))
    size = {"height": height, "width": width}
    seconds = {
        p.name: step_operations(config, model, p, **size) / rate for p in phases if p.name in left
    }
    slow = max(seconds, key=lambda name: seconds[name])
    whole = sum(steps * seconds[name] for name, steps in left.items())
    step = _span(seconds[slow])
    if seconds[slow] / math.sqrt(SHARES[0] * SHARES[1]) > _LONG:
        log.warning(
            "a step of %s takes about %s, by a guess: frames are %dx%d px. What helps: %sfewer clips in "
            "a step (--training.batch-size, --training.accumulate), a GPU",
            *(slow, step, height, width, smaller_frames(config, model, **size)),
        )
    most = " at most" if any(p.gate for p in phases if p.name in left) else ""
    encoded = config.model.tokenizer.kind != "pixels" and config.latents is None
    return (
        f"about {_span(whole)} for {sum(left.values())} steps{most} ({step} a step of {slow}), a guess"
        f"{' that leaves encoding out' if encoded else ''}; the first rows tell more"
    )


def _span(seconds: float) -> str:
    """What takes `seconds` at full speed, from the higher to the lower share of it."""
    low, high = seconds / SHARES[1], seconds / SHARES[0]
    units = (("s", 1), ("minutes", 60), ("hours", 3600), ("days", 86400))
    unit, size = next((u for u in reversed(units) if high >= 2 * u[1]), units[0])
    first, last = (f"{v:.2g}" if v < 10 else f"{v:.0f}" for v in (low / size, high / size))
    return f"{first} to {last} {unit}"
