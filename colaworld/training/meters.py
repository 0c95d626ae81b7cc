"""What is measured while training: gradient norms, speed, memory.

Not here: codebook health (codebook_monitor.py), nor where numbers are written (loggers.py).
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from colaworld.training.distributed import Distributed
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.sharding import total_norm

log = logging.getLogger(__name__)
_SLOW, _FELT = 2.0, 0.05  # a process is slow from so many medians on, and so many seconds above


def gradient_norms(optimizer: PhaseOptimizer) -> dict[str, float]:
    """Gradient norm of each part that trains (before clipping); 0 where no gradient arrived."""
    norms = {}
    for part in optimizer.phase.train:
        norms[part] = float(total_norm(optimizer.gradients(part)))
    return norms


@dataclass(frozen=True)
class Work:
    """How much a clip is, to tell speed in more than clips."""

    tokens: int = 0
    """Tokens of a clip in the video model; 0: not known."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """Operations of a clip's products of matrices, forward and backward, by phase. Blocks that run a
    second time (recompute) count once."""
    peak: float | None = None
    """Operations/s of one device at most; None: not known, so that no share of it is told."""

    def speed(self, phase: str, clips: int, seconds: float, devices: int) -> dict[str, float]:
        """Of a step of `clips` clips on all `devices`: clips and tokens a second, and MFU, the share of
        the devices' peak that went into products of the model (Chowdhery et al. 2022, appendix B)."""
        told = {"clips_per_second": clips / seconds}
        if self.tokens:
            told["tokens_per_second"] = clips * self.tokens / seconds
        if self.peak and phase in self.flops:
            told["mfu"] = clips * self.flops[phase] / seconds / (self.peak * devices)
        return told


def memory_gib(device: torch.device) -> float:
    """GiB: on a GPU the most that tensors held so far, on a CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):  # another system than Linux
        return 0.0
    return pages * 4096 / 2**30


class Moment:
    """Now; on a GPU, when it is done with what it was asked for so far. Costs no waiting."""

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))

    def since(self, earlier: Moment) -> float:
        """Seconds from `earlier`; both must be over."""
        if self._event is not None:
            return earlier._event.elapsed_time(self._event) / 1000
        return self._time - earlier._time


class Pace:
    """Which process the others wait for.

    Args:
        distributed: the processes.
        every: steps between two looks, which are collective.
    """

    def __init__(self, distributed: Distributed, every: int) -> None:
        self.distributed, self.every = distributed, every
        self._seconds: list[float] = []
        self._new, self._warned = True, False

    def update(self, seconds: float) -> dict[str, Any] | None:
        """Take in how long this process worked on a step before it waited for the others. At every
        `every`-th step: {"rank", "host", "seconds", "median"} of the slowest, per step."""
        if self._new:  # the first step compiles and opens files
            self._new = False
            return None
        self._seconds.append(seconds)
        if len(self._seconds) < self.every:
            return None
        own = sum(self._seconds) / len(self._seconds)
        self._seconds.clear()
        found = self.distributed.gather((own, socket.gethostname()))
        usual = median_low(seconds for seconds, _ in found)
        slowest, host = max(found)
        told = {"rank": found.index((slowest, host)), "host": host}
        told |= {"seconds": slowest, "median": usual}
        if slowest > max(_SLOW * usual, usual + _FELT) and not self._warned:
            self._warned = True
            log.warning(
                "rank %d (%s) takes %.2f s for its share of a step, half of the processes at most %.2f: "
                "all wait for it; look at its disk, its other work and its GPU's clock",
                *(told["rank"], host, slowest, usual),
            )
        return told


class Throughput:
    """Clips per second over the latest `window` steps."""

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=window)

    def update(self, seconds: float, clips: int) -> None:
        self._steps.append((seconds, clips))

    @property
    def clips_per_second(self) -> float:
        seconds = sum(s for s, _ in self._steps)
        return sum(c for _, c in self._steps) / seconds if seconds > 0 else 0.0
