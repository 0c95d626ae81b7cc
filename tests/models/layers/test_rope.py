"""Rotary tables of one axis."""

from __future__ import annotations

import torch

from colaworld.models.layers.rope import rope_tables


def test_tables_from_a_position_on_are_the_end_of_the_whole_ones() -> None:
    whole, part = rope_tables(12, 8), rope_tables(3, 8, first=9)
    for all_of_it, end in zip(whole, part, strict=True):
        assert end.shape == (3, 4) and torch.equal(all_of_it[9:], end)
