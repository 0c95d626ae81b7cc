"""Steering measured on worlds whose answer is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from colaworld.contracts import ClipBatch, LatentActions, Rollout
from colaworld.evaluation.artefacts import EveryCode
from colaworld.evaluation.evaluate import collect
from colaworld.evaluation.rollouts import VARIANTS, derangement, infer, stream, variant_codes
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.image import psnr
from colaworld.rng import draw

LEVELS = (0.2, 0.6)  # a transition under code k makes the next frame flat, of brightness LEVELS[k]
OFFSET = 0.1  # what the world adds by mistake, so that even true codes give a finite PSNR
RIGHT = -20 * math.log10(OFFSET)  # 20 dB
WRONG = (-20 * math.log10(0.4 + OFFSET), -20 * math.log10(0.4 - OFFSET))  # 0 taken for 1, 1 for 0


class FlatWorld:
    """Codes decide the brightness of the next frame; `deaf` worlds answer code 0 always."""

    codebook_size, tokens = 2, 1

    def __init__(self, *, deaf: bool = False, noise: float = 0.0) -> None:
        self.deaf, self.noise = deaf, noise

    def infer_actions(self, frames):
        indices = (frames[:, 1:].mean(dim=(2, 3, 4)) > 0.4).long()[..., None]
        return LatentActions(self.lookup(indices), indices)

    def lookup(self, indices):
        return indices[..., None].float()

    def rollout(self, history, codes, *, generator):
        h = history.shape[1]
        future = codes[:, h - 1 :, 0, 0]
        level = torch.full_like(future, 0.4) if self.deaf else LEVELS[0] + 0.4 * future + OFFSET
        frames = level[:, :, None, None, None].expand(-1, -1, *history.shape[2:])
        frames = frames + self.noise * draw(torch.randn, frames.shape, generator, large=True)
        return Rollout(torch.cat([history, frames.clamp(0, 1)], dim=1), h)


def flat_clips(codes):
    """codes [M, T-1] -> uint8 clips [M, T, 3, 4, 4]; values 51 and 153 are exactly 0.2 and 0.6."""
    codes = torch.as_tensor(codes)
    values = torch.cat([torch.zeros(codes.shape[0], 1), 51 + 102.0 * codes], dim=1)
    return values.to(torch.uint8)[:, :, None, None, None].expand(-1, -1, 3, 4, 4).contiguous()


def scores(world, codes, episodes, *, history=1, batch_size=7, watch=lambda: None):
    """Variant -> PSNR [M, n] of the whole stream."""
    frames, episodes = flat_clips(codes), torch.as_tensor(episodes)
    clips = ClipBatch(frames, episodes, torch.zeros_like(episodes))
    variants = (*VARIANTS[:4], "copy")  # this world has no null action
    found = {name: [] for name in variants}
    for batch in stream(
        world,
        clips,
        infer(world, frames, batch_size=batch_size, device="cpu"),
        variants=variants,
        history=history,
        horizon=frames.shape[1] - history,
        rolled=len(frames),
        batch_size=batch_size,
        seed=0,
        watch=watch,
    ):
        for name in variants:
            found[name].append(psnr(batch.predicted(name), batch.truth).numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


@dataclass(frozen=True)
class RateWorld(FlatWorld):
    """Its frames show the frame rate it is told, out of 100."""

    fps: object = None

    def rollout(self, history, codes, *, generator):
        shown = self.fps[:, None, None, None, None] / 100
        later = shown.expand(-1, codes.shape[1] + 1 - history.shape[1], *history.shape[2:])
        return Rollout(torch.cat([history, later], dim=1), history.shape[1])


def test_a_world_is_told_the_frame_rate_of_each_clip():
    frames, rates = flat_clips([[0, 1]] * 5), torch.tensor([10.0, 20, 30, 40, 50])
    clips = ClipBatch(frames, torch.arange(5), torch.zeros(5).long(), fps=rates)
    world, batches = RateWorld(), [clips]
    kept = collect(batches, clips=5)
    about = {"variants": VARIANTS, "history": 1, "horizon": 2, "rolled": 5, "batch_size": 2}
    latent = infer(world, frames, batch_size=2, device="cpu")
    made = [
        b.predicted("random")[:, 0, 0, 0, 0] for b in stream(world, kept, latent, seed=0, **about)
    ]
    assert torch.cat(made).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    grid = EveryCode(world, latent, limit=8)
    starts = np.array([1, 4])
    videos = grid.roll(
        frames[starts, :1],
        latent.codes[starts, :0],
        fps=kept.fps[starts],
        steps=2,
        seed=0,
        device="cpu",
    )
    assert videos[:, :, 1:].reshape(2, -1).std(1).tolist() == [0, 0]
    assert videos[:, 0, 1, 0, 0, 0].tolist() == [51, 128]  # .2 and .5 of 255


def delta(found, variant):
    return (found["inferred"] - found[variant]).mean(axis=1)


def test_shuffled_and_copy_scores_are_exact():
    codes = [[0, 0, 0]] * 3 + [[1, 1, 1]] * 3  # two episodes of opposite codes
    found = scores(FlatWorld(), codes, [0] * 3 + [1] * 3)
    assert found["inferred"] == pytest.approx(np.full((6, 3), RIGHT), abs=1e-3)
    expected = [RIGHT - WRONG[0]] * 3 + [RIGHT - WRONG[1]] * 3
    assert delta(found, "shuffled") == pytest.approx(expected, abs=1e-3)
    black = [-20 * math.log10(0.2)] * 3 + [-20 * math.log10(0.6)] * 3
    assert found["copy"][:, 2] == pytest.approx(black, abs=1e-3)


def test_what_shuffled_replays_is_what_the_donors_did():
    codes = np.random.default_rng(4).integers(0, 2, size=(10, 4))
    frames, episodes = flat_clips(codes), torch.arange(10) // 2
    clips = ClipBatch(frames, episodes, episodes, torch.from_numpy(codes))
    latent = infer(FlatWorld(), frames, batch_size=4, device="cpu")
    about = {"variants": VARIANTS, "history": 2, "horizon": 3, "rolled": 10, "batch_size": 4}
    for batch in stream(FlatWorld(), clips, latent, seed=5, **about):
        lent = batch.donors
        assert (lent.clips.episode.numpy() != batch.episodes).all()
        assert (lent.clips.episode != batch.second.clips.episode).all()
        assert torch.equal(batch.codes["shuffled"][:, 1:], lent.latent.codes[:, 1:4])
        assert torch.equal(batch.codes["shuffled"][:, :1], batch.latent.codes[:, :1])
        assert torch.equal(lent.clips.frames, frames[lent.numbers])
        assert torch.equal(lent.clips.actions[..., None], lent.latent.indices)
        assert torch.equal(batch.codes["inferred"], batch.latent.codes)
        # an obedient world draws what it was told: .1 too bright, on the same side of .4
        read = batch.reinferred("shuffled").indices
        assert torch.equal(read, lent.latent.indices[:, 1:4])


def test_short_rollouts_share_their_noise_among_ways_and_not_among_streams():
    frames = flat_clips([[0, 1, 1]] * 6)
    clips = ClipBatch(frames, torch.arange(6), torch.zeros(6).long())
    world = FlatWorld(noise=0.01)
    latent = infer(world, frames, batch_size=4, device="cpu")
    about = {"variants": VARIANTS, "history": 2, "horizon": 2, "rolled": 6, "batch_size": 6}
    (batch,) = stream(world, clips, latent, seed=0, **about)
    ways = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1, 1).expand(6, -1, -1, -1, -1)
    made = batch.roll(ways, stream=RandomStream.LEAKAGE)
    assert made.shape == (6, 3, 1, 3, 4, 4)
    assert torch.equal(made[:, 1], made[:, 2])
    assert torch.allclose(made[:, 1] - made[:, 0], torch.tensor(0.4), atol=1e-6)
    other = batch.roll(ways, stream=RandomStream.SENSITIVITY)
    assert not torch.equal(other, made) and torch.equal(
        made, batch.roll(ways, stream=RandomStream.LEAKAGE)
    )


def test_random_codes_lose_by_the_known_amount():
    codes = np.random.default_rng(0).integers(0, 2, size=(200, 6))
    found = scores(FlatWorld(), codes, np.arange(200), batch_size=50)
    expected = 0.5 * (RIGHT - sum(WRONG) / 2)  # half of the codes are wrong, of either kind
    assert delta(found, "random").mean() == pytest.approx(expected, abs=0.5)
    assert delta(found, "constant").mean() == pytest.approx(expected, abs=0.7)
    assert delta(found, "shuffled").mean() == pytest.approx(expected, abs=0.5)


def test_noise_is_paired_so_a_deaf_world_gives_exactly_zero():
    codes = np.random.default_rng(1).integers(0, 2, size=(20, 4))
    found = scores(FlatWorld(deaf=True, noise=0.3), codes, np.arange(20))
    for name in VARIANTS[1:4]:
        assert (delta(found, name) == 0).all()
    assert found["inferred"].std() > 0  # there was noise


def test_the_history_is_left_alone():
    codes = np.random.default_rng(2).integers(0, 2, size=(9, 5))
    episodes = np.arange(9) // 2
    actions = infer(FlatWorld(), flat_clips(codes), batch_size=4, device="cpu")
    found = variant_codes(FlatWorld(), actions, episodes, history=3, seed=1)
    for name in VARIANTS[:4]:
        assert torch.equal(found[name][:, :2], actions.codes[:, :2])
    assert torch.equal(found["inferred"], actions.codes)
    constant = found["constant"][:, 2:, 0, 0]
    assert bool((constant == constant[:, :1]).all())
    assert not torch.equal(found["random"], actions.codes)
    again = variant_codes(FlatWorld(), actions, episodes, history=3, seed=1)
    assert found.keys() == again.keys() == set(VARIANTS[:4])
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_continuous_latents_borrow_from_other_clips():
    class Continuous(FlatWorld):
        codebook_size = None

        def lookup(self, indices):
            raise AssertionError("a continuous world has no codebook")

    codes = torch.arange(4.0)[:, None, None, None].expand(4, 3, 1, 1).contiguous()
    found = variant_codes(
        Continuous(), LatentActions(codes), np.array([0, 0, 1, 1]), history=1, seed=0
    )
    own = torch.arange(4)[:, None]
    for name in ("random", "shuffled", "constant"):
        assert bool(((found[name][..., 0, 0] >= 2) != (own >= 2)).all())  # the other episode


@pytest.mark.parametrize(
    "episodes", [[0, 1], [0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 1, 2], list(range(9)), [3, 1] * 5]
)
def test_derangement_moves_every_clip_and_changes_episode_where_it_can(episodes):
    episodes = np.array(episodes)
    for seed in range(5):
        other = derangement(episodes, generator=np.random.default_rng(seed))
        assert sorted(other) == list(range(len(episodes)))
        assert (other != np.arange(len(episodes))).all()
        if np.unique(episodes, return_counts=True)[1].max() * 2 <= len(episodes):
            assert (episodes[other] != episodes).all()
    with pytest.raises(ValueError, match="at least 2"):
        derangement(episodes[:1], generator=np.random.default_rng(0))


def test_clips_that_are_not_rolled_out_come_once_and_without_rollouts():
    codes = np.random.default_rng(3).integers(0, 2, size=(7, 3))
    frames, episodes = flat_clips(codes), torch.arange(7)
    real = torch.arange(21).view(7, 3)
    seen, called = [], []
    for batch in stream(
        FlatWorld(),
        ClipBatch(frames, episodes, episodes, real),
        infer(FlatWorld(), frames, batch_size=3, device="cpu"),
        variants={"inferred"},
        history=1,
        horizon=2,
        rolled=5,
        batch_size=3,
        seed=0,
        watch=lambda: called.append(1),
    ):
        clips = slice(batch.first, batch.first + len(batch.frames))
        seen += batch.episodes.tolist()
        assert torch.equal(batch.actions, real[clips])
        assert torch.equal(batch.latent.indices[..., 0], torch.from_numpy(codes[clips]))
        if batch.first < 5:
            assert set(batch.rollouts) == {"inferred"}
            assert batch.predicted("inferred").shape == batch.truth.shape
            assert torch.equal(batch.truth, frames[clips, 1:3] / 255.0)
        else:
            assert batch.rollouts == {} and batch.truth is None
    assert seen == list(range(7)) and len(called) == 2


def test_a_world_that_returns_other_shapes_is_named():
    class Short(FlatWorld):
        def rollout(self, history, codes, *, generator):
            full = super().rollout(history, codes, generator=generator)
            return Rollout(full.frames[:, :-1], full.history)

    class Lost(FlatWorld):
        def infer_actions(self, frames):
            return LatentActions(super().infer_actions(frames).codes)

    with pytest.raises(ValueError, match=r"World\.rollout: expected"):
        scores(Short(), [[0, 1], [1, 0]], [0, 1])
    with pytest.raises(ValueError, match="indices are None"):
        scores(Lost(), [[0, 1], [1, 0]], [0, 1])


class ObeyingWorld(FlatWorld):
    """Real actions are classes 0 and 1; it takes them the other way round."""

    obeys = True

    def follow(self, history, actions, *, generator):
        return self.rollout(history, self.lookup(1 - actions[..., None]), generator=generator)


def test_a_world_that_was_adapted_is_rolled_out_under_real_actions_too():
    codes = torch.tensor([[0, 1, 1], [1, 1, 0]])
    clips = ClipBatch(flat_clips(codes), torch.tensor([0, 1]), torch.tensor([0, 0]), 1 - codes)
    latent = LatentActions(codes[..., None, None].float(), codes[..., None])
    options = dict(variants=VARIANTS, history=1, horizon=3, rolled=2, batch_size=2, seed=0)
    world = ObeyingWorld(noise=0.05)
    (batch,) = stream(world, clips, latent, **options)
    # The adapter turns what was recorded back into the true codes: the same videos, noise and all.
    assert torch.equal(batch.rollouts["real"], batch.rollouts["inferred"])
    untold = ClipBatch(clips.frames, clips.episode, clips.start)
    for other, given in ((FlatWorld(), clips), (world, untold)):
        (batch,) = stream(other, given, latent, **options)
        assert "real" not in batch.rollouts and "inferred" in batch.rollouts
