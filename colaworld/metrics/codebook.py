"""Codebook health: how evenly a codebook is used, over a fixed sample and over a running window.

Four numbers, each a fraction or a count that means the same at any codebook size K:

    utilisation         share of the K codes that occur at all
    max_usage           share of the most frequent code (1/K when even, 1 when collapsed)
    entropy_normalised  H / log K: 1 when even, 0 when collapsed
    perplexity          exp(H): the number of codes that "count", between 1 and K

They are given per token position, averaged over positions, and jointly over the K^N combinations
of a whole action. A joint table is often larger than the sample, so joint utilisation is the share
of min(K^N, M) combinations: at most M of them can occur among M actions. Joint entropy is divided
by N log K, never by log M; it reads low, not high, where the sample is small.

Not here: what is done about a sick codebook (quantizers, the gate and alarm of training), and
gathering indices over processes: pass the indices of all ranks to `CodebookMeter.update`.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from typing import Any

import torch
from torch import Tensor

KEYS = ("utilisation", "max_usage", "entropy_normalised", "perplexity")


def _statistics(counts: Tensor, *, possible: int, log_possible: float) -> dict[str, float]:
    """The four numbers of positive `counts` [U]; `possible` entries could have occurred."""
    share = counts.double() / counts.sum()
    entropy = max(0.0, float(-(share * share.log()).sum()))
    return {
        "utilisation": counts.numel() / possible,
        "max_usage": float(share.max()),
        "entropy_normalised": min(1.0, entropy / log_possible) if log_possible > 0 else 0.0,
        "perplexity": math.exp(entropy),
    }


def _check_indices(indices: Tensor, codebook_size: int) -> Tensor:
    if codebook_size < 1:
        raise ValueError(f"codebook_size: expected >= 1, got {codebook_size}")
    if indices.ndim != 2 or indices.dtype.is_floating_point or indices.dtype == torch.bool:
        raise ValueError(
            f"indices: expected integers [M, N] (M actions of N tokens), "
            f"got {indices.dtype} {tuple(indices.shape)}"
        )
    indices = indices.detach().to("cpu", torch.int64)
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= codebook_size):
        raise ValueError(
            f"indices: expected values in [0, {codebook_size}), got "
            f"{int(indices.min())}..{int(indices.max())}; is codebook_size right?"
        )
    return indices


def codebook_health(indices: Tensor, *, codebook_size: int) -> dict[str, Any]:
    """Health of a sample of actions.

    Args:
        indices: [M, N] integers in [0, codebook_size): M actions of N tokens each.
        codebook_size: K, the number of codes each token chooses from.

    Returns:
        The four numbers averaged over token positions at the top level, plus "positions" (a list
        of N such dicts) and "joint" (one dict over the K^N combinations). Plain floats.
    """
    indices = _check_indices(indices, codebook_size)
    samples, tokens = indices.shape
    if samples == 0 or tokens == 0:
        raise ValueError(
            f"indices: expected at least one action and token, got [{samples}, {tokens}]"
        )
    log_k = math.log(codebook_size)
    positions = []
    for n in range(tokens):
        counts = torch.bincount(indices[:, n], minlength=codebook_size)
        positions.append(
            _statistics(counts[counts > 0], possible=codebook_size, log_possible=log_k)
        )
    # K^N may overflow, so the combinations are counted as rows and only compared as Python ints
    _, counts = torch.unique(indices, dim=0, return_counts=True)
    joint = _statistics(
        counts, possible=min(codebook_size**tokens, samples), log_possible=tokens * log_k
    )
    mean = {key: sum(p[key] for p in positions) / tokens for key in KEYS}
    return {**mean, "positions": positions, "joint": joint}


class CodebookMeter:
    """Health over the latest `window` actions, for training. Its state is JSON, so a checkpoint
    can hold it and a resumed run reports the same numbers as one that never stopped.

    Args:
        codebook_size: K, the number of codes each token chooses from.
        tokens: N, tokens per action.
        window: how many of the latest actions (rows) count. Take it well above K, or
            utilisation is bounded by the window instead of by the model.
    """

    def __init__(self, codebook_size: int, tokens: int, window: int) -> None:
        for name, value in (("codebook_size", codebook_size), ("tokens", tokens)):
            if value < 1:
                raise ValueError(f"CodebookMeter.{name}: expected >= 1, got {value}")
        if window < 1:
            raise ValueError(f"CodebookMeter.window: expected >= 1 actions, got {window}")
        self.codebook_size = codebook_size
        self.tokens = tokens
        self.window = window
        self._ring = torch.zeros(window, tokens, dtype=torch.int64)
        self._next = 0  # where the next action is written
        self._filled = 0  # how many rows of the ring hold an action

    def __len__(self) -> int:
        """How many actions the window holds now."""
        return self._filled

    def update(self, indices: Tensor) -> None:
        """Add the actions `indices` [M, N]; the oldest leave. Any device."""
        indices = _check_indices(indices, self.codebook_size)
        if indices.shape[1] != self.tokens:
            raise ValueError(
                f"CodebookMeter.update: expected [M, {self.tokens}], got {tuple(indices.shape)}"
            )
        indices = indices[-self.window :]
        rows = (self._next + torch.arange(indices.shape[0])) % self.window
        self._ring[rows] = indices
        self._next = (self._next + indices.shape[0]) % self.window
        self._filled = min(self.window, self._filled + indices.shape[0])

    def health(self) -> dict[str, Any]:
        """What `codebook_health` says of the window. ValueError before the first update."""
        if self._filled == 0:
            raise ValueError("CodebookMeter.health: no indices yet; call update first")
        return codebook_health(self._ring[: self._filled], codebook_size=self.codebook_size)

    def counts(self) -> Tensor:
        """How often each code occurs in the window, per position: [N, K] int64."""
        rows = self._ring[: self._filled]
        return torch.stack(
            [torch.bincount(rows[:, n], minlength=self.codebook_size) for n in range(self.tokens)]
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values. The window travels as base64 of little-endian int32."""
        rows = array("i", self._ring[: self._filled].flatten().tolist())
        if sys.byteorder == "big":
            rows.byteswap()
        return {
            "codebook_size": self.codebook_size,
            "tokens": self.tokens,
            "window": self.window,
            "next": self._next,
            "filled": self._filled,
            "indices": base64.b64encode(rows.tobytes()).decode("ascii"),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`. ValueError when the meter was built with other sizes."""
        for name in ("codebook_size", "tokens", "window"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"CodebookMeter.{name}: this meter has {getattr(self, name)}, the state was "
                    f"saved with {state[name]}; build the meter with the saved sizes"
                )
        rows = array("i")
        rows.frombytes(base64.b64decode(state["indices"]))
        if sys.byteorder == "big":
            rows.byteswap()
        filled = int(state["filled"])
        if len(rows) != filled * self.tokens:
            raise ValueError(
                f"CodebookMeter state: expected {filled} x {self.tokens} indices, got {len(rows)}"
            )
        self._ring.zero_()
        if filled:
            self._ring[:filled] = torch.tensor(rows.tolist()).view(filled, self.tokens)
        self._filled, self._next = filled, int(state["next"])
