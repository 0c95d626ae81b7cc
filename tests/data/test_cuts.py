"""Scene cuts: found where a film jumps, not where it moves, scrolls or brightens."""

from __future__ import annotations

import numpy as np

from colaworld.data.cuts import find_cuts, frame_changes


def _scene(seed: int, frames: int, low: int, high: int, move: int = 1) -> np.ndarray:
    texture = np.random.default_rng(seed).integers(low, high, (3, 32, 400), np.uint8)
    return np.stack([texture[:, :, t * move : t * move + 40] for t in range(frames)])


def test_changes_by_hand() -> None:
    frames = np.zeros((3, 3, 8, 8), np.uint8)
    frames[1] = 10
    frames[2] = 255
    made = frame_changes(frames)
    np.testing.assert_allclose(made[:, 0], [0, 10, 245])
    np.testing.assert_allclose(made[0, 1], 0)
    # 0 -> 10 moves 10 / (255 / 7) of the mass to the next level: distance twice that
    np.testing.assert_allclose(made[1, 1], 2 * 10 * 7 / 255, rtol=1e-5)
    np.testing.assert_allclose(made[2, 1], 2.0, rtol=1e-5)  # no level in common


def test_a_cut_is_found_at_its_frame() -> None:
    film = np.concatenate([_scene(0, 20, 0, 100), _scene(1, 15, 140, 255), _scene(2, 9, 0, 60)])
    np.testing.assert_array_equal(find_cuts(frame_changes(film), threshold=3.0), [20, 35])
    assert len(find_cuts(frame_changes(film), threshold=0)) == 0


def test_scrolling_after_standing_still_is_no_cut() -> None:
    still = _scene(0, 1, 0, 255).repeat(12, 0)
    scrolled = _scene(0, 6, 0, 255, move=6)
    film = np.concatenate([still, scrolled[1:], scrolled[-1:].repeat(12, 0)])
    assert frame_changes(film)[:, 0].max() > 50  # the pixels do jump
    assert len(find_cuts(frame_changes(film), threshold=3.0)) == 0


def test_slow_light_over_a_level_is_no_cut() -> None:
    light = np.linspace(40, 90, 30).astype(np.uint8)
    film = np.broadcast_to(light[:, None, None, None], (30, 3, 16, 16))
    assert len(find_cuts(frame_changes(film), threshold=3.0)) == 0


def test_wild_motion_hides_no_cut_everywhere() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 3, 16, 16), np.uint8)
    assert len(find_cuts(frame_changes(noise), threshold=3.0)) == 0
