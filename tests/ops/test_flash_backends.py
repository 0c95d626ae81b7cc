"""FlashAttention 2, 3 and 4 and cuDNN as backends: eager, and traced in one graph.

Stand-ins take the packages' places, built as the packages are: 2 and 3 are a Function around custom ops,
4 is plain Python that reads its tensors' memory, which no tracer may run.
"""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import SDPBackend

from colaworld import ops
from colaworld.models.layers.attention import AxialAttention
from colaworld.ops import attention_backends

NAMES = ("cudnn", "flash", "flash3", "flash4")


def weights_of(q, k, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Probabilities [N, H, L, L] and the logarithms of their sums [N, H, L]."""
    scores = torch.einsum("nihd,njhd->nhij", q, k) * scale
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def forward(q, k, v, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    q.data_ptr()  # raises for a fake tensor, as a launch would
    weights, sums = weights_of(q, k, scale, causal)
    return torch.einsum("nhij,njhd->nihd", weights, v).contiguous(), sums


def backward(grad, q, k, v, scale: float, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    weights, _ = weights_of(q, k, scale, causal)
    inner = torch.einsum("nihd,njhd->nhij", grad, v)
    inner = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * scale
    dq, dk = (
        torch.einsum(e, inner, x) for e, x in (("nhij,njhd->nihd", k), ("nhij,nihd->njhd", q))
    )
    dv = torch.einsum("nhij,nihd->njhd", weights, grad)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


class OfCustomOps:
    """flash_attn_func as in version 2 and 3: a Function whose two directions are custom ops."""

    ran = 0

    def __init__(self) -> None:
        def run(q, k, v, scale, causal):
            type(self).ran += 1
            return forward(q, k, v, scale, causal)

        three = "Tensor q, Tensor k, Tensor v, float scale, bool causal"
        op = torch.library.custom_op(
            "stand_in::forward", run, mutates_args=(), schema=f"({three}) -> (Tensor, Tensor)"
        )
        back = torch.library.custom_op(
            "stand_in::backward", backward, mutates_args=(),
            schema=f"(Tensor grad, {three}) -> (Tensor, Tensor, Tensor)",
        )  # fmt: skip

        @op.register_fake
        def _(q, k, v, scale, causal):
            N, L, H, _ = q.shape
            return q.new_empty(q.shape), q.new_empty((N, H, L), dtype=torch.float32)

        @back.register_fake
        def _(grad, q, k, v, scale, causal):
            return tuple(x.new_empty(x.shape) for x in (q, k, v))

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, q, k, v, scale, causal, return_lse):
                out, lse = op(q, k, v, scale, causal)
                ctx.save_for_backward(q, k, v)
                ctx.settings = (scale, causal)
                return (out, lse) if return_lse else out

            @staticmethod
            def backward(ctx, grad, *_):
                return *back(grad, *ctx.saved_tensors, *ctx.settings), None, None, None

        def flash_attn_func(q, k, v, softmax_scale=None, causal=False, return_attn_probs=False):
            return Function.apply(q, k, v, softmax_scale, causal, return_attn_probs)

        def older(q, k, v, softmax_scale=None, causal=False):
            return flash_attn_func(q, k, v, softmax_scale, causal, True)

        self.flash_attn_func, self.with_sums = flash_attn_func, older


PACKAGE = OfCustomOps()


def put(monkeypatch, name: str, **members: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, member in members.items():
        setattr(module, key, member)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def calls(monkeypatch):
    """Every package is there and CPU tensors of any dtype will do; counts how often one ran."""
    ran = []

    def fwd(q, k, v, softmax_scale=None, causal=False, return_lse=False):
        ran.append("flash4")
        out, lse = forward(q, k, v, softmax_scale, causal)
        return out, lse if return_lse else None

    def bwd(q, k, v, out, dout, lse, softmax_scale=None, causal=False):
        torch.testing.assert_close(forward(q, k, v, softmax_scale, causal), (out, lse))
        return backward(dout, q, k, v, softmax_scale, causal)

    put(monkeypatch, "flash_attn").__path__ = []
    put(
        monkeypatch,
        "flash_attn.flash_attn_interface",
        flash_attn_func=PACKAGE.flash_attn_func,
    )
    put(monkeypatch, "flash_attn_interface", flash_attn_func=PACKAGE.flash_attn_func)
    put(monkeypatch, "flash_attn.cute").__path__ = []
    put(monkeypatch, "flash_attn.cute.interface", _flash_attn_fwd=fwd, _flash_attn_bwd=bwd)
    put(monkeypatch, "cutlass")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(attention_backends, "_refuses_tensor", lambda *_: None)
    monkeypatch.setattr(attention_backends, "_CUDNN", SDPBackend.MATH)  # a CPU has none of cuDNN's
    OfCustomOps.ran = 0
    return lambda: OfCustomOps.ran + len(ran)


def arguments(generator, axis: str, dtype=torch.float32):
    qkv = torch.randn(2, 5, 6, 3, 2, 16, generator=generator).to(dtype)
    angles = torch.rand(5 if axis == "temporal" else 6, 8, generator=generator)
    weights = [torch.rand(16, generator=generator) + 0.5 for _ in range(2)]
    return [qkv, *weights], (angles.cos(), angles.sin())


@pytest.mark.parametrize("axis", ["temporal", "spatial"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", NAMES)
def test_forward_and_backward_are_those_of_the_reference(
    backend, causal, axis, generator, calls
) -> None:
    leaves, rope = arguments(generator, axis)
    grad = torch.randn(2, 5, 6, 2, 16, generator=generator)
    found = []
    for name, dtype in ((backend, torch.float32), (None, torch.float64)):
        inputs = [x.to(dtype).requires_grad_() for x in leaves]
        options = {"axis": axis, "causal": causal, "rope": rope}
        options |= {"q_weight": inputs[1], "k_weight": inputs[2]}
        if name is None:
            with ops.force("reference"):
                out = ops.st_attention(inputs[0], **options)
        else:
            out = ops.st_attention(inputs[0], **options, backend=name)
            assert calls() == (name != "cudnn")
        found.append([out, *torch.autograd.grad(out, inputs, grad.to(dtype))])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", ["temporal", "spatial"])
@pytest.mark.parametrize("backend", NAMES)
def test_a_block_is_one_graph(backend, axis, calls) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    block = AxialAttention(32, 2, axis=axis, causal=axis == "temporal", rope_theta=1e4)
    block.backend = backend
    x = torch.randn(2, 3, 4, 32, generator=torch.Generator().manual_seed(1))
    graphs = []

    def backend_of_test(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return aot_eager(graph, inputs)

    results = []
    for run in (block, torch.compile(block, fullgraph=True, backend=backend_of_test)):
        block.zero_grad()
        out = run(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in block.parameters())])
    for traced, eager in zip(*reversed(results), strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-5)
    (graph,) = graphs
    assert (backend == "cudnn") == any("_sdpa_kernel" in name for name in graph)


def test_cudnn_is_sdpa_held_to_it(generator, monkeypatch) -> None:
    held = []

    def kernel(q, *_, **__):
        held.append(torch.nn.attention._cur_sdpa_kernel_backends())
        return q

    monkeypatch.setattr(attention_backends.reference, "sdpa", kernel)
    q = torch.randn(1, 3, 2, 8, generator=generator)
    attention_backends._ATTEND["cudnn"](q, q, q, causal=False, scale=1.0)
    assert held == [[SDPBackend.CUDNN_ATTENTION]]


def test_older_builds_of_3_give_the_sums_too(generator, calls, monkeypatch) -> None:
    put(monkeypatch, "flash_attn_interface", flash_attn_func=PACKAGE.with_sums)
    (qkv, *_), _ = arguments(generator, "spatial")
    got = ops.st_attention(qkv, axis="spatial", backend="flash3")
    torch.testing.assert_close(got, ops.st_attention(qkv, axis="spatial", backend="sdpa"))


def test_4_is_an_op_that_torch_accepts(generator, calls) -> None:
    q, k, v = (torch.randn(2, 5, 3, 8, generator=generator).requires_grad_() for _ in range(3))
    torch.library.opcheck(torch.ops.colaworld.flash4.default, (q, k, v, 0.3, True))


def test_an_install_of_4_alone_is_not_2(monkeypatch) -> None:
    """It leaves a package flash_attn without the interface of version 2."""
    put(monkeypatch, "flash_attn").__path__ = []
    put(monkeypatch, "flash_attn.cute")
    put(monkeypatch, "cutlass")
    assert "flash-attn: pip install" in ops.attention_backend_missing("flash")
    assert ops.attention_backend_missing("flash4") is None
    monkeypatch.delitem(sys.modules, "cutlass")  # as flash-attn alone leaves it
    monkeypatch.setattr(
        attention_backends.importlib.util, "find_spec", lambda name: sys.modules.get(name)
    )
    assert "flash-attn-4" in ops.attention_backend_missing("flash4")


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [
        ("cudnn", "a torch that was built with cuDNN"),
        ("flash", r"pip install 'colaworld\[flash\]'"),
        ("flash3", "python setup.py install in the folder hopper"),
        ("flash4", r"pip install 'colaworld\[flash4\]'"),
    ],
)
def test_what_is_not_installed_says_how_to(backend, remedy, monkeypatch) -> None:
    monkeypatch.setattr(attention_backends.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    with pytest.raises(ops.BackendUnavailableError, match=f"'{backend}' needs .*{remedy}"):
        ops.st_attention(torch.zeros(1, 2, 3, 3, 1, 8), axis="spatial", backend=backend)


@pytest.mark.parametrize("backend", NAMES)
def test_what_cannot_be_taken_says_why(backend, monkeypatch) -> None:
    monkeypatch.setattr(attention_backends, "missing", lambda name: None)
    fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)

    def refused(match: str, *, D=8, dtype=torch.bfloat16, device="cuda") -> None:
        with fake, pytest.raises(ops.BackendUnavailableError, match=f"'{backend}' {match}"):
            qkv = torch.empty(1, 2, 3, 3, 1, D, dtype=dtype, device=device)
            ops.st_attention(qkv, axis="spatial", backend=backend)

    refused("runs on CUDA devices, the tensors are on cpu", device="cpu")
    refused("takes float16 and bfloat16, got torch.float32", dtype=torch.float32)
    if backend != "flash":  # which pads
        refused("takes heads of a multiple of 8 channels, got 12", D=12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    refused(r"takes GPUs of compute capability (8\.x, )?9\.x.*, this one has 7\.5")
