"""Samplers on a Gaussian, whose flow is known in closed form.

Data N(m, s^2), noise N(0, 1): x_t ~ N((1 - t) m, c_t) with c_t = (1 - t)^2 s^2 + t^2, so that
E[x0 - noise | x_t = x] = m + ((1 - t) s^2 - t) / c_t (x - (1 - t) m), and the flow keeps
(x_t - (1 - t) m) / sqrt(c_t): noise x_1 arrives at m + s x_1.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from colaworld.flow.config import SamplerConfig
from colaworld.flow.samplers import sample, time_grid

MEAN, DEVIATION = 1.5, 0.4


def gaussian_velocity(x, times):
    t = times[:, None, :, None, None].double()
    spread = (1 - t) ** 2 * DEVIATION**2 + t**2
    return MEAN + ((1 - t) * DEVIATION**2 - t) / spread * (x - (1 - t) * MEAN)


def error(method: str, steps: int, shift: float = 1.0) -> float:
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 3, 3)
    config = SamplerConfig(steps=steps, method=method, shift=shift)
    made = sample(gaussian_velocity, noise, torch.ones(1).bool(), config)
    return (made - (MEAN + DEVIATION * noise)).abs().max().item()


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_convergence_is_of_the_stated_order(method, order, shift):
    coarse, fine = error(method, 64, shift), error(method, 128, shift)
    assert coarse / fine == pytest.approx(2**order, rel=0.12)
    assert fine < (0.02 if order == 1 else 1e-3)


def test_one_euler_step_by_hand():
    x = torch.full((1, 1, 1, 1, 1), 0.5)
    made = sample(lambda x, t: 2 * x + t[0, 0], x, torch.ones(1).bool(), SamplerConfig(steps=1))
    assert made.item() == pytest.approx(0.5 + 1.0 * (2 * 0.5 + 1.0))


def test_time_grid_by_formula():
    torch.testing.assert_close(time_grid(4, 1.0, "cpu"), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    # r = 3 turns .75 .5 .25 into 2.25/2.5, 1.5/2, .75/1.5
    torch.testing.assert_close(time_grid(4, 3.0, "cpu"), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    with pytest.raises(ValueError, match=r"steps: expected >= 1, got 0"):
        time_grid(0, 1.0, "cpu")


@pytest.mark.parametrize(("method", "calls"), [("euler", 3), ("heun", 5)])
def test_history_stays_and_is_at_time_zero(method, calls, generator):
    x = torch.randn(2, 1, 4, 2, 2, generator=generator)
    generated = torch.tensor([False, True, False, True])
    seen = []

    def velocity(x, times):
        seen.append((x.clone(), times.clone()))
        return torch.ones_like(x)

    made = sample(velocity, x, generated, SamplerConfig(steps=3, method=method))
    assert len(seen) == calls  # heun's last step, onto time 0, is Euler's
    assert torch.equal(made[:, :, ~generated], x[:, :, ~generated])
    torch.testing.assert_close(made[:, :, generated], x[:, :, generated] + 1)
    for state, times in seen:
        assert times.shape == (2, 4) and times[:, ~generated].abs().max() == 0
        assert times[:, generated].min() > 0
        assert torch.equal(state[:, :, ~generated], x[:, :, ~generated])


def test_an_unknown_method_is_not_taken_for_euler():
    with pytest.raises(
        ValueError, match=r"sampler.method: expected one of 'euler', 'heun', got 'rk4'"
    ):
        SamplerConfig(method="rk4")


def test_mask_of_a_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"expected generated \[3\], got \(2,\)"):
        sample(lambda x, t: x, torch.zeros(1, 1, 3, 1, 1), torch.ones(2).bool(), SamplerConfig())


def test_what_the_paper_samples_with():
    assert (SamplerConfig.paper().steps, SamplerConfig.paper().guidance) == (10, 4.0)
    assert (SamplerConfig.planning().steps, SamplerConfig.planning().guidance) == (3, 1.0)


def test_all_frames_are_generated_without_a_mask(generator):
    x = torch.randn(1, 2, 3, 2, 2, generator=generator)
    for method in ("euler", "heun"):
        config = SamplerConfig(steps=3, method=method)
        expected = sample(gaussian_velocity, x, torch.ones(3).bool(), config)
        assert torch.equal(sample(gaussian_velocity, x, None, config), expected)


class Waits(TorchDispatchMode):
    """Counts what would wait for a device: a tensor's value read by Python."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.reads += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_no_step_waits_for_the_device(method):
    with Waits() as waits:
        sample(gaussian_velocity, torch.ones(1, 1, 2, 1, 1), None, SamplerConfig(3, method=method))
    assert waits.reads == 0
    with waits:  # that the count can fail
        assert bool(torch.ones(()) > 0)
    assert waits.reads == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance": float("nan")}, r"sampler\.guidance: expected a finite number, got nan"),
        ({"shift": -1.0}, r"sampler\.shift: expected > 0, got -1"),
        ({"shift": float("inf")}, r"sampler\.shift: .* got inf"),
        ({"steps": 0}, r"sampler\.steps: expected >= 1, got 0"),
        ({"context_noise": -1.0}, r"sampler\.context_noise: expected >= 0, got -1"),
    ],
)
def test_settings_that_are_no_numbers(setting, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**setting)
