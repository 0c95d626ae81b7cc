"""The folder of a run: who holds it, its logs, its checkpoints, and the weights it ends with.

    out/config.yaml  metrics.jsonl  checkpoints/  tensorboard/  weights/

Not here: when anything is written and what a checkpoint means (trainer.py), how a checkpoint
becomes whole or absent (checkpoint.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from colaworld.training import checkpoint as checkpoints
from colaworld.training.checkpoint import Checkpoint
from colaworld.training.config import TrainingConfig
from colaworld.training.contracts import ResumeError, RunFolderError
from colaworld.training.distributed import Distributed
from colaworld.training.lock import FolderLock
from colaworld.training.loggers import ConsoleLogger, JsonlLogger, TensorBoardLogger
from colaworld.training.meters import Throughput
from colaworld.training.phase_state import PhaseState
from colaworld.training.progress import Progress
from colaworld.training.resuming import check_same_config

log = logging.getLogger(__name__)


class RunFolder:
    """One run's hold on `out`: take it, open its logs, close it.

    The main process of `distributed` alone reads and writes; the others wait, and meet its errors.
    `saved` is the newest checkpoint that was written or read, on every process.
    """

    def __init__(self, out: Path, distributed: Distributed | None = None) -> None:
        self.out = out
        self.distributed = distributed or Distributed()
        self.checkpoints = out / "checkpoints"
        self.saved: Path | None = None
        self.shows_videos = False  # known from `open_logs` on, on every process
        self._console: ConsoleLogger | None = None
        self._tensorboard: TensorBoardLogger | None = None
        self._jsonl: JsonlLogger | None = None
        self._lock: FolderLock | None = None
        self._throughput = Throughput()

    # -- opening and closing ---------------------------------------------------------------

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """What the file system refuses within the block is said as a RunFolderError."""
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"{self.out}: cannot be used as a run folder: {error}. Choose another --out or "
                "make this one writable"
            ) from error

    def take(self, config_yaml: str, *, resume: bool) -> Checkpoint | None:
        """Hold the folder, clear up after a killed process, and find what to continue from.

        Raises:
            ResumeError: it holds a run and `resume` is off, or a run of another configuration.
        """
        latest = self.distributed.on_main(lambda: self._take(config_yaml, resume))
        self.saved = None if latest is None else latest.path
        return latest

    def _take(self, config_yaml: str, resume: bool) -> Checkpoint | None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.out)
        checkpoints.sweep(self.checkpoints)
        latest = checkpoints.latest_checkpoint(self.checkpoints)
        if latest is not None and not resume:
            raise ResumeError(
                f"{self.out} already holds a run (its last checkpoint is {latest.path.name}); "
                "resume it, or train into a new folder"
            )
        if latest is not None:
            check_same_config(latest.state["config"], config_yaml, where=str(latest.path))
        elif resume:
            log.info("%s has no checkpoint yet; training starts from the beginning", self.out)
        return latest

    def write_config(self, config_yaml: str) -> None:
        """config.yaml, whole or as it was."""

        def write() -> None:
            temporary = self.out / ".config.yaml"
            temporary.write_text(config_yaml)
            temporary.replace(self.out / "config.yaml")

        self.distributed.on_main(write)

    def open_logs(self, training: TrainingConfig, *, after: int, total: int) -> None:
        """Begin to write behind global step `after`, of a run of `total` steps."""
        self.shows_videos = self.distributed.on_main(
            lambda: self._open_logs(training, after, total)
        )

    def _open_logs(self, training: TrainingConfig, after: int, total: int) -> bool:
        self._jsonl = JsonlLogger(self.out / "metrics.jsonl", after=after)
        if training.tensorboard:
            try:
                self._tensorboard = TensorBoardLogger(
                    self.out / "tensorboard", after=after, every=training.log_every
                )
            except ImportError as error:
                log.warning("no TensorBoard logs: %s", error)
        self._console = ConsoleLogger(total=total)
        return self._tensorboard is not None

    def close(self) -> None:
        """Close what is open and let the folder go."""
        for opened in (self._jsonl, self._tensorboard, self._console, self._lock):
            if opened is not None:
                opened.close()

    # -- writing ---------------------------------------------------------------------------

    def row(self, row: dict[str, Any], clips: int, state: PhaseState) -> None:
        """One step, of `clips` clips, into every log; codebook use where its health is due."""
        if self._jsonl is None or self._console is None:
            return  # another process than the main one
        self._throughput.update(row["seconds"], clips)
        if row.get("codebook") is None:
            row.pop("codebook", None)
        self._jsonl.row(row)
        self._console.row(row, clips_per_second=self._throughput.clips_per_second)
        if self._tensorboard is not None:
            self._tensorboard.row(row)
            if state.health is not None and row["step"] % state.training.health_every == 0:
                self._tensorboard.codes(state.health.counts(), row["global_step"])

    def skip_to(self, step: int) -> None:
        """Count steps up to `step` as behind us that will not be run."""
        if self._console is not None:
            self._console.skip_to(step)

    def say(self, text: str) -> None:
        """Show a person `text`, once for all processes."""
        if self._console is not None:
            self._console.say(text)

    def video(self, name: str, frames: Any, global_step: int) -> None:
        """uint8 frames [n, T, H, W, 3] into TensorBoard, where it is written."""
        if self._tensorboard is not None:
            self._tensorboard.video(name, frames, global_step)

    def save(
        self,
        name: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        keep: int,
    ) -> None:
        """Write the checkpoint `name`; of the older ones the newest and the healthy one stay.

        Rows are on the disk before it is: it counts them.
        """

        def write() -> Path:
            assert self._jsonl is not None
            self._jsonl.sync()
            written = checkpoints.write_checkpoint(self.checkpoints / name, tensors, state)
            checkpoints.prune_checkpoints(self.checkpoints, keep)
            return written.path

        self.saved = self.distributed.on_main(write)

    def healthy(self) -> Checkpoint | None:
        """The newest checkpoint of a healthy codebook, or None."""
        return self.distributed.on_main(
            lambda: checkpoints.latest_checkpoint(self.checkpoints, healthy=True)
        )

    def exported(self) -> bool:
        """Whether weights/ is there."""
        file = self.out / "weights" / "model.safetensors"
        return self.distributed.on_main(file.exists)

    def export(self, phase: str, progress: Progress, config_yaml: str) -> None:
        """weights/: what the last checkpoint holds, averaged where an average is kept."""
        self.distributed.on_main(lambda: self._export(phase, progress, config_yaml))

    def _export(self, phase: str, progress: Progress, config_yaml: str) -> None:
        latest = checkpoints.latest_checkpoint(self.checkpoints)
        assert latest is not None
        averaged = latest.tensors("ema")
        checkpoints.export_weights(
            self.out / "weights",
            averaged or latest.tensors("model"),
            {
                "format_version": checkpoints.FORMAT_VERSION,
                "phase": phase,
                "global_step": progress.global_step,
                "averaged": bool(averaged),
                "config": yaml.safe_load(config_yaml) or {},
            },
        )
