"""Recipes of the published generators: the paper's figures, sizes that fit, presets per card."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from colaworld.config import ConfigError, load_yaml, to_yaml
from colaworld.data.config import EncodingConfig
from colaworld.data.video_writer import VideoWriter
from colaworld.envs.scene import Scene
from colaworld.models.backbones import build_backbone
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.tokenizers.config import DiffusersVAEConfig, OpenSoraVAEConfig
from colaworld.models.tokenizers.pixels import PixelTokenizer
from colaworld.models.world_model import WorldModel
from colaworld.recipes import recipe
from colaworld.runs.build import build_trainer
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import plan_memory, usable
from colaworld.runs.presets import PRESETS, with_preset
from colaworld.runs.sizes import check_frames, check_heads, check_window

NAMES = ("opensora.cola", "opensora.two_stage", "wan.cola")
CARDS = [(name, card) for name, cards in PRESETS.items() for card in cards]

TINY_VAE = OpenSoraVAEConfig(
    image_widths=(8, 8, 8, 8), image_layers=1, temporal_width=8, temporal_layers=1, groups=4
)


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_figures(name) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert config.training.batch_size * config.training.accumulate == 128
    steps = {"warmup": 5_000 if name == "wan.cola" else 8_000}
    for phase in config.scheduled():
        assert phase.steps == steps.get(phase.name, 30_000)
        assert (phase.learning_rate, phase.lr_warmup_steps, phase.cooldown_steps) == (
            7.5e-5,
            2_000,
            0,
        )
    idm = config.model.idm
    assert (idm.depth, idm.width, idm.heads, idm.tokens, idm.dim) == (12, 768, 12, 2, 32)
    assert (config.data.height // idm.patch) ** 2 == (224 // 14) ** 2  # tokens of a frame
    assert config.model.quantizer.codebook_size == 32
    assert (config.sampler.steps, config.sampler.guidance) == (10, 4.0)
    assert config.data.height // config.model.tokenizer.spatial_stride == 32  # latents


@pytest.mark.parametrize("name", NAMES)
def test_sizes_fit_each_other(name, caplog, tmp_path) -> None:
    config = recipe(name)
    data, frames = config.data, config.data.frames_per_clip
    check_heads(config.model, config.parts())
    check_frames(config.model, config.parts(), height=data.height, width=data.width, frames=frames)
    with caplog.at_level(logging.WARNING):
        check_window(config.model, frames=frames, most_history=config.objective.history[1])
    assert not caplog.records
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_yaml(tmp_path / "config.yaml", RunConfig) == config


@pytest.mark.parametrize(
    ("name", "backbone", "conditioner"),
    [("opensora.cola", 904_066_592, 74e6), ("wan.cola", 1_126_858_816, 130e6)],
)
def test_parameters(name, backbone, conditioner) -> None:
    """The paper: 0.90 B without text, 74 M new ones, about 0.12 B of inverse dynamics."""
    config = recipe(name)
    standing_in = PixelTokenizer()  # weights of the real one are not needed to count the others
    standing_in.channels = config.model.tokenizer.channels
    standing_in.temporal_stride = config.model.tokenizer.temporal_stride
    with torch.device("meta"):
        model = WorldModel(config.model, tokenizer=standing_in)
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    assert counts["backbone"] == backbone
    assert counts["conditioner"] == pytest.approx(conditioner, rel=0.02)
    assert counts["idm"] == pytest.approx(0.115e9, rel=0.02)


def test_noise_levels_are_shifted_as_the_generators_were_trained() -> None:
    for name in ("opensora.cola", "wan.cola"):
        config = recipe(name)
        with torch.device("meta"):
            backbone = build_backbone(config.model.backbone)
        shift = backbone.time_shift(5, 32, 32)
        assert config.objective.times.shift is None  # the video model's own
        assert config.sampler.shift == pytest.approx(shift)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_generator_is_trained_as_it_was(name) -> None:
    """And nano as its shipped weights were: told no rate, every predicted frame counted alike."""
    config, nano = recipe(name), recipe("nano.cola")
    assert config.objective.average == "clips" and nano.objective.average == "frames"
    assert config.objective.history == (1, 4)
    assert nano.objective.frozen_history is None
    if name.startswith("opensora"):
        assert config.objective.frozen_history == (1, 1)
        assert config.model.backbone.clip_fps and config.model.backbone.round_times
        assert not nano.model.backbone.clip_fps and not nano.model.backbone.round_times
    else:
        assert config.objective.frozen_history is None


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Four mp4s of 20 frames, 32x32 px."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        world = Scene(height=32, width=32)
        frame = world.reset(number)
        with VideoWriter(
            folder / f"{number}.mp4",
            fps=10,
            height=32,
            width=32,
            encoding=EncodingConfig(pixel_format="yuv420p"),
        ) as video:
            for step in range(20):
                video.write(frame)
                frame, _ = world.step((number + step) % 5)
    return folder


def shrunk(config: RunConfig, data: Path) -> RunConfig:
    """The recipe with the smallest models and random weights; clips, strides and patches stay."""
    model = config.model
    backbone = (
        replace(model.backbone, depth=1, width=32, heads=2)
        if isinstance(model.backbone, STDiT3Config)
        else replace(model.backbone, layers=1, heads=2, head_dim=16, ffn=32)
    )
    tokenizer = TINY_VAE if isinstance(model.tokenizer, OpenSoraVAEConfig) else model.tokenizer
    return replace(
        config,
        backbone_weights=None,
        model=replace(
            model,
            tokenizer=tokenizer,
            backbone=backbone,
            idm=replace(model.idm, depth=1, width=32, heads=2),
            conditioner=replace(model.conditioner, depth=1, heads=2),
            fdm=replace(model.fdm, depth=1, width=32, heads=2),
        ),
        data=replace(config.data, path=data, height=32, width=32, holdout=0.0, workers=0),
        objective=replace(config.objective, start_clips=4),
        training=replace(
            config.training,
            batch_size=2,
            accumulate=2,
            max_steps=1,
            tensorboard=False,
            recompute="blocks",
        ),
    )


@pytest.mark.parametrize("name", ["opensora.cola", "opensora.two_stage"])
def test_opensora_trains_a_step_of_each_phase(name, clips, tmp_path) -> None:
    config = shrunk(recipe(name), clips)
    trainer = build_trainer(config, out=tmp_path / "run")
    # told the rate of its clips, and saved with it: rollouts of this world go by it
    assert trainer.model.backbone.config.fps == 10.0
    assert yaml.safe_load(trainer.config_yaml)["model"]["backbone"]["fps"] == 10.0
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    assert trainer.run().status == "finished"
    assert trainer.model.conditioner.actions_per_frame == 4
    moved = {
        key.split(".")[0]
        for key, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    lam = {"idm", "quantizer", "fdm"} if name == "opensora.two_stage" else {"idm", "quantizer"}
    assert moved == {"backbone", "conditioner", *lam}


@pytest.mark.slow
def test_wan_trains_a_step_of_each_phase(clips, tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="Wan's VAE is that of diffusers ([vae])")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1)
    vae.save_pretrained(tmp_path / "vae")
    config = shrunk(recipe("wan.cola"), clips)
    assert isinstance(config.model.backbone, WanConfig)
    tokenizer = replace(config.model.tokenizer, path=str(tmp_path), subfolder="vae")
    assert isinstance(tokenizer, DiffusersVAEConfig)
    config = replace(config, model=replace(config.model, tokenizer=tokenizer))
    trainer = build_trainer(config, out=tmp_path / "run")
    assert trainer.run().status == "finished"
    assert {p["phase"] for p in trainer.progress.ended} == {"warmup", "joint"}


@pytest.mark.parametrize(("name", "card"), CARDS)
def test_a_preset_keeps_the_clips_of_an_update(name, card) -> None:
    config = recipe(name)
    changed = with_preset(config, card)
    assert changed.training.batch_size * changed.training.accumulate == 128
    same = replace(
        changed,
        training=config.training,
        model=replace(changed.model, tokenizer=config.model.tokenizer),
    )
    assert same == config  # nothing else changed


def test_what_is_no_preset() -> None:
    with pytest.raises(ConfigError, match=r"nano\.cola has none, got '24'"):
        with_preset(recipe("nano.cola"), "24")
    with pytest.raises(ConfigError, match=r"opensora\.cola has presets for .*, got '12'"):
        with_preset(recipe("opensora.cola"), "12")
    odd = recipe("opensora.cola")
    odd = replace(odd, training=replace(odd.training, batch_size=9, accumulate=1))
    with pytest.raises(ConfigError, match=r"passes of \d+ clips do not make up the 9"):
        with_preset(odd, "48")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "card"), CARDS)
def test_a_preset_fits_its_card(name, card) -> None:
    if name.startswith("wan"):
        pytest.importorskip("diffusers", reason="Wan's VAE is that of diffusers ([vae])")
    for phase in plan_memory(with_preset(recipe(name), card)):
        assert phase.total <= usable(float(card)), phase
