"""Tiny data, tiny models and a way to call the command, for the tests of the verbs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from colaworld.cli.main import main
from colaworld.data.config import EncodingConfig
from colaworld.data.video_writer import VideoWriter
from colaworld.envs.scene import Scene

# The smallest models that are still whole, and two steps a phase. What tests count on (tokens, a
# codebook from the first step, the held-out share) is said here and not left to the recipes.
TINY = [
    "--backbone-weights",
    "None",
    "--model.backbone.depth",
    "1",
    "--model.backbone.width",
    "32",
    "--model.backbone.heads",
    "1",
    "--model.idm.depth",
    "1",
    "--model.idm.width",
    "32",
    "--model.idm.heads",
    "1",
    "--model.idm.tokens",
    "1",
    "--model.quantizer.unquantized-steps",
    "0",
    "--data.holdout",
    "0.1",
    "--model.conditioner.depth",
    "1",
    "--model.conditioner.heads",
    "1",
    "--model.fdm.depth",
    "1",
    "--model.fdm.width",
    "32",
    "--model.fdm.heads",
    "1",
    "--training.batch-size",
    "2",
    "--training.max-steps",
    "2",
    "--training.health-every",
    "1",
    "--training.health-window",
    "8",
    "--training.no-tensorboard",
    "--objective.start-clips",
    "8",
]
QUICK = [
    "--evaluation.clips",
    "4",
    "--evaluation.probe-clips",
    "8",
    "--sampler.steps",
    "1",
    "--evaluation.horizon",
    "2",
    "--evaluation.bootstrap-samples",
    "20",
    "--evaluation.shown-clips",
    "2",
    "--evaluation.shown-starts",
    "1",
    "--evaluation.shown-codes",
    "2",
]


@dataclass(frozen=True)
class Said:
    """How a call ended and what it said."""

    status: int
    out: str
    err: str

    @property
    def plain(self) -> str:
        """Both streams without tyro's frames and line breaks."""
        return " ".join((self.out + self.err).replace("│", " ").split())


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Equal runs are equal bytes only on equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def call(*arguments: object) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:  # tyro's own
        return int(stop.code or 0)


@pytest.fixture
def colaworld(capsys):
    """Calls the command in this process: `colaworld("train", "nano.cola", ...) -> Said`."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = call(*arguments)
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Arguments of `train` that make it a matter of a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """The same for `evaluate`."""
    return list(QUICK)


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> Path:
    """A recorded set: 40 episodes (8 of them held out) of 12 frames, 32x32 px, with actions."""
    path = tmp_path_factory.mktemp("data") / "scene"
    assert call("record", "scene", "--out", path, "--episodes", 40, "--steps", 12) == 0
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, scene) -> Path:
    """A finished tiny run of nano.cola. Do not write into it."""
    out = tmp_path_factory.mktemp("runs") / "cola"
    assert call("train", "nano.cola", "--data", scene, "--out", out, *TINY) == 0
    return out


@pytest.fixture
def few(scene, tmp_path) -> Path:
    """A set of its own to label in place."""
    return Path(shutil.copytree(scene, tmp_path / "few"))


@pytest.fixture(scope="session")
def other(tmp_path_factory, scene) -> Path:
    """As `trained`, another model of the same sizes."""
    out = tmp_path_factory.mktemp("runs") / "other"
    more = (*TINY, "--training.seed", 1)
    assert call("train", "nano.cola", "--data", scene, "--out", out, *more) == 0
    return out


@pytest.fixture(scope="session")
def film():
    """Writes an mp4 of the scene: film(path, frames=20, height=32, width=32, seed=0, fps=10)."""

    def write(
        path: Path,
        *,
        frames: int = 20,
        height: int = 32,
        width: int = 32,
        seed: int = 0,
        fps: float = 10,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        world, rng = Scene(height=height, width=width), np.random.default_rng(seed)
        frame = world.reset(seed)
        encoding = EncodingConfig(pixel_format="yuv420p")
        with VideoWriter(path, fps=fps, height=height, width=width, encoding=encoding) as video:
            for _ in range(frames):
                video.write(frame)
                frame, _ = world.step(int(rng.integers(5)))
        return path

    return write
