"""How a run is trained, whatever its phases: seed, batch, optimizer, health, checkpoints, logs.

Not here: what differs between phases (phases.py), nor model, data and objective (their own rooms).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from colaworld.config import Checked, Count, Natural, Positive, Range, Seed, Share


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
