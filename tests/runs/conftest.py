"""A tiny run made through `build_trainer`, for the tests of this room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colaworld.data.config import EncodingConfig
from colaworld.data.video_writer import VideoWriter
from colaworld.envs.scene import Scene
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import FDMConfig, IDMConfig
from colaworld.recipes import recipe
from colaworld.runs.build import build_trainer
from colaworld.runs.config import RunConfig


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Equal runs are equal bytes only on equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    """Twenty mp4s of 10 frames, 24x32 px; two are held out."""
    folder = tmp_path_factory.mktemp("films")
    encoding = EncodingConfig(pixel_format="yuv420p")
    for number in range(20):
        world = Scene(height=24, width=32)
        frame = world.reset(number)
        path = folder / f"{number:02d}.mp4"
        with VideoWriter(path, fps=10, height=24, width=32, encoding=encoding) as video:
            for step in range(10):
                video.write(frame)
                frame, _ = world.step((number + step) % 5)
    return folder


@pytest.fixture(scope="session")
def tiny(films):
    """tiny(recipe name) -> its RunConfig with the smallest models, one step a phase, on `films`."""

    def make(name: str = "nano.cola") -> RunConfig:
        config = recipe(name)
        model = ModelConfig(
            backbone=STDiT3Config(depth=1, width=32, heads=1),
            idm=IDMConfig(depth=1, width=32, heads=1),
            conditioner=ConditionerConfig(depth=1, heads=1),
            fdm=FDMConfig(depth=1, width=32, heads=1),
        )
        return replace(
            config,
            backbone_weights=None,
            model=model,
            data=replace(config.data, path=films),
            objective=replace(config.objective, start_clips=8),
            training=replace(config.training, batch_size=2, max_steps=1, tensorboard=False),
            sampler=replace(config.sampler, steps=1),
            evaluation=EvaluationConfig(
                clips=4, probe_clips=4, bootstrap_samples=10, shown_codes=2, shown_starts=1
            ),
        )

    return make


@pytest.fixture
def run(tiny, tmp_path):
    """A finished tiny nano.cola with an averaged model."""
    config = tiny()
    config = replace(config, training=replace(config.training, ema_decay=0.9))
    trainer = build_trainer(config, out=tmp_path / "run")
    assert trainer.run().status == "finished"
    return tmp_path / "run", config, trainer
