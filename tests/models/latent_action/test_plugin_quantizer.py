"""A quantizer from one file outside the package: configured, built, trained in a world and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from colaworld.cli.command_line import from_command_line
from colaworld.config import ConfigError, from_dict, load_yaml, to_yaml
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.quantizers import (
    QUANTIZERS,
    VQConfig,
    build_quantizer,
    register_quantizer,
)
from colaworld.models.world_model import WorldModel

PLUGIN = Path(__file__).with_name("plugin_quantizer.py")


@pytest.fixture
def config(from_outside) -> ModelConfig:
    from_outside(PLUGIN)
    flags = ["--quantizer.kind", "sign", "--quantizer.size", "2", "--idm.dim", "3"]
    return from_command_line(ModelConfig(), flags, program="x", description="")


def test_its_codes_by_hand(config) -> None:
    quantizer = build_quantizer(config.quantizer, 3).eval()
    made = quantizer(torch.tensor([[0.1, -3.0, 2.0]]))
    assert made.codes.tolist() == [[2.0, -2.0, 2.0]] and made.indices.tolist() == [5]
    assert torch.equal(quantizer.lookup(made.indices), made.codes)


def test_a_world_trains_through_it_and_names_its_codes(config, tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    config = load_yaml(tmp_path / "config.yaml", ModelConfig)
    assert config.quantizer.kind == "sign" and config.quantizer.size == 2
    model = WorldModel(config, parts=("idm", "quantizer"))
    assert model.codebook_size == 8
    made = model.quantize(torch.rand(2, 3, 3, 24, 32))
    made.codes.square().mul(torch.arange(3.0)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.idm.parameters())


def test_kinds_that_nobody_or_somebody_else_registered(config, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"quantizer 'vq': there is one of this name already"):
        register_quantizer(type("Another", (VQConfig,), {}), lambda config, dim: None)
    monkeypatch.delitem(QUANTIZERS, "sign")
    with pytest.raises(ConfigError, match=r"no quantizer 'sign' is registered; known: ema, fsq, "):
        build_quantizer(config.quantizer, 3)
    with pytest.raises(ConfigError, match=r"quantizer\.kind: expected one of 'vq', .*got 'sign'"):
        from_dict(ModelConfig, {"quantizer": {"kind": "sign"}})
