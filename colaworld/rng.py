"""Randomness without state: every use has a generator seeded from what it is used for.

A run can therefore be continued from counters alone, and two runs with the same seed draw the same
noise at the same step of the same phase, whatever else differs between them (paired comparisons).
In an update what belongs to a clip is drawn for its place in the update, its *slot*, so that it does
not depend on how the update is cut into passes and processes (`ClipGenerator`); likewise in an
evaluation for its number, whatever the batches.
Not here: the order of the data, which is the loader's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def seed_for(*key: int | str) -> int:
    """63 bits that depend on every entry of `key` and on their order."""
    text = "\x1f".join(f"{type(entry).__name__}:{entry}" for entry in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def generator_for(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A fresh generator on `device`, seeded by `seed_for(*key)`."""
    return torch.Generator(device=device).manual_seed(seed_for(*key))


class ClipGenerator(torch.Generator):
    """The randomness of some clips of an update, or of an evaluation: `draw` gives each what belongs to
    its slot.

    Args:
        device: where numbers are drawn.
        key: what the randomness of the update depends on.
        slots: places of the clips within the update, in the order of the batch.
        clips: how many clips the update has, over all passes and processes.

    As a plain torch.Generator it draws a stream that no other part of the update has.
    """

    def __new__(cls, device: torch.device | str, *key: int | str, **_: Any) -> ClipGenerator:
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(
        self,
        device: torch.device | str,
        *key: int | str,
        clips: int,
        slots: Sequence[int] | None = None,
    ) -> None:
        self.slots = list(range(clips) if slots is None else slots)
        if not self.slots or not 0 <= min(self.slots) <= max(self.slots) < clips:
            raise ValueError(
                f"ClipGenerator.slots: expected at least one, each in 0..{clips - 1}, "
                f"got {self.slots[:8]}"
            )
        self.key, self.clips = key, clips
        self.manual_seed(seed_for(*key, "slot", self.slots[0]))
        self._update = generator_for(device, *key, "update")
        self._each: list[torch.Generator] | None = None

    def rows(self, make: Callable[..., Tensor], shape: Sequence[int], **options: Any) -> Tensor:
        """[clips, ...] of the whole update, drawn at once; `shape[0]` must count the own clips."""
        self._check(shape)
        shape = (self.clips, *shape[1:])
        return make(shape, generator=self._update, device=self.device, **options)

    def each(self, make: Callable[..., Tensor], shape: Sequence[int], **options: Any) -> Tensor:
        """`shape`, every clip's from a generator of its own: for what is large."""
        self._check(shape)
        if self._each is None:
            self._each = [generator_for(self.device, *self.key, "own", s) for s in self.slots]
        drawn = [
            make(tuple(shape[1:]), generator=g, device=self.device, **options) for g in self._each
        ]
        return torch.stack(drawn)

    def clone_state(self) -> ClipGenerator:
        """One that draws from here on what this one would."""
        other = ClipGenerator(self.device, *self.key, clips=self.clips, slots=self.slots)
        other.set_state(self.get_state())
        other._update.set_state(self._update.get_state())
        if self._each is not None:
            other._each = [g.clone_state() for g in self._each]
        return other

    def own(self, rows: Tensor) -> Tensor:
        """Of rows [clips, ...] of the update those of the own clips."""
        return rows[torch.tensor(self.slots, device=rows.device)]

    def _check(self, shape: Sequence[int]) -> None:
        if not shape or shape[0] != len(self.slots):
            raise ValueError(
                f"ClipGenerator: expected a shape of {len(self.slots)} clips, got {tuple(shape)}"
            )


Random = torch.Generator | None  # a ClipGenerator where clips of an update are drawn for


def draw(
    make: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Random,
    *,
    large: bool = False,
    **options: Any,
) -> Tensor:
    """make(shape, generator=...), torch.rand say, with a first dimension of clips.

    From a ClipGenerator each clip gets what belongs to its slot. `large`: more numbers per clip than
    one wants to draw for all clips of the update.
    """
    if not isinstance(generator, ClipGenerator):
        return make(tuple(shape), generator=generator, **options)
    options.pop("device", None)
    if large:
        return generator.each(make, shape, **options)
    return generator.own(generator.rows(make, shape, **options))


def draw_keys(count: int, generator: Random, device: torch.device) -> Tensor:
    """int64 [count] in [0, 2^48): to choose among rows alike, of which each clip has as many."""
    if not isinstance(generator, ClipGenerator):
        return torch.randint(1 << 48, (count,), generator=generator, device=device)
    clips = len(generator.slots)
    if count % clips:
        raise ValueError(f"draw_keys: expected as many rows of each of {clips} clips, got {count}")

    def make(shape: tuple[int, ...], **options: Any) -> Tensor:
        return torch.randint(1 << 48, shape, **options)

    return draw(make, (clips, count // clips), generator).flatten()
