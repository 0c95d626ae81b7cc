"""What the training loop asks of the things it drives: an objective, a loader, a preview.

Protocols and errors only. Not here: any objective (objectives.py) or the loop (trainer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from colaworld.contracts import ClipBatch, ResetRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from colaworld.rng import ClipGenerator

# -> the next training batch, and what draws for its clips
ClipSupply: TypeAlias = "Callable[[], tuple[ClipBatch, ClipGenerator]]"


class RunFolderError(ValueError):
    """The run folder cannot be used: names the path, what is wrong and what to do."""


class CheckpointError(RunFolderError):
    """A checkpoint cannot be written, read or used: names the path and the reason."""


class ResumeError(RunFolderError):
    """The run folder holds another run than the one asked for: names the keys that differ."""


class UnstableTrainingError(ValueError):
    """Too many updates were skipped (not finite, or a spike): names the last batch. Or the weights
    that training ended with are not finite: names the tensor."""


@runtime_checkable
class Objective(Protocol):
    """What is minimised. It owns no loop and no optimizer; the trainer never looks inside it.

    `codebook_size` and `tokens` describe the discrete latent actions (K codes, N tokens per
    action), or are None where there is no codebook; then no codebook health is reported.

    Everything that changes during training must live in the model (parameters, buffers): that is
    what checkpoints hold. All randomness must come from `generator`; what is drawn for clips through
    `rng.draw`, so that it does not depend on how an update is cut into passes and processes.
    """

    codebook_size: int | None
    tokens: int | None

    def loss(self, batch: ClipBatch, *, generator: ClipGenerator) -> tuple[Tensor, dict[str, Any]]:
        """Scalar loss with its graph, and metrics: scalars (tensors or floats) by name.

        The metric named "indices" is special: the codes used, int64 [B, ..., N], for the codebook
        meter.
        """
        ...

    def before_phase(self, batches: ClipSupply, *, generator: torch.Generator) -> None:
        """Once, before a phase's first step and not when a phase is resumed.

        `batches()` gives the next training batch, on the device, and the randomness of its clips;
        `generator` draws the same on every process. For a data-dependent start.
        """
        ...

    def begin_step(self) -> None:
        """Before the first forward pass of an update: forget what a skipped update left behind."""
        ...

    def after_step(self, *, generator: torch.Generator) -> tuple[dict[str, float], ResetRows]:
        """After every update that was applied (not after a skipped one). `generator` draws the same on
        every process.

        Returns more metrics, and which rows of which parameters it set anew: the optimizer starts
        from nothing there.
        """
        ...


class Loader(Protocol):
    """An endless iterator of batches that knows where it stands. The state is plain JSON.

    `merge_states` makes one state of those of all processes, which any number of them can load.
    """

    def __next__(self) -> ClipBatch: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def merge_states(self, states: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]: ...


# -> what the codes tell on held-out clips; "control" is 0 where they tell nothing (control.py)
Control = Callable[[], Mapping[str, float]]

# -> what the codes mean on held-out clips: "score", and that of "chance" (code_probe.py)
Probe = Callable[[], Mapping[str, float]]

# (steps done in the phase, phase name) -> uint8 frames [n, T, H, W, 3] to show in TensorBoard
Preview = Callable[[int, str], Any]
