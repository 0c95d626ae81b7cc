"""The CUDA kernels on the CPU: the device code itself, lane by lane (simt.h), against float64.

Which lane holds, reads, writes and exchanges what is proved here, without a GPU. Not here: what the
CUDA compiler makes of it (test_cuda_build.py), launches, speed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from colaworld.ops import reference

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "csrc" / "cuda"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Relative error that is rounding whatever the plain computation happens to make of it.
FLOORS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
HEAD_DIMS = (64, 72, 96, 128)

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


def fields(*named: tuple[type, str]) -> list[tuple[str, type]]:
    """ctypes fields from a type and the names that have it."""
    return [(name, kind) for kind, names in named for name in names.split()]


# The structs of csrc/cuda/*.h; the library is asked for their sizes.
class StAttentionCall(ctypes.Structure):
    _fields_ = fields(
        (POINTER, "x"),
        (LONG, "x_b x_t x_s x_part x_h"),
        (POINTER, "grad"),
        (LONG, "grad_b grad_t grad_s grad_h"),
        (POINTER, "out q_weight k_weight cos sin partial"),
        (LONG, "pairs S H"),
        (INT, "T D"),
        (ctypes.c_float, "eps scale"),
        (ctypes.c_bool, "causal"),
    )


class VectorQuantizeCall(ctypes.Structure):
    _fields_ = fields((POINTER, "z codebook codes indices"), (LONG, "N K d"))


class CodeStatisticsCall(ctypes.Structure):
    _fields_ = fields((POINTER, "z indices partial out"), (LONG, "N K d width"))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("no C++ compiler (g++ or c++, or name one in CXX)")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"]
    done = subprocess.run(
        [COMPILER, *options, f"-I{HERE}", f"-I{CUDA}", HERE / "kernels_on_host.cpp", "-o", library],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.host_code_statistics_parts.restype = LONG
    for struct, name in [
        (StAttentionCall, "st_attention"),
        (VectorQuantizeCall, "vector_quantize"),
        (CodeStatisticsCall, "code_statistics"),
    ]:
        assert ctypes.sizeof(struct) == getattr(loaded, f"size_of_{name}_call")()
    return loaded


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def attend(
    kernels,
    qkv,
    q_weight=None,
    k_weight=None,
    cos=None,
    sin=None,
    *,
    causal,
    scale,
    grad=None,
    blocks=2,
    eps=1e-3,
):
    """The kernel's output, or with `grad` the gradients (qkv, q_weight, k_weight)."""
    B_, T, S, _, H, D = qkv.shape
    call = StAttentionCall(
        x=pointer(qkv),
        q_weight=pointer(q_weight),
        k_weight=pointer(k_weight),
        cos=pointer(cos),
        sin=pointer(sin),
        pairs=B_ * S * H,
        S=S,
        H=H,
        T=T,
        D=D,
        eps=eps,
        scale=scale,
        causal=causal,
    )
    for i, name in enumerate(["x_b", "x_t", "x_s", "x_part", "x_h"]):
        setattr(call, name, qkv.stride(i))
    out = torch.full((B_, T, S, H, D), torch.nan, dtype=qkv.dtype)
    if grad is not None:
        out = torch.full((B_, T, S, 3, H, D), torch.nan, dtype=qkv.dtype)
        call.grad = pointer(grad)
        for i, name in enumerate(["grad_b", "grad_t", "grad_s", "grad_h"]):
            setattr(call, name, grad.stride(i))
    partial = torch.full((blocks, 2, D), torch.nan)
    call.out, call.partial = pointer(out), pointer(partial)
    kernels.host_st_attention(
        ELEMENTS[qkv.dtype], ctypes.byref(call), int(grad is not None), blocks
    )
    if grad is None:
        return out
    dq_weight, dk_weight = partial.sum(0)
    return out, dq_weight, dk_weight


