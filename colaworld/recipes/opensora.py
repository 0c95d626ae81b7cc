"""CoLA-World on Open-Sora v1.2 (STDiT3-XL/2, 0.9 B parameters without text), the paper's generator.

Numbers are the paper's (arXiv 2510.26433) unless a comment says otherwise. It trained on eight H200
with 128 clips an update; here the update is the same and `accumulate` makes up for the cards.

One size of frames serves everybody. The paper shows 256x256 px to the video model (latents of 32x32)
and 224x224 to the IDM, in patches of 14: 16x16 tokens. Here the IDM reads the video model's 256x256
in patches of 16, which are 16x16 tokens of the same view, and nothing is resized twice.
"""

from __future__ import annotations

from dataclasses import replace

from colaworld.data.config import DataConfig
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.flow.config import SamplerConfig, TimestepConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import FDMConfig, IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.tokenizers.config import OpenSoraVAEConfig
from colaworld.runs.config import PHASES as BASE
from colaworld.runs.config import RunConfig
from colaworld.training.config import AlarmConfig, ObjectiveConfig, TrainingConfig

FRAMES = 17  # 5 latent frames: one micro-chunk of the VAE; within the paper's IDM clips (ours)
SIZE = 256

# Rate and ramp (7.5e-5 after 2000 steps, in every phase) are Phase's own defaults. The paper ended
# warm-up by eye after so many steps; for our rule instead, give the phase a gate (training/codebook_monitor.py).
_ALARM = AlarmConfig(floor=0.3, action="warn")
PHASES = BASE | {name: replace(BASE[name], alarm=_ALARM) for name in ("joint", "lam")}

IDM = replace(IDMConfig.paper(), patch=16)  # see the module's docstring
# Both tokens choose from 32 entries: 1024 actions. Standardised latents, a start from data and
# re-seeding are ours: without them codebooks fell to one entry (models/README.md).
QUANTIZER = VQConfig(codebook_size=32)
FDM = FDMConfig(depth=12, width=768, heads=12, patch=16)  # "similar to the IDM", frames alike

_MODEL = ModelConfig(
    tokenizer=OpenSoraVAEConfig(path="hpcai-tech/OpenSora-VAE-v1.2"),
    backbone=STDiT3Config.xl2(),
    idm=IDM,
    quantizer=QUANTIZER,
    # One head shared by all blocks, as in the paper: 74 M parameters; one per block would be 0.5 B.
    conditioner=ConditionerConfig(heads=16, per_block=False),
    fdm=FDM,
    window=FRAMES,
)

# The generator's own shift of noise levels for such clips, which training asks it for (shift None):
# sqrt(256 * 256) / 512 * sqrt(5 latent frames).
_SHIFT = 0.5 * 5**0.5

TRAINING = TrainingConfig(
    batch_size=16,  # what one of the paper's eight cards had
    accumulate=8,
    ema_decay=0.999,  # ours: the mean of about the last thousand updates
    health_window=16_384,  # eight updates of 128 clips x 16 actions
    checkpoint_every=1_000,  # 20 GB each
)


OBJECTIVE = ObjectiveConfig(
    # Any clean prefix, so that a rollout may go on from one frame or from a full window (ours).
    history=(1, 4),
    # In its last stage the generator saw no clean latent in 75 of 100 clips, the first alone in 22, more
    # in 3: while it is frozen it is given what it can read and what a rollout starts from, one (ours).
    frozen_history=(1, 1),
    times=TimestepConfig(shift=None),
    average="clips",  # as the generator was trained
)


def _opensora(recipe: str, schedule: tuple[str, ...]) -> RunConfig:
    return RunConfig(
        recipe=recipe,
        schedule=schedule,
        backbone_weights="hpcai-tech/OpenSora-STDiT-v3",
        data=DataConfig(frames_per_clip=FRAMES, height=SIZE, width=SIZE),
        model=_MODEL,
        objective=OBJECTIVE,
        phases=PHASES,
        training=TRAINING,
        sampler=SamplerConfig(steps=10, guidance=4.0, shift=_SHIFT),
        evaluation=EvaluationConfig(horizon=16),
    )


def cola() -> RunConfig:
    """CoLA-World on Open-Sora v1.2: warm-up through the frozen video model, then joint training."""
    return _opensora("opensora.cola", ("warmup", "joint"))


def two_stage() -> RunConfig:
    """The baseline on Open-Sora v1.2: a latent action model of its own, then the world model."""
    return _opensora("opensora.two_stage", ("lam", "world"))
