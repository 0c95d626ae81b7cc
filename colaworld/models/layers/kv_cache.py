"""Keys and values of frames a video model has already seen, so that a new frame costs one frame.

Exact only where no frame attends to a later one: the caller may cache clean history under causal
attention, nothing else. Not here: attention itself, nor when a rollout caches (flow/rollout).
Shape legend: B clips, b a divisor of B, T frames held, S tokens per frame, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Frames that were stored for as many rows as there were then."""

    keys: Tensor  # [b, T, S, H, D], normed and rotated, ready for the product
    values: Tensor  # [b, T, S, H, D]


class LayerCache:
    """What one attention layer holds, oldest first; nothing that is held ever changes.

    A part of b rows serves any multiple B: B / b rows in a row see the same. So what rollouts have
    in common is held once, however many they are.
    """

    def __init__(self, parts: tuple[Part, ...] = ()) -> None:
        self.parts = parts

    @property
    def frames(self) -> int:
        """How many are held."""
        return sum(part.keys.shape[1] for part in self.parts)

    def joined(self, rows: int, *following: Part) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, T, S, H, D] of what is held and of what follows; not empty."""
        parts = (*self.parts, *following)
        keys = [_rows(part.keys, rows) for part in parts]
        values = [_rows(part.values, rows) for part in parts]
        if len(parts) == 1:
            return keys[0], values[0]
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def store(self, new: Part) -> None:
        """Hold the given frames too; those of as many rows stand in one part."""
        before = self.parts
        if before and before[-1].keys.shape[0] == new.keys.shape[0]:
            keys, values = LayerCache(before[-1:]).joined(new.keys.shape[0], new)
            before, new = before[:-1], Part(keys, values)
        self.parts = (*before, new)

    def forget(self, frames: int) -> None:
        """The first `frames` leave; there are as many."""
        kept = []
        for part in self.parts:
            leaving = min(frames, part.keys.shape[1])
            frames -= leaving
            if leaving < part.keys.shape[1]:
                kept.append(Part(part.keys[:, leaving:], part.values[:, leaving:]))
        self.parts = tuple(kept)


@dataclass(frozen=True)
class CacheView:
    """What one attention layer is handed: its own entry, how many frames came before, what to do."""

    layer: LayerCache
    frames: int
    store: bool  # add the given frames

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values to attend to, [B, held + t, S, H, D]; kept if `store`."""
        new, rows = Part(keys, values), keys.shape[0]
        if not self.store:
            return self.layer.joined(rows, new)
        self.layer.store(new)
        return self.layer.joined(rows)


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
        """Called once by the video model after every layer has stored that many frames."""
        self.frames += frames

    def forget(self, frames: int) -> None:
        """The first `frames` of those held leave; the others keep their values and positions.

        What stays was computed while the forgotten frames were seen: not the same as encoding it
        anew. Raises ValueError on more frames than are held.
        """
        for layer in self.layers:
            if not 0 <= frames <= layer.frames:
                raise ValueError(
                    f"KVCache.forget: expected 0 .. {layer.frames} frames, got {frames}"
                )
            layer.forget(frames)

    def copy(self) -> KVCache:
        """One that goes its own way from here; what is held so far is held once for both."""
        copy = KVCache(0)
        copy.layers, copy.frames = [LayerCache(layer.parts) for layer in self.layers], self.frames
        return copy


def frames_before(
    cache: KVCache | None, fresh: Callable[[], KVCache], clips: int, tokens: int, *, store: bool
) -> int:
    """How many frames come before the given ones, which are `tokens` of each of `clips`.

    `fresh` is the video model's `new_cache`, which raises where no cache can be used. Raises ValueError
    on a cache of another video model or of other sizes, and on `store` without a cache.
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
    for part in cache.layers[0].parts:
        rows, _, held = part.keys.shape[:3]
        if clips % rows or held != tokens:
            raise ValueError(
                f"cache: expected {tokens} tokens per frame of {clips} clips (or of a divisor), it "
                f"holds {held} of {rows}"
            )
    return cache.frames


def _rows(x: Tensor, rows: int) -> Tensor:
    """x [b, ...] with each row rows / b times; without copying where there is one or enough."""
    if x.shape[0] in (1, rows):
        return x.expand(rows, *x.shape[1:])
    return x.repeat_interleave(rows // x.shape[0], dim=0)
