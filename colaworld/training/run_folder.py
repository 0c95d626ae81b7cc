"""The folder of a run: who holds it, is it this run's, its logs, checkpoints and last weights.

    out/config.yaml  metrics.jsonl  checkpoints/  tensorboard/  weights/  ended.json

Not here: when anything is written and what a checkpoint means (trainer.py), how a checkpoint
becomes whole or absent (checkpoint.py).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from colaworld.files import FolderLock, write_atomically
from colaworld.training import checkpoint as checkpoints
from colaworld.training.background import Background, copied
from colaworld.training.checkpoint import Checkpoint
from colaworld.training.config import TrainingConfig
from colaworld.training.distributed import Distributed
from colaworld.training.loggers import ConsoleLogger, JsonlLogger, read_rows
from colaworld.training.meters import Throughput
from colaworld.training.phase_state import PhaseState, Progress
from colaworld.training.protocols import ResumeError, RunFolderError
from colaworld.training.same_run import check_same_config
from colaworld.training.sinks import Sink, TensorBoardLogger, TrackerLogger
from colaworld.training.weights import export_weights

log = logging.getLogger(__name__)

ENDED = "ended.json"


class RunFolder:
    """One run's hold on `out`: take it, open its logs, close it.

    The main process of `distributed` alone writes; the others wait, and meet its errors. Only what is
    sharded in a checkpoint each writes for itself, so all must share the file system.
    `saved` is the newest checkpoint that was written or read, on every process. One that is still
    being written is known from `wait` on; whatever reads checkpoints waits by itself.
    """

    def __init__(self, out: Path, distributed: Distributed | None = None) -> None:
        self.out = out
        self.distributed = distributed or Distributed()
        self.checkpoints = out / "checkpoints"
        self.saved: Path | None = None
        self.shows_videos = False  # known from `open_logs` on, on every process
        self._console: ConsoleLogger | None = None
        self._sinks: list[Sink] = []  # besides metrics.jsonl and the screen
        self._jsonl: JsonlLogger | None = None
        self._lock: FolderLock | None = None
        self._writer = Background()
        self._beside: Distributed | None = None  # the processes, for the writer's thread
        self._rows: Mapping[str, Any] | None = None  # of metrics.jsonl, as the checkpoint has them
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
            ResumeError: it holds a run and `resume` is off, a run of another configuration, or one
                whose checkpoints are all damaged or gone.
        """
        self.distributed.on_main(self._hold)
        latest = self._newest()
        self.distributed.on_main(lambda: self._accept(latest, config_yaml, resume))
        self.saved = None if latest is None else latest.path
        return latest

    def _hold(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FolderLock(self.out)
        except BlockingIOError:
            raise RunFolderError(
                f"{self.out}: another process is training in this folder; wait for it, stop it, or "
                "choose another --out"
            ) from None
        checkpoints.sweep(self.checkpoints)

    def _accept(self, latest: Checkpoint | None, config_yaml: str, resume: bool) -> None:
        if latest is None:
            self._check_nothing_lost()
        self.checkpoints.mkdir(exist_ok=True)
        if latest is not None and not resume:
            raise ResumeError(
                f"{self.out} already holds a run (its last checkpoint is {latest.path.name}); "
                "resume it, or train into a new folder"
            )
        if latest is not None:
            with latest.restoring():
                check_same_config(latest.state["config"], config_yaml, where=str(latest.path))
            self._rows = latest.state.get("rows")
        elif resume:
            log.info("%s has no checkpoint yet; training starts from the beginning", self.out)

    def _check_nothing_lost(self) -> None:
        """ResumeError where a run was saved here of which no checkpoint can be read."""
        metrics, config = self.out / "metrics.jsonl", self.out / "config.yaml"
        rows = list(read_rows(metrics)) if metrics.is_file() else []
        weights = (self.out / "weights").exists()
        damaged = sorted(path.name for path in self.checkpoints.glob("step_*"))
        why = f"none of its checkpoints can be read: {', '.join(damaged)}"
        if not damaged:
            saved = config.read_text(errors="replace") if config.is_file() else ""
            found = re.search(r"\bcheckpoint_every: ([1-9]\d*)", saved)
            every = int(found[1]) if found else len(rows)
            # Killed before the first checkpoint was whole, a run begins anew. Written behind the steps, it
            # is whole by the time that the next one begins.
            least = 2 if re.search(r"\basync_checkpoint: true", saved) else 1
            lost = rows and (not self.checkpoints.is_dir() or _saves(rows, every) >= least)
            if not (lost or weights):
                return
            why = "its checkpoints are gone"
        raise ResumeError(
            f"{self.out}: holds a run ({len(rows)} rows in metrics.jsonl"
            f"{', and weights/' if weights else ''}), but {why}. Put them back; "
            "or, to train from the beginning, delete the folder or choose another --out"
        )

    def _check_in_place(self) -> None:
        """RunFolderError where the folder was taken away."""
        if self._lock is not None and not self._lock.in_place():
            raise RunFolderError(
                f"{self.out}: is not the folder that this run began in any more; it was moved or "
                "deleted meanwhile. Resume where it is now"
            )

    def _check_files(self) -> None:
        """RunFolderError where what a run cannot do without was taken away."""
        for name in self._missing():
            raise RunFolderError(
                f"{self.out / name}: was taken away from the running training; put it back, then "
                "resume"
            )

    def _missing(self) -> list[str]:
        names = ("config.yaml", "metrics.jsonl")
        return [name for name in names if not (self.out / name).is_file()]

    def write_config(self, config_yaml: str) -> None:
        """config.yaml, whole or as it was."""
        self.distributed.on_main(lambda: write_atomically(self.out / "config.yaml", config_yaml))

    def open_logs(self, training: TrainingConfig, *, after: int, total: int) -> None:
        """Begin to write behind global step `after`, of a run of `total` steps."""
        self._beside = self.distributed.beside(training.parallel.timeout)
        self.shows_videos = self.distributed.on_main(
            lambda: self._open_logs(training, after, total)
        )

    def ended(self, status: str, why: str, global_step: int) -> None:
        """ended.json: why training is over without weights; it is there until the run goes on."""
        if self._jsonl is None or self._lock is None or not self._lock.in_place():
            return  # another process than the main one, or the folder is not ours (any more)
        said = {"status": status, "why": why, "global_step": global_step}
        with contextlib.suppress(OSError):  # what is full or gone is told by what ends the run
            write_atomically(self.out / ENDED, json.dumps(said, indent=1) + "\n")

    def _open_logs(self, training: TrainingConfig, after: int, total: int) -> bool:
        (self.out / ENDED).unlink(missing_ok=True)
        self._jsonl = JsonlLogger(self.out / "metrics.jsonl", after=after, sums=self._rows)
        every = training.log_every
        if training.tensorboard:
            try:
                self._sinks.append(
                    TensorBoardLogger(self.out / "tensorboard", after=after, every=every)
                )
            except ImportError as error:
                log.warning("no TensorBoard logs: %s", error)
        for package, project in (("trackio", training.trackio), ("wandb", training.wandb)):
            if project is not None:
                saved = yaml.safe_load((self.out / "config.yaml").read_text()) or {}
                self._sinks.append(
                    TrackerLogger(package, project, self.out, config=saved, every=every)
                )
        self._console = ConsoleLogger(total=total)
        return bool(self._sinks)

    def close(self) -> None:
        """Let a checkpoint that is being written be finished; close what is open; let go."""
        try:
            self._writer.wait()
        except Exception as error:  # another one ends the run
            log.error("%s", error)
        for opened in (self._jsonl, *self._sinks, self._console, self._lock):
            if opened is not None:
                opened.close()

    def abandon(self) -> None:
        """`close` need not wait for a checkpoint that is being written; the folder is held for it."""
        writer, lock = self._writer, self._lock
        self._writer, self._lock = Background(), None

        def release() -> None:
            with contextlib.suppress(BaseException):
                writer.wait()
            if lock is not None:
                lock.close()

        threading.Thread(target=release, daemon=True).start()

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
        due = state.health is not None and row["step"] % state.training.health_every == 0
        for sink in self._sinks:
            sink.row(row)
            if due and state.health is not None:
                sink.codes(state.health.counts(), row["global_step"])

    def skip_to(self, step: int) -> None:
        """Count steps up to `step` as behind us that will not be run."""
        if self._console is not None:
            self._console.skip_to(step)

    def say(self, text: str) -> None:
        """Show a person `text`, once for all processes."""
        if self._console is not None:
            self._console.say(text)

    def video(self, name: str, frames: Any, global_step: int) -> None:
        """uint8 frames [n, T, H, W, 3] to where videos can be looked at."""
        for sink in self._sinks:
            sink.video(name, frames, global_step)

    def save(
        self,
        name: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        keep: int,
        background: bool = False,
    ) -> None:
        """Write the checkpoint `name`; of the older ones the newest and the healthy one stay.

        Rows are on the disk before it is: it counts those there are now. `background`: from a copy
        of all tensors, on a thread, after this call returned. Its error is raised by `wait`.
        """
        self.wait()

        def begin() -> tuple[Any, bool]:
            assert self._jsonl is not None
            self._check_in_place()
            return self._jsonl.sums(), bool(self._missing())

        rows, missing = self.distributed.on_main(begin)
        own, headers = checkpoints.own_files(tensors, self.distributed.rank)
        files = self.distributed.on_each(lambda: copied(own)) if background else own
        whole = {**copy.deepcopy(dict(state)), "rows": rows}
        self._writer.start(lambda: self._write(name, files, headers, whole, keep))
        if missing or not background:
            self.wait()
            self.distributed.on_main(self._check_files)

    def _write(
        self,
        name: str,
        files: Mapping[str, Mapping[str, Tensor]],
        headers: Mapping[str, dict[str, str]],
        state: Mapping[str, Any],
        keep: int,
    ) -> Path:
        """On every process, in its thread: all return the same, or raise."""
        processes = self._beside
        assert processes is not None

        def begin() -> None:
            assert self._jsonl is not None
            self._jsonl.sync()
            self._check_in_place()

        processes.on_main(begin)
        path = self.checkpoints / name
        try:
            checkpoints.write_checkpoint(path, files, state, headers=headers, processes=processes)
        except checkpoints.CheckpointError:
            processes.on_main(self._check_in_place)  # says more, where the folder was taken away
            raise
        processes.on_main(lambda: checkpoints.prune_checkpoints(self.checkpoints, keep))
        return path

    def failed(self) -> bool:
        """Whether a checkpoint could not be written; `wait` says why. Known to some processes first."""
        return self._writer.failed()

    def wait(self) -> None:
        """Until the checkpoint that is being written is there. Raises what went wrong with it."""
        self.saved = self._writer.wait() or self.saved

    def _newest(self, *, healthy: bool = False) -> Checkpoint | None:
        return checkpoints.latest_checkpoint(
            self.checkpoints, healthy=healthy, processes=self.distributed
        )

    def healthy(self) -> Checkpoint | None:
        """The newest checkpoint of a healthy codebook, or None."""
        self.wait()
        return self._newest(healthy=True)

    def retract(self) -> None:
        """Take weights/ away, which a run has left that now goes on: checkpoints are newer."""

        def remove() -> None:
            hidden = self.checkpoints / ".deleted_weights"  # where `sweep` finds it after a kill
            if (self.out / "weights").is_dir():
                os.replace(self.out / "weights", hidden)
                shutil.rmtree(hidden)

        self.distributed.on_main(remove)

    def exported(self) -> bool:
        """Whether weights/ is there."""
        file = self.out / "weights" / "model.safetensors"
        return self.distributed.on_main(file.exists)

    def export(self, phase: str, progress: Progress, config_yaml: str) -> None:
        """weights/: what the last checkpoint holds, averaged where an average is kept."""
        self.wait()
        self.distributed.on_main(self._check_in_place)
        self.distributed.on_main(self._check_files)
        latest = self._newest()
        self.distributed.on_main(lambda: self._export(latest, phase, progress, config_yaml))

    def _export(
        self, latest: Checkpoint | None, phase: str, progress: Progress, config_yaml: str
    ) -> None:
        if latest is None:
            raise RunFolderError(f"{self.checkpoints}: the last checkpoint is gone or damaged")
        averaged = latest.tensors("ema")
        export_weights(
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


def _saves(rows: list[dict[str, Any]], every: int) -> int:
    """How many checkpoints were begun before the last row: one at the end of each phase and one behind
    every `every` steps of it."""
    return sum(
        row.get("phase") != after.get("phase") or row.get("step") in range(every, len(rows), every)
        for row, after in itertools.pairwise(rows)
    )
