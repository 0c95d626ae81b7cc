"""Processes as torchrun would start them, for test_launch.py: `launched.py '[[OUT, FAULT, [ARGUMENT, ...]], ...]'`.

For each entry two are forked from this script with torchrun's variables; each runs `colaworld
ARGUMENT...`. FAULT happens to the second: `none`; `data`, its third batch raises; `kill`, it is killed
there; `stop`, it gets a SIGTERM there; `other`, it is called with another seed;
`hang`, from there on what it reads of the disk never comes; `late`, it looks every two seconds alone
whether another has failed. OUT/<rank>.txt is what each printed. Printed here: their exit statuses, as
JSON. Not here: any assertion.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from colaworld.cli import launch
from colaworld.cli.main import main
from colaworld.data.errors import DataError
from colaworld.data.loader import ClipLoader

SECONDS = 90


def spoil(fault: str) -> None:
    """What happens when this process asks for its third batch."""
    ask, asked, make = ClipLoader.__next__, [0], ClipLoader.__init__

    def faulty_disk(loader: ClipLoader, *given: Any, **more: Any):
        make(loader, *given, **more)
        read = loader.clips.source.stream

        def stream(*given: Any, **more: Any):
            while asked[0] >= 3:
                time.sleep(1)
            return read(*given, **more)

        loader.clips.source.stream = stream

    def faulty(loader: ClipLoader):
        asked[0] += 1
        if asked[0] == 3 and fault == "data":
            raise DataError("clip 7@3 cannot be decoded")
        if asked[0] == 3 and fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGTERM)
        return ask(loader)

    ClipLoader.__next__ = faulty
    if fault == "late":
        launch.PULSE = 2.0
    if fault == "hang":
        ClipLoader.__init__ = faulty_disk


def child(out: Path, rank: int, port: int, fault: str, call: list[str]) -> None:
    out.mkdir(exist_ok=True)
    said = os.open(out / f"{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if rank == 1:
        spoil(fault)
        call = [*call, "--training.seed", "5"] if fault == "other" else call
    try:
        status = main(call)
    except SystemExit as stop:
        status = stop.code
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 1)


def play(out: Path, fault: str, call: list[str]) -> list[int]:
    """The exit status of both; none is left after SECONDS."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            child(out, rank, port, fault, call)
        pids.append(pid)
    status: dict[int, int] = {}
    end = time.monotonic() + SECONDS
    while len(status) < 2:
        for pid in pids:
            if pid not in status and (done := os.waitpid(pid, os.WNOHANG))[0]:
                status[pid] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() > end:
            for pid in set(pids) - set(status):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [status[pid] for pid in pids]


if __name__ == "__main__":
    import rich.console  # noqa: F401
    import torch._dynamo  # imported once here, not in every fork
    import torch.distributed.tensor  # noqa: F401

    import colaworld.cli.train  # noqa: F401

    plays = json.loads(sys.argv[1])
    print(json.dumps([play(Path(folder), fault, call) for folder, fault, call in plays]))
