"""Blocks recomputed or compiled one by one: the same gradients, by name; one graph per kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from colaworld.contracts import ClipBatch
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import FDMConfig, IDMConfig
from colaworld.models.latent_action.quantizers import ResidualConfig, VQConfig
from colaworld.models.world_model import WorldModel
from colaworld.training import blocks as blocks_of
from colaworld.training.blocks import blocks, compile_blocks, recompute_blocks
from colaworld.training.config import OBJECTIVES, ObjectiveConfig

MODEL = ModelConfig(
    backbone=STDiT3Config(depth=3, width=32, heads=2),
    idm=IDMConfig(depth=3, width=32, heads=2, dim=4),
    quantizer=VQConfig(normalise=False),
    conditioner=ConditionerConfig(depth=3, heads=2),
    fdm=FDMConfig(depth=3, width=32, heads=2),
)
PARTS = ("idm", "quantizer", "conditioner", "fdm")


def made(*, seed: int = 0) -> WorldModel:
    """A model in which nothing is zero: every parameter has a gradient that could be wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WorldModel(MODEL, parts=PARTS)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def gradients(model: WorldModel, objective: str, *, bf16: bool = False) -> dict[str, torch.Tensor]:
    frames = torch.randint(0, 256, (2, 4, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    number = torch.arange(2)
    batch = ClipBatch(frames.to(torch.uint8), episode=number, start=number)
    config = ObjectiveConfig(history=(1, 2), augment=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = OBJECTIVES[objective](model, config).loss(
            batch, generator=torch.Generator().manual_seed(2)
        )
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys() and left
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def test_the_blocks_of_a_world_model_by_name() -> None:
    names = [name for name in blocks(made()) if name.endswith(".0")]
    assert names == [
        "backbone.spatial_blocks.0",
        "backbone.temporal_blocks.0",
        "idm.blocks.0",
        "conditioner.blocks.0",
        "fdm.blocks.0",
    ]
    residual = replace(MODEL, quantizer=ResidualConfig())
    model = WorldModel(residual, parts=PARTS)
    assert not [name for name in blocks(model) if name.startswith("quantizer")]  # they draw, count


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("objective", ["cola", "world", "reconstruction", "flow"])
def test_recomputed_gradients_are_the_same_bits(objective, bf16) -> None:
    plain, recomputed = made(), made()
    names = list(recomputed.state_dict())
    assert recompute_blocks(recomputed) == 15
    assert list(recomputed.state_dict()) == names
    expected = gradients(plain, objective, bf16=bf16)
    equal(expected, gradients(recomputed, objective, bf16=bf16))
    backbone = "backbone.temporal_blocks.1.attn.qkv.weight"
    assert objective == "reconstruction" or expected[backbone].abs().max() > 0


def test_a_block_runs_again_in_the_backward_pass_and_only_then() -> None:
    calls = []
    model = made()
    for name, block in blocks(model).items():
        first = next(block.children())  # the last is not run again: nothing needs its result
        first.register_forward_hook(lambda *_, name=name: calls.append(("inside", name)))
        block.register_forward_hook(lambda *_, name=name: calls.append(("called", name)))
    recompute_blocks(model)
    gradients(model, "cola")
    assert {name for _, name in calls} == {n for n in blocks(model) if not n.startswith("fdm")}
    for _, name in calls:
        assert (calls.count(("called", name)), calls.count(("inside", name))) == (1, 2)
    calls.clear()
    model.infer_actions(torch.rand(1, 3, 3, 16, 16))
    assert len(calls) == 2 * MODEL.idm.depth  # without a gradient: once


def test_less_is_kept_when_blocks_are_recomputed() -> None:
    """Only what autograd saves outside of blocks, and the blocks' inputs."""

    def kept(model: WorldModel) -> int:
        sizes = {}
        x, times = torch.rand(1, 12, 4, 8, 8), torch.full((1, 4), 0.5)

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model.backbone.velocity(x, times)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert out.requires_grad
        return sum(size for key, size in sizes.items() if key not in own)

    plain, recomputed = made(), made()
    recompute_blocks(recomputed)
    assert kept(recomputed) < kept(plain) / 3


def test_one_graph_for_equal_blocks_and_the_same_gradients() -> None:
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain, compiled = made(), made()
    assert compile_blocks(compiled, backend=count) == 15
    expected = gradients(plain, "flow")
    got = gradients(compiled, "flow")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=name)
    # The first block has no pending branch; the others of its kind share a graph.
    assert len(graphs) == 3, f"{len(graphs)} graphs for 3 spatial and 3 temporal blocks"
    compiled.infer_actions(torch.rand(1, 2, 3, 16, 16))
    assert len(graphs) == 3  # calls without a gradient are not compiled


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blocks", "full"])
def test_recomputed_and_compiled_together(how) -> None:
    torch._dynamo.reset()
    plain, both = made(), made()
    expected = gradients(plain, "cola")
    if how == "blocks":
        compile_blocks(both, backend="aot_eager")
        recompute_blocks(both)
    else:
        recompute_blocks(both)
        for part in (both.idm, both.conditioner, both.backbone):
            part.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    got = gradients(both, "cola")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_model_without_blocks_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for function, word in ((recompute_blocks, "recompute"), (compile_blocks, "compile")):
        with pytest.raises(ValueError, match=rf"Sequential: nothing to {word}: .* blocks"):
            function(model)
    assert blocks_of.blocks(model) == {}
