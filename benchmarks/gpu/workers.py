"""Many small jobs, shared out among processes: each kernel is compiled while others are.

    python -m benchmarks.gpu.workers SOURCE --out DIR ...       a worker: names of jobs on its input

A job that fails is reported at once, with its traceback above it. A process that dies with a job, or
whose GPU context a job has destroyed, is replaced, so that one broken kernel costs one job. Not here:
what the jobs are (`stages.jobs`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

import torch

from . import stages

_MARK = "\x1e"  # begins the line that says how a job ended; all other lines are the job's own


def share_out(
    names: Sequence[str],
    command: Sequence[str],
    *,
    count: int,
    seconds: float,
    done: Callable[[str, str, str], None],
) -> list[str]:
    """Run every job in one of `count` processes; `done(name, "ok" | "missing" | "failed", reason)`.

    Returns the names that had not ended after `seconds`, when the processes are killed.
    """
    waiting, lock = list(names), threading.Lock()
    ended: set[str] = set()
    living: set[subprocess.Popen] = set()
    late = time.monotonic() + seconds

    def next_name() -> str | None:
        with lock:
            return waiting.pop(0) if waiting and time.monotonic() < late else None

    def ended_with(name: str, outcome: str, reason: str) -> None:
        with lock:
            ended.add(name)
            done(name, outcome, reason)

    def work() -> None:
        process = None
        while (name := next_name()) is not None:
            if process is None:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                living.add(process)
            result = _one(process, name)
            if result is not None:
                ended_with(name, result["outcome"], result["reason"])
            elif time.monotonic() < late:
                ended_with(name, "failed", f"its process ended with {process.wait()}")
            if result is None or not result["healthy"]:
                process = None
        if process is not None:
            process.stdin.close()

    threads = [threading.Thread(target=work) for _ in range(min(count, len(names)))]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads) and time.monotonic() < late:
        time.sleep(0.05)
    for process in list(living):
        if process.poll() is None and time.monotonic() >= late:
            process.kill()
    for thread in threads:
        thread.join()
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


def serve(jobs: Mapping[str, Callable[[], None]], healthy: Callable[[], bool]) -> None:
    """A worker: runs the jobs named on its input, one after another."""
    for line in sys.stdin:
        name = line.rstrip("\n")
        result = {"outcome": "ok", "reason": "", "healthy": True}
        try:
            jobs[name]()
        except Exception as error:
            missing = stages.missing(error)
            if not missing:
                traceback.print_exc(file=sys.stdout)
            reason = str(error) if missing else f"{type(error).__name__}: {error}"
            outcome = "missing" if missing else "failed"
            result = {"outcome": outcome, "reason": reason[:300], "healthy": healthy()}
        print(_MARK + json.dumps(result), flush=True)
        if not result["healthy"]:
            return


def alive() -> bool:
    """Whether the GPU still takes work: after an access outside of memory it does not."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1).cpu()
    except RuntimeError:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    source, *rest = sys.argv[1:] if argv is None else argv
    options = stages.options(rest)
    torch.set_num_threads(1)
    with options.device_context():
        serve(stages.jobs(source, options), alive)
    return 0


if __name__ == "__main__":
    sys.exit(main())
