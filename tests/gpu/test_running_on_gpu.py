"""How the kernels run on a GPU: in CUDA graphs, on any stream, compiled, beyond 2^31 numbers.

Not here: whether results are right (test_ops_on_gpu.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from colaworld import ops

# (op, implementation)
WRITTEN = (
    ("st_attention", "cuda"),
    ("st_attention", "triton"),
    ("qk_norm_rope", "triton"),
    ("adaln", "triton"),
    ("vector_quantize", "cuda"),
    ("vector_quantize", "triton"),
    ("code_statistics", "cuda"),
    ("code_statistics", "triton"),
)
each = pytest.mark.parametrize(("op", "implementation"), WRITTEN)


def need(op: str, implementation: str, lead: torch.Tensor) -> None:
    axis = "temporal" if op == "st_attention" else None
    verdict = next(v for v in ops.explain(op, lead, axis=axis) if v.name == implementation)
    if not verdict.would_run and "comes first" not in verdict.reason:
        pytest.skip(f"{implementation} refuses: {verdict.reason}")


def draw(cuda, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(device=cuda).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=cuda).to(dtype)


def leaves_of(op: str, cuda) -> list[torch.Tensor]:
    """What an op is called with, the leading tensor first; what wants a gradient is a leaf."""
    if op == "st_attention":
        return [draw(cuda, 1, 8, 64, 3, 4, 64).requires_grad_(), draw(cuda, 64).requires_grad_()]
    if op == "qk_norm_rope":
        both = [draw(cuda, 2, 40, 4, 72, seed=s).requires_grad_() for s in (0, 1)]
        return [*both, draw(cuda, 72).requires_grad_()]
    if op == "adaln":
        shapes = ((2, 3, 40, 1152), (2, 3, 40, 1152), (2, 3, 1152))
        return [draw(cuda, *s, seed=n).requires_grad_() for n, s in enumerate(shapes)]
    z = draw(cuda, 3000, 32, dtype=torch.float32)
    return [z, draw(cuda, 40, 32, dtype=torch.float32, seed=1).requires_grad_()]


def step(op: str, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs and gradients of one call."""
    first = leaves[0]
    if op == "st_attention":
        out = ops.st_attention(
            first, axis="temporal", causal=True, q_weight=leaves[1], k_weight=leaves[1]
        )
    elif op == "qk_norm_rope":
        weight = leaves[2]
        q, k = ops.qk_norm_rope(first, leaves[1], q_weight=weight, k_weight=weight)
        out = torch.cat((q, k))
    elif op == "adaln":
        table = leaves[2]
        x_out, out = ops.adaln(first, leaves[1], gate=table, shift=table, scale=table)
        out = torch.cat((x_out, out))
    else:
        out, indices = ops.vector_quantize(first, leaves[1])
        if op == "code_statistics":
            return [ops.code_statistics(first.detach(), indices.detach(), 40)]
    wanted = [x for x in leaves if x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, torch.ones_like(out))]


@each
def test_a_graph_is_captured_and_replayed_on_new_numbers(cuda, op, implementation) -> None:
    leaves = leaves_of(op, cuda)
    need(op, implementation, leaves[0])
    with ops.force(implementation):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiled, and the memory of autograd is there
            step(op, leaves)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = step(op, leaves)
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(leaf.flip(0) * 0.5)
        for out in kept:
            out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        for place, (replayed, direct) in enumerate(zip(kept, step(op, leaves), strict=True)):
            assert torch.equal(replayed, direct), f"{op} output {place}"


@each
def test_the_current_stream_is_the_one_that_is_used(cuda, op, implementation) -> None:
    """Inputs are written late on a side stream: a kernel on any other stream reads zeros."""
    leaves = leaves_of(op, cuda)
    need(op, implementation, leaves[0])
    with ops.force(implementation):
        expected = step(op, leaves)
        written = [leaf.detach().clone() for leaf in leaves]
        with torch.no_grad():
            for leaf in leaves:
                leaf.zero_()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # cycles: some 25 ms
            with torch.no_grad():
                for leaf, before in zip(leaves, written, strict=True):
                    leaf.copy_(before)
            found = step(op, leaves)
        torch.cuda.synchronize()
    for place, (late, early) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(late, early), f"{op} output {place}"


