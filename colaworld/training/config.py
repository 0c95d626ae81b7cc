"""How a run is trained: the loop, the loss, the rules for codebook health, and which objectives there are. Imports
no torch.

Not here: what differs between phases (phases.py), nor model and data (their own rooms).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from colaworld.config import (
    Checked,
    ConfigError,
    Count,
    Natural,
    Positive,
    Range,
    Seed,
    Share,
    Weight,
)
from colaworld.flow.config import Average, TimestepConfig
from colaworld.registry import Later, Registry


@dataclass(frozen=True)
class ParallelConfig(Checked, at="training.parallel."):
    """How several processes (torchrun) train one model together. May change on resuming."""

    timeout: Annotated[float, Range(ge=1, le=86_400)] = 600.0
    """Seconds that a process waits for the others before it gives up: longer than the slowest step,
    preview or checkpoint."""
    shard: Literal["auto", "no", "blocks"] = "auto"
    """Whether each process keeps a piece of the video model (weights, gradients, moments, averages) and
    gathers block by block (FSDP2), or all of it. auto: on GPUs from 500 M parameters on."""
    replicas: Count = 1
    """Groups of processes that each hold the video model once, in pieces: gathering stays within a
    group, a machine say, and only gradients cross (HSDP). Must divide the number of processes."""
    reshard: bool = True
    """Give blocks up behind their forward pass and gather them again for backward. Off: faster, and a
    whole copy of the video model in memory."""
    offload: bool = False
    """Keep pieces, moments and averages in the machine's memory; its CPU then does the updates."""


@dataclass(frozen=True)
class TrainingConfig(Checked, at="training."):
    """Settings of the one training loop, shared by all phases of a run."""

    seed: Seed = 0
    """Seed of all randomness in training; runs with equal seeds see equal noise at equal steps."""
    batch_size: Count = 16
    """Clips per forward pass, over all processes: each takes its equal share."""
    accumulate: Count = 1
    """Forward passes per optimizer step; the effective batch is batch_size x accumulate."""
    max_steps: Count | None = None
    """Upper bound on the optimizer steps of EACH phase; None leaves each phase its own length."""
    weight_decay: Annotated[float, Range(ge=0, le=10)] = 0.01
    """AdamW weight decay of matrices; vectors (biases, norms) and codebooks are never decayed."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """AdamW moment decays; .99 rather than .999, since a phase may last only hundreds of steps."""
    clip_norm: Annotated[float, Range(ge=0, le=1e6, off=0)] = 1.0
    """Largest norm of the whole gradient, above which it is scaled down; 0 turns clipping off."""
    ema_decay: Share = 0.0
    """Decay of the averaged weights (restarted with every phase); 0 keeps no average."""
    autocast: Literal["auto", "none", "bf16"] = "auto"
    """Arithmetic of the forward pass: "auto" is bf16 on a GPU and float32 on a CPU."""
    compile: Literal["no", "full", "blocks", True, False] = "no"
    """torch.compile: "full" compiles each part of the model as one graph, "blocks" one block of
    each kind (28 equal blocks cost one compilation). True and False: full and no, as before."""
    recompute: Literal["none", "blocks"] = "none"
    """Keep only the inputs of each block for the backward pass and run it again there: a small part
    of the memory, about a third more work, the same gradients bit for bit."""
    checkpoint_every: Count = 500
    """Optimizer steps between checkpoints; one is always written at the end of a phase."""
    keep_checkpoints: Count = 2
    """How many of the latest checkpoints are kept; the last healthy one always is."""
    async_checkpoint: bool = True
    """Copy the tensors of a checkpoint to host memory and write them while training goes on. False
    waits until they are written, and needs no copy."""
    log_every: Count = 10
    """Optimizer steps between TensorBoard points; metrics.jsonl has a row for every step."""
    health_every: Count = 20
    """Optimizer steps between checks of codebook health and gradient norms (gate, alarm)."""
    health_window: Count = 4096
    """Latest actions that codebook health is measured over; the gate waits until it is full."""
    control_every: Natural = 0
    """Optimizer steps between measurements of control on held-out clips (control.py): what the codes
    tell the video model, which their use does not show. 0: never."""
    control_clips: Annotated[int, Range(ge=2, le=10**6)] = 32
    """Held-out clips that control is measured on, three forward passes each."""
    probe_clips: Natural = 0
    """Held-out clips whose codes a linear probe reads for the recorded actions (code_probe.py), as often as control
    is measured. Only this number reads them, training does not. 0, or data without actions: no probe."""
    spike_factor: Annotated[float, Range(gt=1, le=1e6, off=0)] = 10.0
    """An update whose loss exceeds this many running medians is skipped; 0 turns this off."""
    spike_window: Count = 50
    """Applied updates the running median of the loss is taken over, within one phase."""
    max_consecutive_skips: Count = 10
    """Training stops with an error after this many skipped updates in a row."""
    max_skips: Count = 100
    """Training stops with an error after this many skipped updates within one phase."""
    tensorboard: bool = True
    """Write TensorBoard events next to metrics.jsonl, where the package is installed."""
    trackio: str | None = None
    """Project to send rows and previews to with trackio, where the package is installed."""
    wandb: str | None = None
    """The same with wandb."""
    peak_tflops: Positive | None = None
    """10^12 operations/s that the device can do at most, for the share of it (MFU) in rows. None: as
    known of H200, H100, A100, L40S and RTX 4090; on others it is not told."""
    sample_every: Natural = 0
    """Optimizer steps between preview rollouts in TensorBoard; 0 makes none."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Several processes."""

    FORMER_KEYS: ClassVar[dict[str, Any]] = {"devices": 1}

    def __post_init__(self) -> None:
        if isinstance(self.compile, bool):
            object.__setattr__(self, "compile", "full" if self.compile else "no")
        super().__post_init__()


