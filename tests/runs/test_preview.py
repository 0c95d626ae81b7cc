"""Previews show the truth above a rollout, always the same clips, and disturb nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from colaworld.data.clips import ClipSet
from colaworld.data.loader import ClipLoader
from colaworld.models.world import World
from colaworld.runs.build import build_model, build_trainer
from colaworld.runs.preview import RolloutPreview, first_clips


def test_the_clips_are_held_out_where_any_are(tiny) -> None:
    data = tiny().data
    clips = first_clips(data, clips=4).frames
    assert clips.shape == (4, 4, 3, 24, 32) and clips.dtype == torch.uint8
    heldout = ClipSet(replace(data, split="heldout"))
    firsts = [heldout.decoded(p).frames[:4] for p in heldout.segments]
    for number in (0, 1):  # the first clip of each of the two held-out episodes comes first
        assert any((clips[number].numpy() == first).all() for first in firsts)
    assert first_clips(replace(data, holdout=0.0), clips=3).frames.shape[0] == 3
    assert first_clips(replace(data, holdout=0.0), clips=3, splits=("heldout",)) is None


def test_truth_above_rollout_and_equal_noise(tiny) -> None:
    config = tiny()
    model = build_model(config)
    clips = first_clips(config.data, clips=2).frames
    preview = RolloutPreview(World(model, config.sampler), clips, seed=1)
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    model.idm.train()
    model.backbone.eval()
    video = preview(10, "warmup")
    assert video.shape == (2, 4, 48, 32, 3) and video.dtype == torch.uint8
    assert torch.equal(video[:, :, :24], clips.movedim(2, -1))
    assert torch.equal(video[:, 0, 24:], video[:, 0, :24])  # the frame that is given
    assert not torch.equal(video[:, 1:, 24:], video[:, 1:, :24])
    assert torch.equal(preview(20, "joint"), video)
    assert model.idm.training and not model.backbone.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1)
    assert not torch.equal(preview(30, "joint"), video)  # it shows the model as it stands


def test_a_plain_generator_has_a_preview_too(tiny) -> None:
    config = tiny("nano.pretrain")
    clips = first_clips(config.data, clips=1).frames
    preview = RolloutPreview(World(build_model(config), config.sampler), clips, seed=0)
    assert preview(1, "pretrain").shape == (1, 4, 48, 32, 3)


def test_a_trainer_previews_only_when_asked(tiny, tmp_path) -> None:
    config = tiny()
    assert build_trainer(config, out=tmp_path).preview is None
    shown = replace(config.training, sample_every=5, tensorboard=True)
    trainer = build_trainer(replace(config, training=shown), out=tmp_path)
    assert isinstance(trainer.preview, RolloutPreview)
    loader = ClipLoader(config.data, batch_size=2, seed=config.training.seed)
    assert trainer.loader.state_dict() == loader.state_dict()
    assert torch.equal(next(trainer.loader).frames, next(loader).frames)
    trainer.loader.close()
    loader.close()
