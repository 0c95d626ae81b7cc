"""Where a run is written down: metrics.jsonl, and the screen.

A row is one optimizer step as a dict; not here: what is in it (step.py, meters.py), and TensorBoard and
others that people look at runs with (sinks.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from colaworld.files import plain, write_atomically, write_refused
from colaworld.training.protocols import RunFolderError

log = logging.getLogger(__name__)
PLAIN_SECONDS = 10.0  # between progress lines where the output is not a terminal
_MUCH = 0.1  # share of a step's time that waits for data, from which on it is shown


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a metrics.jsonl, oldest first; a line that a kill cut short is left out."""
    _check_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it has no end")
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
            except (ValueError, RecursionError) as error:
                log.warning("%s: line %d dropped: %s", path, number, error)
                continue
            yield row


def _check_file(path: Path) -> None:
    """RunFolderError where something else is there: to open a pipe is to wait for ever."""
    if os.path.lexists(path) and not path.is_file():
        raise RunFolderError(
            f"{path}: expected a file, found something else; put the rows back in its place, or take "
            "it away to go on without them"
        )


class JsonlLogger:
    """metrics.jsonl: one JSON object per optimizer step, valid after a kill at any moment.

    Args:
        path: the file.
        after: rows whose "global_step" is beyond this are dropped first (0: begin anew), so that a
            resumed run holds every step exactly once.
        sums: of the rows up to `after`, as `sums()` told them to a checkpoint.

    Raises:
        RunFolderError: it is no file or cannot be written, or a row up to `after` is damaged (names it).
    """

    def __init__(self, path: Path, *, after: int, sums: Mapping[str, Any] | None = None) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_file(path)
            kept = self._kept(after, sums) if after and path.is_file() else b""
            write_atomically(path, kept)
            self._file = path.open("a")
        except OSError as error:
            raise self._error(error) from error
        self._digest, self._bytes = hashlib.sha256(kept), len(kept)
        rows = kept.count(b"\n")
        if after and rows != after:
            log.warning("%s: %d rows for %d steps; some are lost", path, rows, after)

    def _kept(self, after: int, sums: Mapping[str, Any] | None) -> bytes:
        """The lines up to global step `after`. A file that is empty has lost them, and that is told;
        one that was changed is refused, since nobody would notice."""
        data = self.path.read_bytes()
        if sums is not None:
            same = data[: sums["bytes"]]
            if hashlib.sha256(same).hexdigest() == sums["sha256"]:
                return same
        found = [(row.get("global_step"), row) for row in read_rows(self.path)]
        rows = [row for step, row in found if not isinstance(step, int) or step <= after]
        steps = [row.get("global_step") for row in rows]
        if not data or (sums is None and steps == list(range(after + 1 - len(rows), after + 1))):
            return "".join(_line(row) for row in rows).encode()
        wrong = next((n for n in range(1, after + 1) if steps[n - 1 : n] != [n]), None)
        where = f"line {wrong} is damaged or missing" if wrong else "a number in it was changed"
        raise RunFolderError(
            f"{self.path}: its rows up to step {after} are not those of the checkpoint: {where}. Put "
            "the file back as it was, or delete it to go on without these rows"
        )

    def _error(self, error: OSError) -> RunFolderError:
        return RunFolderError(f"{write_refused(self.path, error)[0]}, then resume")

    def row(self, row: Mapping[str, Any]) -> None:
        try:
            line = _line(row)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise self._error(error) from error
        self._digest.update(line.encode())
        self._bytes += len(line.encode())

    def sums(self) -> dict[str, Any]:
        """Bytes and hash of all rows so far."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def sync(self) -> None:
        """Put the rows on the disk; before a checkpoint that counts them."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            log.warning("%s: %s", self.path, error)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"


class ConsoleLogger:
    """Progress on the screen: a bar with ETA in a terminal, else a plain line now and then.

    Args:
        total: optimizer steps of the whole run, at most.
    """

    def __init__(self, *, total: int) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)
        self._total, self._done, self._new = total, 0, 0
        self._start = self._last = time.monotonic()
        self._bar = None
        if self._console.is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.fields[phase]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total, phase="", text="")
            self._bar.start()

    def row(self, row: Mapping[str, Any], *, clips_per_second: float = 0.0) -> None:
        self._done += 1
        self._new += 1
        text = "skipped" if "skipped" in row else f"loss {row['loss']:.4f}"
        if row.get("codebook"):
            text += f"  entropy {row['codebook']['entropy_normalised']:.2f}"
        if row.get("control"):
            text += f"  control {row['control']['control']:.2f}"
        if row.get("probe"):
            text += f"  probe {row['probe']['score']:.2f}"
        if clips_per_second:
            text += f"  {clips_per_second:.0f} clips/s"
        speed = row.get("speed", {})
        if "mfu" in speed:
            text += f"  MFU {100 * speed['mfu']:.0f} %"
        if speed.get("data_share", 0) >= _MUCH:
            text += f"  {100 * speed['data_share']:.0f} % waiting for data"
        if self._bar is not None:
            with self._outliving():
                self._bar.update(self._task, completed=self._done, phase=row["phase"], text=text)
            return
        now = time.monotonic()
        if self._new == 1 or now - self._last >= PLAIN_SECONDS:
            left = (now - self._start) / self._new * max(0, self._total - self._done)
            self._last = now
            # The first step starts threads, compiles, fills caches: it says nothing of the others.
            ahead = f"  about {_duration(left)} left" if self._new > 1 else ""
            self.say(
                f"{row['phase']} step {row['step']} ({self._done} of {self._total})  {text}{ahead}"
            )

    def skip_to(self, done: int) -> None:
        """Count steps as behind us that will not be run (a gate opened early, a rollback)."""
        self._done = done

    def say(self, text: str) -> None:
        with self._outliving():
            self._console.print(text, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            with self._outliving():
                self._bar.stop()

    @contextlib.contextmanager
    def _outliving(self) -> Iterator[None]:
        """A terminal that has gone (a closed ssh session) takes the bar with it, not the run."""
        try:
            yield
        except OSError as error:
            log.warning("nothing more is shown: %s", error)
            self._console.file, self._bar = io.StringIO(), None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
