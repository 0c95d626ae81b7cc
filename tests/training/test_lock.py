"""Two processes in one run folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from colaworld.training.contracts import RunFolderError
from colaworld.training.lock import FolderLock

HOLD = """
import sys, pathlib
from colaworld.training.lock import FolderLock
held = FolderLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process is training in this folder"):
            FolderLock(tmp_path)
    finally:
        first.kill()
        first.wait()
    FolderLock(tmp_path).close()
    FolderLock(tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_keep_the_folder(tmp_path) -> None:
    lock = FolderLock(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # waits for the parent, with a copy of the lock's descriptor
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        lock.close()
        FolderLock(tmp_path).close()
    finally:
        os.close(writer)
        os.waitpid(child, 0)
