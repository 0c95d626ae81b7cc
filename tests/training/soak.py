"""A soak: training by two processes that is killed at random, beside one that is not.

    python tests/training/soak.py OUT [--minutes 60] [--data SET] [-- FLAGS of colaworld train]

Every one to three minutes a process is killed (kill -9 of one rank, of torchrun and all, or SIGTERM to all), and
the run started again with --resume. Prints and writes to OUT/soak.json: kills by kind, checkpoints
that were whole before a kill and gone behind it, rows and weights that differ from the undisturbed
run's, and how resident memory, file descriptors and threads grew within the sessions. Exits 1 where
anything differs or was lost. Not a test that pytest collects: it takes as long as it is told to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.torch import load_file

TIMES = ("seconds", "save_stall", "speed", "slowest")  # what differs between equal runs
KINDS = ("one rank", "everything", "SIGTERM")


class Run:
    """One run folder, trained by torchrun, started as often as it takes."""

    def __init__(self, out: Path, command: list[str], port: int) -> None:
        self.out, self.command, self.port = out, command, port
        self.process: subprocess.Popen | None = None
        self.sessions: list[list[dict[str, int]]] = []

    def start(self, processes: int = 2) -> None:
        """In a session of its own, so that all of it can be killed."""
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launch += [
            "--master-port",
            str(self.port),
            "-m",
            "colaworld",
            *self.command,
            "--out",
            str(self.out),
        ]
        log = (self.out.parent / f"{self.out.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*launch, "--resume"], stdout=log, stderr=log, start_new_session=True
        )
        self.sessions.append([])

    def ranks(self) -> list[int]:
        """Process ids of the ranks: children of torchrun that train."""
        assert self.process is not None
        try:
            own = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        found = []
        for pid in map(int, own.split()):
            with contextlib.suppress(OSError):
                if b"RANK=" in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        return found

    def sample(self) -> None:
        """Memory, file descriptors and threads of all ranks, as they are now."""
        found: Counter[str] = Counter()
        for pid in self.ranks():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                found["kib"] += int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
                found["threads"] += int(re.search(r"Threads:\s+(\d+)", status)[1])  # type: ignore[index]
                found["files"] += len(os.listdir(f"/proc/{pid}/fd"))
        if found:
            self.sessions[-1].append(dict(found))

    def end(self, kind: str, rng: random.Random) -> None:
        """Kill it, or ask it to stop; returns when nothing of it is left."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            ranks = self.ranks()
            if kind == "one rank" and ranks:
                os.kill(rng.choice(ranks), signal.SIGKILL)
            elif kind == "SIGTERM":
                os.kill(self.process.pid, signal.SIGTERM)
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def checkpoints(self) -> set[str]:
        return {p.parent.name for p in self.out.glob("checkpoints/step_*/state.json")}

    def rows(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]

    def growth(self) -> dict[str, int]:
        """Over each session, from its second quarter to its last: the median of all sessions."""
        grown: dict[str, list[int]] = {}
        for samples in self.sessions:
            quarter = len(samples) // 4
            if quarter < 2:
                continue
            for name in samples[0]:
                early = median(s[name] for s in samples[quarter : 2 * quarter])
                late = median(s[name] for s in samples[-quarter:])
                grown.setdefault(name, []).append(round(late - early))
        return {name: round(median(values)) for name, values in grown.items()}


def tensors(folder: Path) -> dict[str, bytes]:
    """Every tensor file of a checkpoint, whole, but torch's global random state: torch seeds it anew in
    each process that begins a run, and nothing here draws from it."""
    files = sorted(f for f in folder.rglob("*.safetensors") if f.name != "rng.safetensors")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same bytes, or at least the same numbers."""
    left, right = tensors(a), tensors(b)
    if left == right:
        return True
    if left.keys() != right.keys():
        return False
    for name in left:
        one, other = load_file(a / name), load_file(b / name)
        if one.keys() != other.keys() or any(not one[k].equal(other[k]) for k in one):
            return False
    return True


def soak(out: Path, command: list[str], *, minutes: float, seed: int) -> dict[str, Any]:
    """Both runs side by side until the time is over; what was found."""
    rng, kills, lost = random.Random(seed), Counter[str](), []
    disturbed, calm = Run(out / "disturbed", command, 29621), Run(out / "calm", command, 29622)
    for run in (calm, disturbed):
        run.start()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        until = min(end, time.monotonic() + rng.uniform(60, 180))
        while time.monotonic() < until:
            time.sleep(5)
            for run in (disturbed, calm):
                run.sample()
        if time.monotonic() >= end:
            break
        if disturbed.process is not None and disturbed.process.poll() is not None:
            kind = f"ended by itself with {disturbed.process.returncode}"
            if disturbed.process.returncode == 0:
                break
        else:
            kind = rng.choice(KINDS)
        before = disturbed.checkpoints()
        disturbed.end(kind, rng)
        kills[kind] += 1
        newest = max(before, default="")
        if newest and newest not in disturbed.checkpoints():
            lost.append(newest)
        print(f"{len(disturbed.rows())} rows, {newest or 'no checkpoint'}: {kind}", flush=True)
        disturbed.start()
    for run in (disturbed, calm):
        run.end("SIGTERM", rng)
    mine, theirs = disturbed.rows(), calm.rows()
    both = min(len(mine), len(theirs))
    differ = [a["global_step"] for a, b in zip(mine[:both], theirs[:both], strict=True) if a != b]
    common = sorted(disturbed.checkpoints() & calm.checkpoints())
    weights = {
        name: same_weights(*(run.out / "checkpoints" / name for run in (disturbed, calm)))
        for name in common
    }
    return {
        "minutes": minutes,
        "kills": dict(kills),
        "rows": {"disturbed": len(mine), "calm": len(theirs), "compared": both},
        "rows_that_differ": differ,
        "checkpoints_lost": lost,
        "checkpoints_equal": weights,
        "growth": {run.out.name: run.growth() for run in (disturbed, calm)},
        "sessions": len(disturbed.sessions),
    }


def main() -> int:
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--data", type=Path, required=True, help="what both runs train on")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args(own.split())
    options.out.mkdir(parents=True, exist_ok=True)
    command = ["train", "nano.cola", "--data", str(options.data), "--training.no-tensorboard"]
    command += ["--training.keep-checkpoints", "100000", *flags.split()]
    found = soak(options.out, command, minutes=options.minutes, seed=options.seed)
    (options.out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    bad = found["rows_that_differ"] or found["checkpoints_lost"]
    return int(
        bool(bad) or not all(found["checkpoints_equal"].values()) or not found["rows"]["compared"]
    )


if __name__ == "__main__":
    sys.exit(main())
