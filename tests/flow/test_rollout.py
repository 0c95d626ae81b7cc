"""Rollout bookkeeping with a fake velocity that writes down what it was given.

The fake always points at the target (frame number x 10): one Euler step from noise n with velocity
target - n lands on the target exactly, so frames carry their own numbers. Codes carry theirs too.
"""

from __future__ import annotations

import pytest
import torch

from colaworld.flow.rollout import rollout
from colaworld.flow.samplers import SamplerConfig

ONE = SamplerConfig(steps=1)


class Recorder:
    """velocity_of for `rollout`; `rounds` holds (codes, first frame's value per clip frame, times)."""

    def __init__(self) -> None:
        self.rounds = []

    def __call__(self, codes):
        numbers = codes[0, :, 0, 0].tolist()

        def velocity(x, times):
            self.rounds.append((numbers, x[0, 0, :, 0, 0].tolist(), times[0].tolist()))
            # Code t leads from frame t to t + 1: the last frame of this window is numbers[-1] + 1.
            frame = numbers[-1] + 1 - torch.arange(x.shape[2] - 1, -1, -1.0)
            return (frame * 10)[None, None, :, None, None] - x

        return velocity


def roll(*, history: int, total: int, window: int, chunk: int = 1, seed: int = 0):
    given = torch.arange(history).float().view(1, 1, -1, 1, 1) * 10
    codes = torch.arange(total - 1).float().view(1, -1, 1, 1)
    recorder = Recorder()
    generator = torch.Generator().manual_seed(seed)
    made = rollout(
        recorder, given, codes, window=window, config=ONE, generator=generator, chunk=chunk
    )
    return made[0, 0, :, 0, 0].tolist(), recorder.rounds


def test_each_round_sees_the_last_frames_and_the_actions_between_them():
    made, rounds = roll(history=2, total=6, window=3)
    assert made == pytest.approx([0, 10, 20, 30, 40, 50])
    assert [codes for codes, _, _ in rounds] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert [x[:-1] for _, x, _ in rounds] == [
        pytest.approx(seen) for seen in ([0, 10], [10, 20], [20, 30], [30, 40])
    ]
    assert all(times == [0, 0, 1] for _, _, times in rounds)


def test_the_window_fills_up_from_a_short_history():
    made, rounds = roll(history=1, total=5, window=4)
    assert made == pytest.approx([0, 10, 20, 30, 40])
    assert [codes for codes, _, _ in rounds] == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]


def test_chunks_and_the_shorter_last_one():
    made, rounds = roll(history=1, total=6, window=4, chunk=2)
    assert made == pytest.approx([0, 10, 20, 30, 40, 50])
    assert [codes for codes, _, _ in rounds] == [[0, 1], [1, 2, 3], [2, 3, 4]]
    assert [times for _, _, times in rounds] == [[0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_a_long_history_is_kept_whole_but_seen_through_the_window():
    made, rounds = roll(history=5, total=6, window=3)
    assert made == pytest.approx([0, 10, 20, 30, 40, 50])
    assert rounds[0][0] == [3, 4] and rounds[0][1][:2] == [30, 40]


def drawn(total: int, seed: int, chunk: int = 1):
    """A rollout whose frames depend on noise, history and actions."""
    generator = torch.Generator().manual_seed(1)
    history = torch.randn(2, 3, 2, 4, 4, generator=generator)
    codes = torch.randn(2, 9, 1, 1, generator=generator)[:, : total - 1]

    def velocity_of(part):
        return lambda x, t: x.mean(2, keepdim=True) - 0.3 * x + part.mean() + 0.1 * t.mean()

    made = rollout(
        velocity_of,
        history,
        codes,
        window=4,
        config=SamplerConfig(steps=2),
        generator=torch.Generator().manual_seed(seed),
        chunk=chunk,
    )
    return history, made


@pytest.mark.parametrize("chunk", [1, 2])
def test_history_is_untouched_and_equal_seeds_give_equal_videos(chunk):
    history, made = drawn(6, seed=0, chunk=chunk)
    assert made.shape == (2, 3, 6, 4, 4)
    assert torch.equal(made[:, :, :2], history)
    assert torch.equal(made, drawn(6, seed=0, chunk=chunk)[1])
    assert not torch.equal(made[:, :, 2:], drawn(6, seed=1, chunk=chunk)[1][:, :, 2:])


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_shorter_rollout_is_the_beginning_of_a_longer_one(chunk):
    assert torch.equal(drawn(6, seed=0, chunk=chunk)[1], drawn(8, seed=0, chunk=chunk)[1][:, :, :6])


def test_nothing_to_generate_returns_the_history():
    history, made = drawn(2, seed=0)
    assert torch.equal(made, history)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": 1, "total": 3, "window": 2, "chunk": 2}, r"1 <= chunk < window = 2, got 2"),
        ({"history": 1, "total": 3, "window": 2, "chunk": 0}, r"got 0"),
        ({"history": 4, "total": 3, "window": 2}, r"2 actions do not cover 4 history frames"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        roll(**arguments)
