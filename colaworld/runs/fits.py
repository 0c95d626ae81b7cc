"""Does a step of a run fit into the memory of this machine? Asked before the first one.

Not here: how long it takes (duration.py), the plan by phase (memory.py), cards that are not in this machine (cli/plan_memory.py).
"""

from __future__ import annotations

import logging
import math
import operator
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from colaworld.config import ConfigError
from colaworld.models.tokenizers.tokenizer import latent_frames
from colaworld.models.world_model import WorldModel
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import GIB, PhaseMemory, plan_memory
from colaworld.runs.scale import count, memory_of_one
from colaworld.runs.sizes import patch_multiples
from colaworld.training.phases import Phase
from colaworld.training.step import uses_bf16

log = logging.getLogger(__name__)

# Floats that a token leaves behind per channel and modulated block; plans of nano and of STDiT3-XL
# say 32 and 46. What is far below the machine's memory by this needs no plan, which takes seconds.
_FLOATS = 40
_FEW_TOKENS = 256  # of a frame: nano's own scale


def machine_memory(device: torch.device, *, root: Path = Path("/")) -> int:
    """Bytes that this process may use: the card's, or the machine's within its control groups.

    `root`: where the kernel's files are.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - GIB  # the context
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([there, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """What the process's own control group allows, and each above it, in version 2 and 1."""
    mine, mounted = root / "proc/self/cgroup", root / "sys/fs/cgroup"
    groups = mine.read_text().splitlines() if mine.is_file() else ["0::/"]
    for _, controllers, path in (line.split(":", 2) for line in groups):
        at, name = mounted, "memory.max"
        if "memory" in controllers.split(","):
            at, name = mounted / "memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        own = at / path.lstrip("/")  # in a container it may be mounted as the topmost
        for folder in (own, *(above for above in own.parents if above.is_relative_to(at))):
            file = folder / name
            value = file.read_text().strip() if file.is_file() else ""
            if value.isdigit():  # not "max"
                yield int(value)


def held(model: nn.Module, phases: Iterable[Phase]) -> int:
    """Bytes of weights, and of gradients and AdamW's two moments where they train: the most of all
    phases. All four have the dtype of the weights."""
    return max(
        sum(
            p.numel() * p.element_size() * (4 if name in phase.train else 1)
            for name, part in model.named_children()
            for p in part.parameters()
        )
        for phase in phases
    )


def _tokens(config: RunConfig, model: WorldModel, height: int, width: int) -> int:
    """Of a frame."""
    down, across = (config.model.tokenizer.spatial_stride * n for n in model.backbone.patch[1:])
    return (height // down) * (width // across)


def smaller_frames(config: RunConfig, model: WorldModel, *, height: int, width: int) -> str:
    """ "smaller frames (the flags), ", the first of what helps; nothing where they are small."""
    frame = _tokens(config, model, height, width)
    if frame <= _FEW_TOKENS:
        return ""
    shrink, needs = math.sqrt(_FEW_TOKENS / frame), patch_multiples(config.model, config.parts())
    good = [max(n, int(shrink * v) // n * n) for v, n in zip((height, width), needs, strict=True)]
    return f"smaller frames (--data.height {good[0]} --data.width {good[1]}), "


def check_memory(
    config: RunConfig,
    model: WorldModel,
    *,
    height: int,
    width: int,
    device: torch.device,
    memory: int | None = None,
    processes: int = 1,
    neighbours: int = 1,
) -> str:
    """Tokens of a frame and of a pass, in words, with a step's memory where that may matter.

    Args:
        config: the run.
        model: of the run.
        height, width: of its frames, in pixels.
        device: where it trains.
        memory: bytes there are; None asks the machine.
        processes: that train together; each may hold a piece of the video model only. The batch of
            `config` is the share of one.
        neighbours: how many of them are on this machine, whose memory they share unless each has a GPU.

    Raises ConfigError where a step needs more than there is; warns where it needs more than half.
    """
    there = machine_memory(device) if memory is None else memory
    if device.type == "cpu":
        there //= neighbours
    backbone, frame = model.backbone, _tokens(config, model, height, width)
    latents = latent_frames(config.data.frames_per_clip, config.model.tokenizer.temporal_stride)
    tokens = frame * latents * config.training.batch_size
    said = f"{frame} tokens a frame, {tokens} in a pass"
    smaller = smaller_frames(config, model, height=height, width=width)
    left_behind = 4 * _FLOATS * tokens * backbone.width * backbone.modulated_blocks
    if left_behind + held(model, config.scheduled()) > there / 4:
        sized = replace(config, data=replace(config.data, height=height, width=width))
        try:
            plans = plan_memory(sized, device=device.type)
            totals = {plan.phase: plan.total for plan in plans}
            if processes > 1:
                totals = _of_each(sized, plans, device.type, processes)
            phase, most = max(totals.items(), key=operator.itemgetter(1))
        except RuntimeError as error:
            # A part of one's own that looks at values trains well, but cannot be traced.
            log.warning(
                "how much memory a step needs is not known (%s: %s)", type(error).__name__, error
            )
        else:
            needed = f"a step of {phase} needs about {most / GIB:.1f} GiB"
            if most > there:
                raise ConfigError(
                    f"{needed}, {device} has {there / GIB:.1f}: frames of {height}x{width} px are "
                    f"{said}. What helps: {smaller}fewer clips in a pass (--training.batch-size), what "
                    f"colaworld plan-memory {config.recipe} names; --anyway starts all the same"
                )
            needed += f" of {there / GIB:.1f}"
            if most > there / 2:
                log.warning(
                    "%s: what else runs here may not fit beside it. What helps: %sfewer clips in a pass "
                    "(--training.batch-size)",
                    *(needed, smaller),
                )
            said += f"; {needed}"
    return said


def _of_each(
    config: RunConfig, plans: Iterable[PhaseMemory], kind: str, processes: int
) -> dict[str, int]:
    """Bytes of each of several processes, by phase."""
    counts, bf16 = count(config, kind=kind), uses_bf16(config.training.autocast, kind)
    return {
        plan.phase: memory_of_one(
            config, plan, config.phases[plan.phase], counts, processes=processes, bf16=bf16
        )
        for plan in plans
    }
