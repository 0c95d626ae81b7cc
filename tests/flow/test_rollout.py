"""Rollout bookkeeping with a fake generator that writes down what it was given.

The fake always points at the target (frame number x 10): one Euler step from noise n with velocity
target - n lands on the target exactly, so frames carry their own numbers. Codes carry theirs too.
"""

from __future__ import annotations

import pytest
import torch

from colaworld.flow.config import SamplerConfig
from colaworld.flow.rollout import LatentRollout, check_whole_frames

ONE = SamplerConfig(steps=1)


class Recorder:
    """`condition` of a rollout; `rounds` holds (codes, first value of every clip frame, times)."""

    def __init__(self, stride: int = 1) -> None:
        self.rounds, self.stride = [], stride

    def __call__(self, codes):
        numbers = codes[0, :, 0, 0].tolist()

        def velocity(x, times):
            seen = [round(value, 4) for value in times[0].tolist()]
            self.rounds.append((numbers, x[0, 0, :, 0, 0].tolist(), seen))
            # The last code of a window leads into its last frame.
            last = (numbers[-1] + 1) / self.stride
            frame = last - torch.arange(x.shape[2] - 1, -1, -1.0)
            return (frame * 10)[None, None, :, None, None] - x

        return velocity


def rollout(condition, context, codes, *, chunk: int = 1, stride: int = 1, **more):
    """The context, then all frames that the codes lead to."""
    known = stride * (context.shape[2] - 1)
    state = LatentRollout(condition, context, codes[:, :known], stride=stride, **more)
    steps = codes[:, known:].split(stride * chunk, dim=1) if codes.shape[1] > known else ()
    return torch.cat([context, *(state.step(part) for part in steps)], dim=2)


def roll(*, history: int, total: int, window: int, chunk: int = 1, stride: int = 1, **config):
    given = torch.arange(history).float().view(1, 1, -1, 1, 1) * 10
    codes = torch.arange(stride * (total - 1)).float().view(1, -1, 1, 1)
    recorder = Recorder(stride)
    made = rollout(
        recorder,
        given,
        codes,
        window=window,
        sampler=SamplerConfig(steps=1, **config),
        generator=torch.Generator().manual_seed(0),
        stride=stride,
        chunk=chunk,
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


@pytest.mark.parametrize(("history", "chunk"), [(1, 1), (2, 1), (4, 1), (1, 2)])
def test_r_actions_lead_into_each_latent_frame_but_the_first(history, chunk):
    """17 pixel frames are 5 latent ones for r = 4; frame t is led into by actions 4 t - 4 .. 4 t."""
    made, rounds = roll(history=history, total=5, window=3, chunk=chunk, stride=4)
    assert made == pytest.approx([0, 10, 20, 30, 40])
    frames = history
    for codes, clip, _ in rounds:
        frames += min(chunk, 5 - frames)
        first = frames - len(clip)
        assert codes == list(range(4 * first, 4 * (frames - 1)))
        assert len(clip) <= 3


def test_history_is_noised_once_and_its_time_is_told():
    made, rounds = roll(history=2, total=5, window=3, context_noise=0.25)
    assert made == pytest.approx([0, 10, 20, 30, 40])  # what is returned is clean
    assert [times for _, _, times in rounds] == [[0.25, 0.25, 1]] * 3
    drawn = torch.Generator().manual_seed(0)
    given = torch.randn(2, generator=drawn)  # of the history; then of each frame: start, afterwards
    later = [torch.randn(1, generator=drawn).item() for _ in range(6)]
    clean, noise = [0, 10, 20, 30, 40], [*given.tolist(), *later[1::2]]
    seen = [0.75 * x + 0.25 * n for x, n in zip(clean, noise, strict=True)]
    for index, (_, clip, _) in enumerate(rounds):
        assert clip[:2] == pytest.approx(seen[index : index + 2], abs=1e-5), index
        assert clip[2] == pytest.approx(later[2 * index])


def drawn(total: int, seed: int, chunk: int = 1, **config):
    """A rollout whose frames depend on noise, history and actions."""
    generator = torch.Generator().manual_seed(1)
    history = torch.randn(2, 3, 2, 4, 4, generator=generator)
    codes = torch.randn(2, 9, 1, 1, generator=generator)[:, : total - 1]

    def condition(part):
        return lambda x, t: x.mean(2, keepdim=True) - 0.3 * x + part.mean() + 0.1 * t.mean()

    made = rollout(
        condition,
        history,
        codes,
        window=4,
        sampler=SamplerConfig(steps=2, **config),
        generator=torch.Generator().manual_seed(seed),
        chunk=chunk,
    )
    return history, made


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 2])
def test_history_is_untouched_and_equal_seeds_give_equal_videos(chunk, noise):
    history, made = drawn(6, seed=0, chunk=chunk, context_noise=noise)
    assert made.shape == (2, 3, 6, 4, 4)
    assert torch.equal(made[:, :, :2], history)
    assert torch.equal(made, drawn(6, seed=0, chunk=chunk, context_noise=noise)[1])
    other = drawn(6, seed=1, chunk=chunk, context_noise=noise)[1]
    assert not torch.equal(made[:, :, 2:], other[:, :, 2:])


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_shorter_rollout_is_the_beginning_of_a_longer_one(chunk):
    assert torch.equal(drawn(6, seed=0, chunk=chunk)[1], drawn(8, seed=0, chunk=chunk)[1][:, :, :6])


def test_nothing_to_generate_returns_the_history():
    history, made = drawn(2, seed=0)
    assert torch.equal(made, history)


@pytest.mark.parametrize(("actions", "fits"), [(7, "4 or 8"), (3, "4"), (9, "8 or 12")])
def test_actions_that_end_within_a_latent_frame_say_what_fits(actions, fits):
    with pytest.raises(ValueError, match=rf"{actions} actions after the context .*; pass {fits}$"):
        check_whole_frames(actions, 4)


def state(**changes) -> LatentRollout:
    given = {"window": 3, "sampler": ONE, "generator": torch.Generator(), "stride": 2}
    codes = changes.pop("codes", torch.zeros(1, 2, 1, 1))
    return LatentRollout(Recorder(), torch.zeros(1, 1, 2, 1, 1), codes, **given | changes)


def test_a_step_refuses_what_does_not_fit_the_window():
    for actions in (0, 3, 6):
        with pytest.raises(ValueError, match=rf"1 \.\. 2 new latent frames, 2 each, got {actions}"):
            state().step(torch.zeros(1, actions, 1, 1))
    with pytest.raises(ValueError, match=r"expected codes \[1, 2, N, d\] .* got \(1, 1, 1, 1\)"):
        state(codes=torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"count >= 1, got 0"):
        state().fork(0)
    for wrong in (1.0, "1", None):  # 1.0 broke off within the next step
        with pytest.raises(ValueError, match="fork: expected a whole count"):
            state().fork(wrong)
