"""The atlas on a scene whose every frame is known: shifts, shares, real actions, pictures, the page."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from colaworld.contracts import ClipBatch, LatentActions, Rollout
from colaworld.envs.scene import Scene
from colaworld.evaluation.atlas import common_shift, draw_atlas
from colaworld.evaluation.report.atlas_page import pair_grid, real_lines, write_atlas

STEPS = 7


def played(episodes: int = 6) -> ClipBatch:
    """Clips of the scrolling scene under drawn actions; action 4 (down) never occurs."""
    env, rng = Scene(height=24, width=32, speed=3), np.random.default_rng(0)
    frames, actions = [], []
    for episode in range(episodes):
        shown, done = [env.reset(episode)], []
        for _ in range(STEPS):
            done.append(int(rng.choice(4, p=[0.1, 0.4, 0.3, 0.2])))
            shown.append(env.step(done[-1])[0])
        frames.append(np.stack(shown))
        actions.append(done)
    video = torch.from_numpy(np.stack(frames)).movedim(-1, 2)
    number = torch.arange(episodes)
    return ClipBatch(video, number, torch.zeros_like(number), torch.tensor(actions))


class Knowing:
    """Its codes are the real actions (two tokens: the action, and 1 where something moves)."""

    codebook_size: int | None = 5

    def __init__(self, clips: ClipBatch, tokens: int = 1) -> None:
        self.tokens, self.left = tokens, list(clips.actions)

    def infer_actions(self, frames):
        taken, self.left = self.left[: len(frames)], self.left[len(frames) :]
        actions = torch.stack(taken)
        indices = torch.stack([actions, (actions > 0).long()], dim=-1)[..., : self.tokens]
        codes = indices[..., None].float()
        return LatentActions(codes, None if self.codebook_size is None else indices)

    def lookup(self, indices):
        return indices[..., None].float()


class Rolling(Knowing):
    """It brightens the frame by a tenth of the code at every step."""

    def rollout(self, history, codes, *, generator):
        frames = [history[:, 0]]
        for code in codes.unbind(1):
            frames.append(frames[-1] + 0.1 * code[:, :1, None])
        return Rollout(torch.stack(frames, dim=1).clamp(0, 1), 1)


def atlas_of(kind=Knowing, *, tokens: int = 1, **options):
    clips = played()
    made = draw_atlas(kind(clips, tokens), clips, Scene().action_spec, batch_size=4, **options)
    return clips, made


def test_each_action_and_what_happens_under_it() -> None:
    clips, atlas = atlas_of()
    real = clips.actions.flatten()
    assert (atlas.transitions, atlas.episodes, atlas.actions) == (42, 6, 4)
    assert [entry.count for entry in atlas.entries] == sorted(
        (int((real == a).sum()) for a in range(4)), reverse=True
    )
    # The camera moves by three pixels, so the floor moves the other way.
    shifts = {0: (0, 0), 1: (3, 0), 2: (-3, 0), 3: (0, 3)}
    for entry in atlas.entries:
        (action,) = entry.codes
        assert entry.shift == shifts[action] and entry.agreement > 0.9
        assert entry.real == ((Scene().action_spec.names[action], 1.0),)
        assert entry.share == pytest.approx(float((real == action).float().mean()))
        assert entry.replay is None
    stood = next(entry for entry in atlas.entries if entry.codes == (0,))
    assert (stood.difference == 128).all()  # nothing changes
    first = stood.examples[0]
    assert (first[0] == first[1]).all()


def test_examples_are_transitions_of_the_set() -> None:
    clips, atlas = atlas_of(examples=2)
    pairs = {
        (a.tobytes(), b.tobytes())
        for video in clips.frames.movedim(2, -1).numpy()
        for a, b in itertools.pairwise(video)
    }
    for entry in atlas.entries:
        assert entry.examples.shape == (2, 2, 24, 32, 3)
        assert all((a.tobytes(), b.tobytes()) in pairs for a, b in entry.examples)


def test_replays_hold_each_action_from_one_start() -> None:
    clips, atlas = atlas_of(Rolling, steps=2)
    start = clips.frames[0, 0].movedim(0, -1).numpy()
    for entry in atlas.entries:
        assert (entry.replay[0] == start).all() and entry.replay.shape == (3, 24, 32, 3)
        brighter = np.clip(start / 255 + 0.2 * entry.codes[0], 0, 1)
        assert np.abs(entry.replay[2] / 255 - brighter).max() < 0.01
    assert all(e.replay is None for e in atlas_of(Rolling, steps=0)[1].entries)


def test_pairs_of_two_tokens() -> None:
    clips, atlas = atlas_of(tokens=2)
    real = clips.actions.flatten().numpy()
    expected = np.zeros((5, 5))
    np.add.at(expected, (real, (real > 0).astype(int)), 1 / len(real))
    np.testing.assert_allclose(atlas.grid, expected)
    assert {e.codes for e in atlas.entries} == {(0, 0), (1, 1), (2, 1), (3, 1)}
    assert pair_grid(atlas.grid).count("<rect") == 4
    assert atlas_of()[1].grid is None


def test_continuous_latents_are_grouped() -> None:
    class Continuous(Knowing):
        codebook_size = None

    clips, atlas = atlas_of(Continuous, limit=4)
    assert sorted(e.count for e in atlas.entries) == sorted(np.bincount(clips.actions.flatten()))
    assert all(e.codes == () and e.name.startswith("latent ") for e in atlas.entries)


@pytest.mark.parametrize(
    ("wrong", "least"),
    [({"limit": 0}, 1), ({"examples": 1.5}, 0), ({"steps": -1}, 0), ({"seed": "a"}, 0)],
)
def test_counts_that_are_none_are_named(wrong, least) -> None:
    (name,) = wrong
    with pytest.raises(
        ValueError, match=rf"draw_atlas: {name}: expected a whole number >= {least}"
    ):
        atlas_of(Knowing, **wrong)


def test_shift_by_hand() -> None:
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    before = wide[:, 8:32, 8:32]
    assert common_shift(before, wide[:, 6:30, 8:32]) == ((0, 2), 1.0)  # content moves down
    assert common_shift(before, wide[:, 8:32, 11:35]) == ((-3, 0), 1.0)  # and to the left
    assert common_shift(before, before) == ((0, 0), 1.0)


def test_the_page(tmp_path) -> None:
    _, atlas = atlas_of(Rolling, tokens=2)
    page = write_atlas(
        tmp_path / "atlas.html", atlas, title="A <world>", version="0", made="m", again="g"
    ).read_text()
    assert "A &lt;world&gt;" in page and "4 of 25 actions (2 tokens of 5 codes) occur" in page
    assert "left 100%" in page and "replay under 1·1" in page and 'src="http' not in page
    assert "Pairs of codes" in page and "<script" not in page
    names = Scene().action_spec.names
    assert [real_lines(e, ()) for e in atlas.entries] == [
        [f"{names[e.codes[0]]} 100%"] for e in atlas.entries
    ]
