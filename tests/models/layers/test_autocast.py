"""no_autocast: off inside, on the meta device nothing to turn off, and one graph with what surrounds it."""

from __future__ import annotations

import pytest
import torch

from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.layers.autocast import no_autocast


def product(x):
    with no_autocast(x):
        inside = x @ x.T
    return inside, x @ x.T


@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_off_inside_and_on_again_after(compiled) -> None:
    torch.compiler.reset()
    run = torch.compile(product, fullgraph=True, backend="aot_eager") if compiled else product
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [y.dtype for y in run(torch.ones(2, 2))] == [torch.float32, torch.bfloat16]


def test_the_meta_device_has_none() -> None:
    assert product(torch.ones(2, 3, device="meta"))[0].shape == (2, 2)


def test_no_graph_asks_torch_whether_there_is_autocast(monkeypatch) -> None:
    """torch 2.11 cannot trace the question."""
    untraceable = torch._dynamo.disable(torch.amp.is_autocast_available)
    monkeypatch.setattr(torch.amp, "is_autocast_available", untraceable)
    torch.compiler.reset()
    embedder = Wan(WanConfig(layers=1, heads=1, head_dim=12, ffn=8)).condition_embedder
    time = torch.tensor([[0.0, 500.0]])
    traced = torch.compile(embedder.time, fullgraph=True, backend="aot_eager")(time)
    torch.testing.assert_close(traced, embedder.time(time))