def draw(shape, dtype, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def error(made: Tensor, exact: Tensor) -> float:
    off = (made.double() - exact).norm().item()
    return off / exact.norm().item() if exact.any() else off


def check_all(kernels, dtype, B_, T, S, H, D, *, causal, norm=True, rope=True, qkv=None, blocks=2):
    """Output and each gradient against float64, by name."""
    qkv = draw((B_, T, S, 3, H, D), dtype) if qkv is None else qkv
    grad = draw((B_, T, S, H, D), dtype, seed=1)
    weights = [draw(D, torch.float32, seed=s, scale=0.3) + 1 if norm else None for s in (2, 3)]
    angles = draw((T, D // 2), torch.float32, seed=4, scale=2.0)
    tables = [angles.cos(), angles.sin()] if rope else [None, None]
    scale = 0.9 * D**-0.5

    def plain(to):
        leaves = [qkv.detach().to(to).requires_grad_()]
        leaves += [w.to(to).requires_grad_() if norm else None for w in weights]
        kinds = [t.to(to) if to == torch.float64 and rope else t for t in tables]
        out = reference.st_attention(
            *leaves, *kinds, temporal=True, causal=causal, eps=1e-3, scale=scale
        )
        asked = [leaf for leaf in leaves if leaf is not None]
        return [out.detach(), *torch.autograd.grad(out, asked, grad.to(to))]

    exact, same = plain(torch.float64), plain(dtype)
    options = {"causal": causal, "scale": scale, "blocks": blocks}
    made = [attend(kernels, qkv, *weights, *tables, **options)]
    made += attend(kernels, qkv, *weights, *tables, grad=grad, **options)[: len(exact) - 1]
    for name, ours, theirs, true in zip(
        ["out", "dqkv", "dq_weight", "dk_weight"], made, same, exact, strict=False
    ):
        assert ours.isfinite().all(), name
        allowed = max(2 * error(theirs, true), FLOORS[dtype])
        assert error(ours, true) <= allowed, (name, error(ours, true), allowed)
    for part, name in enumerate(["dq", "dk", "dv"]):
        true = exact[1][:, :, :, part]
        allowed = max(2 * error(same[1][:, :, :, part], true), FLOORS[dtype])
        assert error(made[1][:, :, :, part], true) <= allowed, name


@pytest.mark.parametrize("D", HEAD_DIMS)
@pytest.mark.parametrize("T", [16, 11, 32, 21])
def test_temporal_attention_bfloat16(kernels, D, T) -> None:
    check_all(kernels, torch.bfloat16, 1, T, 2, 3, D, causal=T % 2 == 1)


@pytest.mark.parametrize("D", HEAD_DIMS)
@pytest.mark.parametrize("T", [5, 19])
def test_temporal_attention_float16(kernels, D, T) -> None:
    check_all(kernels, torch.float16, 2, T, 1, 2, D, causal=T == 19)


@pytest.mark.parametrize("D", [8, 24, 72, 128])
@pytest.mark.parametrize("T", [1, 7, 16, 17, 32])
def test_temporal_attention_float32(kernels, D, T) -> None:
    check_all(kernels, torch.float32, 1, T, 2, 2, D, causal=T % 2 == 1)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("norm, rope", [(False, False), (True, False), (False, True)])
def test_norm_and_rotation_may_be_absent(kernels, dtype, norm, rope) -> None:
    check_all(kernels, dtype, 1, 6, 1, 2, 64, causal=False, norm=norm, rope=rope)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("T", [5, 20])
def test_padding_rows_do_no_harm_without_an_eps(kernels, dtype, T) -> None:
    # They are zeros, whose norm is 1 / 0 when nothing is added.
    qkv, grad = draw((1, T, 1, 3, 2, 64), dtype), draw((1, T, 1, 2, 64), dtype, seed=1)
    ones = torch.ones(64)
    made = attend(kernels, qkv, ones, ones, causal=False, scale=0.1, grad=grad, eps=0.0)
    assert all(x.isfinite().all() for x in made)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_strided_inputs(kernels, dtype) -> None:
    # Heads before the three parts, places before frames, and rows that are further apart than long.
    held = draw((2, 3, 4, 2, 3, 80), dtype)  # [B, S, T, H, 3, ...]
    qkv = held.permute(0, 2, 1, 4, 3, 5)[..., :72]
    check_all(kernels, dtype, 2, 4, 3, 2, 72, causal=True, qkv=qkv)
    same = held[:1, :, :, :1].expand(2, 3, 4, 2, 3, 80).permute(0, 2, 1, 4, 3, 5)[..., :72]
    check_all(kernels, dtype, 2, 4, 3, 2, 72, causal=False, qkv=same)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("T", [5, 18])
def test_what_is_not_a_number_stays_in_its_sequence(kernels, dtype, T) -> None:
    qkv, grad = draw((1, T, 3, 3, 2, 64), dtype), draw((1, T, 3, 2, 64), dtype, seed=1)
    options = {"causal": False, "scale": 0.1}
    clean = attend(kernels, qkv, **options), attend(kernels, qkv, grad=grad, **options)[0]
    for part in range(3):
        bad = qkv.clone()
        bad[0, T - 1, 1, part, 0] = torch.nan
        out, dqkv = attend(kernels, bad, **options), attend(kernels, bad, grad=grad, **options)[0]
        assert out[0, :, 1, 0].isnan().any() and dqkv[0, :, 1, :, 0].isnan().any()
        out[0, :, 1, 0] = clean[0][0, :, 1, 0]
        dqkv[0, :, 1, :, 0] = clean[1][0, :, 1, :, 0]
        assert torch.equal(out, clean[0]) and torch.equal(dqkv, clean[1])


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_equal_bits_however_pairs_are_shared_out(kernels, dtype) -> None:
    qkv, grad = draw((1, 9, 3, 3, 3, 72), dtype), draw((1, 9, 3, 3, 72), dtype, seed=1)
    weight = torch.ones(72)
    options = {"causal": True, "scale": 0.1}
    made = [
        (
            attend(kernels, qkv, weight, weight, blocks=blocks, **options),
            *attend(kernels, qkv, weight, weight, grad=grad, blocks=blocks, **options),
        )
        for blocks in (1, 1, 4)
    ]
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(made[0][:2], made[2][:2], strict=True))
    for a, b in zip(made[0][2:], made[2][2:], strict=True):  # of the weights: as many partial sums
        torch.testing.assert_close(a, b)


def quantize(kernels, z, codebook, rows_per_thread=4):
    (N, d), K = z.shape, len(codebook)
    codes, indices = torch.full_like(z, torch.nan), torch.full((N,), -1)
    call = VectorQuantizeCall(*map(pointer, (z, codebook, codes, indices)), N, K, d)
    kernels.host_vector_quantize(ELEMENTS[z.dtype], ctypes.byref(call), rows_per_thread)
    return codes, indices


@pytest.mark.parametrize(
    "dtype, rows", [(torch.float32, 4), (torch.float32, 8), (torch.bfloat16, 4), (torch.float16, 4)]
)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (70, 65, 33), (65, 130, 7), (3, 64, 40), (130, 5, 32)]
)
def test_vector_quantize(kernels, dtype, rows, shape) -> None:
    N, K, d = shape
    z, codebook = draw((N, d), dtype), draw((K, d), dtype, seed=1)
    codes, indices = quantize(kernels, z, codebook, rows)
    assert torch.equal(codes, codebook[indices])
    distance = (z.double()[:, None] - codebook.double()).square().sum(-1)
    size = z.double().square().sum(1) + codebook.double().square().sum(1).max()
    excess = distance.gather(1, indices[:, None])[:, 0] - distance.min(1).values
    assert (excess <= (d + 1) * 2.0**-23 * size).all()
    # Every entry again, K further on: equal entries get equal scores and the first one wins.
    assert torch.equal(quantize(kernels, z, torch.cat([codebook, codebook]), rows)[1], indices)


