"""Every op on a GPU: each implementation against the float64 reference, in value and in each gradient.

These tests need a CUDA device (FAIL_WITHOUT_CUDA=1 makes its absence a failure). What can be proved
without one stands in tests/ops, tests/kernels and tests/csrc.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from colaworld import ops

IMPLEMENTATIONS = ("cuda", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative error of outputs and gradients that plain torch is allowed anyhow, by dtype: sums of a
# few thousand products in float32, one rounding of each stored number in the narrower types.
FLOOR = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def run(call: Callable, tensors: dict[str, torch.Tensor], implementation: str):
    """(outputs, gradients by name) of a call with fresh leaves."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    with ops.force(implementation):
        outputs = call(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(0)
        weights = [torch.randn(x.shape, dtype=torch.float64, device=x.device) for x in outputs]
        sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights, strict=True)).backward()
    return outputs, {name: x.grad for name, x in leaves.items()}


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    wanted = wanted.double()
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def check(op: str, call: Callable, tensors: dict[str, torch.Tensor], implementation: str) -> None:
    first = next(iter(tensors.values()))
    refusal = {v.name: v.reason for v in ops.explain(op, first)}.get(implementation, "not written")
    if refusal and "comes first" not in refusal:
        pytest.skip(f"{implementation} refuses: {refusal}")
    exact = run(call, {name: x.double() for name, x in tensors.items()}, "reference")
    plain = run(call, tensors, "reference")
    ours = run(call, tensors, implementation)
    again = run(call, tensors, implementation)
    floor = FLOOR[first.dtype]
    for index, (wanted, theirs, got) in enumerate(zip(exact[0], plain[0], ours[0], strict=True)):
        assert relative(got, wanted) <= max(2 * relative(theirs, wanted), floor), f"output {index}"
        assert torch.equal(got, again[0][index]), f"output {index} differs between two runs"
    for name, wanted in exact[1].items():
        error = relative(ours[1][name], wanted)
        assert error <= max(2 * relative(plain[1][name], wanted), 4 * floor), f"gradient of {name}"
        assert torch.equal(ours[1][name], again[1][name]), f"gradient of {name} differs"


def draw(cuda, dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(device=cuda).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=cuda).to(dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        ("temporal", (1, 16, 65, 16, 72)),
        ("temporal", (2, 5, 33, 12, 64)),
        ("temporal", (1, 31, 17, 2, 128)),
        ("temporal", (3, 1, 4, 3, 96)),
        ("spatial", (1, 3, 257, 4, 72)),
    ],
)
def test_st_attention(cuda, implementation, dtype, causal, axis, shape) -> None:
    B, T, S, H, D = shape
    angles = draw(cuda, torch.float32, T if axis == "temporal" else S, D // 2)

    def call(qkv, q_weight, k_weight):
        rope = (angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype))
        return ops.st_attention(
            qkv, axis=axis, causal=causal, q_weight=q_weight, k_weight=k_weight, rope=rope
        )

    tensors = {
        "qkv": draw(cuda, dtype, B, T, S, 3, H, D),
        "q_weight": draw(cuda, dtype, D, seed=1),
        "k_weight": draw(cuda, dtype, D, seed=2),
    }
    check("st_attention", call, tensors, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_nan_stays_in_its_location(cuda, implementation) -> None:
    qkv = draw(cuda, torch.bfloat16, 1, 7, 40, 3, 2, 64)
    qkv[0, 3, 11] = torch.nan
    try:
        with ops.force(implementation):
            out = ops.st_attention(qkv, axis="temporal")
    except ops.NoImplementationError as error:
        pytest.skip(str(error))
    rest = torch.arange(40, device=cuda) != 11
    assert out[:, :, rest].isfinite().all() and out[:, :, 11].isnan().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["head", "across"])
@pytest.mark.parametrize("rotation", ["interleaved", "half"])
def test_qk_norm_rope(cuda, implementation, dtype, norm, rotation) -> None:
    B, L, H, D = 2, 130, 4, 72
    angles = draw(cuda, torch.float32, L, D // 2)
    width = D if norm == "head" else H * D

    def call(q, k, q_weight, k_weight):
        rope = (angles.cos().to(q.dtype), angles.sin().to(q.dtype))
        return ops.qk_norm_rope(
            q, k, q_weight=q_weight, k_weight=k_weight, norm=norm, rope=rope, rotation=rotation
        )

    tensors = {
        "q": draw(cuda, dtype, B, L, H, D),
        "k": draw(cuda, dtype, B, L, H, D, seed=1),
        "q_weight": draw(cuda, dtype, width, seed=2),
        "k_weight": draw(cuda, dtype, width, seed=3),
    }
    check("qk_norm_rope", call, tensors, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(2, 5, 63, 1152), (1, 3, 17, 96)])
def test_adaln(cuda, implementation, dtype, norm, shape) -> None:
    B, T, _, C = shape

    def call(x, y, gate, shift, scale):
        return ops.adaln(x, y, gate=gate, shift=shift, scale=scale, norm=norm)

    tensors = {
        "x": draw(cuda, dtype, *shape),
        "y": draw(cuda, dtype, *shape, seed=1),
        **{
            name: draw(cuda, dtype, B, T, C, seed=seed)
            for seed, name in enumerate(("gate", "shift", "scale"), 2)
        },
    }
    check("adaln", call, tensors, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sizes", [(64, 8, 8), (4096, 32, 32), (1000, 1023, 33), (5000, 8192, 64)])
def test_vector_quantize(cuda, implementation, sizes) -> None:
    N, K, d = sizes
    z, codebook = draw(cuda, torch.float32, N, d), draw(cuda, torch.float32, K, d, seed=1)
    try:
        with ops.force(implementation):
            codes, indices = ops.vector_quantize(z, codebook)
            packed = ops.code_statistics(z, indices, K)
            again = ops.code_statistics(z, indices, K)
    except ops.NoImplementationError as error:
        pytest.skip(str(error))
    assert torch.equal(codes, codebook[indices])
    distance = torch.cdist(z.double(), codebook.double()).square()
    excess = distance.gather(1, indices[:, None])[:, 0] - distance.min(1).values
    size = z.double().square().sum(1) + codebook.double().square().sum(1).max()
    assert int((excess > (d + 1) * 2.0**-23 * size).sum()) == 0
    assert torch.equal(packed, again)
    with ops.force("reference"):
        exact = ops.code_statistics(z.double(), indices, K)
    assert relative(packed, exact) < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_graph_can_be_captured_and_replayed(cuda, implementation) -> None:
    qkv = draw(cuda, torch.bfloat16, 1, 8, 64, 3, 4, 64)
    try:
        with ops.force(implementation):
            wanted = ops.st_attention(qkv, axis="temporal", causal=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = ops.st_attention(qkv, axis="temporal", causal=True)
    except ops.NoImplementationError as error:
        pytest.skip(str(error))
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, wanted)
