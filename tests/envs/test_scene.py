"""The scene is a closed form: frames follow from the state, and moves shift them exactly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from colaworld.envs.scene import MOVES, Scene


@pytest.mark.parametrize("action", range(1, 5))
def test_a_move_shifts_the_floor_by_speed_pixels(action: int) -> None:
    scene = Scene(height=40, width=48, speed=3, square=4)
    before = scene.reset(7)
    after, done = scene.step(action)
    dx, dy = 3 * np.array(MOVES[action])
    # what was at (x + dx, y + dy) is now at (x, y); compare a band far from the square
    y, x = np.meshgrid(np.arange(3, 12), np.arange(3, 45), indexing="ij")
    np.testing.assert_array_equal(after[y, x], before[y + dy, x + dx])
    assert not done and not np.array_equal(before, after)


def test_the_square_moves_when_asked_to_and_wraps() -> None:
    scene = Scene(height=16, width=16, speed=5, square=4, moves="square")
    scene.reset(0)
    positions = []
    for _ in range(4):
        scene.step(2)  # right
        positions.append(int(scene.state()["square"][0]))
    assert [(b - a) % 16 for a, b in pairwise(positions)] == [5, 5, 5]


def test_frames_equal_draw_of_the_stated_state() -> None:
    scene = Scene()
    scene.reset(1)
    for action in (1, 4, 4, 2, 0):
        frame, _ = scene.step(action)
        state = scene.state()
        np.testing.assert_array_equal(frame, scene.draw(state["camera"], state["square"]))
    np.testing.assert_array_equal(frame, scene.step(0)[0])  # noop changes nothing


def test_seeds_decide() -> None:
    a, b = Scene().reset(3), Scene().reset(3)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, Scene().reset(4))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"0\.\.4, got 5"):
        Scene().step(5)
    with pytest.raises(ValueError, match="moves"):
        Scene(moves="sideways")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 8"):
        Scene(height=6, square=6)
