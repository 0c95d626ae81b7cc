"""Every op on a GPU: each implementation against the float64 reference, in value and in each gradient.

These tests need a CUDA device (FAIL_WITHOUT_CUDA=1 makes its absence, and any other skip, a failure).
Not here: what can be proved without one (tests/ops, tests/kernels, tests/csrc); graphs, streams and
sizes beyond 2^31 (test_running_on_gpu.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from colaworld import ops

BOTH = ("cuda", "triton")  # of st_attention and the quantisation
TRITON = ("triton",)  # of everything else
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative error of outputs and gradients that plain torch is allowed anyhow, by dtype: sums of a
# few thousand products in float32, one rounding of each stored number in the narrower types.
FLOOR = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def need(op: str, implementation: str, lead: torch.Tensor, axis: str | None = None) -> None:
    """Skip where the implementation cannot run on this machine."""
    verdict = next(v for v in ops.explain(op, lead, axis=axis) if v.name == implementation)
    if not verdict.would_run and "comes first" not in verdict.reason:
        pytest.skip(f"{implementation} refuses: {verdict.reason}")


def run(call: Callable, tensors: dict[str, torch.Tensor], implementation: str):
    """(outputs, gradients by name) of a call with leaves of the same strides."""
    leaves = {name: strided_like(x) for name, x in tensors.items()}
    with ops.force(implementation):
        outputs = call(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator(outputs[0].device).manual_seed(0)
        total = 0.0
        for out in outputs:
            weight = torch.randn(
                out.shape, generator=generator, device=out.device, dtype=torch.float32
            )
            total = total + (out.double() * weight.to(out.dtype).double()).sum()
        total.backward()
    return outputs, {name: x.grad for name, x in leaves.items()}


def strided_like(x: torch.Tensor) -> torch.Tensor:
    """A leaf with the numbers and the strides of x."""
    leaf = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return leaf.copy_(x.detach()).requires_grad_()


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    wanted = wanted.double()
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def wide(x: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided(x.shape, x.stride(), dtype=torch.float64, device=x.device)
    return made.copy_(x)


def check(call: Callable, tensors: dict[str, torch.Tensor], implementation: str) -> None:
    """Outputs and gradients by name against float64, and equal bits over two runs."""
    floor = FLOOR[next(iter(tensors.values())).dtype]
    exact = run(call, {name: wide(x) for name, x in tensors.items()}, "reference")
    plain = run(call, tensors, "reference")
    ours = run(call, tensors, implementation)
    again = run(call, tensors, implementation)
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


def attention(cuda, dtype, axis: str, causal: bool, shape) -> tuple[Callable, dict]:
    B, T, S, H, D = shape
    angles = draw(cuda, torch.float32, T if axis == "temporal" else S, D // 2)

    def call(qkv, q_weight, k_weight):
        rope = (angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype))
        return ops.st_attention(
            qkv, axis=axis, causal=causal, q_weight=q_weight, k_weight=k_weight, rope=rope
        )

    return call, {
        "qkv": draw(cuda, dtype, B, T, S, 3, H, D),
        "q_weight": draw(cuda, dtype, D, seed=1),
        "k_weight": draw(cuda, dtype, D, seed=2),
    }


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 16, 65, 16, 72), (2, 5, 33, 12, 64), (1, 31, 17, 2, 128), (3, 1, 4, 3, 96)],
)
def test_temporal_attention(cuda, implementation, dtype, causal, shape) -> None:
    call, tensors = attention(cuda, dtype, "temporal", causal, shape)
    need("st_attention", implementation, tensors["qkv"], "temporal")
    check(call, tensors, implementation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_spatial_attention(cuda, dtype, causal) -> None:
    call, tensors = attention(cuda, dtype, "spatial", causal, (1, 3, 257, 4, 72))
    need("st_attention", "triton", tensors["qkv"], "spatial")
    check(call, tensors, "triton")


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x[:, :, ::2], id="every other location"),
        pytest.param(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), id="time innermost"),
        pytest.param(lambda x: x[..., :72], id="a part of wider heads"),
    ],
)
def test_attention_of_strided_inputs(cuda, implementation, view) -> None:
    call, tensors = attention(cuda, torch.bfloat16, "temporal", True, (1, 8, 9, 2, 72))
    packed = view(draw(cuda, torch.bfloat16, 1, 8, 18, 3, 2, 80))
    tensors["qkv"] = packed[..., :72]
    need("st_attention", implementation, tensors["qkv"], "temporal")
    check(call, tensors, implementation)


@pytest.mark.parametrize("implementation", BOTH)
def test_a_nan_stays_in_its_location(cuda, implementation) -> None:
    qkv = draw(cuda, torch.bfloat16, 1, 7, 40, 3, 2, 64)
    qkv[0, 3, 11] = torch.nan
    need("st_attention", implementation, qkv, "temporal")
    qkv.requires_grad_()
    with ops.force(implementation):
        out = ops.st_attention(qkv, axis="temporal")
        out.float().square().sum().backward()
    rest = torch.arange(40, device=cuda) != 11
    assert out[:, :, rest].isfinite().all() and out[:, :, 11].isnan().all()
    assert qkv.grad[:, :, rest].isfinite().all()


@pytest.mark.parametrize("implementation", TRITON)
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

    q, k, _ = draw(cuda, dtype, B, L, 3, H, D).unbind(2)  # as a projection leaves them
    tensors = {
        "q": q,
        "k": k,
        "q_weight": draw(cuda, dtype, width, seed=2),
        "k_weight": draw(cuda, dtype, width, seed=3),
    }
    need("qk_norm_rope", implementation, q)
    check(call, tensors, implementation)


@pytest.mark.parametrize("implementation", TRITON)
@pytest.mark.parametrize(
    ("stream", "dtype"), [*zip(DTYPES, DTYPES, strict=True), (torch.float32, torch.bfloat16)]
)
@pytest.mark.parametrize("shape", [(2, 5, 63, 1152), (1, 3, 17, 96)])
def test_adaln(cuda, implementation, stream, dtype, shape) -> None:
    """`stream`: of x and the modulation, float32 under autocast; `dtype`: of y and out."""
    B, T, _, C = shape

    def call(x, y, gate, shift, scale):
        return ops.adaln(x, y, gate=gate, shift=shift, scale=scale, out_dtype=y.dtype)

    # Six of them stand side by side, as the modulation of a block does.
    six = draw(cuda, stream, B, T, 6, C, seed=2).unbind(2)
    tensors = {
        "x": draw(cuda, stream, *shape),
        "y": draw(cuda, dtype, *shape, seed=1),
        **dict(zip(("gate", "shift", "scale"), six, strict=False)),
    }
    need("adaln", implementation, tensors["x"])
    check(call, tensors, implementation)


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(64, 8, 8), (4096, 32, 32), (1000, 1023, 33), (5000, 8192, 64)])
def test_vector_quantize(cuda, implementation, dtype, sizes) -> None:
    N, K, d = sizes
    z, codebook = draw(cuda, dtype, N, d), draw(cuda, dtype, K, d, seed=1).requires_grad_()
    need("vector_quantize", implementation, z)
    need("code_statistics", implementation, z)
    with ops.force(implementation):
        codes, indices = ops.vector_quantize(z, codebook)
        packed = ops.code_statistics(z, indices, K)
        again = ops.code_statistics(z, indices, K)
        weight = draw(cuda, dtype, N, d, seed=2)
        (gradient,) = torch.autograd.grad(codes, codebook, weight)
    assert torch.equal(codes, codebook[indices])
    distance = torch.cdist(z.double(), codebook.double()).square()
    excess = distance.gather(1, indices[:, None])[:, 0] - distance.min(1).values
    size = z.double().square().sum(1) + codebook.double().square().sum(1).max()
    assert int((excess > (d + 1) * 2.0**-23 * size).sum()) == 0
    assert torch.equal(packed, again)
    with ops.force("reference"):
        exact = ops.code_statistics(z.double(), indices, K)
    assert relative(packed, exact) < 1e-6
    summed = torch.zeros(K, d, device=cuda, dtype=torch.float64)
    summed.index_add_(0, indices, weight.double())
    assert relative(gradient, summed) < FLOOR[dtype]


@pytest.mark.parametrize("d", [32, 64])
def test_update_codebook(cuda, d) -> None:
    K = 100
    packed = draw(cuda, torch.float32, K, d + 1).abs()
    state = [draw(cuda, torch.float32, *shape).abs() for shape in ((K, d), (K,), (K, d))]
    need("update_codebook", "triton", packed)
    made = {}
    for name in ("triton", "reference"):
        made[name] = [x.clone() for x in state]
        with ops.force(name):
            ops.update_codebook(*made[name], packed, decay=0.9)
    for name, ours, plain in zip(("codebook", "count", "total"), *made.values(), strict=True):
        assert relative(ours, plain) < 1e-5, name
