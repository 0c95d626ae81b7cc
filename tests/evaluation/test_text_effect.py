"""The effect of removing cross-attention: by hand on known velocities."""

from __future__ import annotations

import pytest
import torch

from colaworld.evaluation.text_effect import TIMES, text_effect

LATENTS = torch.zeros(5, 2, 3, 4, 4)  # a path from zero to noise: x_t = t noise, v = -noise


def perfect(x, times):
    """The true velocity of these clips; nothing where a frame is clean."""
    t = times[:, None, :, None, None]
    return torch.where(t > 0, -x / t.clamp(min=1e-6), torch.zeros_like(x))


def test_by_hand_on_known_velocities() -> None:
    seen = []

    def off_by_one(x, times):
        seen.append((x.clone(), times.clone()))
        return perfect(x, times) + 1

    found = text_effect(perfect, off_by_one, LATENTS, batch_size=2, seed=0)
    assert found["loss_null_caption"] == pytest.approx(0, abs=1e-10)
    assert found["loss_removed"] == pytest.approx(1, rel=1e-5)
    assert found["clips"] == 5 and found["times"] == list(TIMES)
    assert [len(x) for x, _ in seen] == [2] * 6 + [1] * 3
    for x, times in seen:
        assert (times[:, 0] == 0).all() and (times[:, 1:] > 0).all()
        assert (x[:, :, 0] == 0).all()  # the given frame is clean
    # noise has unit size, so a change of 1 everywhere is one of about 100 %
    assert found["change"] == pytest.approx(1, rel=0.1)
    again = text_effect(perfect, off_by_one, LATENTS, batch_size=2, seed=0)
    assert again == found
    assert text_effect(perfect, off_by_one, LATENTS, batch_size=2, seed=1) != found


def test_equal_generators_have_no_effect() -> None:
    found = text_effect(perfect, perfect, LATENTS, batch_size=4, seed=0)
    assert found["change"] == 0 and found["loss_removed"] == found["loss_null_caption"]


def test_a_single_frame_has_nothing_to_predict() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.text_effect: needs clips of at least 2"):
        text_effect(perfect, perfect, LATENTS[:, :, :1], batch_size=4, seed=0)