@pytest.mark.parametrize("axis", ["temporal", "spatial"])
def test_compiled_is_what_eager_is(cuda, axis) -> None:
    """What colaworld chooses, forward and backward, under torch.compile."""
    torch.compiler.reset()
    qkv = draw(cuda, 2, 8, 32, 3, 4, 72).requires_grad_()
    weight = draw(cuda, 72).requires_grad_()

    def call(qkv, weight):
        return ops.st_attention(qkv, axis=axis, q_weight=weight, k_weight=weight)

    results = []
    for run in (call, torch.compile(call, fullgraph=True)):
        out = run(qkv, weight)
        results.append(
            [out.detach(), *torch.autograd.grad(out, (qkv, weight), torch.ones_like(out))]
        )
    for name, eager, compiled in zip(("out", "dqkv", "dweight"), *results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1.6e-2, atol=1e-2, msg=name)


def test_nothing_waits_for_the_gpu(cuda) -> None:
    """Quantisation and its update, statistics and all, start without a synchronisation."""
    z, codebook = leaves_of("vector_quantize", cuda)
    state = [codebook.detach().clone(), z.new_ones(40), codebook.detach().clone()]

    def update() -> None:
        _, indices = ops.vector_quantize(z, codebook)
        ops.update_codebook(*state, ops.code_statistics(z, indices, 40), decay=0.9)

    update()  # compiled and warm
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _repeated(cuda, big: tuple[int, ...], small: tuple[int, ...]) -> torch.Tensor:
    """A tensor beyond 2^31 numbers, all of whose parts are one small one."""
    x = torch.empty(big, device=cuda, dtype=torch.bfloat16)
    return x.copy_(draw(cuda, *small))


def _enough_memory(gigabytes: int) -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory, {free:.0f} are free")


@pytest.mark.parametrize("implementation", ["cuda", "triton"])
def test_attention_beyond_2_31_numbers(cuda, implementation) -> None:
    B, T, S, H, D = 2, 16, 20_000, 16, 72  # 2.2e9 numbers in qkv
    _enough_memory(24)
    qkv = _repeated(cuda, (B, T, S, 3, H, D), (1, T, 1, 3, H, D))
    need("st_attention", implementation, qkv)
    with ops.force(implementation):
        few = qkv[:1, :, :1].clone().requires_grad_()
        expected = ops.st_attention(few, axis="temporal")
        (wanted,) = torch.autograd.grad(expected, few, torch.ones_like(expected))
        qkv.requires_grad_()
        out = ops.st_attention(qkv, axis="temporal")
        (found,) = torch.autograd.grad(out, qkv, torch.ones_like(out))
    for b, s in ((0, 0), (0, S // 2), (B - 1, S - 1)):
        assert torch.equal(out[b, :, s], expected[0, :, 0])
        assert torch.equal(found[b, :, s], wanted[0, :, 0])


def test_modulation_beyond_2_31_numbers(cuda) -> None:
    shape = (1, 2, 960_000, 1152)  # 2.2e9
    _enough_memory(40)
    x = _repeated(cuda, shape, (1, 1, 1, 1152))
    need("adaln", "triton", x)
    table = draw(cuda, 1, 2, 1152)
    call: Callable = lambda x: ops.adaln(x, x, gate=table, shift=table, scale=table)[1]  # noqa: E731
    with ops.force("triton"), torch.no_grad():
        expected, out = call(x[:, :, :1].contiguous()), call(x)
    for t, s in ((0, 0), (1, 0), (1, shape[2] - 1)):
        assert torch.equal(out[0, t, s], expected[0, t, 0])


def test_prologue_beyond_2_31_numbers(cuda) -> None:
    shape = (2, 940_000, 16, 72)  # 2.2e9
    _enough_memory(24)
    q = _repeated(cuda, shape, (1, 1, 16, 72))
    need("qk_norm_rope", "triton", q)
    weight = draw(cuda, 72)
    options = {"q_weight": weight, "k_weight": weight}
    with ops.force("triton"), torch.no_grad():
        expected, _ = ops.qk_norm_rope(q[:1, :1], q[:1, :1], **options)
        out, _ = ops.qk_norm_rope(q, q, **options)
    for b, token in ((0, 0), (1, 0), (1, shape[1] - 1)):
        assert torch.equal(out[b, token], expected[0, 0])
