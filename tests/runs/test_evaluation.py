"""A run measured on held-out episodes: how long clips are, what is refused, what its video model's text is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from colaworld.config import ConfigError
from colaworld.data.errors import DataError
from colaworld.evaluation.tables import table
from colaworld.models.backbones import BackboneConfig, build_backbone
from colaworld.models.backbones.weights import WeightsError
from colaworld.recipes import recipe
from colaworld.runs import evaluation
from colaworld.runs.build import build_trainer


def test_the_horizon_is_eight_or_what_the_episodes_allow(run) -> None:
    folder, config, _ = run
    told = []
    made = evaluation.evaluate_run(folder, progress=lambda *at: told.append(at))
    assert made.result["counts"]["horizon"] == 8  # 10 frames would allow 9
    assert told[-1][0] == told[-1][1]
    strided = replace(config, data=replace(config.data, stride=2))
    # frames 0 2 4 6 8 of ten: one given, four predicted
    assert evaluation.evaluate_run(folder, config=strided).result["counts"]["horizon"] == 4
    longer = replace(strided, evaluation=replace(config.evaluation, history=3))
    assert evaluation.evaluate_run(folder, config=longer).result["counts"]["horizon"] == 2
    asked = replace(config, evaluation=replace(config.evaluation, horizon=10))
    with pytest.raises(DataError, match=r"evaluation\.history 1 \+ evaluation\.horizon 10 frames"):
        evaluation.evaluate_run(folder, config=asked)


def test_frames_that_do_not_fit_are_refused_before_the_work(run) -> None:
    folder, config, _ = run
    other = replace(config, data=replace(config.data, height=22, width=32))
    with pytest.raises(ConfigError, match=r"22x32 px .* --data\.height 24 --data\.width 32"):
        evaluation.evaluate_run(folder, config=other)


def test_what_removing_cross_attention_costs_is_measured(tiny, tmp_path) -> None:
    """Paired, through the video model's own file; a video model without text says so."""
    config = tiny()
    text = replace(config.model.backbone, text="full", caption_width=6, caption_length=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_backbone(text)
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    save_file(dict(generator.state_dict()), tmp_path / "generator.safetensors")
    small = replace(text, text="removed")
    config = replace(
        config,
        backbone_weights=str(tmp_path / "generator.safetensors"),
        model=replace(config.model, backbone=small),
    )
    assert build_trainer(config, out=tmp_path / "run").run().status == "finished"
    asked = replace(config, evaluation=replace(config.evaluation, text_effect=True))
    found = evaluation.evaluate_run(tmp_path / "run", config=asked).result
    assert found["text"]["change"] > 0.01
    assert found["text"]["loss_removed"] != found["text"]["loss_null_caption"]
    assert "flow loss without cross-attention" in table(found)
    assert "flow loss" not in table({**found, "text": None})

    plain = build_backbone(small)
    save_file(dict(plain.state_dict()), tmp_path / "generator.safetensors")
    with pytest.raises(WeightsError, match=r"missing .*cross_attn"):
        evaluation.evaluate_run(tmp_path / "run", config=asked)


def test_a_backbone_without_text_says_so(from_outside) -> None:
    toy = Path(__file__).parents[1] / "models" / "backbones" / "plugin_backbone.py"
    from_outside(toy)
    (kind,) = (k for k in BackboneConfig.kinds() if k.kind == "toy")
    config = recipe("nano.cola")
    config = replace(config, model=replace(config.model, backbone=kind()))
    with pytest.raises(
        ConfigError, match=r"text_effect: a backbone of kind 'toy' has no cross-att"
    ):
        evaluation._text_effect(config, None, iter(()), config.evaluation, "cpu")


def test_predicted_frames_are_whole_latents() -> None:
    whole = evaluation.whole_latents
    assert [whole(h, 1, 1) for h in (1, 2, 8)] == [1, 2, 8]
    assert [whole(h, 1, 4) for h in (4, 7, 8, 11)] == [4, 4, 8, 8]
    assert [whole(h, 2, 4) for h in (3, 6, 7)] == [3, 3, 7]  # 5, 5 and 9 frames with the history
    with pytest.raises(DataError, match=r"3 frames can be predicted behind 1, .* of 4 .*too short"):
        whole(3, 1, 4)
