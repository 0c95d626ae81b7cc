"""Runs the jobs of a study: a few processes at a time, each an ordinary colaworld command.

It can be killed anywhere: what is on the disk says what is left to do. A job that fails is tried once
more, and named. Not here: which jobs there are (folder.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from colaworld.files import FolderLock, printable
from colaworld.studies.job import Job
from colaworld.studies.rows import Row, collapsed

TRIES = 2  # of a job in one call
_PATIENCE = 60.0  # seconds that a training has to save when it is asked to stop


@dataclass
class Outcome:
    """How a call ended."""

    done: list[str] = field(default_factory=list)  # jobs that are done, those of earlier calls too
    failed: dict[str, str] = field(default_factory=dict)  # job -> the last line that it wrote
    left: list[str] = field(default_factory=list)  # jobs that were not begun or not finished


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    verb: str
    aim: tuple[str, str]
    log: BinaryIO
    from_byte: int  # of the log, where this command's output begins
    gpu: str | None  # the one that it sees, where there are several


class Scheduler:
    """Runs jobs, at most `jobs` processes at once.

    Args:
        waiting: in the order in which they should begin.
        jobs: processes.
        threads: of each.
        device: for train and evaluate.
        gpus: several GPUs, as CUDA_VISIBLE_DEVICES names them: each command sees one of them, that on which the
            fewest run. Empty: all commands see what we see.
        budget: seconds after which no job is begun; None: all are.
        say: shows a line to a person.
        done: called with the row of each run that is done, its job's name first.
        program: what a command begins with.
    """

    def __init__(
        self,
        waiting: Sequence[Job],
        *,
        jobs: int,
        threads: int = 1,
        device: str = "auto",
        gpus: Sequence[str] = (),
        budget: float | None = None,
        say: Callable[[str], None] = print,
        done: Callable[[str, Row], None] = lambda name, row: None,
        program: Sequence[str] = (sys.executable, "-m", "colaworld"),
    ) -> None:
        self.waiting = list(waiting)
        self.jobs, self.threads, self.device, self.gpus = jobs, threads, device, tuple(gpus)
        self.budget, self.say, self.done, self.program = budget, say, done, program
        self._running: list[_Running] = []
        self._tries: dict[str, int] = {}
        self._told_held: set[str] = set()
        self._outcome = Outcome()
        self._stop: str | None = None
        self._total = len(self.waiting)

    def run(self) -> Outcome:
        """Until all jobs are done, the budget is spent, or a signal asks to stop."""
        began = time.monotonic()
        spent = False
        before = self._catch_signals()
        try:
            while self.waiting or self._running:
                over = self.budget is not None and time.monotonic() - began >= self.budget
                if over and self.waiting and not spent:
                    spent = True
                    self.say(
                        f"the budget is spent: {len(self._running)} still running, "
                        f"{len(self.waiting)} not begun"
                    )
                if self._stop is not None or (over and not self._running):
                    break
                started = not over and self._start_next()
                if not self._collect() and not started:
                    time.sleep(0.1)
        finally:
            try:
                self._end_all()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        self._outcome.left = [job.name for job in self.waiting]
        return self._outcome

    # -- starting ----------------------------------------------------------------------------

    def _start_next(self) -> bool:
        """Begin the first job that may; True where one was begun or found done."""
        if len(self._running) >= self.jobs:
            return False
        for job in self.waiting:
            if lost := [name for name in job.needs if name in self._outcome.failed]:
                self.waiting.remove(job)
                self._outcome.failed[job.name] = f"needs {lost[0]}, which failed"
                self.say(self._line(f"{job.name}: left out, since {lost[0]} failed"))
                return True
            if all(name in self._outcome.done for name in job.needs):
                # As by a run that still saves, after its study was killed, or by a study that shares the data.
                try:
                    log = None if _held(job.base) else _hold(job.log)
                except OSError as error:
                    self.waiting.remove(job)
                    self._failed(job, str(error))
                    return True
                if log is None:
                    if job.name not in self._told_held:
                        self._told_held.add(job.name)
                        self.say(self._line(f"{job.name}: another process works in {job.base}"))
                    continue
                self.waiting.remove(job)
                self._begin(job, log)
                return True
        return False

    def _begin(self, job: Job, log: BinaryIO) -> None:
        """Start its next command, or take note that there is none. Its log is held as long as it runs."""
        with contextlib.ExitStack() as ending:
            ending.callback(log.close)
            try:
                job.prepare()
                command = job.command(device=self.device)
                if command is None:
                    self._finish(job)
                    return
                job.note(row=None)  # of what was there before: what is made anew is not in it
                gpu = self._free_gpu()
                process, from_byte = self._started(command, log, gpu)
            except (ValueError, OSError) as error:
                self._failed(job, str(error))
                return
            ending.pop_all()
        if command[0] != "evaluate":
            goes_on = " (goes on)" if "--resume" in command else ""
            self.say(self._line(f"{job.name}: {command[0]}{goes_on}"))
        aim = _aim(command)
        self._running.append(_Running(job, process, command[0], aim, log, from_byte, gpu))

    def _free_gpu(self) -> str | None:
        """That on which the fewest commands run; None where there are not several."""
        taken = [run.gpu for run in self._running]
        return min(self.gpus, key=taken.count, default=None)

    def _started(
        self, command: Sequence[str], log: BinaryIO, gpu: str | None
    ) -> tuple[subprocess.Popen[bytes], int]:
        """The process, and where in the log its output begins."""
        threads = str(self.threads)
        seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        from_byte = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            [*self.program, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **seen},
            start_new_session=True,  # Ctrl-C is ours to pass on
            preexec_fn=_end_with_parent,
        )
        return process, from_byte

    # -- ending ------------------------------------------------------------------------------

    def _collect(self) -> bool:
        """Take in what has ended; True where something has."""
        ended = [run for run in self._running if run.process.poll() is not None]
        for run in ended:
            self._running.remove(run)
            status = run.process.returncode
            said = _text(run.job.log, run.from_byte)
            run.job.ended(run.verb, status, said)
            if self._stop is not None:
                run.log.close()
                self.waiting.insert(0, run.job)
                continue
            following = run.job.command(device=self.device)
            moved_on = following is None or _aim(following) != run.aim
            if moved_on:
                self._begin(run.job, run.log)
            else:
                run.log.close()
                self._failed(run.job, _why(status, said))
        return bool(ended)

    def _finish(self, job: Job) -> None:
        row = job.finish()
        if row is not None:
            self.done(job.name, row)
        self._outcome.done.append(job.name)
        self._outcome.failed.pop(job.name, None)
        self.say(self._line(f"{job.name}: {told(row)}"))

    def _failed(self, job: Job, why: str) -> None:
        """Put it at the end of the queue, or give it up."""
        self._tries[job.name] = self._tries.get(job.name, 0) + 1
        job.note(failed=why)
        again = self._tries[job.name] < TRIES
        after = "it is tried once more" if again else "given up"
        self.say(self._line(f"{job.name}: FAILED, {after}: {why} ({job.log})"))
        if again:
            self.waiting.append(job)
        else:
            self._outcome.failed[job.name] = why

    def _line(self, text: str) -> str:
        gone = len(self._outcome.done) + len(self._outcome.failed)
        return f"[{gone}/{self._total}] {time.strftime('%H:%M:%S')} {text}"

    # -- stopping ----------------------------------------------------------------------------

    def _catch_signals(self) -> dict[int, Any]:
        """Ctrl-C, SIGTERM and SIGHUP ask us to stop; what they did before."""

        def ask(number: int, frame: object) -> None:
            self._stop = signal.Signals(number).name

        if threading.current_thread() is not threading.main_thread():
            return {}
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [n for n in wanted if signal.getsignal(n) is not signal.SIG_IGN]  # nohup
        return {number: signal.signal(number, ask) for number in heard}

    def _end_all(self) -> None:
        """Ask what runs to save and stop; wait for it."""
        if not self._running:
            return
        self._stop = self._stop or "stopped"
        self.say(f"{self._stop}: waiting for {len(self._running)} to save")
        for run in self._running:
            run.process.terminate()
        limit = time.monotonic() + _PATIENCE
        for run in self._running:
            try:
                run.process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
        self._collect()


def _aim(command: Sequence[str]) -> tuple[str, str]:
    """What a command does and where; the same when it is tried again."""
    where = command[command.index("--out") + 1] if "--out" in command else command[1]
    return command[0], where


def told(row: Row | None) -> str:
    """A run that is done, in one line."""
    if row is None:
        return "done"
    parts = [f"{row['status']} after {row['steps']} steps, {row['seconds'] / 60:.1f} min"]
    for key, number in row["numbers"].items():
        if number is not None and key in ("delta_psnr.random", "probe.score"):
            parts.append(f"{key} {number['mean']:.2f}")
    if row["collapsed_at"] is not None:
        parts.append(f"codebook collapsed at step {row['collapsed_at']}")
    elif collapsed(row):
        parts.append("codebook collapsed: one code on held-out clips")
    return ", ".join(parts)


def _end_with_parent() -> None:
    """In the child: SIGTERM when whoever started it is gone, whatever it died of (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _text(log: Path, from_byte: int) -> str:
    with log.open("rb") as file:
        file.seek(from_byte)
        return file.read().decode(errors="replace")


def _held(folder: Path) -> bool:
    """Whether another process holds the folder."""
    try:
        FolderLock(folder).close()
    except BlockingIOError:
        return True
    except OSError:  # it is not there yet, say
        pass
    return False


def _hold(log: Path) -> BinaryIO | None:
    """A job's log, to be written, and held by whoever has it open: us, and the command that writes it. None where
    another process holds it, which does the same job."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            file.close()
            raise
    return file


def _why(status: int, said: str) -> str:
    """Why a command failed, in a line. The last line of one that was killed knows nothing of it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return _last_line(said) or f"ended with status {status}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return printable(lines[-1])[:300] if lines else ""
