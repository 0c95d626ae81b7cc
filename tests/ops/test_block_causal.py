"""block_causal_attention: both ways against a dense mask of tokens, and the blocks that flex reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from colaworld import ops
from colaworld.ops import _dispatch, attention_backends
from colaworld.ops.block_mask import BLOCK, block_mask

# frames of the queries, of the cache before them, tokens a frame
SHAPES = [
    (1, 0, 5),
    (1, 3, 5),
    (3, 0, 4),
    (3, 2, 100),
    (2, 1, 128),
    (5, 0, 60),
    (2, 0, 256),
    (4, 3, 1),
]
each_shape = pytest.mark.parametrize("shape", SHAPES)


def draw(shape, dtype=torch.float64, dim=8):
    T, P, S = shape
    g = torch.Generator().manual_seed(0)
    sizes = (T * S, (P + T) * S, (P + T) * S)
    return [torch.randn(2, 2, n, dim, generator=g, dtype=dtype) for n in sizes]


def dense(T: int, P: int, S: int) -> torch.Tensor:
    """[T S, (P + T) S]: whether a query sees a key."""
    frames = torch.arange(P + T).repeat_interleave(S)
    return frames[P * S :, None] >= frames[None, :]


def formula(q, k, v, mask):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


@each_shape
def test_a_product_a_frame_equals_the_formula(shape) -> None:
    leaves = [x.requires_grad_() for x in draw(shape)]
    out = ops.block_causal_attention(*leaves, frames=shape[0])
    wanted = formula(*leaves, dense(*shape))
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    for got, exact in zip(
        torch.autograd.grad(out, leaves, grad),
        torch.autograd.grad(wanted, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-12)


@each_shape
def test_the_blocks_of_the_mask(shape) -> None:
    """By the tokens: a block is read in part, whole, or not at all."""
    T, P, S = shape
    mask = block_mask(T, P + T, S, "cpu")
    seen, size = dense(*shape), BLOCK
    assert mask.shape[-2:] == seen.shape
    for row in range(mask.kv_num_blocks.shape[-1]):
        part = set(mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]].tolist())
        whole = set(mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist())
        assert not part & whole
        for column in range(-(-seen.shape[1] // size)):
            block = seen[row * size : (row + 1) * size, column * size : (column + 1) * size]
            if column in whole:
                assert block.all() and block.shape[1] == size
            elif column not in part:
                assert not block.any(), "a key that is seen is not read"
            else:
                assert block.any(), "a block is read for nothing"


@each_shape
def test_flex_equals_the_formula(shape, monkeypatch) -> None:
    """FlexAttention's own definition, which reads the mask by tokens. It has no gradient on a CPU."""
    monkeypatch.setattr(attention_backends, "_compiled_flex", lambda: flex_attention)
    tensors = draw(shape, dim=16)
    out = ops.block_causal_attention(*tensors, frames=shape[0], backend="flex")
    torch.testing.assert_close(out, formula(*tensors, dense(*shape)), rtol=1e-6, atol=1e-6)


def graph_of(compiled_graphs: list):
    """A backend that keeps the graphs it is given and runs them as they are."""

    def backend(graph, _):
        compiled_graphs.append(graph)
        return graph.forward

    return backend


def test_a_graph_copies_the_finished_mask() -> None:
    """It does not make one again in each call; one graph for each shape, and each with its own mask."""
    torch.compiler.reset()
    graphs: list = []

    def attention(q, k, v, frames):
        return ops.block_causal_attention(q, k, v, frames=frames, backend="flex")

    run = torch.compile(attention, fullgraph=True, dynamic=False, backend=graph_of(graphs))
    shapes = [(3, 2, 100), (2, 1, 128), (2, 1, 64)]
    for shape in shapes:
        q, k, v = draw(shape)
        for _ in range(3):
            out = run(q, k, v, shape[0])
            torch.testing.assert_close(out, formula(q, k, v, dense(*shape)), rtol=1e-6, atol=1e-6)
    assert len(graphs) == len(shapes)
    for graph in graphs:
        called = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
        assert [name for name in called if "getitem" not in name] == [
            "colaworld.block_mask.default",
            "flex_attention",
        ]


