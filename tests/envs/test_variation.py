"""One factor varied: the same states and actions, another picture."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from colaworld import envs
from colaworld.envs import behaviours
from colaworld.envs.variation import striped

_NEEDS = {"crafter": "crafter", "pusht": "gym_pusht", "robodesk": "robodesk"}


def _play(name: str, vary: Any) -> tuple[envs.Episode, list[Any]]:
    if name in _NEEDS and importlib.util.find_spec(_NEEDS[name]) is None:
        pytest.skip(f"needs {name}: pip install 'colaworld[{name}]'")
    env, states = envs.make(name, vary=vary), []
    behaviour = behaviours.make(
        "sticky-random" if name in ("scene", "point-mass") else "scripted", env
    )
    act = behaviour.act
    behaviour.act = lambda env: (states.append(env.state()), act(env))[1]  # type: ignore[method-assign]
    return envs.play(env, behaviour, seed=1, episode=0, steps=5), states


@pytest.mark.parametrize("name", envs.NAMES)
def test_the_picture_changes_and_nothing_else(name: str) -> None:
    plain, states = _play(name, None)
    for factor in ("colour", "texture", "layout"):
        varied, same = _play(name, factor)
        np.testing.assert_array_equal(varied.actions, plain.actions)
        np.testing.assert_equal(same, states)
        changed = (varied.frames != plain.frames).any(-1).mean()
        assert changed > 0.02, (factor, changed)
        if factor == "colour":
            np.testing.assert_array_equal(varied.frames, plain.frames[..., [1, 2, 0]])


def test_stripes_by_hand() -> None:
    flat = np.full((2, 4, 3), 100, np.uint8)
    np.testing.assert_array_equal(
        striped(flat, 1)[..., 0], [[100, 60, 100, 60], [60, 100, 60, 100]]
    )
    np.testing.assert_array_equal(striped(flat, 2)[0, :, 0], [100, 100, 60, 60])
    half = np.full((2, 4, 1), 0.5)
    np.testing.assert_array_equal(striped(flat, 1, half)[0, :, 2], [100, 80, 100, 80])


def test_a_wrong_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="texture or layout, got 'weather'"):
        envs.make("scene", vary="weather")  # type: ignore[arg-type]
