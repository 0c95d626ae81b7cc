"""What a GPU would run is traced here without one: forward and backward, one graph, the right kernels.

Autograd asks for the device itself, and a torch without CUDA has none, even for fake tensors. So the
tensors stand on the meta device, which computes nothing and records everything, and the choice of an
implementation is told that it is CUDA. Every op of ours then goes the way it goes on a GPU: the same
predicates, the same fakes, the same gradients.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx

from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.conditioning import ActionConditioner
from colaworld.models.config import ConditionerConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.idm import InverseDynamicsModel
from colaworld.models.layers.attention import AxialAttention
from colaworld.ops import _cuda, _dispatch, attention_backends

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="half of the CUDA route is Triton's; extra dev has it"
)
needs_cuda_build = pytest.mark.skipif(
    not _cuda.ARCHITECTURES, reason="the library was built without CUDA"
)


@pytest.fixture
def as_cuda(monkeypatch):
    """Within the test a meta or a CPU tensor is chosen for as a CUDA tensor is."""
    plain = _dispatch.facts_of

    def facts_of(*arguments):
        return replace(plain(*arguments), device="cuda")

    monkeypatch.setattr(_dispatch, "facts_of", facts_of)
    torch.compiler.reset()


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def backward_of(name: str) -> str:
    """Of an op's name in a graph. The prologue's queries and keys come with the values in one tensor."""
    name = name.replace("qk_norm_rope", "qkv_norm_rope")
    op, twin = name.removesuffix("_triton"), "_triton" if name.endswith("_triton") else ""
    return f"{op}_backward{twin}"


def traced(module: torch.nn.Module, *arguments, dtype: torch.dtype, **named):
    """(ops of ours in the forward, in the backward, number of graphs) of one compiled step."""
    seen: list[list[str]] = []

    def keep(graph, _):
        targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
        seen.append([t.removesuffix(".default") for t in targets if t.startswith("colaworld.")])
        return graph.forward

    module = module.to(device="meta", dtype=dtype)
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    out = torch.compile(module, fullgraph=True, dynamic=False, backend=backend)(*arguments, **named)
    out.sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.shape == parameter.shape and parameter.grad.device.type == "meta"
    assert len(seen) == 2, f"expected a forward and a backward, got {len(seen)} graphs"
    return Counter(seen[0]), Counter(seen[1])


def generator(config: STDiT3Config, dtype: torch.dtype) -> tuple[Counter, Counter]:
    B, T = 1, 5
    latents = meta(B, config.in_channels, T, 4, 4, dtype=dtype)
    modulation = meta(B, T, 2 * config.depth, 6 * config.width, dtype=dtype)
    with torch.device("meta"):
        model = STDiT3(config)
    return traced(model, latents, meta(B, T), modulation=modulation, fps=meta(B), dtype=dtype)


@needs_cuda_build
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_generator_of_the_shape_of_xl(as_cuda, dtype) -> None:
    config = replace(STDiT3Config.xl2(), depth=2, predict_sigma=False)
    forward, backward = generator(config, dtype)
    # Attention over time in CUDA C++, within a frame the prologue in Triton before torch's attention;
    # each has its gradient as often.
    assert forward.keys() == {
        "colaworld.st_attention",
        "colaworld.qk_norm_rope_triton",
        "colaworld.adaln_triton",
    }
    assert backward == {backward_of(name): count for name, count in forward.items()}


def test_the_nano_generator_takes_triton(as_cuda) -> None:
    """Heads of 32 channels in bfloat16 are none that the CUDA kernel has."""
    forward, backward = generator(STDiT3Config(depth=1), torch.bfloat16)
    assert forward.keys() == {
        "colaworld.st_attention_triton",
        "colaworld.qk_norm_rope_triton",
        "colaworld.adaln_triton",
    }
    assert backward == {backward_of(name): count for name, count in forward.items()}


def test_nothing_stands_between_spatial_attention_and_its_projection(as_cuda, monkeypatch) -> None:
    """But the prologue: three gradients go in, that of the projection comes out, none is copied."""
    library = torch.library.Library("standin", "DEF")  # gone with the test
    library.define("attend(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.define(
        "attend_backward(Tensor g, Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)"
    )
    library.impl("attend", lambda q, k, v: torch.empty_like(q), "Meta")
    library.impl("attend_backward", lambda g, *x: tuple(map(torch.empty_like, x)), "Meta")
    op = torch.ops.standin

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            ctx.save_for_backward(q, k, v)
            return op.attend(q, k, v)

        @staticmethod
        def backward(ctx, g):
            return op.attend_backward(g, *ctx.saved_tensors)

    monkeypatch.setattr(
        attention_backends, "sdpa", lambda q, k, v, *, causal, scale: Attention.apply(q, k, v)
    )
    graphs = []

    def keep(graph, _):
        graphs.append(graph.graph)
        return graph.forward

    with torch.device("meta"):
        module = AxialAttention(64, 2, axis="spatial").bfloat16()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    x = meta(2, 3, 5, 64, dtype=torch.bfloat16).requires_grad_()
    torch.compile(module, fullgraph=True, backend=backend)(x).sum().backward()
    forward, backward = (
        [str(n.target) for n in graph.nodes if n.op == "call_function"] for graph in graphs
    )
    views = {f"aten.{name}.default" for name in ("view", "_unsafe_view", "t", "detach", "alias")}
    views |= {"aten.unbind.int", "<built-in function getitem>"}
    assert Counter(n for n in forward if n not in views) == {
        "aten.addmm.default": 2,
        "colaworld.qk_norm_rope_triton.default": 1,
        "standin.attend.default": 1,
    }
    assert Counter(n for n in backward if n not in views) == {
        "aten.mm.default": 4,
        "aten.sum.dim_IntList": 2,  # the gradients of the biases
        "standin.attend_backward.default": 1,
        "colaworld.qkv_norm_rope_backward_triton.default": 1,
        "aten._to_copy.default": 2,  # the gradients of the norms' weights, [D]
    }


@needs_cuda_build
def test_the_inverse_dynamics_model(as_cuda) -> None:
    config = replace(IDMConfig.paper(), depth=1)
    with torch.device("meta"):
        model = InverseDynamicsModel(config)
    frames = meta(1, 3, 3, 28, 28, dtype=torch.bfloat16)
    forward, backward = traced(model, frames, dtype=torch.bfloat16)
    assert forward["colaworld.st_attention"] == backward["colaworld.st_attention_backward"] == 1
    for op in ("qk_norm_rope_triton", "adaln_triton"):
        assert forward[f"colaworld.{op}"] == backward[backward_of(f"colaworld.{op}")] > 0


@needs_cuda_build
def test_the_conditioner(as_cuda) -> None:
    config = ConditionerConfig(depth=1, heads=2)
    with torch.device("meta"):
        model = ActionConditioner(config, width=128, blocks=2, tokens=1, dim=4)
    codes, drop = meta(1, 3, 1, 4, dtype=torch.bfloat16), meta(1, 3, dtype=torch.bool)
    forward, backward = traced(model, codes, drop, dtype=torch.bfloat16)
    assert forward == {"colaworld.st_attention": 1}
    assert backward == {"colaworld.st_attention_backward": 1}


def adaln_neighbours(model: torch.nn.Module, *inputs: torch.Tensor, **named: torch.Tensor):
    """(what reads `out` of each adaln, what makes the gradient of each) in a step under autocast.

    On the CPU, since the meta device has no autocast; views are looked through.
    """

    def step(weights, inputs, named):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = torch.func.functional_call(model, weights, inputs, named)
        return torch.autograd.grad(out.float().square().sum(), list(weights.values()))

    weights = dict(model.named_parameters())
    graph = make_fx(step, tracing_mode="fake")(weights, inputs, named).graph

    def name(node) -> str:
        return str(node.target).removesuffix(".default")

    def behind(node) -> list[str]:
        views = ("aten.view", "aten._unsafe_view", "aten.t", "aten.detach", "aten.transpose.int")
        found = [behind(user) if name(user) in views else [name(user)] for user in node.users]
        return [one for many in found for one in many]

    def before(node) -> str:
        views = ("aten.view", "aten._unsafe_view", "aten.detach")
        return before(node.args[0]) if name(node) in views else name(node)

    readers, makers = [], []
    for node in graph.nodes:
        if name(node) == "colaworld.adaln_triton":
            (out,) = [u for u in node.users if u.args[1] == 1]
            readers += behind(out)
        elif name(node) == "colaworld.adaln_backward_triton":
            makers.append(before(node.args[1]))
    return readers, makers


def test_under_autocast_no_cast_follows_a_modulation(as_cuda) -> None:
    """The stream is float32, `out` is what the product behind computes in, and so is its gradient."""
    config = STDiT3Config(depth=1)
    B, T = 1, 3
    latents = torch.zeros(B, config.in_channels, T, 4, 4)
    modulation = torch.zeros(B, T, 2, 6 * config.width)
    readers, makers = adaln_neighbours(
        STDiT3(config), latents, torch.zeros(B, T), modulation=modulation, fps=torch.zeros(B)
    )
    # Two in each of two blocks, and the last layer's: one product forward, for its weight another.
    assert Counter(readers) == {"aten.addmm": 5, "aten.mm": 5}
    assert Counter(makers) == {"aten.mm": 5}


def test_under_autocast_no_cast_follows_a_modulation_of_the_idm(as_cuda) -> None:
    model = InverseDynamicsModel(IDMConfig(depth=1))
    readers, makers = adaln_neighbours(model, torch.zeros(1, 3, 3, 8, 8))
    assert Counter(readers) == {"aten.addmm": 3, "aten.mm": 3}
    assert Counter(makers) == {"aten.mm": 3}
