"""The nano recipes: the whole method at a size that trains on two CPU cores in minutes.

Every number that is not the paper's carries its reason. The recipes after `pretrain` share
generator, data, sizes and, but for `cola_long`, their budget, so that results differ by the schedule alone.
"""

from __future__ import annotations

from dataclasses import replace

from colaworld.data.config import DataConfig
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.flow.config import SamplerConfig, TimestepConfig
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.runs.config import RunConfig
from colaworld.training.config import AlarmConfig, GateConfig, ObjectiveConfig, TrainingConfig
from colaworld.training.phases import Phase

_LAM = ("idm", "quantizer", "conditioner")

# A CPU model of a million parameters takes ten times the paper's rate; ramps are short because
# phases last hundreds of steps, not tens of thousands. What each of the other numbers rests on is
# in EXPERIMENTS.md beside this file.
_WARMUP = Phase(
    "warmup",
    "cola",
    _LAM,
    steps=400,
    learning_rate=1e-3,
    lr_warmup_steps=50,
    # Not before the codebook has started (unquantized_steps) and its health window has filled.
    gate=GateConfig(entropy=0.7, window=60, min_steps=300),
)
_JOINT = Phase(
    "joint",
    "cola",
    (*_LAM, "backbone"),
    steps=1300,
    learning_rate=5e-4,  # gentler on the pre-trained video model
    lr_warmup_steps=50,
    cooldown_steps=300,
    alarm=AlarmConfig(floor=0.3, action="warn"),
)
_LAM_STAGE = Phase(
    "lam",
    "reconstruction",
    ("idm", "quantizer", "fdm"),
    steps=400,
    learning_rate=1e-3,
    lr_warmup_steps=50,
    alarm=AlarmConfig(floor=0.3, action="warn"),
)
_WORLD_STAGE = Phase(
    "world",
    "world",
    ("conditioner", "backbone"),
    steps=1300,
    learning_rate=5e-4,
    lr_warmup_steps=50,
    cooldown_steps=300,
)
_PRETRAIN = Phase(
    "pretrain",
    "flow",
    ("backbone",),
    steps=4500,
    learning_rate=1e-3,
    lr_warmup_steps=100,
    cooldown_steps=1200,
)
# Most of a move can be read off a frame that is half noise: only close to pure noise does the
# action say something new, and only there does a gradient reach the latent action model.
_NEAR_NOISE = TimestepConfig(shift=16.0)
_QUANTIZER = VQConfig(unquantized_steps=250)
# Codes of frames as they are tell how much brighter a view has become, not where it went.
_MODEL = ModelConfig(
    window=4,
    idm=IDMConfig(tokens=2, standardise_frames=True),
    quantizer=_QUANTIZER,
)


# What a recipe of one phase trains for, so that it costs what the two phases of the others cost.
_BUDGET = _WARMUP.steps + _JOINT.steps


def _nano(recipe: str, schedule: tuple[str, ...], **changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "data": DataConfig(frames_per_clip=4, holdout=0.2),
        "model": _MODEL,
        "objective": ObjectiveConfig(
            history=(1, 3),
            times=_NEAR_NOISE,
            augment=False,  # the shipped video model knows whole cells only, no scaled crops
            quantizer_weight=0.1,  # at 1 the commitment outweighs the flow loss's small gradient
        ),
        "phases": {
            phase.name: phase for phase in (_PRETRAIN, _WARMUP, _JOINT, _LAM_STAGE, _WORLD_STAGE)
        },
        "training": TrainingConfig(
            batch_size=8,
            health_window=1024,
            checkpoint_every=250,
            sample_every=500,
            control_every=100,  # a look takes about as long as eight steps, half of it the probe
            probe_clips=256,
        ),
        "sampler": SamplerConfig(steps=6, shift=4.0),
        "evaluation": EvaluationConfig(clips=48, horizon=8),
    }
    return RunConfig(recipe=recipe, schedule=schedule, **(settings | changes))  # type: ignore[arg-type]


def pretrain() -> RunConfig:
    """The shipped video generator: action-free video, no latent actions."""
    return _nano(
        "nano.pretrain",
        ("pretrain",),
        backbone_weights=None,
        # It has no IDM. What it says of one stays: a generator is known by the hash of its configuration.
        model=replace(_MODEL, idm=IDMConfig(tokens=2, motion=True)),
        data=DataConfig(frames_per_clip=4),
        objective=ObjectiveConfig(history=(1, 3), times=TimestepConfig(shift=2.0), augment=False),
        training=TrainingConfig(
            batch_size=16,
            ema_decay=0.998,
            checkpoint_every=250,
            keep_checkpoints=1,
        ),
    )


def cola() -> RunConfig:
    """CoLA-World: warm-up through the frozen video model, then joint training."""
    return _nano("nano.cola", ("warmup", "joint"))


def cola_long() -> RunConfig:
    """The same with about four times the steps: an hour on two cores, as estimated."""
    config = _nano("nano.cola_long", ("warmup", "joint"))
    return config.with_phase("joint", steps=7000, cooldown_steps=1500)


def two_stage() -> RunConfig:
    """The baseline: a latent action model with its own forward model, then the world model."""
    return _nano("nano.two_stage", ("lam", "world"))


def naive_joint() -> RunConfig:
    """Joint training without a warm-up, over the same number of steps."""
    plain = replace(_MODEL, quantizer=replace(_QUANTIZER, unquantized_steps=0))
    config = _nano("nano.naive_joint", ("joint",), model=plain)
    return config.with_phase("joint", steps=_BUDGET)


def frozen_world() -> RunConfig:
    """Warm-up only, over the same number of steps; the video model never moves."""
    config = _nano("nano.frozen_world", ("warmup",))
    # Nothing follows that a gate could open to.
    return config.with_phase("warmup", steps=_BUDGET, gate=None)
