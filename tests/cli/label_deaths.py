"""Run by test_label_stopped.py: `label_deaths.py '[[[WHEN, ...], WHOLE, CALL], ...]'`. Every call is one of the
command in a forked process. WHOLE is left alone, and its changes of file names, syncs and deletions are
counted. Then CALL is made once for each WHEN, a share of that count, at which it gets signal 9 (just
before the change or just after it), and once more. Printed: how each ended. Not here: any assertion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import colaworld.runs.label
import colaworld.runs.pretrained  # noqa: F401  (imported once here, not in every fork)
from colaworld.cli import label  # noqa: F401
from colaworld.cli.main import main

seen = [0]


def arm(moment: int) -> None:
    """Arrange this process's death."""
    names = ("replace", "rename", "fsync", "link", "unlink", "rmdir")
    for home, name in (*((os, name) for name in names), (shutil, "copy2"), (Path, "unlink")):
        setattr(home, name, counted(getattr(home, name), moment))


def counted(call: Any, moment: int) -> Any:
    def run(*given: Any, **more: Any) -> Any:
        seen[0] += 1
        now = seen[0] == moment
        if now and moment % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        made = call(*given, **more)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    return run


def ended(call: list[str], moment: int) -> tuple[int | str, int]:
    """How a call ended ("killed" or its status), and how many changes it made."""
    sys.stdout.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        arm(moment)
        status = main(call)
        os.write(write, str(seen[0]).encode())
        os._exit(status)
    _, status = os.waitpid(child, 0)
    os.close(write)
    changes = os.read(read, 16)
    os.close(read)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return "killed" if killed else os.waitstatus_to_exitcode(status), int(changes or 0)


def run() -> None:
    told = []
    for shares, whole, call in json.loads(sys.argv[1]):
        status, changes = ended(whole, 0)
        moments = [1 + int(share * changes) for share in shares]
        told.append([status, *(ended(call, moment)[0] for moment in [*moments, 0])])
    print(f"DEATHS {json.dumps(told)}")


if __name__ == "__main__":
    run()
