"""Latent actions measured without rollouts, on frames whose colour says the real action."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colaworld.contracts import ActionSpec, ClipBatch, LatentActionModel, LatentActions
from colaworld.evaluation.latents import measure_latents, side_by_side
from colaworld.evaluation.settings import EvaluationConfig

SPEC = ActionSpec("action", "discrete", 4)
CONFIG = EvaluationConfig(batch_size=3, bootstrap_samples=50)
CLIPS, STEPS = 40, 6


def batches(*, clips: int = CLIPS, seed: int = 0):
    """Frame t + 1 is as bright as the action that leads to it, 0 .. 3 of 255."""
    moves = torch.randint(0, 4, (clips, STEPS), generator=torch.Generator().manual_seed(seed))
    bright = torch.cat([torch.zeros(clips, 1, dtype=torch.int64), moves], dim=1)
    frames = bright.byte()[:, :, None, None, None].expand(-1, -1, 3, 8, 8).contiguous()
    for rows in torch.arange(clips).split(8):
        yield ClipBatch(frames[rows], episode=rows % 10, start=rows, actions=moves[rows])


class Reader:
    """Reads the action off, or says the same code whatever happens."""

    tokens, frame_size, window = 1, None, 2

    def __init__(self, *, deaf: bool = False, continuous: bool = False) -> None:
        self.deaf, self.dim = deaf, 4
        self.codebook_size = None if continuous else 4
        self.calls: list[int] = []

    def infer_actions(self, frames):
        self.calls.append(len(frames))
        moves = (frames[:, 1:, 0, 0, 0] * 255).round().long()[..., None]
        moves = torch.zeros_like(moves) if self.deaf else moves
        codes = torch.nn.functional.one_hot(moves, 4).float()
        return LatentActions(codes, None if self.codebook_size is None else moves)


def test_what_tells_the_actions_and_what_does_not() -> None:
    seen: list[int] = []
    reader = Reader()
    assert isinstance(reader, LatentActionModel)
    told = measure_latents(reader, batches(), SPEC, CONFIG, watch=seen.append)
    deaf = measure_latents(Reader(deaf=True), batches(), SPEC, CONFIG)
    assert told["probe"]["score"]["mean"] == 1.0
    assert deaf["probe"]["score"]["mean"] == deaf["probe"]["chance"] < 0.5
    moves = np.concatenate([batch.actions.flatten() for batch in batches()])
    share = np.bincount(moves) / moves.size
    entropy = -(share * np.log(share)).sum() / np.log(4)
    assert told["codebook"]["entropy_normalised"] == pytest.approx(entropy)
    assert deaf["codebook"]["utilisation"] == 0.25 and deaf["codebook"]["max_usage"] == 1
    assert told["counts"] == {
        "clips": 40,
        "episodes": 10,
        "transitions": 240,
        "height": 8,
        "width": 8,
    }
    assert seen == [8, 16, 24, 32, 40] and max(reader.calls) == 3
    assert "delta_psnr" not in told and told["world"] == {"codebook_size": 4, "tokens": 1, "dim": 4}


def test_without_actions_or_codebook() -> None:
    found = measure_latents(Reader(continuous=True), batches(), None, CONFIG)
    assert found["codebook"] is None and found["probe"] is None
    assert found["probe_skipped"] == "the data set has no real actions"
    with pytest.raises(ValueError, match=r"at least 2 clips are needed to measure them, got 0"):
        measure_latents(Reader(), [], SPEC, CONFIG)


def test_one_table_of_models_on_the_same_clips() -> None:
    results = {
        "mine": measure_latents(Reader(), batches(), SPEC, CONFIG),
        "theirs": measure_latents(Reader(continuous=True), batches(), SPEC, CONFIG),
    }
    lines = side_by_side(results).splitlines()
    assert lines[0].split()[:5] == ["latents", "tokens", "x", "width", "codes"]
    assert "1.00 [1.00, 1.00]" in lines[2] and lines[2].split()[:5] == ["mine", "1", "x", "4", "4"]
    assert "1.00 [1.00, 1.00]" in lines[3] and "continuous" in lines[3]
    probe = next(line for line in lines if line.startswith("linear probe, accuracy: "))
    assert probe.startswith("linear probe, accuracy: chance ")  # the same of both: said once
    assert lines[-1].startswith("240 transitions in 40 clips of 10 episodes")
    results["theirs"] = measure_latents(Reader(), batches(clips=32), SPEC, CONFIG)
    with pytest.raises(ValueError, match=r"theirs was measured on other clips than mine"):
        side_by_side(results)
