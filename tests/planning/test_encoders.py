"""Features of a frozen encoder in a folder: by a stand-in for transformers, and by DINOv2 where that is there."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from colaworld.files import FileError
from colaworld.planning.costs import GoalDistance
from colaworld.planning.encoders import load_encoder

SAID = {"crop_size": {"height": 4, "width": 4}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


class Patches(nn.Module):
    """A class token, then the mean colour of each patch of 2x2 px."""

    config = SimpleNamespace(patch_size=2)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        mean = nn.functional.avg_pool2d(pixel_values, 2).flatten(2).transpose(1, 2)
        first = torch.full_like(mean[:, :1], 99.0)
        return SimpleNamespace(last_hidden_state=torch.cat([first, mean], dim=1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of an encoder, and a transformers that reads it, as strictly as asked."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAID))

    def from_pretrained(path: str, **options: object) -> nn.Module:
        assert path == str(tmp_path)
        strict = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        assert options == strict
        return Patches()

    stand_in = ModuleType("transformers")
    stand_in.AutoModel = SimpleNamespace(from_pretrained=from_pretrained)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    return tmp_path


def test_patches_of_normalised_resized_frames(folder) -> None:
    encoder = load_encoder(folder)
    frames = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = nn.functional.avg_pool2d((frames - 0.5) / 0.25, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(frames), wanted)  # [2, 4, 3], no class token
    assert encoder(torch.rand(1, 3, 9, 7)).shape == (1, 4, 3)
    cost = GoalDistance(frames[:1], reads="frames", encoder=encoder)
    costs = cost(frames[None, :, None], torch.zeros(1, 2, 1, 1))
    assert float(costs[0, 0]) == 0
    torch.testing.assert_close(costs[0, 1], (wanted[1] - wanted[0]).square().sum())


def test_what_is_no_encoder_is_said(folder, monkeypatch) -> None:
    file = folder / "preprocessor_config.json"
    for wrong in ({}, SAID | {"image_mean": [1, 2]}, SAID | {"crop_size": {"depth": 1}}, []):
        file.write_text(json.dumps(wrong))
        with pytest.raises(
            FileError, match=r"preprocessor_config.json: expected crop_size or size"
        ):
            load_encoder(folder)
    file.write_text(json.dumps(SAID))
    monkeypatch.setattr(Patches, "forward", lambda self, pixel_values: SimpleNamespace())
    with pytest.raises(FileError, match="Patches takes no pictures alone, or gives no last_hidden"):
        load_encoder(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'colaworld\[features\]'"):
        load_encoder(folder)
    file.unlink()
    with pytest.raises(FileError, match=r"with preprocessor_config.json, found none"):
        load_encoder(folder)


def test_dinov2_gives_its_patches(tmp_path) -> None:
    """Random weights, against the package's own forward."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra features)")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    said = SAID | {"crop_size": {"height": 28, "width": 28}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    frames = torch.rand(2, 3, 28, 28)
    found = load_encoder(tmp_path)(frames)
    with torch.no_grad():
        wanted = network(pixel_values=(frames - 0.5) / 0.25).last_hidden_state[:, 1:]
    assert found.shape == (2, 4, 16)
    torch.testing.assert_close(found, wanted)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileError, match="no encoder to read"):
        load_encoder(tmp_path)
