"""A run read back: its configuration, its weights, its evaluation, where it came from."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from colaworld.config import ConfigError, to_yaml
from colaworld.data.errors import DataError
from colaworld.evaluation.tables import table
from colaworld.files import FileError
from colaworld.models.backbones import BackboneConfig, build_backbone
from colaworld.models.backbones.weights import WeightsError
from colaworld.recipes import recipe
from colaworld.runs import load
from colaworld.runs.build import build_trainer, check_backbone_data
from colaworld.runs.pretrained import export_run
from colaworld.training.checkpoint import CheckpointError, latest_checkpoint


@pytest.fixture
def run(tiny, tmp_path):
    """A finished tiny nano.cola with an averaged model."""
    config = tiny()
    config = replace(config, training=replace(config.training, ema_decay=0.9))
    trainer = build_trainer(config, out=tmp_path / "run")
    assert trainer.run().status == "finished"
    return tmp_path / "run", config, trainer


def test_weights_whose_sums_are_gone_are_not_read(run) -> None:
    folder, _, _ = run
    assert load.finished_weights(folder) == folder / "weights" / "model.safetensors"
    (folder / "weights" / "config.json").unlink()
    with pytest.raises(FileError, match=r"weights/config\.json is missing: without its sums"):
        load.load_world(folder)
    assert load.finished_weights(folder / "checkpoints") is None


def test_the_configuration_comes_back_equal(run) -> None:
    folder, config, _ = run
    assert load.read_config(folder) == config
    with pytest.raises(ConfigError, match=r"absent is not a run folder: it has no config\.yaml"):
        load.read_config(folder / "absent")


def test_the_world_is_the_averaged_one_finished_or_not(run) -> None:
    folder, config, trainer = run
    world, stored = load.load_world(folder)
    assert stored == config and world.sampler == config.sampler
    assert (world.codebook_size, world.tokens) == (8, 1)
    assert not any(module.training for module in world.model.modules())
    finished = world.model.state_dict()
    averaged = latest_checkpoint(folder / "checkpoints").tensors("ema")
    assert all(torch.equal(finished[key], value) for key, value in averaged.items())
    trained = trainer.model.state_dict()
    assert any(not torch.equal(finished[key], trained[key]) for key in trained)
    shutil.rmtree(folder / "weights")
    unfinished = load.load_world(folder)[0].model.state_dict()
    assert all(torch.equal(finished[key], unfinished[key]) for key in finished)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ConfigError, match="neither weights nor a complete checkpoint"):
        load.load_world(folder)


def test_weights_of_another_configuration_are_refused(run) -> None:
    folder, _, _ = run
    saved = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(saved.replace("codebook_size: 8", "codebook_size: 16"))
    with pytest.raises(CheckpointError, match=r"misshapen: quantizer\.\w+ .*\[16, 8\].*\[8, 8\]"):
        load.load_world(folder)


def test_a_config_that_was_changed_to_another_world_of_the_same_weights_is_refused(run) -> None:
    """Finished or not. Which attention computes it may change."""
    folder, _, _ = run
    config = folder / "config.yaml"
    saved = config.read_text()
    told = r"config\.yaml: .*model\.tokenizer\.std: 0\.5 when trained, 0\.25 now"
    for step in ("finished", "unfinished"):
        config.write_text(saved.replace("  attention: auto", "  attention: sdpa"))
        load.load_world(folder)
        changed = saved.replace("std: 0.5", "std: 0.25", 1)
        assert changed != saved
        config.write_text(changed)
        with pytest.raises(ConfigError, match=told):
            load.load_world(folder)
        if step == "finished":
            with pytest.raises(ConfigError, match=told):
                export_run(folder, folder.parent / "exported")
            shutil.rmtree(folder / "weights")


def test_a_run_without_codes_yet_says_so(tiny, tmp_path) -> None:
    config = tiny()
    late = replace(config.model.quantizer, unquantized_steps=50)
    config = replace(config, model=replace(config.model, quantizer=late))
    assert build_trainer(config, out=tmp_path / "run").run().status == "finished"
    with pytest.raises(ConfigError, match=r"unquantized_steps 50\): it has no codes yet"):
        load.load_world(tmp_path / "run")


def test_a_run_that_goes_on_is_read_from_its_checkpoint_and_says_so(tiny, tmp_path, caplog) -> None:
    """Weights of the shorter run are not taken for the newer ones."""
    config, out = tiny("nano.frozen_world"), tmp_path / "run"
    build_trainer(config, out=out).run()
    longer = replace(config, training=replace(config.training, max_steps=3, checkpoint_every=1))
    trainer = build_trainer(longer, out=out, resume=True)
    ask = trainer.distributed.agree
    trainer.distributed.agree = lambda flag: ask(True)  # interrupted after the next step
    trainer.distributed.gather = lambda value: [value or "SIGTERM"]
    assert trainer.run().step == 2
    caplog.set_level("INFO")
    world, _ = load.load_world(out)
    assert f"{out} is not finished; read from step_0_0000002" in caplog.text
    for name, value in world.model.idm.state_dict().items():
        assert torch.equal(value, trainer.model.idm.state_dict()[name])


def test_a_generator_that_knows_held_out_episodes_is_told(tiny, tmp_path, caplog) -> None:
    config = replace(tiny(), backbone_weights=str(tmp_path))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    check_backbone_data(config)
    assert not caplog.records
    check_backbone_data(replace(config, data=replace(config.data, holdout=0.5)))
    assert "held-out episodes may be known to it" in caplog.text
    caplog.clear()
    check_backbone_data(replace(config, data=replace(config.data, path=tmp_path, holdout=0.5)))
    assert not caplog.records


def test_a_generator_of_another_size_is_told(tiny, tmp_path, caplog) -> None:
    config = replace(tiny(), backbone_weights=str(tmp_path))
    sized = replace(config, data=replace(config.data, height=48, width=64))
    (tmp_path / "config.yaml").write_text(to_yaml(sized))
    check_backbone_data(sized)
    assert not caplog.records
    check_backbone_data(config)
    assert "(data.height and data.width 48 and 64; here None and None)" in caplog.text


def test_a_run_without_a_conditioner_says_what_it_is_good_for() -> None:
    why = load.without_world(("idm", "quantizer", "adapter"))
    assert why.startswith("it has no conditioner, so there are no latent actions to roll out")
    assert "start from its idm, quantizer, adapter with init_from" in why
    assert load.without_world(("idm", "quantizer", "conditioner", "fdm")) is None
    assert "--backbone-weights" in load.without_world(())


def test_a_generator_has_no_world(tiny, tmp_path) -> None:
    build_trainer(tiny("nano.pretrain"), out=tmp_path / "run").run()
    with pytest.raises(ConfigError, match=r"a run of nano\.pretrain: a video model, which has no"):
        load.load_world(tmp_path / "run")


def test_a_rollout_is_the_seeds_alone(run, generator) -> None:
    folder, _, _ = run
    world, _ = load.load_world(folder)
    history = torch.rand(2, 1, 3, 24, 32, generator=generator)
    codes = world.lookup(torch.tensor([[[1], [2]], [[3], [3]]]))
    assert codes.shape == (2, 2, 1, 8)

    def roll(seed: int):
        return world.rollout(history, codes, generator=torch.Generator().manual_seed(seed))

    video = roll(1)
    assert video.frames.shape == (2, 3, 3, 24, 32) and video.history == 1
    assert torch.equal(video.frames[:, :1], history)
    assert torch.equal(video.frames, roll(1).frames)
    assert not torch.equal(video.frames, roll(2).frames)


def test_the_horizon_is_eight_or_what_the_episodes_allow(run) -> None:
    folder, config, _ = run
    told = []
    made = load.evaluate_run(folder, progress=lambda *at: told.append(at))
    assert made.result["counts"]["horizon"] == 8  # 10 frames would allow 9
    assert told[-1][0] == told[-1][1]
    strided = replace(config, data=replace(config.data, stride=2))
    # frames 0 2 4 6 8 of ten: one given, four predicted
    assert load.evaluate_run(folder, config=strided).result["counts"]["horizon"] == 4
    longer = replace(strided, evaluation=replace(config.evaluation, history=3))
    assert load.evaluate_run(folder, config=longer).result["counts"]["horizon"] == 2
    asked = replace(config, evaluation=replace(config.evaluation, horizon=10))
    with pytest.raises(DataError, match=r"evaluation\.history 1 \+ evaluation\.horizon 10 frames"):
        load.evaluate_run(folder, config=asked)


def test_frames_that_do_not_fit_are_refused_before_the_work(run) -> None:
    folder, config, _ = run
    other = replace(config, data=replace(config.data, height=22, width=32))
    with pytest.raises(ConfigError, match=r"22x32 px .* --data\.height 24 --data\.width 32"):
        load.evaluate_run(folder, config=other)


def test_where_the_numbers_come_from(run) -> None:
    folder, _, trainer = run
    told = load.environment(folder)
    assert told["wall_seconds"] == pytest.approx(trainer.progress.seconds)
    assert told["versions"]["torch"] == torch.__version__ and told["threads"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", told["date"])
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", told["commit"])


def test_the_commit_is_unknown_without_git(monkeypatch) -> None:
    def absent(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert load.commit() == "unknown"


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
    found = load.evaluate_run(tmp_path / "run", config=asked).result
    assert found["text"]["change"] > 0.01
    assert found["text"]["loss_removed"] != found["text"]["loss_null_caption"]
    assert "flow loss without cross-attention" in table(found)
    assert "flow loss" not in table({**found, "text": None})

    plain = build_backbone(small)
    save_file(dict(plain.state_dict()), tmp_path / "generator.safetensors")
    with pytest.raises(WeightsError, match=r"missing .*cross_attn"):
        load.evaluate_run(tmp_path / "run", config=asked)


def test_a_backbone_without_text_says_so(from_outside) -> None:
    toy = Path(__file__).parents[1] / "models" / "backbones" / "plugin_backbone.py"
    from_outside(toy)
    (kind,) = (k for k in BackboneConfig.kinds() if k.kind == "toy")
    config = recipe("nano.cola")
    config = replace(config, model=replace(config.model, backbone=kind()))
    with pytest.raises(
        ConfigError, match=r"text_effect: a backbone of kind 'toy' has no cross-att"
    ):
        load._text_effect(config, None, iter(()), config.evaluation, "cpu")


def test_predicted_frames_are_whole_latents() -> None:
    whole = load.whole_latents
    assert [whole(h, 1, 1) for h in (1, 2, 8)] == [1, 2, 8]
    assert [whole(h, 1, 4) for h in (4, 7, 8, 11)] == [4, 4, 8, 8]
    assert [whole(h, 2, 4) for h in (3, 6, 7)] == [3, 3, 7]  # 5, 5 and 9 frames with the history
    with pytest.raises(DataError, match=r"3 frames can be predicted behind 1, .* of 4 .*too short"):
        whole(3, 1, 4)
