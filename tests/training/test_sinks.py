"""TensorBoard and other places to look at a run: what they are given, and that they cannot stop it."""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from colaworld.config import ConfigError
from colaworld.training.sinks import TensorBoardLogger, TrackerLogger, gif


def test_gif_tiles_videos_in_a_row():
    from PIL import Image

    frames = np.zeros((2, 3, 4, 5, 3), np.uint8)
    frames[1, :, :, :, 0] = 255
    frames[0, 1] = 255  # the GIF writer merges equal neighbours, so let every frame differ
    frames[0, 2, :2] = 255
    data, height, width = gif(torch.from_numpy(frames), fps=10.0)
    assert (height, width) == (4, 10)
    image = Image.open(io.BytesIO(data))
    assert image.size == (10, 4) and image.n_frames == 3 and image.info["duration"] == 100
    first = np.asarray(image.convert("RGB"))
    assert (first[:, :5] == 0).all() and (first[:, 5:] == [255, 0, 0]).all()
    with pytest.raises(ValueError, match=r"uint8 \[n, T, H, W, 3\], got float32"):
        gif(frames.astype(np.float32), fps=8.0)


def test_tensorboard_reads_back(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the tensorboard package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, after=0, every=2)
    for step in (1, 2, 3):
        row = {"phase": "p", "step": step, "global_step": step, "loss": step / 2}
        logger.row(
            {**row, "codebook": {"positions": [{"perplexity": 3.0}]}, "metrics": {"a": math.nan}}
        )
    logger.codes(torch.tensor([[1, 0, 4]]), 2)
    logger.video("rollout/p", np.zeros((1, 2, 4, 4, 3), np.uint8), 2)
    logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]
    assert events.Scalars("codebook/positions/0/perplexity")[0].value == 3.0
    assert "metrics/a" not in events.Tags()["scalars"]
    assert events.Histograms("codes/position_0")[0].histogram_value.bucket == [1, 0, 4]
    assert events.Images("rollout/p")[0].encoded_image_string[:6] == b"GIF89a"


class Tracker(SimpleNamespace):
    """In place of the package trackio or wandb."""

    def __init__(self) -> None:
        self.calls = []
        super().__init__(Video=lambda frames, fps: ("video", frames.shape, fps))

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_tracker_is_given_the_run_its_rows_and_videos(package, monkeypatch, tmp_path):
    module = Tracker()
    monkeypatch.setitem(sys.modules, package, module)
    out = tmp_path / "first"
    logger = TrackerLogger(package, "mine", out, config={"a": 1}, every=2)
    for step in (1, 2, 3):
        row = {"step": step, "global_step": step + 5, "loss": step / 2, "metrics": {"x": math.nan}}
        logger.row({**row, "phase": "p", "speed": {"mfu": 0.5}})
    logger.codes(torch.ones(1, 2), 8)
    logger.video("rollout/p", np.zeros((2, 3, 4, 5, 3), np.uint8), 8)
    logger.video("rollout/p", torch.zeros(2, 3, 4, 5, 3, dtype=torch.uint8), 8)
    logger.close()
    began, *logged, ended = module.calls
    assert began[0] == "init" and ended == ("finish", (), {})
    assert began[2]["project"] == "mine" and began[2]["name"] == "first"
    assert began[2]["config"] == {"a": 1} and began[2]["resume"] == "allow"
    assert ("id" in began[2]) == (package == "wandb")
    assert [call[2]["step"] for call in logged] == [6, 7, 8, 8]
    assert logged[1][1][0] == {"step": 2.0, "global_step": 7.0, "loss": 1.0, "speed/mfu": 0.5}
    for video in logged[2:]:
        assert video[1][0] == {"rollout/p": ("video", (3, 3, 4, 10), 8)}


def test_a_tracker_that_fails_ends_its_logging_alone(monkeypatch, tmp_path, caplog):
    def fail(*_, **__):
        raise ConnectionError("no route to host")

    module = SimpleNamespace(init=lambda **_: None, log=fail, finish=fail)
    monkeypatch.setitem(sys.modules, "wandb", module)
    logger = TrackerLogger("wandb", "mine", tmp_path, config={}, every=1)
    for step in (1, 2):
        logger.row({"step": step, "global_step": step, "loss": 1.0})
    logger.close()
    assert caplog.text.count("no more is sent to wandb: no route to host") == 1


def test_a_tracker_that_is_not_there_or_refuses_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(
        ConfigError, match=r"training.trackio: .*pip install 'colaworld\[trackio\]'"
    ):
        TrackerLogger("trackio", "mine", tmp_path, config={}, every=1)

    def refuse(**_):
        raise RuntimeError("no API key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(ConfigError, match=r"training.wandb: wandb refuses the run: no API key"):
        TrackerLogger("wandb", "mine", tmp_path, config={}, every=1)


def test_a_run_logs_to_a_tracker(toy, tmp_path, monkeypatch):
    module = Tracker()
    monkeypatch.setitem(sys.modules, "trackio", module)
    training = dataclasses.replace(toy.TRAINING, trackio="mine", max_steps=3, log_every=1)
    toy.trainer(tmp_path / "run", training=training).run()
    names = [name for name, _, _ in module.calls]
    assert names[0] == "init" and names[-1] == "finish" and names.count("log") == 6
    row = module.calls[1][1][0]
    assert {"loss", "grad_norm/total", "speed/clips_per_second", "speed/data_share"} <= row.keys()
