"""Loading a generator: strictly, from a file or a finished run, with errors that name keys."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.parts import PARTS, Part
from colaworld.recipes import recipe
from colaworld.runs import weights
from colaworld.runs.build import build_model
from colaworld.runs.weights import WeightsError, find_backbone_weights, load_backbone

SMALL = STDiT3Config(depth=1, width=16, heads=2)


def small(seed: int) -> STDiT3:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return STDiT3(SMALL)


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture
def stored() -> dict[str, torch.Tensor]:
    return small(1).state_dict()


def test_a_file_of_a_backbone_loads(stored, tmp_path):
    save_file(stored, tmp_path / "g.safetensors")
    backbone = small(2)
    assert not equal(backbone.state_dict(), stored)
    load_backbone(backbone, str(tmp_path / "g.safetensors"))
    assert equal(backbone.state_dict(), stored)


def test_a_finished_run_gives_its_backbone_and_nothing_else(stored, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    whole = {f"backbone.{key}": value for key, value in stored.items()}
    whole["idm.embed.weight"] = torch.zeros(3)
    whole["mine.weight"] = torch.zeros(3)  # a part from outside
    monkeypatch.setitem(PARTS, "mine", Part("mine", STDiT3Config, lambda config, model: model))
    save_file(whole, tmp_path / "weights" / "model.safetensors")
    backbone = small(2)
    load_backbone(backbone, str(tmp_path))
    assert equal(backbone.state_dict(), stored)


def test_half_precision_files_are_loaded_as_float32(stored, tmp_path):
    half = {key: value.bfloat16() for key, value in stored.items()}
    save_file(half, tmp_path / "g.safetensors")
    backbone = small(2)
    load_backbone(backbone, str(tmp_path / "g.safetensors"))
    loaded = backbone.state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert equal(loaded, {key: value.float() for key, value in half.items()})


def test_every_misfit_names_its_key_and_changes_nothing(stored, tmp_path):
    wrong = dict(stored)
    del wrong["t_block.1.bias"]
    wrong["rope.freqs"] = torch.zeros(4)
    wrong["final_layer.linear.bias"] = torch.zeros(7)
    save_file(wrong, tmp_path / "g.safetensors")
    backbone = small(2)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_backbone(backbone, str(tmp_path / "g.safetensors"))
    for part in (
        "g.safetensors does not fit the STDiT3",
        "missing t_block.1.bias",
        "rope.freqs: not the values",
        "final_layer.linear.bias: expected [48], got [7]",
    ):
        assert part in str(caught.value)
    assert equal(backbone.state_dict(), before)


def test_many_misfits_are_counted(tmp_path):
    save_file({f"x{i}": torch.zeros(1) for i in range(5)}, tmp_path / "g.safetensors")
    with pytest.raises(WeightsError, match=rf"and {len(small(1).state_dict()) + 5 - 8} more"):
        load_backbone(small(1), str(tmp_path / "g.safetensors"))


def test_what_is_no_generator(tmp_path):
    with pytest.raises(WeightsError, match=r"expected 'nano', a .safetensors file, .* got 'nnao'"):
        find_backbone_weights("nnao")
    with pytest.raises(WeightsError, match=r"expected one \.safetensors file.*found nothing"):
        load_backbone(small(1), str(tmp_path))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(WeightsError, match=r"is not finished .*model\.safetensors does not exist"):
        find_backbone_weights(str(tmp_path))
    (tmp_path / "g.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"g.safetensors: not a readable safetensors file"):
        load_backbone(small(1), str(tmp_path / "g.safetensors"))


def test_a_missing_shipped_generator_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match=r"nano video model is missing .* make nano-pretrain"):
        find_backbone_weights("nano")
    build_model(recipe("nano.cola"), weights=False)  # a checkpoint follows: not asked for
    with pytest.raises(WeightsError, match=r"missing"):
        build_model(recipe("nano.cola"))


def test_shipping_tells_how_the_data_was_recorded(stored, tmp_path, monkeypatch):
    from colaworld.runs.weights.__main__ import ship

    meta, run = tmp_path / "data" / "meta", tmp_path / "run"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text('{"total_episodes": 3, "total_frames": 60, "fps": 10}')
    (meta / "colaworld.json").write_text('{"environment": "crafter", "seed": 1000}')
    (run / "weights").mkdir(parents=True)
    save_file({f"backbone.{k}": v for k, v in stored.items()}, run / "weights/model.safetensors")
    (run / "config.yaml").write_text(f"schedule: [pretrain]\ndata: {{path: {meta.parent}}}\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    monkeypatch.setattr("colaworld.runs.weights.__main__.SHIPPED", tmp_path)
    assert ship(run, made_at="abc") == tmp_path / "nano.safetensors"
    card = json.loads((tmp_path / "nano.json").read_text())
    assert card["data"]["recorded"] == {"environment": "crafter", "seed": 1000}
    assert (card["commit"], card["data"]["total_episodes"], card["steps"]) == ("abc", 3, 2)
    assert card["loss_curve"] == [[1, 2.0], [2, 1.0]]
    assert str(tmp_path) not in (tmp_path / "nano.json").read_text()


def test_the_shipped_generator_fits_the_nano_recipes():
    if not (weights.SHIPPED / "nano.safetensors").exists():
        pytest.skip("the nano video model is not shipped yet (nano.safetensors is missing)")
    model = build_model(recipe("nano.cola"))
    fresh = build_model(recipe("nano.cola"), weights=False)
    assert model.backbone.final_layer.linear.weight.abs().max() > 0
    assert not equal(model.backbone.state_dict(), fresh.backbone.state_dict())
    assert equal(model.idm.state_dict(), fresh.idm.state_dict())


def test_a_config_json_that_says_otherwise_is_refused(tmp_path):
    """12 heads of 64 have the tensors of 6 heads of 128: only config.json tells them apart."""
    config = WanConfig(layers=1, heads=2, head_dim=16)
    save_file(Wan(config).state_dict(), tmp_path / "g.safetensors")
    described = {"_class_name": "WanTransformer3DModel", "num_layers": 1, "ffn_dim": config.ffn}
    described |= {"num_attention_heads": 2, "attention_head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(described))
    load_backbone(Wan(config), str(tmp_path))
    for wrong in ({"heads": 4, "head_dim": 8}, {"eps": 1e-3}):
        key = next(iter(wrong))
        with pytest.raises(WeightsError, match=rf"config\.json: {key} is .*model\.backbone\.{key}"):
            load_backbone(Wan(replace(config, **wrong)), str(tmp_path))
    with pytest.raises(WeightsError, match=r"kind is 'wan', but model\.backbone\.kind is 'stdit3'"):
        load_backbone(small(1), str(tmp_path))
