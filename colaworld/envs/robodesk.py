"""RoboDesk, filmed: a Franka arm at a desk with a drawer, a sliding door, three buttons, two blocks and a ball.

Not here: the tasks (robodesk_tasks.py), rewards, goals. The package `robodesk` 1.0.0 (Kannan et al. 2021) is read
for its scene and meshes alone and never imported: it needs dm_control, gym and an old Pillow. Needs
`pip install 'colaworld[robodesk]'`, then `pip install --no-deps robodesk==1.0.0`, and libegl1 or libosmesa6.

The protocol is that of VP2 (Tian et al. 2023): 5 actions, each repeated over 50 control steps of 20 ms, so that
a frame is a second; a camera from above, cropped, 64x64 pixels. What departs from both:
- Inverse kinematics is our own damped Newton. It finds the same joints and stays bounded where the arm
  cannot reach.
- Actions outside [-1, 1] are refused.
- `quality="fast"` leaves shadows, reflections and the smoothing of edges before the frame is made small out.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.envs.robodesk_tasks import BLOCKS, COLOURS
from colaworld.envs.variation import striped

ACTION_REPEAT = 50  # control steps per action (VP2's configuration)
_PHYSICS_STEPS = 10  # of 2 ms, per control step
_REACH, _TURN = 0.01, 0.02  # metres; share of the wrist's range: the most of one control step
_ARM, _JOINTS = 6, 9  # joints that reach; with wrist and two fingers
_POSE = (-0.30, -0.4, 0.28, -2.5, 0.13, 1.87, 0.91, 0.01, 0.01)  # radians, metres
_RENDER = 120  # pixels per side, of which _CROP (left, top, right, bottom) is kept
_CROP = (16.75, 25.0, 105.0, 88.75)


class RoboDesk:
    """RoboDesk as an `Env`. `size`: pixels per side; `quality`: "paper" is 15 to 30 times slower than "fast".

    An action is (x, y, z, wrist, gripper) in [-1, 1]: the hand moves by up to 1 cm in every control step along the
    world's axes (right, away from the base, up), the wrist turns by up to 0.059 rad, and the fingers go to
    an opening between 0 (-1) and 4 cm (1) each.
    """

    name = "robodesk"
    fps = 1.0  # 50 control steps of 20 ms
    VARIATIONS: ClassVar = {
        "texture": "stripes of a quarter of the texture on floor and desk",
        "layout": "the camera is turned by 20 degrees about the desk",
    }
    action_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        size: int = 64,
        quality: Literal["paper", "fast"] = "fast",
        vary: Literal["texture", "layout"] | None = None,
    ) -> None:
        os.environ.setdefault(
            "MUJOCO_GL", "egl"
        )  # read when mujoco is imported; its default wants a display
        try:
            import mujoco
        except ImportError as error:
            raise ImportError(
                "the RoboDesk environment needs mujoco: pip install 'colaworld[robodesk]'; importing it failed "
                f"with: {error}"
            ) from error
        if not 16 <= size <= 640:
            raise ValueError(f"RoboDesk.size: expected 16 to 640 pixels, got {size}")
        if quality not in ("paper", "fast"):
            raise ValueError(f"RoboDesk.quality: expected 'paper' or 'fast', got {quality!r}")
        if vary is not None and vary not in self.VARIATIONS:
            raise ValueError(
                f"RoboDesk.vary: expected {' or '.join(self.VARIATIONS)}, got {vary!r}"
            )
        self.vary = vary
        self.size, self.quality = size, quality
        self.version = f"1.0.0, mujoco {mujoco.__version__}"
        self.action_spec = ActionSpec(
            *("action", "continuous", 5, ("x", "y", "z", "wrist", "gripper")),
            units=(*("cm/20 ms",) * 3, "0.0593 rad/20 ms", "-1 closed, 1 open"),
            mode="relative",  # all but the gripper, whose unit says so
            frame="world",  # x to the right, y away from the base, z up
        )
        self._mujoco = mujoco
        self._model = mujoco.MjModel.from_xml_path(str(_scene()))
        self._data, self._twin = mujoco.MjData(self._model), mujoco.MjData(self._model)
        self._hand = self._model.site("end_effector").id
        self._start: dict[str, np.ndarray] = {}
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = (0, 0.535, 1.1)
        self._camera.distance, self._camera.elevation = 1.8, -60
        self._camera.azimuth = 110 if vary == "layout" else 90
        self._renderer: Any = None  # made with the first frame

    def reset(self, seed: int) -> np.ndarray:
        rng, data = np.random.default_rng(seed), self._data
        self._mujoco.mj_resetData(self._model, data)
        data.joint("drawer_joint").qpos -= rng.uniform(0, 0.1)
        data.joint("slide_joint").qpos += rng.uniform(0, 0.2)
        spread = {
            "flat_block": (0, 0.3, 0.07),
            "ball": (0, 0.48, 0.08),
            "upright_block": (0.05, 0.35, 0.05),
        }
        for block, (low, high, depth) in spread.items():
            data.joint(block).qpos[:2] += rng.uniform((low, 0), (high, depth))
        bounds = self._model.actuator_ctrlrange
        data.qpos[:_JOINTS] = _POSE + 0.15 * rng.uniform(bounds[:, 0], bounds[:, 1])
        self._mujoco.mj_forward(self._model, data)
        self._start = {block: data.body(block).xpos.copy() for block in BLOCKS}
        return self.draw()

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        self.advance(np.asarray(action))
        return self.draw(), False

    def advance(self, action: np.ndarray) -> None:
        """`step` without its frame."""
        action = np.asarray(action, np.float64)
        if action.shape != (5,) or not (np.abs(action) <= 1).all():
            raise ValueError(f"RoboDesk.step: expected 5 numbers in -1..1, got {action}")
        data = self._data
        for _ in range(ACTION_REPEAT):
            data.ctrl[:] = self._joints(action)
            for _ in range(_PHYSICS_STEPS):
                data.qfrc_applied[:_JOINTS] = data.qfrc_bias[
                    :_JOINTS
                ]  # gravity is held off the arm
                self._mujoco.mj_step2(
                    self._model, data
                )  # in this order positions belong to the new state
                self._mujoco.mj_step1(self._model, data)

    def put(self, joint: Literal["drawer", "slide"], at: float) -> None:
        """Draw the drawer or the sliding door to `at` metres; nothing else moves."""
        self._data.joint(f"{joint}_joint").qpos[0] = at
        self._mujoco.mj_forward(self._model, self._data)

    def __deepcopy__(self, memo: dict[int, Any]) -> RoboDesk:
        """A state of its own; the model, which never changes, and the renderer stay one."""
        if self._renderer is None:
            self._renderer = self._open_renderer()
        twin = copy.copy(self)
        twin._data = copy.copy(self._data)
        return twin

    def state(self) -> dict[str, Any]:
        """Metres in the world's frame, radians; `start` is where the blocks stood at `reset`."""
        data = self._data
        return {
            "hand": data.site_xpos[self._hand].copy(),
            "wrist": float(data.qpos[6]),
            "fingers": float(data.qpos[7]),
            "drawer": float(data.joint("drawer_joint").qpos[0]),
            "slide": float(data.joint("slide_joint").qpos[0]),
            "drawer_handle": data.geom("drawer_handle").xpos.copy(),
            "slide_handle": data.site("slide_handle").xpos.copy(),
            "lights": {c: float(data.joint(f"{c}_light").qpos[0]) for c in COLOURS},
            "buttons": {c: data.body(f"{c}_button").xpos.copy() for c in COLOURS},
            "blocks": {block: data.body(block).xpos.copy() for block in BLOCKS},
            "start": {block: place.copy() for block, place in self._start.items()},
        }

    def _joints(self, action: np.ndarray) -> np.ndarray:
        """[9] joint positions that one control step aims at."""
        joints = self._reach(self._data.site_xpos[self._hand] + _REACH * action[:3])
        low, high = self._model.actuator_ctrlrange[6:8].T
        wide = low + (action[3:] + 1) / 2 * (high - low)
        joints[6] = np.clip(self._data.qpos[6] + _TURN * wide[0], low[0], high[0])
        joints[7:] = wide[1]
        return joints

    def _reach(self, place: np.ndarray) -> np.ndarray:
        """[9] joints that bring the hand to `place` by the shortest way from where they are."""
        mujoco, model, twin = self._mujoco, self._model, self._twin
        twin.qpos[:] = self._data.qpos
        jacobian = np.zeros((3, model.nv))
        for _ in range(10):
            mujoco.mj_kinematics(model, twin)
            mujoco.mj_comPos(model, twin)
            missing = place - twin.site_xpos[self._hand]
            if np.abs(missing).max() < 1e-6:
                break
            mujoco.mj_jacSite(model, twin, jacobian, None, self._hand)
            arm = jacobian[:, :_ARM]
            twin.qpos[:_ARM] += arm.T @ np.linalg.solve(arm @ arm.T + 1e-4 * np.eye(3), missing)
        return twin.qpos[:_JOINTS].copy()

    def draw(self) -> np.ndarray:
        """The frame of where it is, uint8 [H, W, 3]."""
        from PIL import Image

        side = max(_RENDER, self.size)
        if self._renderer is None:
            self._renderer = self._open_renderer()
        self._renderer.update_scene(self._data, self._camera)
        picture = Image.fromarray(self._renderer.render())
        left, top, right, bottom = (round(edge / _RENDER * side) for edge in _CROP)
        picture = picture.crop((left, top, right, bottom))
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.LANCZOS))

    def _stripe(self, name: str) -> None:
        texture = self._model.tex(name)
        start, (high, wide) = texture.adr[0], (texture.height[0], texture.width[0])
        data = self._model.tex_data[start : start + high * wide * 3]
        data[:] = striped(data.reshape(high, wide, 3), wide // 4).reshape(-1)

    def _open_renderer(self) -> Any:
        mujoco, side = self._mujoco, max(_RENDER, self.size)
        if self.vary == "texture":
            self._stripe("plane_texture")
            self._stripe("desk_wood_texture")
        if self.quality == "fast":
            self._model.vis.quality.offsamples = 0  # the renderer reads it once
        logging.getLogger("OpenGL.acceleratesupport").setLevel(
            logging.WARNING
        )  # it misses an add-on
        try:
            renderer = mujoco.Renderer(self._model, side, side)
        except Exception as error:  # each GL platform has errors of its own
            raise RuntimeError(
                f"RoboDesk cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']}: {error}; install libegl1 and "
                "libgl1-mesa-dri for egl, or libosmesa6 for MUJOCO_GL=osmesa"
            ) from error
        if self.quality == "fast":
            for flag in ("mjRND_SHADOW", "mjRND_REFLECTION"):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        # Open until the process ends: to close one renderer deletes what another holds under the same names.
        atexit.register(_close, renderer)  # now, so that it runs before EGL's own end
        return renderer


def _close(renderer: Any) -> None:
    renderer._gl_context.make_current()  # so that nothing of another is deleted
    renderer.close()


def _scene() -> Path:
    """desk.xml of the installed package `robodesk`, which is not imported."""
    from importlib.util import find_spec

    spec = find_spec("robodesk")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "assets/desk.xml"
        if path.is_file():
            return path
    raise ImportError(
        "the RoboDesk environment reads its scene from the package robodesk, "
        + ("which holds no assets/desk.xml here" if spec else "which is not installed")
        + ": pip install --no-deps robodesk==1.0.0 (without --no-deps it brings dm_control and gym along)"
    )
