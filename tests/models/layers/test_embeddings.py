"""Embeddings and rotary tables against their formulas, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from colaworld.models.layers.embeddings import (
    ScalarEmbedder,
    bfloat16_values,
    grid_embedding,
    sinusoid,
)
from colaworld.models.layers.rope import rope_tables


def test_sinusoid_is_cosines_then_sines():
    value = torch.tensor([0.0, 3.5, 999.0])
    made = sinusoid(value, 256)
    assert made.shape == (3, 256)
    for row, v in enumerate(value.tolist()):
        for i in (0, 1, 17, 127):
            angle = v * math.exp(-math.log(1e4) * i / 128)
            assert made[row, i].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert made[row, 128 + i].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_values_are_rounded_as_bfloat16_rounds_them_compiled_or_not(generator):
    value = 1000 * torch.randn(10_000, generator=generator)
    value[:4] = torch.tensor([0.0, 1 + 2**-8, 1 + 3 * 2**-8, -909.6])  # two ties, to even
    rounded = value.to(torch.bfloat16).float()
    assert torch.equal(bfloat16_values(value), rounded)
    compiled = torch.compile(lambda x: 2 * bfloat16_values(x), fullgraph=True)
    assert torch.equal(compiled(value), 2 * rounded)


def test_scalar_embedder_keeps_leading_shape_and_starts_as_asked(generator):
    value = torch.rand(2, 3, generator=generator)
    assert ScalarEmbedder(8)(value).shape == (2, 3, 8)
    assert ScalarEmbedder(8, zero_init=True).mlp[2].weight.abs().max() == 0


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (4, 4), (1, 2)])
@pytest.mark.parametrize(("scale", "base"), [(1.0, None), (0.5, None), (2.0, 7)])
def test_grid_embedding_column_first_then_row(rows, columns, scale, base):
    width, half = 16, 8
    made = grid_embedding(rows, columns, width, scale=scale, base_size=base)
    base_size = round(math.sqrt(rows * columns)) if base is None else base
    assert made.shape == (rows * columns, width)
    for row in range(rows):
        for column in range(columns):
            token = made[row * columns + column].tolist()
            for k in range(half // 2):
                frequency = 1e4 ** (-2 * k / half)
                c = column / scale * base_size / columns * frequency
                r = row / scale * base_size / rows * frequency
                expected = [math.sin(c), math.cos(c), math.sin(r), math.cos(r)]
                got = [token[k], token[half // 2 + k], token[half + k], token[half + half // 2 + k]]
                assert got == pytest.approx(expected, abs=1e-5)


def test_grid_embedding_needs_four_equal_parts():
    with pytest.raises(ValueError, match=r"multiple of 4, got 18"):
        grid_embedding(2, 2, 18)


def test_rope_tables_by_formula():
    cos, sin = rope_tables(5, 72)
    assert cos.shape == sin.shape == (5, 36) and cos.dtype == torch.float32
    for position in range(5):
        for i in (0, 1, 35):
            angle = position * 10_000 ** (-2 * i / 72)
            assert cos[position, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
