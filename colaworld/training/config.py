"""How a run is trained, whatever its phases: seed, batch, optimizer, health, checkpoints, logs.

Not here: what differs between phases (phases.py), nor model, data and objective (their own rooms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from colaworld.config import ConfigError

ONE_DEVICE = "1 (training on several devices is not supported yet)"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the one training loop, shared by all phases of a run."""

    seed: int = 0
    """Seed of all randomness in training; runs with equal seeds see equal noise at equal steps."""
    batch_size: int = 16
    """Clips per forward pass."""
    accumulate: int = 1
    """Forward passes per optimizer step; the effective batch is batch_size x accumulate."""
    max_steps: int | None = None
    """Upper bound on the optimizer steps of EACH phase; None leaves each phase its own length."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices; vectors (biases, norms) and codebooks are never decayed."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW moment decays; .99 rather than .999, since a phase may last only hundreds of steps."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient, above which it is scaled down; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Decay of the averaged weights (restarted with every phase); 0 keeps no average."""
    autocast: Literal["auto", "none", "bf16"] = "auto"
    """Arithmetic of the forward pass: "auto" is bf16 on a GPU and float32 on a CPU."""
    compile: Literal["no", "full", "blocks", True, False] = "no"
    """torch.compile: "full" compiles each part of the model as one graph, "blocks" one block of
    each kind (28 equal blocks cost one compilation). True and False: full and no, as before."""
    recompute: Literal["none", "blocks"] = "none"
    """Keep only the inputs of each block for the backward pass and run it again there: a small part
    of the memory, about a third more work, the same gradients bit for bit."""
    checkpoint_every: int = 500
    """Optimizer steps between checkpoints; one is always written at the end of a phase."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints are kept; the last healthy one always is."""
    log_every: int = 10
    """Optimizer steps between TensorBoard points; metrics.jsonl has a row for every step."""
    health_every: int = 20
    """Optimizer steps between checks of codebook health and gradient norms (gate, alarm)."""
    health_window: int = 4096
    """Latest actions that codebook health is measured over; the gate waits until it is full."""
    spike_factor: float = 10.0
    """An update whose loss exceeds this many running medians is skipped; 0 turns this off."""
    spike_window: int = 50
    """Applied updates the running median of the loss is taken over, within one phase."""
    max_consecutive_skips: int = 10
    """Training stops with an error after this many skipped updates in a row."""
    max_skips: int = 100
    """Training stops with an error after this many skipped updates within one phase."""
    tensorboard: bool = True
    """Write TensorBoard events next to metrics.jsonl, where the package is installed."""
    sample_every: int = 0
    """Optimizer steps between preview rollouts in TensorBoard; 0 makes none."""
    devices: int = 1
    """Processes to train on; only 1 works so far."""

    def __post_init__(self) -> None:
        if isinstance(self.compile, bool):
            object.__setattr__(self, "compile", "full" if self.compile else "no")
        for name, known in (
            ("compile", ("no", "full", "blocks")),
            ("recompute", ("none", "blocks")),
        ):
            self._expect(getattr(self, name) in known, name, f"one of {', '.join(known)}")
        for name in (
            "batch_size",
            "accumulate",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
            "health_every",
            "health_window",
            "spike_window",
            "max_consecutive_skips",
            "max_skips",
        ):
            self._expect(getattr(self, name) >= 1, name, ">= 1")
        self._expect(self.max_steps is None or self.max_steps >= 1, "max_steps", ">= 1 or None")
        for name in ("weight_decay", "clip_norm", "sample_every"):
            self._expect(getattr(self, name) >= 0, name, ">= 0")
        self._expect(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)")
        self._expect(all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)")
        self._expect(
            self.spike_factor == 0 or self.spike_factor > 1, "spike_factor", "0 or a number > 1"
        )
        self._expect(self.devices == 1, "devices", ONE_DEVICE)

    def _expect(self, condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise ConfigError(f"training.{name}: expected {wanted}, got {getattr(self, name)!r}")
