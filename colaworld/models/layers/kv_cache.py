"""Keys and values of frames a generator has already seen, so that a new frame costs one frame.

Exact only where no frame attends to a later one: the caller may cache clean history under causal
attention, nothing else. Not here: attention itself, nor when a rollout caches (flow/rollout).
Shape legend: B clips, T frames held, S tokens per frame, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """What one attention layer holds; keys are normed and rotated, ready for the product."""

    keys: Tensor | None = None  # [B, T, S, H, D]
    values: Tensor | None = None  # [B, T, S, H, D]

    def joined(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is held, then the given [B, t, S, H, D]; a cache of one clip serves any number."""
        if self.keys is None or self.values is None:
            return keys, values
        held = [x.expand(keys.shape[0], *x.shape[1:]) for x in (self.keys, self.values)]
        return torch.cat([held[0], keys], dim=1), torch.cat([held[1], values], dim=1)


@dataclass(frozen=True)
class CacheView:
    """What one attention layer is handed: its own entry, how many frames came before, what to do."""

    layer: LayerCache
    frames: int
    store: bool  # add the given frames

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values to attend to, [B, held + t, S, H, D]; kept if `store`."""
        keys, values = self.layer.joined(keys, values)
        if self.store:
            self.layer.keys, self.layer.values = keys, values
        return keys, values


class KVCache:
    """One `LayerCache` per attention layer that looks along time.

    `frames` is how many have been stored so far, which is the position of the next one; the layers
    hold as many unless the first were forgotten.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.frames = 0

    def view(self, layer: int, *, store: bool) -> CacheView:
        """For the attention layer of this number."""
        return CacheView(self.layers[layer], self.frames, store)

    def advance(self, frames: int) -> None:
        """Called once by the generator after every layer has stored that many frames."""
        self.frames += frames

    def forget(self, frames: int) -> None:
        """The first `frames` of those held leave; the others keep their values and positions.

        What stays was computed while the forgotten frames were seen: not the same as encoding it
        anew. Raises ValueError on more frames than are held.
        """
        for layer in self.layers:
            held = 0 if layer.keys is None else layer.keys.shape[1]
            if not 0 <= frames <= held:
                raise ValueError(f"KVCache.forget: expected 0 .. {held} frames, got {frames}")
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[:, frames:], layer.values[:, frames:]

    def repeat_interleave(self, count: int) -> KVCache:
        """Each clip's history `count` times in a row; for one clip without copying."""
        copy = KVCache(len(self.layers))
        copy.frames = self.frames
        for mine, new in zip(self.layers, copy.layers, strict=True):
            if mine.keys is not None and mine.values is not None:
                new.keys, new.values = (_repeat(x, count) for x in (mine.keys, mine.values))
        return copy


def frames_before(
    cache: KVCache | None, fresh: Callable[[], KVCache], clips: int, tokens: int, *, store: bool
) -> int:
    """How many frames come before the given ones, which are `tokens` of each of `clips`.

    `fresh` is the generator's `new_cache`, which raises where no cache can be used. Raises ValueError
    on a cache of another generator or of other sizes, and on `store` without a cache.
    """
    if cache is None:
        if store:
            raise ValueError("cache: store=True without a cache to store in; see new_cache()")
        return 0
    expected = len(fresh().layers)
    if len(cache.layers) != expected:
        raise ValueError(
            f"cache: expected {expected} layers, got {len(cache.layers)}; make it with this model's "
            "new_cache()"
        )
    held = cache.layers[0].keys
    if held is not None and (held.shape[0] not in (1, clips) or held.shape[2] != tokens):
        raise ValueError(
            f"cache: expected {tokens} tokens per frame of {clips} clips (or of 1), it holds "
            f"{held.shape[2]} of {held.shape[0]}"
        )
    return cache.frames


def _repeat(x: Tensor, count: int) -> Tensor:
    if x.shape[0] == 1:
        return x.expand(count, *x.shape[1:])
    return x.repeat_interleave(count, dim=0)
