"""What a training step runs compiles as full graphs: no graph break in any part, same numbers.

The backend is `aot_eager`: it traces forward and backward as the real one does and generates no
code, so that the test takes seconds.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.conditioning import ActionConditioner
from colaworld.models.config import ConditionerConfig
from colaworld.models.latent_action.aligner import Aligner
from colaworld.models.latent_action.config import AlignerConfig, FDMConfig, IDMConfig
from colaworld.models.latent_action.fdm import ForwardDynamicsModel
from colaworld.models.latent_action.idm import InverseDynamicsModel
from colaworld.models.layers.attention import use_backend


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


PARTS = {
    "backbone": lambda: (
        STDiT3(STDiT3Config(depth=1, width=16, heads=2)),
        (drawn(1, 12, 3, 4, 4), drawn(1, 3).abs()),
        {"modulation": drawn(1, 3, 2, 96)},
    ),
    "idm": lambda: (
        InverseDynamicsModel(IDMConfig(depth=1, width=16, heads=2, input="tubelet")),
        (drawn(1, 3, 3, 8, 8),),
        {},
    ),
    "aligner": lambda: (
        Aligner(
            AlignerConfig(depth=1, width=16, heads=2),
            channels=12,
            actions_per_frame=1,
            tokens=2,
            dim=4,
        ),
        (drawn(1, 12, 3, 4, 4), drawn(1, 2, 2, 4)),
        {},
    ),
    "conditioner that drops tokens": lambda: (
        ActionConditioner(
            ConditionerConfig(depth=1, heads=2, nested_dropout=0.5),
            width=16,
            blocks=2,
            tokens=2,
            dim=4,
        ),
        (drawn(1, 2, 2, 4), torch.tensor([[[True, False], [False, True]]])),
        {},
    ),
    "conditioner": lambda: (
        ActionConditioner(ConditionerConfig(depth=1, heads=2), width=16, blocks=2, tokens=1, dim=4),
        (drawn(1, 2, 1, 4), torch.tensor([[True, False]])),
        {},
    ),
    "fdm": lambda: (
        ForwardDynamicsModel(FDMConfig(depth=1, width=16, heads=2), dim=4),
        (drawn(1, 2, 3, 8, 8), drawn(1, 2, 1, 4)),
        {},
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_full_graph_forward_and_backward(name, randomised):
    torch.compiler.reset()
    module, arguments, named = PARTS[name]()
    randomised(module)
    results = []
    for compiled in (False, True):
        if compiled:
            module.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        module.zero_grad()
        out = module(*arguments, **named)
        out.square().mean().backward()
        grads = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        results.append((out.detach(), grads))
    (eager, eager_grads), (traced, traced_grads) = results
    torch.testing.assert_close(traced, eager, atol=1e-5, rtol=1e-5)
    assert traced_grads.keys() == eager_grads.keys()
    for key, grad in eager_grads.items():
        torch.testing.assert_close(traced_grads[key], grad, atol=1e-5, rtol=1e-4, msg=key)


def test_wan_on_flex_is_one_graph_with_one_mask(randomised):
    """FlexAttention has no gradient on a CPU, so the forward alone; every layer has the same mask."""
    torch.compiler.reset()
    model = Wan(WanConfig(layers=2, heads=2, head_dim=12, ffn=16, in_channels=4, text="removed"))
    randomised(model)
    latents, time = drawn(1, 4, 3, 4, 4), drawn(1, 3).abs()
    masks = []

    def backend(graph, inputs):
        masks.extend(n for n in graph.graph.nodes if "block_mask" in str(n.target))
        return aot_eager(graph, inputs)

    with torch.no_grad():
        wanted = model(latents, time)
        use_backend(model, "flex")
        got = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)(latents, time)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert len(masks) == 2
