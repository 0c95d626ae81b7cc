"""The ways a whole model is run: what colaworld chooses, the reference ops, and both compiled.

Shared by models.py, training.py and rollout.py. Not here: single ops, which have more rivals.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from colaworld import ops


@dataclass(frozen=True)
class Variant:
    """One way to run a model."""

    ops: str | None  # the implementation of every op that is forced; None: colaworld chooses
    compiled: bool

    def choice(self) -> AbstractContextManager[None]:
        """The context in which the model is called."""
        return ops.force(self.ops) if self.ops else nullcontext()


# "eager" and "compile" are the same baselines as in the ops' rows: the reference ops.
VARIANTS = {
    "eager": Variant("reference", False),
    "compile": Variant("reference", True),
    "default": Variant(None, False),
    "default+compile": Variant(None, True),
}


def autocast(device: str, dtype: str) -> torch.autocast:
    """A model's row in bfloat16 is autocast, as training runs it; parameters stay float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
