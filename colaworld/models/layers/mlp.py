"""The transformer MLP with the key names of STDiT3 (`fc1`, `fc2`)."""

from __future__ import annotations

from torch import Tensor, nn

from colaworld.ops import gelu


class MLP(nn.Module):
    """Linear, GELU (tanh form, as STDiT3), Linear."""

    def __init__(self, width: int, hidden: int, out: int | None = None, *, zero_init: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width if out is None else out)
        if zero_init:
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))
