"""Randomness without state: every use has a generator seeded from what it is used for.

A run can therefore be continued from counters alone, and two runs with the same seed draw the same
noise at the same step of the same phase, whatever else differs between them (paired comparisons).
Not here: the order of the data, which is the loader's.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_for(*key: int | str) -> int:
    """63 bits that depend on every entry of `key` and on their order."""
    text = "\x1f".join(f"{type(entry).__name__}:{entry}" for entry in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def generator_for(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A fresh generator on `device`, seeded by `seed_for(*key)`."""
    return torch.Generator(device=device).manual_seed(seed_for(*key))


def paired_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """The same for evaluation, whose recorded numbers rest on numpy's way from a key to a seed."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device).manual_seed(state >> 1)  # manual_seed takes 63 bits
