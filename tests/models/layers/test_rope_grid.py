"""Rotary tables and positions of a grid against their formulas, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from colaworld.models.layers.rope import grid_positions, grid_rope_tables, grid_sections


@pytest.mark.parametrize(
    ("head_dim", "sections"),
    [(128, (22, 21, 21)), (64, (12, 10, 10)), (32, (6, 5, 5)), (12, (2, 2, 2)), (6, (1, 1, 1))],
)
def test_sections_share_the_pairs_out(head_dim, sections):
    assert grid_sections(head_dim) == sections and sum(sections) == head_dim // 2


@pytest.mark.parametrize("head_dim", [4, 7, 0])
def test_heads_without_a_pair_for_each_axis(head_dim):
    with pytest.raises(ValueError, match=rf"head_dim: .* got {head_dim}"):
        grid_sections(head_dim)


def test_tables_count_frequencies_per_axis():
    cos, sin = grid_rope_tables(1024, 128)
    assert cos.shape == sin.shape == (1024, 64) and cos.dtype == sin.dtype == torch.float32
    for position in (0, 1, 7, 1023):
        column = 0
        for dims in (44, 42, 42):
            for i in range(dims // 2):
                angle = position * 10_000 ** (-2 * i / dims)
                assert cos[position, column].item() == pytest.approx(math.cos(angle), abs=1e-6)
                assert sin[position, column].item() == pytest.approx(math.sin(angle), abs=1e-6)
                column += 1


def test_positions_run_over_columns_first():
    made = grid_positions(2, 3, 2, first=5)
    expected = [[t, r, c] for t in (5, 6) for r in range(3) for c in range(2)]
    assert made.dtype == torch.int64 and made.tolist() == expected


def test_tables_of_chosen_positions_are_rows_of_the_whole():
    whole, chosen = grid_rope_tables(40, 24), torch.tensor([3, 0, 39])
    for all_of_them, some in zip(whole, grid_rope_tables(chosen, 24), strict=True):
        assert torch.equal(all_of_them[chosen], some)
