"""The planner against a GPU: what the allocator held at most in a real step. Needs a CUDA device."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colaworld.config import to_yaml
from colaworld.contracts import ClipBatch
from colaworld.data.config import DataConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.recipes import recipe
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import plan_memory
from colaworld.training.blocks import recompute_blocks
from colaworld.training.config import OBJECTIVES, TrainingConfig
from colaworld.training.phases import enter_phase
from colaworld.training.trainer import Trainer


class Noise:
    """Endless random clips."""

    def __init__(self, config: RunConfig) -> None:
        data, clips = config.data, config.training.batch_size
        self.shape = (clips, data.frames_per_clip, 3, data.height, data.width)

    def __next__(self) -> ClipBatch:
        number = torch.arange(self.shape[0])
        frames = torch.randint(0, 256, self.shape, dtype=torch.uint8)
        return ClipBatch(frames, episode=number, start=number)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...

    def merge_states(self, states: list) -> dict:
        return {}


def two_steps(config: RunConfig, name: str, out: Path) -> None:
    phase = config.phases[name]
    model = build_model(config)
    if config.training.recompute == "blocks":
        recompute_blocks(model)
    objective = OBJECTIVES[phase.objective](model, config.objective)
    trainer = Trainer(
        model,
        {phase.objective: objective},
        [phase],
        Noise(config),
        out,
        config.training,
        to_yaml(config),
        device="cuda",
    )
    enter_phase(model, phase)
    state = trainer._begin(phase, objective)
    for _ in range(2):
        trainer._step(state)


@pytest.mark.parametrize("recompute", ["none", "blocks"])
@pytest.mark.parametrize("phase", ["warmup", "joint"])
def test_the_plan_is_within_fifteen_percent_of_the_allocators_peak(
    cuda, tmp_path, phase, recompute
) -> None:
    """Heads and widths of XL/2 at a depth of 4, in bf16: about 2 GB."""
    model = ModelConfig(
        backbone=STDiT3Config(depth=4, width=1152, heads=16),
        idm=IDMConfig(depth=4, width=768, heads=12, patch=8, matching=0),
        conditioner=ConditionerConfig(depth=2, heads=16, per_block=False),
        window=5,
    )
    config = replace(
        recipe("nano.cola"),
        backbone_weights=None,
        model=model,
        data=DataConfig(frames_per_clip=5, height=64, width=64),
        training=TrainingConfig(
            batch_size=4, accumulate=2, ema_decay=0.9, tensorboard=False, recompute=recompute
        ),
    )
    two_steps(config, phase, tmp_path / "first")  # workspaces of libraries are made here
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    two_steps(config, phase, tmp_path / "second")
    measured = torch.cuda.max_memory_allocated() - before
    (plan,) = plan_memory(config, phases=(phase,))
    print(f"planned {plan.total / 2**20:.0f} MiB, measured {measured / 2**20:.0f}")
    assert plan.total == pytest.approx(measured, rel=0.15)
