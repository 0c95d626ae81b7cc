"""A data prior over codes: which code follows which in recorded video.

Plans drawn from it stay where the video model was trained. Not here: how codes are read off video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from colaworld.planning.spaces import Discrete


@dataclass(frozen=True)
class CodeBigram:
    """First-order Markov chain of each token: p(code | the code before), tokens independent.

    Shape legend: N tokens, K codes.
    """

    first: Tensor  # [N, K] how often each occurs
    follows: Tensor  # [N, K, K] row k: what follows code k

    @classmethod
    def from_indices(
        cls, sequences: Sequence[Tensor], space: Discrete, *, smoothing: float = 0.0
    ) -> CodeBigram:
        """Counted from sequences of codes.

        Args:
            sequences: int64 [T, N] each; pairs are counted within a sequence, never across two.
            space: K and N.
            smoothing: added to every count. With 0 what was never seen is never drawn; after a code
                that nothing was seen to follow, each code is drawn as often as it occurs.

        Raises ValueError where there is none, or a code is outside the space.
        """
        K, N = space.size, space.tokens
        first = torch.full((N, K), float(smoothing), dtype=torch.float64)
        pairs = torch.full((N, K, K), float(smoothing), dtype=torch.float64)
        for codes in sequences:
            space.check(codes, "CodeBigram.from_indices: sequences")
            codes = codes.cpu()
            for n in range(N):
                column = codes[:, n]
                first[n] += torch.bincount(column, minlength=K)
                joint = column[:-1] * K + column[1:]
                pairs[n] += torch.bincount(joint, minlength=K * K).view(K, K)
        if not first.sum():
            raise ValueError("CodeBigram.from_indices: expected at least one code, got none")
        occur = first / first.sum(-1, keepdim=True)
        seen = pairs.sum(-1, keepdim=True)
        rows = torch.where(seen > 0, pairs / seen.clamp_min(1e-12), occur[:, None])
        return cls(occur.float(), rows.float())

    def to(self, device: torch.device | str) -> CodeBigram:
        """The same on a device."""
        return CodeBigram(self.first.to(device), self.follows.to(device))

    def next(self, codes: Tensor | None, shape: tuple[int, ...] = ()) -> Tensor:
        """Probabilities [.., N, K] of what follows codes [.., N]; of what comes first, of `shape`, after
        None."""
        if codes is None:
            return self.first.expand(*shape, *self.first.shape)
        return self.follows[torch.arange(codes.shape[-1], device=codes.device), codes]

    def sample(
        self,
        shape: tuple[int, int, int],
        *,
        last: Tensor | None,
        generator: torch.Generator,
        weights: Tensor | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Sequences int64 [B, n, h, N] that go on from `last` [B, N], each code after the one before it.

        Args:
            shape: B, n, h.
            weights: [B, h, N, K], by which each step's probabilities are multiplied; where they leave none, they do not count.
            given: [B, s, N], s <= h: how the first of the n begins, whatever its probability. The rest goes on from there.
        """
        B, n, h = shape
        before = None if last is None else last[:, None].expand(-1, n, -1)
        steps = []
        for step in range(h):
            likely = self.next(before, (B, n))
            if weights is not None:
                weighed = likely * weights[:, None, step]
                likely = torch.where(weighed.sum(-1, keepdim=True) > 0, weighed, likely)
            before = draw(likely, generator=generator)
            if given is not None and step < given.shape[1]:
                before[:, 0] = given[:, step]
            steps.append(before)
        return torch.stack(steps, dim=2)

    def marginals(self, batch: int, horizon: int, *, last: Tensor | None) -> Tensor:
        """[B, h, N, K]: how likely each code is at each step."""
        now = self.next(last, (batch,))
        steps = [now]
        for _ in range(horizon - 1):
            now = torch.einsum("bnk,nkl->bnl", now, self.follows)
            steps.append(now)
        return torch.stack(steps, dim=1)


def draw(probabilities: Tensor, *, generator: torch.Generator) -> Tensor:
    """int64 [..], one entry of each row of [.., K]. Rows need not sum to one."""
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).view(probabilities.shape[:-1])


def uniform_codes(
    shape: tuple[int, int, int], space: Discrete, *, generator: torch.Generator
) -> Tensor:
    """int64 [B, n, h, N], every code as likely."""
    return torch.randint(
        space.size, (*shape, space.tokens), generator=generator, device=generator.device
    )
