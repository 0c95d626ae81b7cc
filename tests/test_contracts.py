"""The dataclasses between rooms: what they refuse, and what they say."""

from __future__ import annotations

import pytest
import torch

from colaworld.contracts import ActionSpec, ClipBatch, LatentActions, Rollout, to_float


def clips(b: int = 2, t: int = 3) -> dict:
    return {
        "frames": torch.zeros(b, t, 3, 4, 6, dtype=torch.uint8),
        "episode": torch.arange(b),
        "start": torch.arange(b),
    }


def test_clip_batch_prints_shapes_counts_clips_and_moves():
    batch = ClipBatch(**clips(), actions=torch.zeros(2, 2, 5))
    assert repr(batch) == "ClipBatch(frames=[2, 3, 3, 4, 6], actions=[2, 2, 5])"
    assert len(batch) == 2
    assert repr(ClipBatch(**clips())) == "ClipBatch(frames=[2, 3, 3, 4, 6], actions=None)"
    moved = batch.to("meta")
    fields = (moved.frames, moved.episode, moved.start, moved.actions)
    assert {x.device.type for x in fields} == {"meta"}
    assert ClipBatch(**clips()).to("meta").actions is None
    stored = ClipBatch(**clips(), latents=torch.zeros(2, 4, 2, 1, 1))
    assert repr(stored).endswith("actions=None, latents=[2, 4, 2, 1, 1])")
    assert ClipBatch(**clips(), fps=torch.ones(2)).to("meta").fps.is_meta
    with pytest.raises(ValueError, match=r"ClipBatch\.fps: expected \[2\], got \(3,\)"):
        ClipBatch(**clips(), fps=torch.ones(3))
    assert stored.to("meta").latents.is_meta and ClipBatch(**clips()).to("meta").latents is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(2, 3, 3, 4, 6)}, r"frames: expected uint8 .* got torch.float32"),
        ({"frames": torch.zeros(2, 3, 4, 6, 3, dtype=torch.uint8)}, r"\(2, 3, 4, 6, 3\)"),
        ({"frames": torch.zeros(3, 3, 4, 6, dtype=torch.uint8)}, r"expected uint8 \[B, T, 3"),
        ({"episode": torch.arange(3)}, r"episode: expected int64 \[2\], got torch.int64 \(3,\)"),
        ({"start": torch.arange(2).float()}, r"start: expected int64 \[2\], got torch.float32"),
        ({"actions": torch.zeros(2, 3)}, r"actions: expected \[2, 2, ...\] \(one per transition\)"),
        ({"actions": torch.zeros(1, 2)}, r"got \(1, 2\)"),
        (
            {"latents": torch.zeros(2, 4, 4, 1, 1)},
            r"latents: expected \[2, C, T', h, w\] with 1 <=",
        ),
        ({"latents": torch.zeros(1, 4, 3, 1, 1)}, r"got \(1, 4, 3, 1, 1\)"),
        ({"latents": torch.zeros(2, 4, 3, 1, 1).int()}, r"a float dtype, got torch.int32"),
    ],
)
def test_clip_batch_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        ClipBatch(**(clips() | change))


def test_latent_actions_check_codes_and_indices():
    codes, indices = torch.zeros(2, 3, 1, 8), torch.zeros(2, 3, 1, dtype=torch.int64)
    assert repr(LatentActions(codes, indices)) == (
        "LatentActions(codes=[2, 3, 1, 8], indices=[2, 3, 1])"
    )
    assert LatentActions(codes).indices is None
    with pytest.raises(ValueError, match=r"codes: expected \[B, T-1, N, d\], got \(2, 3, 8\)"):
        LatentActions(codes[:, :, 0])
    with pytest.raises(
        ValueError, match=r"indices: expected int64 \[2, 3, 1\], got .* \(2, 2, 1\)"
    ):
        LatentActions(codes, indices[:, :2])
    with pytest.raises(ValueError, match=r"indices: expected int64 .*, got torch.int32"):
        LatentActions(codes, indices.int())


def test_rollout_separates_history_from_what_was_generated():
    frames = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(1, 5, 3, 2, 2)
    made = Rollout(frames, history=2)
    assert made.generated[0, :, 0, 0, 0].tolist() == [2, 3, 4]
    assert repr(made) == "Rollout(frames=[1, 5, 3, 2, 2], history=2)"
    for history in (0, 6):
        with pytest.raises(ValueError, match=rf"history: expected 1..5, got {history}"):
            Rollout(frames, history=history)
    with pytest.raises(ValueError, match=r"frames: expected float .*, got torch.uint8"):
        Rollout(frames.to(torch.uint8), history=1)


def test_action_spec_checks_kind_size_and_names():
    assert ActionSpec("action", "discrete", 2, ("left", "right")).names == ("left", "right")
    with pytest.raises(ValueError, match=r"kind: expected 'discrete' or 'continuous', got 'text'"):
        ActionSpec("action", "text", 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"size: expected >= 1, got 0"):
        ActionSpec("action", "discrete", 0)
    with pytest.raises(ValueError, match=r"names: expected 0 or 3 names, got \("):
        ActionSpec("action", "continuous", 3, ("x", "y"))
    with pytest.raises(ValueError, match=r"units: expected 0 or 2 units, got 'rad'"):
        ActionSpec("action", "continuous", 2, units="rad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mode: expected 'absolute', 'relative' or '' .* 'delta'"):
        ActionSpec("action", "continuous", 2, mode="delta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"classes have no units, mode or frame, .* 'base'"):
        ActionSpec("action", "discrete", 2, frame="base")


def test_only_bytes_are_scaled_and_the_callers_frames_stay_as_they_are() -> None:
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert to_float(frames).tolist() == pytest.approx([0, 0.2, 1])
    assert frames.tolist() == [0, 51, 255]
    with pytest.raises(ValueError, match=r"expected uint8 frames, got torch.float32"):
        to_float(frames.float())
