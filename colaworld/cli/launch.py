"""The processes that torchrun starts: who this one is, how they meet, and how they end together.

    with launched() as processes:        one process alone: nothing happens here
        device = processes.device("cuda")
        processes.join(device, timeout=600)      torch.distributed is there from here on

An error in one process is printed once, by that process, and ends all of them with one exit status,
also those that wait for it within a collective call. Not here: what they do together
(training/distributed.py).

Each process has a thread that counts up a key of the store at which they met, and looks whether one
of them has said how it failed. Two counts that stand still tell which process is dead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from colaworld.cli.errors import FORESEEN, report_error
from colaworld.config import ConfigError

PULSE = 0.5  # seconds between looks at the store
SILENT = 8.0  # a process that has not counted up for so many seconds is dead
MEETING = timedelta(minutes=10)  # until the last process is there; hosts of a cluster start apart
LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")


class Processes:
    """This process among those that torchrun started. Alone every method does the obvious.

    Args:
        environment: torchrun's variables.

    Raises:
        ConfigError: processes that cannot find each other.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        def number(name: str, default: int) -> int:
            value = environment.get(name, str(default))
            if not value.isdigit():
                raise ConfigError(f"{name}: expected a number from torchrun, got {value!r}")
            return int(value)

        self.rank, self.world_size = number("RANK", 0), number("WORLD_SIZE", 1)
        self.local_rank = number("LOCAL_RANK", self.rank)
        self.local_world_size = number("LOCAL_WORLD_SIZE", self.world_size)
        self.restarts = number("TORCHELASTIC_RESTART_COUNT", 0)
        missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(n)]
        tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
        start = "start them by torchrun --nproc-per-node N -m colaworld train ..."
        if self.world_size > 1 and missing:
            raise ConfigError(
                f"WORLD_SIZE is {self.world_size}, but {', '.join(missing)} not set: the processes "
                f"cannot find each other; {start}, or unset WORLD_SIZE"
            )
        if self.world_size == 1 and tasks not in ("", "1") and "RANK" not in environment:
            raise ConfigError(
                f"srun started {tasks} tasks that know nothing of each other (SLURM_STEP_NUM_TASKS); "
                "let srun start one torchrun a node (--ntasks-per-node=1), as in docs/cluster.md"
            )
        if self.rank >= self.world_size:
            raise ConfigError(
                f"RANK: expected less than WORLD_SIZE ({self.world_size}), got {self.rank}"
            )
        self._store: Any = None  # of the launch, over restarts
        self._own: Any = None  # of this attempt
        self._asked = 0  # how often `agree` was called
        self._left = threading.Event()
        if not missing and (self.world_size > 1 or self.restarts):
            self._meet()

    @property
    def is_main(self) -> bool:
        """Whether this process speaks to the person."""
        return self.rank == 0

    # -- coming together -------------------------------------------------------------------

    def _meet(self) -> None:
        from torch import distributed

        try:
            found, _, _ = next(distributed.rendezvous("env://", timeout=MEETING))
        except (distributed.DistError, ValueError) as error:
            raise ConfigError(
                f"the {self.world_size} processes cannot meet at {os.environ.get('MASTER_ADDR')}, port "
                f"{os.environ.get('MASTER_PORT')} (MASTER_ADDR, MASTER_PORT): {_line(error)}"
            ) from None
        # The store outlives a restart, and its keys with it.
        self._store = getattr(found, "underlying_store", found)
        self._own = distributed.PrefixStore(f"colaworld/{self.restarts}", found)
        if self.world_size > 1:
            if not self.is_main:
                _quieten(self.rank)
            self._own.set(f"host/{self.rank}", socket.gethostname())
            self._signals, written = os.pipe()
            for end in (self._signals, written):
                os.set_blocking(end, False)
            # Python's own handlers wait until a collective call returns; this does not.
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, name="processes", daemon=True).start()

    def after_main(self, call: Callable[[], Any]) -> Any:
        """`call()` here after it succeeded on the main process, whose complaints are enough."""
        if self.world_size == 1 or self.is_main:
            made = call()
            if self._own is not None:
                self._own.set("parsed", "1")
            return made
        self._own.wait(["parsed"], MEETING)
        return call()

    def agree(self, values: Mapping[str, Any]) -> None:
        """Raises ConfigError where plain values by name are not those of the main process."""
        if self.world_size == 1:
            return
        self._asked += 1
        key, text = f"asked/{self._asked}", json.dumps(values)
        if self.is_main:
            self._own.set(key, text)
            return
        wanted, got = json.loads(self._own.get(key)), json.loads(text)
        for name in [*wanted, *got]:
            if wanted.get(name) != got.get(name):
                raise ConfigError(
                    f"{name}: expected {wanted.get(name)!r} as on rank 0, got {got.get(name)!r}; start "
                    "all processes with the same arguments and data"
                )

    def device(self, name: str) -> str:
        """Where this process computes when all were asked to on `name`: cpu, cuda, cuda:N."""
        import torch

        kind, _, number = name.partition(":")
        if self.world_size == 1 or kind == "cpu":
            return name
        if number:
            raise ValueError(
                f"--device {name}: {self.world_size} processes take a GPU each; leave the number out"
            )
        gpus = torch.cuda.device_count()
        if self.local_world_size > gpus:
            raise ValueError(
                f"{self.local_world_size} processes on {socket.gethostname()}, which has {gpus} "
                f"GPU{'s' if gpus > 1 else ''}: torchrun --nproc-per-node {gpus}, or --device cpu"
            )
        return f"cuda:{self.local_rank}"

    def join(self, device: str, *, timeout: float) -> None:
        """Initialise torch.distributed; a collective call waits `timeout` seconds at most."""
        if self.world_size == 1:
            return
        import torch
        from torch import distributed

        chosen = torch.device(device)
        gpu = chosen.type == "cuda"
        if gpu:
            torch.cuda.set_device(chosen)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=self._own,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=timeout),
            device_id=chosen if gpu else None,
        )

    def command(self) -> list[str]:
        """What a person types in place of `colaworld` to start as many processes again."""
        if self.world_size == 1:
            return program()
        nodes = self.world_size // self.local_world_size
        more = [f"--nnodes={nodes}"] if nodes > 1 else []
        return ["torchrun", *more, f"--nproc-per-node={self.local_world_size}", "-m", "colaworld"]

    # -- restarts --------------------------------------------------------------------------

    def begins(self, out: Path) -> None:
        """Remember that this launch trains in `out`."""
        if self._store is None and "MASTER_ADDR" in os.environ and "RANK" in os.environ:
            self._meet()
        if self._store is not None and self.is_main:
            self._store.set(_mark(out), "1")

    def resumes(self, out: Path) -> bool:
        """Whether torchrun has started this again after it trained in `out`."""
        return bool(self.restarts and self._store and self._store.check([_mark(out)]))

    # -- ending together -------------------------------------------------------------------

    def leave(self) -> None:
        """All processes are done: wait for the last and take torch.distributed down."""
        if self.world_size == 1:
            return
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
            self._left.set()
            distributed.destroy_process_group()
        self._left.set()

    def fail(self, error: BaseException, program: str) -> None:
        """End every process, this one too, for `error` of this one. Alone: nothing."""
        if self.world_size == 1 or self._own is None:
            return
        lost = isinstance(error, RuntimeError) and any(w in str(error).lower() for w in LOST)
        if lost:  # it may be the echo of an error that is being said
            before = self._counts(self._own)
            time.sleep(3 * PULSE)
            dead = self._named(self._own, before, self._counts(self._own)) or "another process"
            error = OSError(f"{dead} has ended or does not answer: {_line(error)}")
        elif not self.is_main:
            time.sleep(PULSE / 2)  # where all fail alike, the main process speaks
        mine = b""  # and not this process's either where the store has gone
        with contextlib.suppress(Exception):
            mine = self._own.compare_set("claimed", "", str(self.rank))
        if mine != str(self.rank).encode():
            self._left.wait(2 * SILENT)  # the watching thread ends this process meanwhile
            os._exit(1)
        self._left.set()
        status = _say(error, program if self.is_main else f"[rank {self.rank}] {program}")
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            self._own.set(f"heard/{self.rank}", "1")
            self._own.set("said", str(status))
            self._until_heard(self._own)
        os._exit(status)  # whatever waits in a library for a process that is gone is not asked

    def _until_heard(self, store: Any) -> None:
        """The main process goes last, when all know the status: the store ends with it."""
        if self.is_main and not _torchrun_keeps():
            others = [f"heard/{rank}" for rank in range(1, self.world_size)]
            end = time.monotonic() + SILENT
            # Checked, not waited for: other calls on the store go on meanwhile.
            while time.monotonic() < end and not all(store.check([key]) for key in others):
                time.sleep(PULSE / 10)
            time.sleep(PULSE)

    def _watch(self) -> None:
        store, asked, before = self._own.clone(), 0.0, None
        while not self._left.wait(PULSE):
            try:
                store.add(f"alive/{self.rank}", 1)
                if store.check(["said"]):
                    status = int(store.get("said"))
                    store.set(f"heard/{self.rank}", "1")
                    if _torchrun_keeps():
                        self._left.wait(2 * PULSE)  # torchrun names the process that ends first
                    self._until_heard(store)
                    os._exit(status)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._signals, 64)
                    asked, before = time.monotonic(), self._counts(store)
                if before is not None and time.monotonic() - asked > SILENT:
                    # Asked to stop, all have to agree; one that is gone never will.
                    after = self._counts(store)
                    if dead := self._named(store, before, after):
                        if self._speaks_for(before, after):
                            _print(f"{dead} does not answer, so nothing is saved")
                        os._exit(1)
                    asked, before = time.monotonic(), after
            except Exception:
                if not self._left.wait(SILENT):
                    os._exit(1)  # who kept the store has gone, and with it the whole launch

    def _counts(self, store: Any) -> list[int]:
        return [store.add(f"alive/{rank}", 0) for rank in range(self.world_size)]

    def _named(self, store: Any, before: list[int], after: list[int]) -> str:
        """Processes that are dead, by rank and host."""
        counts = enumerate(zip(before, after, strict=True))
        dead = [rank for rank, (earlier, later) in counts if earlier == later]
        return ", ".join(f"rank {r} ({store.get(f'host/{r}').decode()})" for r in dead)

    def _speaks_for(self, before: list[int], after: list[int]) -> bool:
        """Whether this is the first process that lives."""
        return all(a == b for a, b in zip(before[: self.rank], after[: self.rank], strict=True))


