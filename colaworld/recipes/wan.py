"""CoLA-World on Wan2.1-T2V-1.3B, the paper's second generator. Numbers as in opensora.py but for

warm-up     5000 steps (paper)
noise       the generator's own shift of 3
attention   over space and time at once, block-causal in time (ours: Wan was trained without)
tokenizer   Wan's VAE through diffusers (pip install colaworld[vae]); time / 4 as well, so that
            17 frames are 5 latents and 4 actions lead into each
"""

from __future__ import annotations

from dataclasses import replace

from colaworld.data.config import DataConfig
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.wan import TIME_SHIFT, WanConfig
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.tokenizers.config import DiffusersVAEConfig
from colaworld.recipes import opensora
from colaworld.runs.config import RunConfig

_PUBLISHED = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

_MODEL = ModelConfig(
    tokenizer=DiffusersVAEConfig(family="wan", path=_PUBLISHED, subfolder="vae"),
    backbone=WanConfig.wan_1_3b(),
    idm=opensora.IDM,
    quantizer=opensora.QUANTIZER,
    conditioner=ConditionerConfig(heads=12, per_block=False),
    fdm=opensora.FDM,
    window=opensora.FRAMES,
)


def cola() -> RunConfig:
    """CoLA-World on Wan2.1-T2V-1.3B: warm-up through the frozen video model, then joint training."""
    config = RunConfig(
        recipe="wan.cola",
        schedule=("warmup", "joint"),
        backbone_weights=_PUBLISHED,
        data=DataConfig(frames_per_clip=opensora.FRAMES, height=opensora.SIZE, width=opensora.SIZE),
        model=_MODEL,
        # Of clean frames this generator was shown none: there is no history that it knows.
        objective=replace(opensora.OBJECTIVE, frozen_history=None),
        phases=opensora.PHASES,
        training=opensora.TRAINING,
        sampler=SamplerConfig(steps=10, guidance=4.0, shift=TIME_SHIFT),
        evaluation=EvaluationConfig(horizon=16),
    )
    return config.with_phase("warmup", steps=5_000)