def test_a_graph_of_any_length() -> None:
    torch.compiler.reset()

    def attention(q, k, v):
        return ops.block_causal_attention(q, k, v, frames=3, backend="flex")

    run = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for S in (50, 70, 128):
            q, k, v = draw((3, 1, S))
            wanted = formula(q, k, v, dense(3, 1, S))
            torch.testing.assert_close(run(q, k, v), wanted, rtol=1e-6, atol=1e-6)


def test_a_mask_is_kept_only_where_every_later_call_can_use_it() -> None:
    sizes = (3, 4, 10, "cpu")
    with FakeTensorMode():
        block_mask(*sizes)
    with torch.inference_mode():
        first = block_mask(*sizes)
    assert type(first.kv_indices) is torch.Tensor and not first.kv_indices.is_inference()
    assert block_mask(*sizes) is first


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 2, 100), (2, 1, 128), (5, 0, 60)])
def test_flex_as_it_is_compiled(shape) -> None:
    """The C++ that inductor makes of it walks the blocks; a CPU has no backward."""
    torch.compiler.reset()
    q, k, v = draw(shape, torch.float32, dim=16)
    with torch.no_grad():
        out = ops.block_causal_attention(q, k, v, frames=shape[0], backend="flex")
    torch.testing.assert_close(out, formula(q, k, v, dense(*shape)), rtol=1e-5, atol=1e-5)


def test_one_frame_is_plain_attention(monkeypatch) -> None:
    """A step of a rollout: no mask is made and no loop runs, whatever the backend."""
    calls = []
    plain = F.scaled_dot_product_attention

    def counted(q, k, v, **options):
        calls.append((k.shape[2], options))
        return plain(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for backend in ("auto", "sdpa", "flex"):
        ops.block_causal_attention(*draw((1, 3, 5)), frames=1, backend=backend)
    assert calls == [(20, {})] * 3


def test_without_a_gradient_a_gpu_takes_a_product_a_frame(monkeypatch) -> None:
    """Nothing is compiled in a rollout, and FlexAttention that is not compiled makes all scores."""
    seen = []
    plain, facts = F.scaled_dot_product_attention, _dispatch.facts_of

    def counted(q, k, v):
        seen.append(k.shape[2])
        return plain(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(_dispatch, "facts_of", lambda q: replace(facts(q), device="cuda"))
    q, k, v = draw((3, 2, 10))
    with torch.no_grad(), torch.compiler.set_stance("eager_on_recompile"):
        out = ops.block_causal_attention(q, k, v, frames=3)
    assert seen == [30, 40, 50]
    torch.testing.assert_close(out, formula(q, k, v, dense(3, 2, 10)), rtol=1e-12, atol=1e-12)


def test_flex_in_one_graph() -> None:
    torch.compiler.reset()
    seen = []

    def keep(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    @torch.compile(fullgraph=True, backend=keep)
    def call(q, k, v):
        return ops.block_causal_attention(2 * q, k, v, frames=3, backend="flex")

    q, k, v = draw((3, 2, 100), torch.float32, dim=16)
    with torch.no_grad():
        out = call(q, k, v)
    assert "flex_attention" in seen
    torch.testing.assert_close(out, formula(2 * q, k, v, dense(3, 2, 100)), rtol=1e-5, atol=1e-5)


def test_errors_name_the_argument() -> None:
    q, k, v = draw((2, 1, 3))
    for changes, message in [
        ({"q": q[0]}, r"q: expected \[B, H, T S, D\], got \[2, 6, 8\]"),
        ({"frames": 4}, "frames: expected a divisor of 6 tokens, got 4"),
        ({"frames": 0}, "frames: expected a divisor of 6 tokens, got 0"),
        ({"k": k[..., :4]}, r"k: expected \[2, 2, 9, 8\], got \[2, 2, 9, 4\]"),
        ({"v": v[:, :, :6]}, r"v: expected \[2, 2, 9, 8\], got \[2, 2, 6, 8\]"),
        ({"k": k[:, :, :7], "v": v[:, :, :7]}, "k: expected whole frames of 3 tokens, 2 at least"),
        ({"k": k[:, :, :3], "v": v[:, :, :3]}, "k: expected whole frames of 3 tokens, 2 at least"),
        ({"backend": "flash"}, "backend: expected 'auto', 'sdpa' or 'flex', got 'flash'"),
    ]:
        given = {"q": q, "k": k, "v": v, "frames": 2, **changes}
        with pytest.raises(ValueError, match=message):
            ops.block_causal_attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)