@contextlib.contextmanager
def launched(program: str) -> Iterator[Processes]:
    """The processes of this call; what one of them raises within the block ends all."""
    processes = Processes()
    try:
        yield processes
        processes.leave()
    except BaseException as error:
        processes.fail(error, program)
        raise


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say(error: BaseException, program: str) -> int:
    """Print what went wrong and return the exit status."""
    if isinstance(error, SystemExit):  # of the command line, which has said why
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        print("colaworld: stopped", file=sys.stderr)
        return 130
    if isinstance(error, FORESEEN):
        with contextlib.suppress(type(error)):  # raised where COLAWORLD_DEBUG asks for it
            return report_error(program, error)
    print(f"{program}: {''.join(traceback.format_exception(error))}", end="", file=sys.stderr)
    return 1


class _OwnClips(logging.Filter):
    """Of another process than the main one: warnings about the clips that it alone has read."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        from torch import distributed

        if record.levelno < logging.WARNING or not record.name.startswith("colaworld.data"):
            return False
        record.msg = f"[rank {self.rank}] {record.msg}"
        return distributed.is_initialized()  # before, all open the same data set


def _quieten(rank: int) -> None:
    """Leave the person to the main process."""
    warnings.simplefilter("ignore")
    for handler in logging.getLogger().handlers:
        handler.filters.insert(0, _OwnClips(rank))


def _mark(out: Path) -> str:
    return f"colaworld/began/{hashlib.sha256(str(out.resolve()).encode()).hexdigest()}"


def _torchrun_keeps() -> bool:
    """Whether the store is torchrun's and outlives these processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def program() -> list[str]:
    """What a person types to get this program again."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("colaworld", "__main__.py"):
        return [sys.orig_argv[0], "-m", "colaworld"]
    found = shutil.which("colaworld")
    if called.name == "colaworld" and found and not called.samefile(found):
        return [str(called)]
    return ["colaworld"]
