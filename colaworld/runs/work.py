"""How much work a clip of a run is: its tokens, and its operations by phase.

Not here: what is made of it (training/meters.py), or how operations are counted (memory.py).
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from colaworld.runs.config import RunConfig
from colaworld.runs.memory import plan_memory
from colaworld.runs.sizes import tokens_of_clip
from colaworld.training.cards import card_of
from colaworld.training.meters import Work

log = logging.getLogger(__name__)


def work_of(config: RunConfig, *, height: int, width: int, device: torch.device) -> Work:
    """For rows of a run on frames of `height` x `width`. Operations are counted, which takes seconds,
    only where the device's peak is known: by `training.peak_tflops`, or as a card of cards.py."""
    tokens = tokens_of_clip(
        config.model, height=height, width=width, frames=config.data.frames_per_clip
    )
    tflops = config.training.peak_tflops
    if tflops is None and device.type == "cuda":
        card = card_of(torch.cuda.get_device_name(device))
        tflops = None if card is None else card.tflops
    if tflops is None:
        return Work(tokens)
    try:
        flops = flops_of_clip(config, height=height, width=width)
    except RuntimeError as error:  # a part of one's own that looks at values cannot be traced
        log.warning("MFU is not told, since the model cannot be traced: %s", error)
        flops = {}
    return Work(tokens, flops, 1e12 * tflops)


def flops_of_clip(config: RunConfig, *, height: int, width: int) -> dict[str, float]:
    """Operations of a clip by phase; see `meters.Work.flops`."""
    counted = replace(
        config,
        data=replace(config.data, height=height, width=width),
        training=replace(config.training, recompute="none"),
    )
    clips = config.training.batch_size
    return {phase.phase: phase.flops / clips for phase in plan_memory(counted)}
