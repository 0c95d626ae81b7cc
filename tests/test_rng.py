"""Generators depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch

from colaworld.rng import generator_for, seed_for


def test_seeds_are_fixed_for_ever():
    text = b"int:0\x1fstr:warmup\x1fint:1\x1fint:0"
    eight = hashlib.blake2b(text, digest_size=8).digest()
    assert seed_for(0, "warmup", 1, 0) == int.from_bytes(eight, "little") % 2**63


def test_every_entry_and_its_place_and_type_count():
    keys = [(0, "a", 1, 2), (1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 1)]
    keys += [(0, "a", 12), (0, "a", "12")]
    assert len({seed_for(*key) for key in keys}) == len(keys)


def test_same_key_same_numbers():
    one = torch.randn(5, generator=generator_for("cpu", 3, "joint", 7))
    two = torch.randn(5, generator=generator_for("cpu", 3, "joint", 7))
    other = torch.randn(5, generator=generator_for("cpu", 3, "joint", 8))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
