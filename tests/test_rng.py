"""Generators depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import pytest
import torch

from colaworld.rng import ClipGenerator, draw, draw_keys, generator_for, seed_for


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


@pytest.mark.parametrize("large", [False, True])
def test_a_clip_draws_what_belongs_to_its_slot(large):
    whole = ClipGenerator("cpu", 3, "joint", clips=6)
    some = ClipGenerator("cpu", 3, "joint", clips=6, slots=[4, 1])
    for _ in range(2):  # also the second draw
        every = draw(torch.randn, (6, 5), whole, large=large)
        assert torch.equal(draw(torch.randn, (2, 5), some, large=large), every[[4, 1]])
        assert len(every.unique()) == 30
    keys = draw_keys(12, whole, torch.device("cpu"))
    assert torch.equal(draw_keys(4, some, torch.device("cpu")), keys[[8, 9, 2, 3]])
    assert len(keys.unique()) == 12 and keys.max() >= 1 << 40


def test_as_a_plain_generator_it_has_a_stream_of_its_own():
    """For objectives that draw without regard to clips: no two parts of an update draw alike."""
    drawn = [
        torch.randn(3, generator=ClipGenerator("cpu", *key, clips=4, slots=slots)).tolist()
        for key in ((1,), (2,))
        for slots in ([0, 2], [1, 3])
    ]
    assert len({tuple(d) for d in drawn}) == 4


def test_wrong_shapes_and_slots_are_named():
    with pytest.raises(ValueError, match=r"each in 0\.\.3, got \[4\]"):
        ClipGenerator("cpu", 1, clips=4, slots=[4])
    own = ClipGenerator("cpu", 1, clips=4, slots=[1, 3])
    with pytest.raises(ValueError, match=r"a shape of 2 clips, got \(4, 5\)"):
        draw(torch.rand, (4, 5), own)
    with pytest.raises(ValueError, match="as many rows of each of 2 clips, got 5"):
        draw_keys(5, own, torch.device("cpu"))
