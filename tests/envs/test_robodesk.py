"""RoboDesk on bare mujoco: the hand obeys, the seed fixes every byte, and the tasks can be solved."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="needs mujoco: pip install 'colaworld[robodesk]'")
if importlib.util.find_spec("robodesk") is None:
    pytest.skip("needs pip install --no-deps robodesk==1.0.0", allow_module_level=True)

from colaworld import envs
from colaworld.envs import behaviours
from colaworld.envs.robodesk import RoboDesk
from colaworld.envs.robodesk_tasks import TASKS, Hand, success


@pytest.fixture(scope="module")
def desk() -> RoboDesk:
    return RoboDesk()


def _act(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_hand_moves_along_the_axis_it_is_told(desk: RoboDesk) -> None:
    desk.reset(3)
    for axis in range(3):
        action = np.zeros(5, np.float32)
        action[axis] = 1 if axis else -1
        before = desk.state()["hand"]
        frame, done = desk.step(action)
        moved = desk.state()["hand"] - before
        assert np.argmax(np.abs(moved)) == axis and np.sign(moved[axis]) == action[axis]
        assert 0.03 < abs(moved[axis]) < 0.5 and not done  # 50 control steps of at most 1 cm
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8 and frame.std() > 20


def test_gripper_and_wrist(desk: RoboDesk) -> None:
    desk.reset(1)  # nothing between the fingers: in 0 it is the drawer's handle
    wrist = desk.state()["wrist"]
    desk.step(_act(0, 0, 0, 0.2, 1))
    assert abs(desk.state()["fingers"] - 0.04) < 1e-3
    assert 0.05 < desk.state()["wrist"] - wrist <= 50 * 0.02 * 0.2 * 2.9671  # it lags
    desk.step(_act(0, 0, 0, 0, -1))
    assert abs(desk.state()["fingers"]) < 1e-3


def test_inverse_kinematics_meets_the_place(desk: RoboDesk) -> None:
    desk.reset(1)
    place = desk.state()["hand"] + (0.01, -0.01, 0.01)
    joints = desk._reach(place)
    desk._twin.qpos[:9] = joints
    desk._mujoco.mj_forward(desk._model, desk._twin)
    np.testing.assert_allclose(desk._twin.site("end_effector").xpos, place, atol=1e-5)
    np.testing.assert_allclose(joints, desk._data.qpos[:9], atol=0.2)  # the shortest way there
    assert np.isfinite(desk._reach(place + 5)).all()


_SCRIPT = """
import hashlib
from colaworld import envs
from colaworld.envs import behaviours
env = envs.make("robodesk")
film = envs.play(env, behaviours.make("mixture", env), seed=3, episode=2, steps=4)
print(hashlib.sha256(film.frames.tobytes() + film.actions.tobytes()).hexdigest())
"""


def test_the_seed_fixes_every_byte_in_any_order_and_process(desk: RoboDesk) -> None:
    behaviour = behaviours.make("mixture", desk)
    for episode in (0, 2):  # something else was played before
        film = envs.play(desk, behaviour, seed=3, episode=episode, steps=4)
    here = hashlib.sha256(film.frames.tobytes() + film.actions.tobytes()).hexdigest()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here and there.stderr == ""


@pytest.mark.parametrize("task", ["push_green", "flat_block_off_table"])
def test_the_scripted_hand_solves(desk: RoboDesk, task: str) -> None:
    desk.reset(0)
    hand = Hand(task)
    for _ in range(25):
        assert not success(task, desk.state())
        desk.step(hand.act(desk.state()))
        if success(task, desk.state()):
            break
    assert [t for t in TASKS if success(t, desk.state())] == [task]


def test_one_that_is_dropped_takes_nothing_from_another(desk: RoboDesk) -> None:
    before, other = desk.reset(5), RoboDesk()
    other.reset(6)
    desk.reset(5)  # its context is the current one
    del other
    np.testing.assert_array_equal(desk.reset(5), before)


@pytest.mark.slow
def test_fast_leaves_out_shadows_and_nothing_that_moves(desk: RoboDesk) -> None:
    paper = RoboDesk(quality="paper")
    a, b = desk.reset(5), paper.reset(5)
    assert np.abs(a.astype(int) - b).mean() > 5
    for env in (desk, paper):
        env.step(_act(1, 0, 0.5, 0, 0))
    np.testing.assert_array_equal(desk._data.qpos, paper._data.qpos)


def test_wrong_wishes(desk: RoboDesk) -> None:
    for wrong in (_act(0, 0, 0, 0), _act(0, 0, 1.1, 0, 0), _act(np.nan, 0, 0, 0, 0)):
        with pytest.raises(ValueError, match=r"5 numbers in -1\.\.1"):
            desk.step(wrong)
    with pytest.raises(ValueError, match="'paper' or 'fast', got 'good'"):
        RoboDesk(quality="good")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="16 to 640"):
        RoboDesk(size=8)
