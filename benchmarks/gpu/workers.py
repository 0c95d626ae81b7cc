"""Many small jobs, shared out among processes: each kernel is compiled while others are.

A job that fails is reported at once, with its traceback above it. A process that dies with a job, or
whose GPU context a job has destroyed, is replaced, so that one broken kernel costs one job. Not here:
what the jobs are (stages.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

_MARK = "\x1e"  # begins the line that says how a job ended; all other lines are the job's own
_PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


def share_out(
    names: Sequence[str],
    command: Sequence[str],
    *,
    count: int,
    seconds: float,
    done: Callable[[str, str, str], None],
) -> list[str]:
    """Run every job in one of `count` processes; `done(name, "ok" | "missing" | "failed", reason)`.

    `command` starts a process that calls `serve`. Returns the names that had not ended after `seconds`,
    when the processes are killed.
    """
    waiting, lock, over = iter(names), threading.Lock(), threading.Event()
    ended: set[str] = set()
    living: list[subprocess.Popen] = []

    def work(_: int) -> None:
        process = None
        for name in waiting:  # of all threads: whoever is free takes the next one
            if process is None:
                process = subprocess.Popen(command, text=True, **_PIPES)
                living.append(process)
            result = None if over.is_set() else _one(process, name)
            if over.is_set() and result is None:
                process.kill()
                return
            if result is None:
                reason = f"its process ended with {process.wait()}"
                result = {"outcome": "failed", "reason": reason, "healthy": False}
            with lock:
                ended.add(name)
                done(name, result["outcome"], result["reason"])
            process = process if result["healthy"] else None
        if process is not None:
            process.stdin.close()

    def stop() -> None:
        over.set()
        for process in living:
            process.kill()

    clock = threading.Timer(max(0.0, seconds), stop)
    clock.start()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(min(count, len(names)))))
    clock.cancel()
    for process in living:
        process.wait()
    return [name for name in names if name not in ended]


def _one(process: subprocess.Popen, name: str) -> dict | None:
    """What a worker says about one job, its other lines printed; None where it died."""
    try:
        process.stdin.write(name + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    for line in process.stdout:
        if line.startswith(_MARK):
            return json.loads(line[1:])
        print(f"[{name}] {line}", end="", flush=True)
    return None


def missing(error: Exception) -> bool:
    """Whether an error says that this machine lacks what a job is about."""
    return type(error).__name__ in ("Missing", "Unavailable")


def serve(jobs: Mapping[str, Callable[[], None]], healthy: Callable[[], bool]) -> None:
    """A worker: runs the jobs named on its input, one after another."""
    for line in sys.stdin:
        result = {"outcome": "ok", "reason": "", "healthy": True}
        try:
            jobs[line.rstrip("\n")]()
        except Exception as error:
            result = {"outcome": "missing", "reason": str(error)[:300], "healthy": healthy()}
            if not missing(error):
                traceback.print_exc(file=sys.stdout)
                reason = f"{type(error).__name__}: {error}"
                result |= {"outcome": "failed", "reason": reason[:300]}
        print(_MARK + json.dumps(result), flush=True)
        if not result["healthy"]:
            return
