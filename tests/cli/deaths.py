"""Run by test_kill.py: `deaths.py OUT SPEC... -- CALL...`. Every SPEC is one call of the command
(`CALL --out OUT`, from the second on with --resume) in a forked process that dies at that moment:

    row:N    signal 9 before the N-th row of metrics.jsonl is written in that process
    save:N   signal 9 while a checkpoint is written: the N-th of its files is there, the rest not
    half:N   signal 9 in the N-th such file, of which half is written
    term:N   SIGTERM at the N-th row: the process must save and exit 0
    none     never: the process must finish

Not here: any assertion about the run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colaworld.cli import train  # noqa: F401  (once here, not in every fork)
from colaworld.cli.main import main
from colaworld.training import checkpoint, loggers


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(spec: str) -> None:
    """Arrange this process's death."""
    kind, _, number = spec.partition(":")
    left = [int(number or 0)]

    def nth() -> bool:
        left[0] -= 1
        return left[0] == 0

    write, save = loggers.JsonlLogger.row, checkpoint.save_file

    def dying_row(self: Any, row: Any) -> None:
        if nth():
            os.kill(os.getpid(), signal.SIGTERM if kind == "term" else signal.SIGKILL)
        write(self, row)

    def dying_save(tensors: Any, path: Path, **header: Any) -> None:
        save(tensors, path, **header)
        if nth():
            if kind == "half":
                os.truncate(path, os.path.getsize(path) // 2)
            die()

    if kind in ("row", "term"):
        loggers.JsonlLogger.row = dying_row  # type: ignore[method-assign]
    elif kind in ("save", "half"):
        checkpoint.save_file = dying_save
    elif kind != "none":
        raise SystemExit(f"unknown moment {spec!r}")


def tried(spec: str, call: Callable[[], int]) -> str:
    """Fork, arm, call. Returns "killed" or "exit STATUS"."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        arm(spec)
        status = call()
        sys.stdout.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGKILL else f"signal {status}"
    return f"exit {os.WEXITSTATUS(status)}"


def run() -> None:
    import torch._dynamo  # noqa: F401  (the optimizer imports it)

    at = sys.argv.index("--")
    out, specs, call = sys.argv[1], sys.argv[2:at], [*sys.argv[at + 1 :], "--out", sys.argv[1]]
    for number, spec in enumerate(specs):
        resume = ["--resume"] if number else []
        happened = tried(spec, lambda resume=resume: main([*call, *resume]))
        print(f"DEATH {spec} {happened}", flush=True)
    assert Path(out).is_dir()


if __name__ == "__main__":
    run()
