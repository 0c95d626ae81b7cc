"""From codes to real actions: a table, counted from recorded steps whose codes were inferred.

A world that was never told real actions plans codes; this is how it acts. Each code becomes the action
seen most under it (classes), or the mean one (numbers). What an action does may depend on where one is,
which a table does not know: `agreement` says how much it gets right. Not here: adapters, which learn it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from colaworld.contracts import ActionSpec
from colaworld.planning.spaces import Discrete


@dataclass(frozen=True)
class ActionMap:
    """M combinations of N codes that were seen, and what each stands for."""

    codes: Tensor  # [M, N] int64, most frequent first
    actions: Tensor  # [M] int64 or [M, A] float32
    counts: Tensor  # [M] int64: steps it was seen in
    agreement: float
    """Classes: share of the recorded steps whose action is that of their code (of all of them, so no
    held-out number). Numbers: the share of their variance that codes explain."""
    baseline: float
    """The same of a table with one entry: the most frequent class; 0 for numbers."""
    absent: tuple[int, ...] = ()
    """Classes that were recorded and that no code stands for: no plan of codes can do them."""

    @classmethod
    def fit(
        cls, indices: Tensor, actions: Tensor, *, space: Discrete, spec: ActionSpec
    ) -> ActionMap:
        """Counted from steps.

        Args:
            indices: int64 [R, N], the codes of each.
            actions: int64 [R] or floats [R, A], what was really done.
            space: of the codes.
            spec: of the actions.

        Raises ValueError on none, or on other shapes.
        """
        space.check(indices, "ActionMap.fit: indices")
        rows = len(indices)
        wanted = (rows,) if spec.kind == "discrete" else (rows, spec.size)
        if not rows or tuple(actions.shape) != wanted:
            raise ValueError(
                f"ActionMap.fit: actions: expected {list(wanted)}, one for each of 1 or more codes, got "
                f"{list(actions.shape)}"
            )
        indices, actions = indices.cpu(), actions.cpu()
        codes, place, counts = torch.unique(indices, dim=0, return_inverse=True, return_counts=True)
        if spec.kind == "discrete":
            table = torch.zeros(len(codes), spec.size, dtype=torch.int64)
            table.index_put_((place, actions), torch.ones_like(place), accumulate=True)
            chosen = table.argmax(dim=1)
            agreement = float((chosen[place] == actions).double().mean())
            baseline = float(table.sum(dim=0).max() / rows)
            seen = table.sum(dim=0).nonzero().flatten().tolist()
            absent = tuple(sorted(set(seen) - set(chosen.tolist())))
        else:
            total = torch.zeros(len(codes), spec.size, dtype=torch.float64)
            total.index_add_(0, place, actions.double())
            mean = total / counts[:, None]
            spread = (actions.double() - actions.double().mean(0)).square().sum()
            left = (actions.double() - mean[place]).square().sum()
            agreement = float(1 - left / spread) if spread > 0 else 0.0
            chosen, baseline, absent = mean.float(), 0.0, ()
        order = counts.argsort(descending=True, stable=True)
        return cls(codes[order], chosen[order], counts[order], agreement, baseline, absent)

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Real actions [B] or [B, A] of codes [B, N], and which were seen, bool [B].

        A combination that was never seen takes the action of the one that shares most of its codes, the
        most frequent of those.
        """
        row, known = self.nearest(indices)
        return self.actions[row], known

    def nearest(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [B] of codes [B, N], and which were seen, bool [B]; see `__call__`."""
        shared = (indices.cpu()[:, None] == self.codes).sum(-1)  # [B, M]
        return shared.argmax(dim=1), shared.amax(dim=1) == self.codes.shape[1]  # the first
