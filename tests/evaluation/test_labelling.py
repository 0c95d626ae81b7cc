"""Latent actions land on their frames: against moves known in closed form, and whole episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colaworld import envs
from colaworld.contracts import LatentActions
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig, EncodingConfig
from colaworld.data.errors import BrokenFileError
from colaworld.data.sources.lerobot_writer import LeRobotWriter
from colaworld.data.video_writer import VideoWriter
from colaworld.envs.scene import MOVES
from colaworld.evaluation import labelling
from colaworld.evaluation.labelling import label_episode
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel

SPEED, SIZE = 3, 32
SHIFTS = [(x, y) for x in (-2, -1, 0, 1, 2) for y in (-2, -1, 0, 1, 2)]  # in moves


def measured(frames: torch.Tensor) -> LatentActions:
    """An IDM that measures how the scene's camera moved, in moves: entries of `SHIFTS`."""
    x, reach = frames.float(), 2 * SPEED
    inner = x[:, 1:, :, reach:-reach, reach:-reach]
    errors = []
    for dx, dy in SHIFTS:
        rows = slice(reach + SPEED * dy, SIZE - reach + SPEED * dy)
        columns = slice(reach + SPEED * dx, SIZE - reach + SPEED * dx)
        error = (x[:, :-1, :, rows, columns] - inner).abs().flatten(2)
        errors.append(error.quantile(0.6, dim=2))  # the square stands still
    indices = torch.stack(errors).argmin(0)[..., None]
    return LatentActions(torch.tensor(SHIFTS).float()[indices], indices)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two episodes of the scene, 10 frames/s, and per episode its moves [n, 2] in (x, y)."""
    env = envs.make("scene")
    writer = LeRobotWriter(
        tmp_path_factory.mktemp("sets") / "scene",
        fps=10,
        height=SIZE,
        width=SIZE,
        action=env.action_spec,
    )
    moves = []
    for number, steps in enumerate((150, 20)):
        rng = np.random.default_rng(number)
        frames, actions = [env.reset(number)], rng.integers(0, 5, steps)
        for action in actions[:-1]:
            frames.append(env.step(int(action))[0])
        writer.add(np.stack(frames), actions)
        moves.append(np.array(MOVES)[actions])
    return writer.finish(), moves


def _clips(path, **options) -> ClipSet:
    return ClipSet(DataConfig(path=path, split="all", frames_per_clip=1, **options))


@pytest.mark.parametrize("rate", [{}, {"stride": 2}, {"fps": 5.0}])
def test_each_row_is_the_move_from_its_frame_on(scene, rate) -> None:
    path, moves = scene
    steps = 2 if rate else 1
    for episode, taken in enumerate(moves):
        found = label_episode(_clips(path, **rate), episode, measured, window=4, size=(1, 2, True))
        assert found.valid.tolist() == [True] * (len(taken) - steps) + [False] * steps
        wanted = sum(taken[i : len(taken) - steps + i] for i in range(steps))
        np.testing.assert_array_equal(found.vectors[:-steps], wanted)
        np.testing.assert_array_equal(np.array(SHIFTS)[found.codes[:-steps, 0]], wanted)
        assert (found.vectors[-steps:] == found.vectors[-steps - 1]).all()  # the row before again
    assert found.codes.dtype == np.int64 and found.vectors.dtype == np.float32


def test_a_rate_that_does_not_divide_the_films(scene) -> None:
    """10 frames/s asked at 4: 0.25 s after frame t frame t + 2 is shown."""
    path, moves = scene
    found = label_episode(_clips(path, fps=4.0), 0, measured, window=4, size=(1, 2, True))
    wanted = moves[0][:-2] + moves[0][1:-1]
    at = np.flatnonzero(found.valid)
    assert at.tolist() == list(range(147))  # 0.25 s before the end: frames 147, 148 and 149 are not
    np.testing.assert_array_equal(found.vectors[at], wanted[at])


def _film(path, *parts: np.ndarray):
    encoding = EncodingConfig()
    with VideoWriter(path, fps=10, height=SIZE, width=SIZE, encoding=encoding) as video:
        for part in parts:
            for frame in part:
                video.write(frame)
    return path


def _shot(seed: int, frames: int, low: int, high: int) -> np.ndarray:
    """A texture of its own brightness that moves a pixel a frame."""
    texture = np.random.default_rng(seed).integers(low, high, (8, 60, 3), np.uint8)
    texture = texture.repeat(4, 0).repeat(4, 1)
    return np.stack([texture[:SIZE, t : t + SIZE] for t in range(frames)])


def remembered(seen: list[torch.Tensor]):
    """An IDM that keeps the windows it is shown; its action is the mean of the last frame."""

    def infer(frames):
        seen.extend(frames)
        codes = frames[:, 1:].float().mean((2, 3, 4))[..., None, None]
        return LatentActions(codes)

    return infer


def test_cuts_end_a_row_and_the_past(tmp_path) -> None:
    lengths = (75, 14, 3, 40)  # cuts at 75, 89 and 92; one near the first block's end of 64 frames
    levels = ((0, 60), (180, 255), (60, 110), (190, 250))
    shots = [_shot(i, n, *level) for i, (n, level) in enumerate(zip(lengths, levels, strict=True))]
    _film(tmp_path / "a.mp4", *shots)
    clips, seen = _clips(tmp_path), []
    found = label_episode(clips, 0, remembered(seen), window=4, size=(1, 1, False), batch_size=5)
    total, cut = sum(lengths), {75, 89, 92}
    wanted = [t + 1 not in cut and t < total - 1 for t in range(total)]
    assert found.valid.tolist() == wanted and found.codes is None
    frames = np.concatenate([f for _, f in clips.stream(0, 0, total)])
    starts = [max([0, *(c for c in cut if c <= t)]) for t in range(total)]
    rows = [t for t in range(total) if wanted[t]]
    for t, window in zip(rows, seen, strict=True):
        first = max(starts[t], t - 2)
        assert torch.equal(window, torch.from_numpy(frames[first : t + 2])), t
        assert found.vectors[t, 0] == pytest.approx(frames[t + 1].mean(), rel=1e-5)
    for t in cut:
        assert found.vectors[t - 1] == found.vectors[t - 2]
    strided = label_episode(
        _clips(tmp_path, stride=3), 0, remembered([]), window=4, size=(1, 1, False)
    )
    crossing = {t for c in cut for t in (c - 3, c - 2, c - 1)}
    assert np.flatnonzero(~strided.valid).tolist() == sorted(crossing | {129, 130, 131})
    off = label_episode(
        _clips(tmp_path, scene_cut_threshold=0.0), 0, remembered([]), window=4, size=(1, 1, False)
    )
    assert off.valid.sum() == total - 1


@pytest.fixture(scope="module")
def world() -> World:
    torch.manual_seed(0)
    idm = IDMConfig(depth=2, width=32, heads=2, tokens=2, dim=4)
    config = ModelConfig(idm=idm, quantizer=VQConfig(unquantized_steps=0), window=5)
    return World(WorldModel(config).eval(), frame_size=(SIZE, SIZE))


@pytest.mark.parametrize("stride", [1, 3])
def test_a_row_is_what_the_whole_episode_gives(scene, world, stride) -> None:
    path, _ = scene
    clips = _clips(path, stride=stride, scene_cut_threshold=0.0)
    frames = torch.from_numpy(np.concatenate([f for _, f in clips.stream(0, 0, 150)]))
    found = label_episode(clips, 0, world.infer_actions, window=5, size=(2, 4, True), batch_size=16)
    assert len(np.unique(found.codes)) > 2
    for phase in range(stride):
        whole = world.infer_actions(frames[None, phase::stride])
        rows = slice(phase, 150 - stride, stride)
        np.testing.assert_array_equal(found.codes[rows], whole.indices[0].numpy())
        np.testing.assert_array_equal(found.vectors[rows], whole.codes[0].flatten(1).numpy())


def test_rows_do_not_depend_on_how_an_episode_is_read(scene, world, monkeypatch) -> None:
    clips = _clips(scene[0])
    made = []
    for read, batch_size in ((64, 32), (7, 32), (64, 1), (13, 50)):
        monkeypatch.setattr(labelling, "_READ", read)
        options = {"window": 5, "size": (2, 4, True), "batch_size": batch_size}
        made.append(label_episode(clips, 0, world.infer_actions, **options))
    for other in made[1:]:
        np.testing.assert_array_equal(other.codes, made[0].codes)
        np.testing.assert_array_equal(other.vectors, made[0].vectors)


def test_memory_holds_no_whole_episode(scene) -> None:
    held = []

    def infer(frames):
        held.append(len(frames))
        return remembered([])(frames)

    label_episode(_clips(scene[0]), 0, infer, window=4, size=(1, 1, False), batch_size=8)
    assert max(held) == 8 and sum(held) == 149


def test_what_is_too_short_or_of_one_value(tmp_path) -> None:
    one = tmp_path / "one"
    _film(one / "a.mp4", _shot(0, 1, 0, 200))
    found = label_episode(_clips(one), 0, remembered([]), window=4, size=(2, 3, True))
    assert not found.valid.any() and not found.codes.any() and found.vectors.shape == (1, 6)
    flat = tmp_path / "flat"
    _film(flat / "a.mp4", np.full((5, SIZE, SIZE, 3), 128, np.uint8))
    with pytest.raises(BrokenFileError, match="nothing but the value"):
        label_episode(_clips(flat), 0, remembered([]), window=4, size=(1, 1, False))


def test_a_step_comes_before_each_batch(scene) -> None:
    rows: list[int] = []
    label_episode(
        _clips(scene[0]),
        1,
        remembered([]),
        window=4,
        size=(1, 1, False),
        batch_size=8,
        step=rows.append,
    )
    assert rows == [0, 1, 2, 10, 18]  # windows of 2 and 3 frames, then of 4