def test_vector_quantize_rows_and_entries_that_are_not_numbers(kernels) -> None:
    z, codebook = draw((40, 6), torch.float32), draw((90, 6), torch.float32, seed=1)
    codebook[0] = codebook[70] = torch.nan
    clean = quantize(kernels, z, codebook)[1]
    assert not torch.isin(clean, torch.tensor([0, 70])).any()
    z[3], z[17, 2] = torch.nan, torch.nan
    clean[3] = clean[17] = 0
    assert torch.equal(quantize(kernels, z, codebook)[1], clean)


def statistics(kernels, z, indices, K, counts=True):
    N, d = z.shape
    out = torch.full((K, d + counts), torch.nan)
    call = CodeStatisticsCall(pointer(z), pointer(indices), None, pointer(out), N, K, d, d + counts)
    parts = kernels.host_code_statistics_parts(ctypes.byref(call))
    partial = out if parts == 1 else torch.full((parts, K, d + counts), torch.nan)
    call.partial = pointer(partial)
    kernels.host_code_statistics(ELEMENTS[z.dtype], ctypes.byref(call))
    return out


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 2), (1, 1, 1), (200, 5, 3), (130, 9, 130), (70, 700, 20), (333, 8, 32), (9000, 9, 3)],
)
@pytest.mark.parametrize("counts", [True, False])
def test_code_statistics(kernels, dtype, shape, counts) -> None:
    N, K, d = shape
    z = draw((N, d), dtype)
    indices = torch.randint(K, (N,), generator=torch.Generator().manual_seed(1))
    made = statistics(kernels, z, indices, K, counts)
    exact = reference.code_statistics(z.double(), indices, K, counts)
    torch.testing.assert_close(made[:, :d].double(), exact[:, :d], rtol=1e-5, atol=1e-5)
    assert torch.equal(made[:, d:].double(), exact[:, d:])
    assert torch.equal(statistics(kernels, z, indices, K, counts), made)


@pytest.mark.parametrize(
    "sizes, parts", [((64, 8, 8), 1), ((2000, 32, 32), 1), ((4096, 32, 32), 1), ((9000, 9, 3), 8)]
)
def test_code_statistics_of_few_rows_is_one_launch(kernels, sizes, parts) -> None:
    """Parts of the rows are merged by a second one."""
    N, K, d = sizes
    call = CodeStatisticsCall(N=N, K=K, d=d, width=d + 1)
    assert kernels.host_code_statistics_parts(ctypes.byref(call)) == parts


def test_code_statistics_what_is_not_a_number_stays_in_its_entry(kernels) -> None:
    z, indices = draw((100, 4), torch.float32), torch.arange(100) % 7
    clean = statistics(kernels, z, indices, 7)
    z[10] = torch.nan
    made = statistics(kernels, z, indices, 7)
    assert made[3, :4].isnan().all()
    made[3] = clean[3]
    assert torch.equal(made, clean)


@pytest.mark.parametrize("S, H", [(1, 1), (7, 3), (256, 16), (5, 2**33)])
def test_pairs_are_counted_heads_first(kernels, S, H) -> None:
    place = (LONG * 3)()
    for pair in (0, 1, H - 1, H, 3 * S * H + 2 * H, 2**31 + 5, 2**32 - 1, 2**32, 2**40 + 12345):
        kernels.host_place_of(LONG(pair), LONG(S), LONG(H), place)
        assert list(place) == [pair // H // S, pair // H % S, pair % H]
