"""The choice of the compiled CUDA kernels, without a GPU; and, with one, the kernels themselves.

The kernels' arithmetic is proved on the CPU in tests/csrc/test_cuda_kernels.py. The tests below that
ask for the `cuda` fixture run where there is a GPU: values and gradients against float64, equal bits,
compiled graphs, CUDA graphs, sizes beyond 2^31.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from colaworld import ops
from colaworld.ops import _cuda, _dispatch, _native, reference

# Within the package this name is the function.
st_attention = importlib.import_module("colaworld.ops.st_attention")

built = pytest.mark.skipif(
    not _cuda.ARCHITECTURES,
    reason=str(_native.reason() or "the library was built without CUDA"),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOORS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def facts(**changes) -> _dispatch.CallInfo:
    values = {
        "device": "cuda",
        "dtype": torch.bfloat16,
        "shape": (2, 16, 256, 3, 16, 72),
        "axis": "temporal",
    }
    return _dispatch.CallInfo(**{**values, **changes})


def test_machine_code_runs_within_a_generation_and_ptx_later() -> None:
    every = (80, 89, 90, 100)
    assert [c for c in (70, 75, 80, 86, 89, 90, 100, 103, 120) if _cuda.runs_on(c, every)] == [
        80, 86, 89, 90, 100, 103, 120,
    ]  # fmt: skip
    assert not _cuda.runs_on(80, (89, 90)) and _cuda.runs_on(120, (80,))
    assert not _cuda.runs_on(90, ())


@built
def test_what_the_kernels_refuse_and_why() -> None:
    assert st_attention._cuda_refuses(facts()) is None
    for changes, reason in [
        ({"device": "cpu"}, "the tensors are on cpu, it needs cuda"),
        ({"dtype": torch.float64}, "the dtype is torch.float64"),
        ({"axis": "spatial"}, "the axis is spatial"),
        ({"shape": (1, 33, 4, 3, 2, 72)}, "there are 33 frames, it takes at most 32"),
        ({"shape": (1, 8, 4, 3, 2, 80)}, "the heads have 80 channels, it takes 64, 72, 96 and 128"),
        ({"shape": (1, 8, 4, 3, 2, 20), "dtype": torch.float32}, "have 20 channels, in float32"),
    ]:
        assert reason in str(st_attention._cuda_refuses(facts(**changes))), changes
    wide = facts(shape=(1, 8, 4, 3, 2, 80), dtype=torch.float32)
    assert st_attention._cuda_refuses(wide) is None


@pytest.mark.skipif(bool(_cuda.ARCHITECTURES), reason="the library was built with CUDA")
def test_a_library_without_cuda_says_so() -> None:
    assert _cuda.refuses(facts()) in (
        _native.reason(),
        f"the library was built without CUDA: {_cuda._INFO.get('cuda_note')}",
    )


@built
def test_a_library_that_does_not_find_the_stream_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(_cuda._INFO, "cuda_stream", False)
    reason = _cuda._reason_here.__wrapped__()
    assert reason == "the library does not find the CUDA stream of this torch: rebuild it"


@built
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fake_cuda_tensors_take_the_kernels_in_one_graph() -> None:
    torch._dynamo.reset()
    graphs = []

    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    def call(qkv, weight, z, codebook):
        out = ops.st_attention(qkv, axis="temporal", q_weight=weight, k_weight=weight)
        _, indices = ops.vector_quantize(z, codebook)
        return out, ops.code_statistics(z, indices, codebook.shape[0])

    # Autograd needs a torch with CUDA even for fake tensors, so the backward op is called by name.
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        qkv = torch.empty(2, 8, 4, 3, 2, 72, device="cuda", dtype=torch.bfloat16)
        weight, z = torch.empty(72, device="cuda"), torch.empty(10, 4, device="cuda")
        codebook = torch.empty(6, 4, device="cuda")
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=keep)
        out, statistics = compiled(qkv, weight, z, codebook)
        assert out.device.type == "cuda" and out.shape == (2, 8, 4, 2, 72)
        assert statistics.shape == (6, 5)
        gradients = torch.ops.colaworld.st_attention_backward(
            out, qkv, weight, None, None, None, True, False, 1e-6, 0.1
        )
        assert [tuple(g.shape) for g in gradients] == [(2, 8, 4, 3, 2, 72), (72,), (0,)]
        verdicts = ops.explain("st_attention", qkv, axis="temporal")
        assert [v.name for v in verdicts if v.would_run] == ["cuda"]
        spatial = {v.name: v for v in ops.explain("st_attention", qkv, axis="spatial")}
        assert spatial["cuda"].reason.startswith("the axis is spatial")
    assert len(graphs) == 1
    for name in ("st_attention", "vector_quantize", "code_statistics"):
        assert f"colaworld.{name}.default" in graphs[0]


# --- with a GPU ----------------------------------------------------------------------------------


def draw(shape, dtype, device, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def attention_arguments(shape, dtype, device):
    B, T, S, H, D = shape
    angles = draw((T, D // 2), torch.float32, device, seed=4)
    leaves = [draw((B, T, S, 3, H, D), dtype, device)]
    leaves += [1 + 0.3 * draw((D,), torch.float32, device, seed=s) for s in (2, 3)]
    return leaves, (angles.cos(), angles.sin()), draw((B, T, S, H, D), dtype, device, seed=1)


def attend(name, leaves, rope, grad, causal, to=None):
    leaves = [x.detach().to(to or x.dtype).requires_grad_() for x in leaves]
    rope = tuple(t.to(to or t.dtype) for t in rope)
    with ops.force(name):
        out = ops.st_attention(
            leaves[0],
            axis="temporal",
            causal=causal,
            q_weight=leaves[1],
            k_weight=leaves[2],
            rope=rope,
        )
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 16, 9, 16, 72),
        (1, 5, 7, 12, 64),
        (2, 32, 5, 3, 128),
        (1, 17, 3, 2, 96),
        (1, 1, 1, 1, 64),
    ],
)
def test_attention_on_a_gpu(cuda, dtype, causal, shape) -> None:
    leaves, rope, grad = attention_arguments(shape, dtype, cuda)
    exact = attend("reference", leaves, rope, grad, causal, torch.float64)
    plain = attend("reference", leaves, rope, grad, causal)
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory holds NaN
    try:
        made, again = (attend("cuda", leaves, rope, grad, causal) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    names = ("out", "dqkv", "dq_weight", "dk_weight")
    for name, ours, twice, theirs, true in zip(names, made, again, plain, exact, strict=True):
        assert torch.equal(ours, twice), f"{name}: other bits"
        size = true.norm().clamp_min(1e-30)
        off, allowed = ((x.double() - true).norm() / size for x in (ours, theirs))
        assert off <= max(2 * allowed, FLOORS[dtype]) or not true.any(), name


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3, 2), (2000, 32, 32), (4099, 1000, 40), (70000, 65, 7)])
def test_quantization_on_a_gpu(cuda, dtype, shape) -> None:
    N, K, d = shape
    z, codebook = draw((N, d), dtype, cuda), draw((K, d), dtype, cuda, seed=1).requires_grad_()
    with ops.force("cuda"):
        codes, indices = ops.vector_quantize(z, codebook)
        assert torch.equal(codes, codebook[indices])
        packed = ops.code_statistics(z, indices, K)
        assert torch.equal(packed, ops.code_statistics(z, indices, K))
        codes.float().sum().backward()
    exact = reference.code_statistics(z.double().cpu(), indices.cpu(), K, True)
    torch.testing.assert_close(packed.double().cpu(), exact, rtol=1e-4, atol=1e-3)
    counts = exact[:, d:].expand(K, d)
    torch.testing.assert_close(codebook.grad.double().cpu(), counts, rtol=1e-2, atol=1e-6)
    for rows, chosen in zip(z.double().split(1000), indices.split(1000), strict=True):
        distance = torch.cdist(rows, codebook.double()).square()
        excess = distance.gather(1, chosen[:, None])[:, 0] - distance.min(1).values
        size = rows.square().sum(1) + codebook.double().square().sum(1).max()
        assert (excess <= (d + 2) * 2.0**-23 * size).all()


@built
def test_opcheck_on_a_gpu(cuda) -> None:
    leaves, rope, _ = attention_arguments((1, 6, 2, 2, 72), torch.bfloat16, cuda)
    leaves = [x.requires_grad_() for x in leaves]
    options = (True, False, 1e-6, 0.1)
    torch.library.opcheck(torch.ops.colaworld.st_attention.default, (*leaves, *rope, *options))
    z, codebook = draw((13, 5), torch.float32, cuda), draw((4, 5), torch.float32, cuda)
    torch.library.opcheck(
        torch.ops.colaworld.vector_quantize.default, (z, codebook.requires_grad_())
    )
    indices = torch.arange(13, device=cuda) % 4
    torch.library.opcheck(torch.ops.colaworld.code_statistics.default, (z, indices, 4, True))


@built
def test_compiled_and_checkpointed_on_a_gpu(cuda) -> None:
    torch._dynamo.reset()
    leaves, rope, grad = attention_arguments((1, 8, 4, 2, 72), torch.bfloat16, cuda)
    qkv = leaves[0].requires_grad_()

    def call(qkv):
        return ops.st_attention(qkv, axis="temporal", q_weight=leaves[1], rope=rope)

    made = []
    for run in (
        call,
        torch.compile(call, fullgraph=True, dynamic=True),
        lambda x: checkpoint(call, x, use_reentrant=False),
    ):
        out = run(qkv)
        made.append((out.detach(), *torch.autograd.grad(out, qkv, grad)))
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


@built
def test_a_cuda_graph_replays_on_a_gpu(cuda) -> None:
    leaves, rope, grad = attention_arguments((1, 16, 8, 4, 72), torch.bfloat16, cuda)
    z, codebook = draw((500, 32), torch.float32, cuda), draw((32, 32), torch.float32, cuda, seed=1)

    def call():
        made = attend("cuda", leaves, rope, grad, False)
        _, indices = ops.vector_quantize(z, codebook)
        return [*made, indices, ops.code_statistics(z, indices, 32)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    for x in (*leaves, z):
        x.copy_(x.flip(0) * 0.5)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(kept, call(), strict=True))


@built
def test_more_than_two_to_the_31_elements_on_a_gpu(cuda) -> None:
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GB of free GPU memory")
    B, T, S, H, D = 2, 16, 20000, 16, 72  # 2.2e9 numbers in qkv
    qkv = torch.empty(B, T, S, 3, H, D, device=cuda, dtype=torch.bfloat16)
    qkv.copy_(draw((1, T, 1, 3, H, D), torch.bfloat16, cuda))
    with ops.force("cuda"):
        out = ops.st_attention(qkv, axis="temporal")
        expected = ops.st_attention(qkv[:1, :, :1], axis="temporal")
    assert torch.equal(out[-1, :, -1], expected[0, :, 0])
    assert torch.equal(out[0, :, S // 2], expected[0, :, 0])
