"""Where the Triton kernels have block sizes to choose: rows of `kernels/tuning.py`, and calls that use them.

A place is one row of a table: which kernel file, which key, and a call at the sizes of a model that
takes its kernel from that row. Not here: timing the candidates (`tune.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Place:
    """One row that may have a faster one."""

    table: str  # name of the table in kernels/tuning.py
    key: tuple[Any, ...]  # of the row, without the architecture
    label: str  # "st_attention backward 16x72 bfloat16, 8x16x256"
    candidates: tuple[Any, ...]  # rows to try beside the one that is shipped
    prepare: Callable[[str], Callable[[], Outputs]]  # device -> the call


def _tuning() -> Any:
    return import_module("colaworld.kernels.tuning")


def _warps(
    table: str, key: tuple[Any, ...], counts: Sequence[int], stages: Sequence[int] = (1,)
) -> tuple[Any, ...]:
    tuning = _tuning()
    shipped = tuning.pick(getattr(tuning, table), None, *key)
    return tuple(
        replace(shipped, num_warps=count, num_stages=stage) for stage in stages for count in counts
    )


def _draw(device: str, *shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed + len(shape))
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def attention(B: int, T: int, S: int, H: int, D: int, dtype: torch.dtype) -> Iterator[Place]:
    """Temporal attention, both passes."""
    kernels = import_module("colaworld.kernels.st_attention")
    key = (16 if T <= 16 else 32, sum(kernels.parts_of(D)), dtype.itemsize)
    options = {"causal": True, "eps": 1e-6, "scale": D**-0.5}

    def inputs(device: str) -> tuple[Tensor, ...]:
        weight, table = torch.ones(D, device=device), torch.full((T, D // 2), 0.7, device=device)
        qkv = _draw(device, B, T, S, 3, H, D, dtype=dtype)
        return qkv, weight, weight, table, table

    def forward(device: str) -> Callable[[], Outputs]:
        given = inputs(device)
        return lambda: [kernels.temporal_attention(*given, **options)]

    def backward(device: str) -> Callable[[], Outputs]:
        given, grad = inputs(device), _draw(device, B, T, S, H, D, dtype=dtype)
        return lambda: kernels.temporal_attention_backward(grad, *given, **options)

    for direction, prepare in (("backward", backward), ("forward", forward)):
        whole = (direction, *key)
        yield Place(
            "ST_ATTENTION", whole, f"st_attention {direction} {H}x{D} {_name(dtype)}, {B}x{T}x{S}",
            _warps("ST_ATTENTION", whole, (1, 2, 4, 8)), prepare,
        )  # fmt: skip


def modulation(B: int, T: int, S: int, C: int, dtype: torch.dtype) -> Iterator[Place]:
    """Gate, residual, norm and modulation, both passes; the stream is float32, as under autocast."""
    kernels = import_module("colaworld.kernels.adaln")

    def forward(device: str) -> Callable[[], Outputs]:
        x, y, table = _clip(device)
        return lambda: kernels.modulate(x, y, table, table, table, eps=1e-6, out_dtype=dtype)

    def backward(device: str) -> Callable[[], Outputs]:
        x, y, table = _clip(device)
        x_out, _, mean, rstd = kernels.modulate(
            x, y, table, table, table, eps=1e-6, out_dtype=dtype
        )
        given = (x, y, x_out, y, table, table, mean, rstd)
        return lambda: kernels.modulate_backward(*given)

    def _clip(device: str) -> tuple[Tensor, Tensor, Tensor]:
        x, table = (_draw(device, B, T, n, C, dtype=torch.float32) for n in (S, 1))
        return x, _draw(device, B, T, S, C, dtype=dtype, seed=1), table[:, :, 0]

    for direction, prepare in (("backward", backward), ("forward", forward)):
        key = (direction, sum(kernels.parts_of(C)))
        yield Place(
            "ADALN", key, f"adaln {direction} C={C} {_name(dtype)}, {B}x{T}x{S}",
            _warps("ADALN", key, (1, 2, 4), stages=(1, 3)), prepare,
        )  # fmt: skip


def prologue(B: int, L: int, H: int, D: int, dtype: torch.dtype) -> Iterator[Place]:
    """Norm and rotation of queries and keys, both passes."""
    kernels = import_module("colaworld.kernels.qk_norm_rope")
    HP, PP = kernels.padded_token(H, D)
    options = {"eps": 1e-6, "across": False, "half": False}

    def inputs(device: str) -> tuple[Any, ...]:
        q, k, _ = _draw(device, B, L, 3, H, D, dtype=dtype).unbind(2)
        weight, table = torch.ones(D, device=device), torch.full((L, D // 2), 0.7, device=device)
        return q, k, weight, weight, table, table, None, ()

    def forward(device: str) -> Callable[[], Outputs]:
        given = inputs(device)
        return lambda: kernels.qk_norm_rope(*given, **options)

    def backward(device: str) -> Callable[[], Outputs]:
        given = inputs(device)
        grads = [_draw(device, B, L, H, D, dtype=dtype, seed=seed) for seed in (1, 2)]
        return lambda: kernels.qk_norm_rope_backward(*grads, *given, **options)

    for direction, prepare in (("backward", backward), ("forward", forward)):
        key = (direction, max(16, HP * 2 * PP))
        yield Place(
            "QK_NORM_ROPE", key, f"qk_norm_rope {direction} {H}x{D} {_name(dtype)}, {B}x{L}",
            _warps("QK_NORM_ROPE", key, (1, 2, 4, 8)), prepare,
        )  # fmt: skip


def search(N: int, K: int, d: int, dtype: torch.dtype) -> Iterator[Place]:
    """The nearest entry of a codebook."""
    kernels, tuning = import_module("colaworld.kernels.vector_quantize"), _tuning()
    rows = "few" if N <= kernels.FEW_ROWS else "many"
    DB = min(kernels.CHUNK, max(16, 1 << (d - 1).bit_length()))
    if d > kernels.CHUNK and dtype.itemsize >= 4:
        DB = kernels.CHUNK // 2
    key = ("tensor cores", rows, DB, min(4, dtype.itemsize))
    shipped = tuning.pick(tuning.VECTOR_QUANTIZE, None, *key)
    tiles = [
        replace(shipped, BN=BN, BK=BK, num_warps=warps, num_stages=stages)
        for BN in ((16, 32, 64) if rows == "few" else (64, 128))
        for BK in (32, 64)
        for warps in (4, 8)
        for stages in ((1, 2) if rows == "many" else (2,))
    ]

    def prepare(device: str) -> Callable[[], Outputs]:
        z, codebook = (_draw(device, n, d, dtype=dtype, seed=n) for n in (N, K))
        return lambda: kernels.nearest(z, codebook)

    yield Place(
        "VECTOR_QUANTIZE", key, f"vector_quantize N={N} K={K} d={d} {_name(dtype)}", tuple(tiles),
        prepare,
    )  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def places() -> Iterator[Place]:
    """Every place, what a generator spends most of its time in first; no row twice."""
    bf16, fp32 = torch.bfloat16, torch.float32
    made = (
        lambda: attention(8, 16, 256, 16, 72, bf16),  # STDiT3-XL
        lambda: modulation(8, 16, 256, 1152, bf16),
        lambda: prologue(128, 256, 16, 72, bf16),
        lambda: search(2000, 32, 32, fp32),  # latent actions of a batch
        lambda: attention(8, 8, 256, 12, 64, bf16),  # the latent action model
        lambda: modulation(8, 8, 256, 768, bf16),
        lambda: prologue(64, 256, 12, 64, bf16),
        lambda: search(65536, 1024, 32, fp32),
        lambda: attention(8, 32, 64, 16, 72, bf16),
        lambda: search(1_000_000, 8192, 8, fp32),
        lambda: attention(8, 8, 256, 12, 64, fp32),
    )
    seen = set()
    for these in made:
        for place in these():
            if (place.table, place.key) not in seen:
                seen.add((place.table, place.key))
                yield place
