"""Where people look at a run besides its folder: TensorBoard, trackio, wandb, behind one interface.

Not here: metrics.jsonl and the screen (loggers.py), which every run has.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from colaworld.config import ConfigError

log = logging.getLogger(__name__)


class Sink(Protocol):
    """What takes the rows of a run, one an optimizer step."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A step; most keep every n-th."""
        ...

    def codes(self, counts: Tensor, global_step: int) -> None:
        """How often each code was used, counts [N, K]."""
        ...

    def video(self, name: str, frames: Any, global_step: int) -> None:
        """uint8 frames [n, T, H, W, 3]."""
        ...

    def close(self) -> None:
        """The run is over, for now."""
        ...


class TensorBoardLogger:
    """Scalars, code histograms and preview videos for TensorBoard (an optional package).

    Videos are GIFs in image summaries: TensorBoard's own video summary writes nothing today.
    """

    def __init__(self, folder: Path, *, after: int, every: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard logs need the tensorboard package: pip install "
                "'colaworld[tensorboard]', or set training.tensorboard to false"
            ) from error
        self.every = every
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def row(self, row: Mapping[str, Any]) -> None:
        """Every number of the row, nested names joined by "/"; at every `every`-th step."""
        if row["step"] % self.every and row["step"] != 1:
            return
        for name, value in numbers(row):
            if name not in ("step", "global_step"):
                self._writer.add_scalar(name, value, row["global_step"])

    def codes(self, counts: Tensor, global_step: int) -> None:
        """Histogram of code use per token position, from counts [N, K]."""
        for position, row in enumerate(counts.tolist()):
            size = len(row)
            total = sum(row)
            self._writer.add_histogram_raw(
                f"codes/position_{position}",
                min=0,
                max=size - 1,
                num=total,
                sum=sum(code * n for code, n in enumerate(row)),
                sum_squares=sum(code * code * n for code, n in enumerate(row)),
                bucket_limits=[code + 0.5 for code in range(size)],
                bucket_counts=row,
                global_step=global_step,
            )

    def video(self, name: str, frames: Any, global_step: int, *, fps: float = 8.0) -> None:
        """Show uint8 frames [n, T, H, W, 3] side by side as one moving picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        data, height, width = gif(frames, fps=fps)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        self._writer._get_file_writer().add_summary(
            Summary(value=[Summary.Value(tag=name, image=image)]), global_step
        )

    def close(self) -> None:
        self._writer.close()


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of every finite number in a row, nested names joined by "/"."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        if math.isfinite(value):
            yield path, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{path}/{index}")


def gif(frames: Any, *, fps: float) -> tuple[bytes, int, int]:
    """uint8 frames [n, T, H, W, 3] -> (GIF of n videos in a row, its height, its width)."""
    import numpy as np
    from PIL import Image

    frames = np.asarray(frames.cpu() if isinstance(frames, Tensor) else frames)
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"preview frames: expected uint8 [n, T, H, W, 3], got {frames.dtype} {frames.shape}"
        )
    n, steps, height, width, _ = frames.shape
    rows = frames.transpose(1, 2, 0, 3, 4).reshape(steps, height, n * width, 3)
    images = [Image.fromarray(row) for row in rows]
    file = io.BytesIO()
    images[0].save(
        file, "GIF", save_all=True, append_images=images[1:], duration=1000 / fps, loop=0
    )
    return file.getvalue(), height, n * width


class TrackerLogger:
    """Numbers and preview videos for trackio or wandb, whose calls are alike.

    A run goes by the name of its folder, and goes on under it when it is resumed. What the service
    fails with is told once and ends the logging, not the training.

    Args:
        package: "trackio" or "wandb".
        project: that runs are grouped by.
        out: the run folder.
        config: of the run, to be shown beside it.
        every: steps between points.

    Raises ConfigError where the package is not installed or the service refuses the run.
    """

    def __init__(
        self, package: str, project: str, out: Path, *, config: Mapping[str, Any], every: int
    ) -> None:
        self.package, self.every = package, every
        given: dict[str, Any] = {"name": out.name, "config": dict(config), "resume": "allow"}
        if package == "wandb":  # knows runs by an id; names may repeat
            where = str(out.resolve()).encode()
            given |= {"dir": str(out), "id": hashlib.sha256(where).hexdigest()[:16]}
        try:
            self._module: Any = importlib.import_module(package)
            self._module.init(project=project, **given)
        except ImportError as error:
            raise ConfigError(
                f"training.{package}: needs the package {package}: pip install 'colaworld[{package}]'"
            ) from error
        except Exception as error:
            raise ConfigError(f"training.{package}: {package} refuses the run: {error}") from error

    def row(self, row: Mapping[str, Any]) -> None:
        """Every number of the row, nested names joined by "/"; at every `every`-th step."""
        if row["step"] % self.every and row["step"] != 1:
            return
        self._log(dict(numbers(row)), row["global_step"])

    def codes(self, counts: Tensor, global_step: int) -> None:
        """Nothing: health is in the row."""

    def video(self, name: str, frames: Any, global_step: int) -> None:
        """Side by side as one moving picture."""
        video: Any = getattr(self._module, "Video", None)
        if video is not None:
            n, steps, height, width, _ = frames.shape
            side = (
                frames.permute(1, 4, 2, 0, 3)
                if isinstance(frames, Tensor)
                else frames.transpose(1, 4, 2, 0, 3)
            )
            side = side.reshape(steps, 3, height, n * width)
            self._log(
                {name: video(side if not isinstance(side, Tensor) else side.numpy(), fps=8)},
                global_step,
            )

    def close(self) -> None:
        self._try(lambda: self._module.finish())

    def _log(self, values: dict[str, Any], step: int) -> None:
        self._try(lambda: self._module.log(values, step=step))

    def _try(self, call: Any) -> None:
        if self._module is None:
            return
        try:
            call()
        except Exception as error:
            log.warning("no more is sent to %s: %s", self.package, error)
            self._module = None
