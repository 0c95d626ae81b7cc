"""A run read back: its configuration and its weights."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from colaworld.config import ConfigError, to_yaml
from colaworld.files import FileError
from colaworld.runs import load
from colaworld.runs.build import build_trainer, check_backbone_data
from colaworld.runs.pretrained import export_run
from colaworld.training.checkpoint import CheckpointError, latest_checkpoint


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