@dataclass(frozen=True)
class ObjectiveConfig(Checked, at="objective."):
    """How clips are turned into a loss."""

    history: tuple[Natural, Natural] = (1, 3)
    """Fewest and most clean latent frames of history of a clip; the rest is noised and predicted."""
    frozen_history: tuple[Natural, Natural] | None = None
    """The same while the video model is frozen: it cannot learn then what its own training did not
    show it. None: as `history`."""
    times: TimestepConfig = field(default_factory=TimestepConfig)
    """Diffusion times of the noised frames."""
    average: Average = "frames"
    """What the flow loss is a mean over. clips: each counts once, however many frames it predicts, as
    in Open-Sora. frames: all predicted frames of the update alike, on which the nano results rest."""
    augment: bool = True
    """One random resized crop per clip while the latent action model trains (paper)."""
    idm_view: Literal["same", "shift", "crop"] = "same"
    """What of a clip the IDM sees while it trains: what the video model sees; the same shifted by whole patches; or
    a random resized crop of its own. Where views differ, latents cannot carry places or pixels (IGOR, Chen et al.
    2024, crops differently for IDM and forward model). The video model's view is `augment`'s alone: a generator that
    knows whole cells only, as nano's, keeps them."""
    idm_shift: Annotated[int, Range(ge=1, le=64)] = 2
    """Patches (model.idm.patch) that `shift` moves at most, in rows and in columns."""
    quantizer_weight: Weight = 1.0
    """Weight of the quantizer's loss (codebook + beta * commitment) beside the flow loss."""
    alignment_weight: Weight = 1.0
    """Weight of the aligner's error in phases whose objective is `aligned`: latent actions must also tell how the
    frozen latents of the tokenizer change (UniVLA, Bu et al. 2025, predicts DINOv2 features). At nano size these
    are pixels."""
    start_clips: Count = 256
    """Clips whose latents give the codebook its start."""


@dataclass(frozen=True)
class GateConfig(Checked, at="gate."):
    """When a phase may end before its last step. The phase's `steps` are the maximum."""

    entropy: Annotated[float, Range(ge=0, le=1)] = 0.8
    """Normalised codebook entropy to reach: the mean over the window and the latest value."""
    window: Count = 400
    """Steps over which the entropy must be level."""
    max_drift: Positive = 0.03
    """Largest change of entropy over the window, by a fitted line, that still counts as level."""
    min_steps: Natural = 400
    """Steps before which the phase never ends."""
    control: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Control to reach as well, 1 - inferred / shuffled loss, where training.control_every measures it."""
    floor: Annotated[float, Range(ge=0, le=1)] = 0.3
    """Normalised entropy under which the codebook counts as collapsed when the phase ends by its steps."""
    control_floor: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Control under which codes count as meaning nothing then, where it is measured; 0: not looked at."""
    missed: Literal["stop", "reseed", "go_on"] = "stop"
    """What follows a phase that ends by its steps with a collapsed codebook: the run stops, or the next
    phase starts the codebook anew, or it goes on with a warning, as it does where training.max_steps cut
    the phase short."""


@dataclass(frozen=True)
class AlarmConfig(Checked, at="alarm."):
    """What to do when the codebook collapses during a phase."""

    floor: Annotated[float, Range(ge=0, le=1)] = 0.3
    """Normalised entropy under which the codebook counts as collapsing."""
    control_floor: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Control under which codes count as meaning nothing, however evenly they are used, where
    training.control_every measures it; 0: not looked at."""
    checks: Count = 5
    """Checks in a row under a floor that raise the alarm."""
    action: Literal["warn", "stop", "rollback"] = "warn"
    """Warn only; stop the run; or go back to the last healthy weights and warm up again."""
    rewarm_phase: str = "warmup"
    """Name of the phase that a rollback starts again from."""
    max_rollbacks: Natural = 1
    """Rollbacks in one run; the next alarm after that many stops it."""


@dataclass(frozen=True)
class _Ours(Later):
    """An objective of objectives.py, imported when it is made."""

    needs: tuple[str, ...] = ()
    uses_actions: bool = False


_LAM = ("idm", "quantizer")
# Each is called with a model and its configuration: a class derived from `BaseObjective`, or one of ours.
OBJECTIVES: Registry[Any] = Registry("objective", ConfigError)
OBJECTIVES |= {
    name: _Ours(f"colaworld.training.objectives:{name.title()}Objective", needs)
    for name, needs in {
        "flow": (),
        "cola": (*_LAM, "conditioner"),
        "aligned": (*_LAM, "conditioner", "aligner"),
        "world": (*_LAM, "conditioner"),
        "reconstruction": (*_LAM, "fdm"),
    }.items()
}
_ADAPTED = (*_LAM, "conditioner", "adapter", "action_head")
OBJECTIVES |= {
    name: _Ours(f"colaworld.training.adaptation:{made}Objective", _ADAPTED, uses_actions=True)
    for name, made in {
        "adapter": "Adapter",
        "adapted": "Adapted",
        "adapted_lam": "AdaptedLam",
    }.items()
}
