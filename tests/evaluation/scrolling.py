"""A scrolling scene for tests of evaluation: a move rolls the picture by one known step."""

from __future__ import annotations

import torch

from colaworld.contracts import ActionSpec, ClipBatch, LatentActions, Rollout
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.rng import draw

MOVES = ((0, 2), (0, -2), (2, 0), (-2, 0))
SPEC = ActionSpec("action", "discrete", 4, names=("right", "left", "down", "up"))
VECTORS = ActionSpec("action", "continuous", 2, units=("px", "px"))
SIGMA = 0.02
SMALL = EvaluationConfig(
    clips=24, probe_clips=40, batch_size=8, bootstrap_samples=200, history=2, seed=3
)


def shift(frame, move):
    return torch.roll(frame, MOVES[int(move)], dims=(-2, -1))


class ScrollWorld:
    """Reads the move off by trying all four; rolls the picture by the code, plus a little noise."""

    codebook_size, tokens = 4, 1

    def __init__(self, *, deaf=False, blind=False):
        self.deaf, self.blind = deaf, blind
        self.book = torch.eye(4)

    def lookup(self, indices):
        return self.book[indices]

    def infer_actions(self, frames):
        errors = torch.stack(
            [(shift(frames[:, :-1], k) - frames[:, 1:]).square().mean((2, 3, 4)) for k in range(4)]
        )
        indices = errors.argmin(0)[..., None]
        if self.blind:
            indices = torch.zeros_like(indices)
        return LatentActions(self.lookup(indices), indices)

    def rollout(self, history, codes, *, generator):
        frames = list(history.unbind(1))
        for t in range(history.shape[1] - 1, codes.shape[1]):
            moves = codes[:, t, 0].argmax(-1)
            frames.append(
                frames[-1]
                if self.deaf
                else torch.stack([shift(f, m) for f, m in zip(frames[-1], moves, strict=True)])
            )
        video = torch.stack(frames, dim=1)
        noise = SIGMA * draw(torch.randn, video.shape, generator, large=True)
        noise[:, : history.shape[1]] = 0
        return Rollout(video + noise, history.shape[1])


def batches(*, clips=40, steps=5, actions=True, episodes=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randint(0, 4, (clips, steps), generator=generator)
    for rows in torch.arange(clips).split(8):
        videos = []
        for r in rows:
            frame = torch.randint(40, 215, (3, 12, 14), generator=generator, dtype=torch.uint8)
            video = [frame]
            for m in moves[r]:
                video.append(shift(video[-1], m))
            videos.append(torch.stack(video))
        yield ClipBatch(
            torch.stack(videos), rows % episodes, rows * 10, moves[rows] if actions else None
        )


def moved_batches():
    """The same clips with the moves as real vectors."""
    for batch in batches():
        moved = torch.tensor(MOVES, dtype=torch.float32)[batch.actions]
        yield ClipBatch(batch.frames, batch.episode, batch.start, moved)


class ContinuousWorld(ScrollWorld):
    codebook_size = None

    def infer_actions(self, frames):
        return LatentActions(super().infer_actions(frames).codes)
