"""The path of rectified flow against its formulas."""

from __future__ import annotations

import pytest
import torch

from colaworld.flow.config import TimestepConfig
from colaworld.flow.path import (
    interpolate,
    per_frame,
    sample_timesteps,
    shift_times,
    target_velocity,
)


def test_interpolation_is_per_frame_and_exact_at_both_ends(generator):
    x0, noise = (torch.randn(2, 3, 4, 2, 2, generator=generator) for _ in range(2))
    times = torch.tensor([[0.0, 1.0, 0.25, 0.5], [1.0, 0.0, 0.75, 0.0]])
    x = interpolate(x0, noise, times)
    assert torch.equal(x[0, :, 0], x0[0, :, 0]) and torch.equal(x[1, :, 3], x0[1, :, 3])
    assert torch.equal(x[0, :, 1], noise[0, :, 1]) and torch.equal(x[1, :, 0], noise[1, :, 0])
    torch.testing.assert_close(x[0, :, 2], 0.75 * x0[0, :, 2] + 0.25 * noise[0, :, 2])
    assert interpolate(x0.bfloat16(), noise.bfloat16(), times).dtype == torch.bfloat16
    assert per_frame(times).shape == (2, 1, 4, 1, 1)


def test_velocity_points_from_noise_to_data_and_is_minus_the_slope(generator):
    x0, noise = (torch.randn(1, 1, 1, 2, 2, generator=generator).double() for _ in range(2))
    v = target_velocity(x0, noise)
    assert torch.equal(v, x0 - noise)
    a, b = (interpolate(x0, noise, torch.full((1, 1), t).double()) for t in (0.3, 0.4))
    torch.testing.assert_close((a - b) / 0.1, v)


def test_shift_by_formula():
    times = torch.tensor([0.0, 0.25, 0.5, 1.0])
    # r = 3: 3 t / (1 + 2 t)
    torch.testing.assert_close(shift_times(times, 3.0), torch.tensor([0.0, 0.5, 0.75, 1.0]))
    assert torch.equal(shift_times(times, 1.0), times)


def test_times_follow_a_shifted_logit_normal():
    config = TimestepConfig(mean=0.5, std=0.8, shift=2.0)
    generator = torch.Generator().manual_seed(1)
    times = sample_timesteps(20_000, config, generator=generator, device="cpu")
    assert times.shape == (20_000,) and times.min() > 0 and times.max() < 1
    normal = torch.logit(times / (2 - times))  # the inverse of t' = 2 t / (1 + t)
    assert normal.mean().item() == pytest.approx(0.5, abs=0.02)  # 3.5 standard errors
    assert normal.std().item() == pytest.approx(0.8, abs=0.015)
    # The median passes through: sigmoid(0.5) = .6225, shifted 2 x .6225 / 1.6225 = .7673.
    assert times.median().item() == pytest.approx(0.7673, abs=0.01)


def test_times_depend_on_the_generator_alone():
    def draw(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return sample_timesteps(5, TimestepConfig(), generator=generator, device="cpu")

    before = torch.get_rng_state()
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    assert torch.equal(before, torch.get_rng_state())
