"""Which actions there are to plan with, and how a planner of one kind searches those of the other.

    Grid      continuous actions as discrete ones: each dimension is a token of `bins` values
    Scores    discrete actions as continuous ones: a number per class and token, the highest is taken

Not here: what an action does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Continuous:
    """Floats [.., A], each between its bounds, in the units of the environment. One whose bounds are equal
    stays as it is."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.low) == len(self.high) >= 1
        if not fits or any(
            not -math.inf < a <= b < math.inf for a, b in zip(self.low, self.high, strict=True)
        ):
            raise ValueError(
                f"Continuous: expected finite low <= high for each dimension, got {self.low}, {self.high}"
            )

    @property
    def width(self) -> int:
        """A."""
        return len(self.low)

    def bounds(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Lowest and highest values, [A] each."""
        return torch.tensor(self.low, device=device), torch.tensor(self.high, device=device)

    def check(self, actions: Tensor, argument: str) -> None:
        """ValueError unless they are finite floats [.., A]."""
        if not actions.is_floating_point() or actions.shape[-1:] != (self.width,):
            raise ValueError(
                f"{argument}: expected floats [.., {self.width}], got {_what(actions)}"
            )
        if not actions.isfinite().all():
            raise ValueError(f"{argument}: expected finite numbers, got infinite ones or NaN")


@dataclass(frozen=True)
class Discrete:
    """Integers [.., N], each below `size`: entries of a codebook, or classes (N = 1)."""

    size: int
    tokens: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.tokens < 1:
            raise ValueError(f"Discrete: expected size and tokens >= 1, got {self}")

    @property
    def width(self) -> int:
        """N."""
        return self.tokens

    def check(self, actions: Tensor, argument: str) -> None:
        """ValueError unless they are int64 [.., N], each below `size`."""
        if actions.dtype != torch.int64 or actions.shape[-1:] != (self.tokens,):
            raise ValueError(
                f"{argument}: expected int64 [.., {self.tokens}], got {_what(actions)}"
            )
        if actions.numel() and not 0 <= int(actions.min()) <= int(actions.max()) < self.size:
            raise ValueError(
                f"{argument}: expected codes in 0 .. {self.size - 1}, got {int(actions.min())} .. "
                f"{int(actions.max())}"
            )


Space: TypeAlias = Continuous | Discrete


@dataclass(frozen=True)
class Grid:
    """`inner` seen as discrete actions."""

    inner: Continuous
    bins: int

    @property
    def space(self) -> Discrete:
        return Discrete(self.bins, self.inner.width)

    def out(self, indices: Tensor) -> Tensor:
        """Entries [.., A] -> values [.., A]; the first and last entry are the bounds."""
        low, high = self.inner.bounds(indices.device)
        return low + (high - low) * indices / (self.bins - 1)

    def into(self, actions: Tensor) -> Tensor:
        """The entries nearest to values [.., A]."""
        low, high = self.inner.bounds(actions.device)
        share = (actions - low) / (high - low) * (self.bins - 1)
        return share.nan_to_num(0.0).round().clamp(0, self.bins - 1).long()


@dataclass(frozen=True)
class Scores:
    """`inner` seen as continuous actions in [-1, 1], [.., N size]."""

    inner: Discrete

    @property
    def space(self) -> Continuous:
        width = self.inner.size * self.inner.tokens
        return Continuous((-1.0,) * width, (1.0,) * width)

    def out(self, scores: Tensor) -> Tensor:
        """[.., N size] -> the class of the highest score, int64 [.., N]. Ties: the first."""
        return scores.unflatten(-1, (self.inner.tokens, self.inner.size)).argmax(-1)

    def into(self, indices: Tensor) -> Tensor:
        """Scores that mean these classes: half for them, minus a half for all others."""
        return (F.one_hot(indices, self.inner.size).float() - 0.5).flatten(-2)


def _what(actions: Tensor) -> str:
    return f"{actions.dtype} {list(actions.shape)}".removeprefix("torch.")
