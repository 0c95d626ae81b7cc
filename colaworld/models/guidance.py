"""The backbone's velocity under latent actions, with guidance: what a sampler integrates.

Not here: the sampler (flow/samplers.py), and how a rollout takes its windows (flow/rollout.py).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from colaworld.models.layers.kv_cache import KVCache
from colaworld.models.world_model import WorldModel


class GuidedCache:
    """What the backbone has seen under the actions and, apart, under the null action."""

    def __init__(self, action: KVCache, null: KVCache) -> None:
        self.action, self.null = action, null

    def forget(self, frames: int) -> None:
        """See `KVCache.forget`."""
        self.action.forget(frames)
        self.null.forget(frames)

    def copy(self) -> GuidedCache:
        """See `KVCache.copy`."""
        return GuidedCache(self.action.copy(), self.null.copy())


class ConditionedVelocity:
    """v_null + guidance (v_action - v_null) (Ho & Salimans 2022); the actions are embedded once.

    v_null is under null actions in every frame, those before the new ones too. Guidance 1 is the
    velocity under the actions alone.

    Args:
        model: with a conditioner where codes are given.
        codes: [B, r (T - 1), N, d] of a window of T frames; None: the backbone without actions.
        guidance: its scale.
        fps: frame rate the video model is told, one or [B]; None: the one it was trained on.
        passes: "one": both velocities as one batch of 2 B clips, with one cache of as many; "two":
            half the memory, with a `GuidedCache`.
    """

    def __init__(
        self,
        model: WorldModel,
        codes: Tensor | None,
        *,
        guidance: float = 1.0,
        passes: Literal["one", "two"] = "one",
        fps: Tensor | float | None = None,
    ) -> None:
        self.backbone, self.passes, self.fps = model.backbone, passes, fps
        self.guidance = 1.0 if codes is None else guidance
        self.action = None if codes is None else model.conditioner(codes)  # [B, T, 1 | blocks, 6 C]
        if self.action is not None and self.guidance != 1.0:
            self.null = model.conditioner.null_modulation(codes[:1]).expand_as(self.action)
            self.both = torch.cat([self.action, self.null]) if passes == "one" else None

    def __call__(
        self,
        x: Tensor,  # [B, C, t, h, w]
        times: Tensor,  # [B, t]
        *,
        first: int = 0,
        cache: KVCache | GuidedCache | None = None,
        store: bool = False,
    ) -> Tensor:
        """See `flow.rollout.ConditionedVelocity`."""
        if self.guidance == 1.0:
            return self._run(self.action, x, times, first, cache, store)
        if self.passes == "one":
            x, times = torch.cat([x, x]), torch.cat([times, times])
            action, null = self._run(self.both, x, times, first, cache, store).chunk(2)
        else:
            pair = (None, None) if cache is None else (cache.action, cache.null)
            action = self._run(self.action, x, times, first, pair[0], store)
            null = self._run(self.null, x, times, first, pair[1], store)
        return null + self.guidance * (action - null)

    def _rates(self, rows: int) -> Tensor | float | None:
        """Of each row of a pass: the ways of one clip lie together, the null actions behind all."""
        if not isinstance(self.fps, Tensor) or not self.fps.ndim:
            return self.fps
        halves = 2 if self.guidance != 1.0 and self.passes == "one" else 1
        ways = rows // halves // self.fps.shape[0]
        return self.fps.repeat_interleave(ways).repeat(halves)

    def _run(
        self,
        modulation: Tensor | None,
        x: Tensor,
        times: Tensor,
        first: int,
        cache: KVCache | None,
        store: bool,
    ) -> Tensor:
        part = None if modulation is None else modulation[:, first : first + x.shape[2]]
        told = {"modulation": part, "fps": self._rates(x.shape[0])}
        if cache is None:
            return self.backbone.velocity(x, times, **told)
        return self.backbone.velocity(x, times, **told, cache=cache, store=store)
