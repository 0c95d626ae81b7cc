"""Peak memory of two real training steps: prints bytes. Run by test_memory_measured.py.

    python measure_step.py CONFIG.yaml PHASE

The measure is the kernel's own: the peak of resident memory (VmHWM) while the model is built and
trains, less what was resident before. It sees what no count of tensors does: scratch of kernels,
split blocks, the interpreter. The caller sets glibc's thresholds so that freed memory goes back.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from colaworld.config import load_yaml, to_yaml
from colaworld.contracts import ClipBatch
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig
from colaworld.training.blocks import recompute_blocks
from colaworld.training.config import OBJECTIVES
from colaworld.training.phases import enter_phase
from colaworld.training.trainer import Trainer


def resident(name: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


class Noise:
    """Endless random clips."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def __next__(self) -> ClipBatch:
        data, clips = self.config.data, self.config.training.batch_size
        shape = (clips, data.frames_per_clip, 3, data.height, data.width)
        number = torch.arange(clips)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8)
        return ClipBatch(frames, episode=number, start=number)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...

    def merge_states(self, states: list) -> dict:
        return {}


def two_steps(config: RunConfig, name: str) -> None:
    phase = config.phases[name]
    model = build_model(config)
    if config.training.recompute == "blocks":
        recompute_blocks(model)
    objective = OBJECTIVES[phase.objective](model, config.objective)
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model,
            {phase.objective: objective},
            [phase],
            Noise(config),
            Path(out),
            config.training,
            to_yaml(config),
        )
        enter_phase(model, phase)
        state = trainer._begin(phase, objective)
        for _ in range(2):
            trainer._step(state)


def main() -> None:
    torch.set_num_threads(1)
    config, name = load_yaml(sys.argv[1], RunConfig), sys.argv[2]
    small = replace(config.data, height=32, width=32)
    two_steps(replace(config, data=small, model=replace(config.model)), name)  # loads what is lazy
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = resident("VmRSS")
    two_steps(config, name)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
