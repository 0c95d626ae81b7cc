"""Sizes that do not fit are told before anything is built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colaworld.config import ConfigError
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.runs.sizes import check_frames, check_heads, check_history, check_window

LAM = ("idm", "quantizer", "conditioner")


@pytest.mark.parametrize(("height", "width"), [(28, 36), (4, 4), (224, 400)])
def test_whole_patches_pass(height, width) -> None:
    check_frames(ModelConfig(), LAM, height=height, width=width, frames=2)


@pytest.mark.parametrize(
    ("height", "width", "near"),
    [(30, 36, (32, 36)), (29, 36, (28, 36)), (28, 37, (28, 36)), (1, 1, (4, 4))],
)
def test_the_error_names_the_nearest_size_that_fits(height, width, near) -> None:
    with pytest.raises(ConfigError) as caught:
        check_frames(ModelConfig(), LAM, height=height, width=width, frames=4)
    assert f"--data.height {near[0]} --data.width {near[1]}" in str(caught.value)
    check_frames(ModelConfig(), LAM, height=near[0], width=near[1], frames=4)


def test_the_patch_of_the_idm_counts_only_where_there_is_one() -> None:
    model = ModelConfig(idm=IDMConfig(patch=7))
    check_frames(model, (), height=32, width=32, frames=4)
    check_frames(model, LAM, height=28, width=56, frames=4)
    with pytest.raises(ConfigError, match="height must be a multiple of 28 and width of 28"):
        check_frames(model, LAM, height=32, width=32, frames=4)
    oblong = replace(model, backbone=STDiT3Config(patch=(1, 1, 4)))
    check_frames(oblong, (), height=34, width=40, frames=4)
    with pytest.raises(ConfigError, match="a multiple of 2 and width of 8"):
        check_frames(oblong, (), height=34, width=36, frames=4)


def test_an_action_needs_two_frames() -> None:
    with pytest.raises(ConfigError, match=r"data\.frames_per_clip: expected at least 2"):
        check_frames(ModelConfig(), LAM, height=32, width=32, frames=1)


def test_heads_share_a_width_evenly() -> None:
    check_heads(ModelConfig(), (*LAM, "fdm"))
    for heads in (5, 32):  # 32 heads of 96 leave 3 channels, which is odd
        model = ModelConfig(backbone=STDiT3Config(heads=heads))
        with pytest.raises(ConfigError, match=rf"model\.backbone\.heads: .* 96, got {heads}"):
            check_heads(model, ())
    narrow = ModelConfig(backbone=STDiT3Config(width=32, heads=1))
    check_heads(narrow, ())  # a conditioner of 3 heads is not built
    with pytest.raises(ConfigError, match=r"model\.conditioner\.heads: .* 32 \(the backbone's\)"):
        check_heads(narrow, LAM)


@pytest.mark.parametrize("asked", [(0, 3), (3, 2), (4, 5)])
def test_a_history_that_leaves_nothing_is_refused_at_the_start(asked) -> None:
    """Not in the second phase, behind the first."""
    check_history(ModelConfig(), frames=4, history=(3, 9), frozen_history=None)
    for name in ("history", "frozen_history"):
        with pytest.raises(ConfigError, match=rf"objective\.{name}: \(.*leaves nothing.*most < 4"):
            check_history(ModelConfig(), frames=4, **{name: asked})


def test_a_window_other_than_the_clips_of_training_is_told(caplog) -> None:
    check_window(ModelConfig(window=4), frames=4, most_history=3)
    assert not caplog.records
    check_window(ModelConfig(window=4), frames=8, most_history=3)
    assert "set --model.window 8" in caplog.text
    caplog.clear()
    check_window(ModelConfig(window=8), frames=8, most_history=3)
    assert "--objective.history to 7" in caplog.text
    with pytest.raises(ConfigError, match=r"model\.window: expected at least 2.*got 1"):
        check_window(ModelConfig(window=1), frames=4, most_history=3)
