"""Several processes on one machine: steps, traffic, memory, what a checkpoint holds up, how soon a run is back.

Every number is read from runs of the real command, by torchrun where there are several processes, each of
one thread and with as many clips as the recipe gives one alone (weak scaling). Runs follow one another; all
are over, or ended, before a row is there. Not here: what is counted inside of a process (counting.py), the
formulas (colaworld/runs/scale.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import colaworld
from colaworld.config import to_yaml
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import plan_memory
from colaworld.runs.scale import count, memory_of_one, traffic
from colaworld.training.step import uses_bf16

from . import shapes, timing
from .case import Case, Request, Unavailable
from .models import without_warmup
from .training import BOUNDS, on_data
from .training import off as loss_off

TESTS = ("tests/benchmarks/test_scale.py", "tests/training/test_distributed.py")
PROCESSES = (1, 2, 4)
TOLERANCE = 0.02  # of counted bytes against the formula, which leaves kilobytes out
_FIRST = 3  # steps that are not timed: the first compiles and opens, the second is counted
_RESTARTS = 3  # samples of a restart at most: each starts Python and torch anew
_SECONDS = 600  # that a run may take without a new row
Rows = list[dict[str, Any]]


def cases(request: Request) -> Iterator[Case]:
    whole = shapes.run_config(request.recipe, request.overrides)
    there = os.cpu_count() or 1
    if timing.on_gpu(request.device):
        there = torch.cuda.device_count()
    for dtype in request.dtypes:
        if dtype != "float64":
            runs = Runs(whole, dtype, request)
            for processes in PROCESSES:
                yield from runs.cases(processes, heavy=processes > there)


class Runs:
    """The runs of one recipe in one dtype: its last phase, in a folder that goes when the process ends."""

    def __init__(self, whole: RunConfig, dtype: str, request: Request) -> None:
        self.whole, self.dtype, self.request = whole, dtype, request
        self.steps = _FIRST + request.samples
        self.kind = torch.device(request.device).type
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.run = cache(self._run)
        self.plan = cache(self._plan)

    def cases(self, processes: int, *, heavy: bool) -> Iterator[Case]:
        ways = ("alone",) if processes == 1 else ("replicated", "sharded")
        config = self.whole
        name = f"{config.recipe}.{config.scheduled()[-1].name}.x{processes}"
        sizes = shapes.clips(config)
        sizes |= {"accumulate": config.training.accumulate, "processes": processes}
        shape = shapes.Shape(name, sizes, "the last phase", heavy=heavy)
        how = f"{self.dtype}/fwd_bwd"
        common: dict[str, Any] = {"tests": TESTS, "ours": True}

        def made(op: str, names: Sequence[str], **more: Any) -> Case:
            return Case.of("scale", op, shape, how, names, self._there, **common, **more)

        yield made(
            "update",
            ways,
            verify=lambda way: self.fault(processes, way),
            read=lambda way, samples: [
                1e3 * row["seconds"] for row in self.run(processes, way)[_FIRST:]
            ],
            details=lambda way, p50: self.details(processes, way, p50),
        )
        saves = [f"{way}:{how}" for way in ways for how in ("sync", "async")]
        yield made(
            "save",
            saves,
            read=lambda name, samples: self.stalls(processes, *name.split(":")),
            details=lambda name, p50: {"threads": 1, "peak_mb": None},
        )
        yield made(
            "restart",
            ways,
            read=lambda way, samples: self.restarts(processes, way, min(samples, _RESTARTS)),
            details=lambda way, p50: {
                "threads": 1,
                "peak_mb": None,
                "samples": min(self.request.samples, _RESTARTS),
            },
        )

    def _there(self, name: str) -> Sequence[Any]:
        """Nothing to call: what is timed happens in other processes."""
        if sys.platform == "darwin" or os.name == "nt":
            raise Unavailable("processes and their memory are counted as Linux tells them")
        return [lambda: None]

    # -- runs ------------------------------------------------------------------------------

    def config(self, processes: int, way: str, **training: Any) -> RunConfig:
        """The last phase, clips for every process, no saving but at its end."""
        run = without_warmup(self.whole, backbone_weights=self.whole.backbone_weights)
        run = on_data(run, self.request.data)
        old = run.training
        parallel = replace(old.parallel, shard="blocks" if way == "sharded" else "no")
        given = {
            "batch_size": old.batch_size * processes,
            "autocast": "bf16" if self.dtype == "bfloat16" else "none",
            "max_steps": self.steps,
            "checkpoint_every": 10**6,
            "sample_every": 0,
            "tensorboard": False,
            "parallel": parallel,
        }
        changed = replace(old, **(given | training))  # type: ignore[arg-type]
        last = run.scheduled()[-1]
        phases = {**run.phases, last.name: replace(last, init_from=None, alarm=None, gate=None)}
        return replace(run, schedule=(last.name,), phases=phases, training=changed)

    def folder(self, name: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="colaworld-scale-")
        return Path(self._folder.name) / name

    def _run(self, processes: int, way: str) -> Rows:
        out = self.folder(f"update-{processes}-{way}")
        return finish(self.config(processes, way), processes, out, self.kind)

    def fault(self, processes: int, way: str) -> str | None:
        """What is wrong: another loss than that of one process, other traffic than the formula's."""
        rows = self.run(processes, way)
        if processes > 1:
            whole = self.config(processes, "alone", max_steps=1)
            out = self.folder(f"whole-{processes}-{way}")
            (first,) = finish(whole, 1, out, self.kind)
            bound = BOUNDS[self.dtype]
            if fault := loss_off("first loss", rows[0]["loss"], first["loss"], bound):
                return fault
        (counted,) = (row["traffic"] for row in rows if "traffic" in row)
        return off(counted, self.plan(processes, way)[0])

    def _plan(self, processes: int, way: str) -> tuple[dict[str, int], int]:
        """The formulas: bytes of an update by kind of collective, bytes of a process."""
        config = self.config(processes, way)
        height, width = shapes.frame_size(config)
        config = replace(config, data=replace(config.data, height=height, width=width))
        (phase,) = config.scheduled()
        bf16 = uses_bf16(config.training.autocast, self.kind)
        counts = count(config, kind=self.kind)
        (alone,) = plan_memory(self._sized(height, width), device=self.kind)
        given: dict[str, Any] = {"processes": processes, "bf16": bf16}
        handed = traffic(config, phase, counts, **given)
        return asdict(handed), memory_of_one(config, alone, phase, counts, **given)

    def _sized(self, height: int, width: int) -> RunConfig:
        """What one process does, whatever their number."""
        config = self.config(1, "alone")
        return replace(config, data=replace(config.data, height=height, width=width))

    def details(self, processes: int, way: str, p50: float) -> dict[str, Any]:
        rows, (expected, planned) = self.run(processes, way), self.plan(processes, way)
        training = self.whole.training
        clips = processes * training.batch_size * training.accumulate
        (counted,) = (row["traffic"] for row in rows if "traffic" in row)
        alone = [row["seconds"] for row in self.run(1, "alone")[_FIRST:]]
        took = rows[-1]["memory"]
        found = {
            "threads": 1,
            "peak_mb": None,
            "rates": {"clips_s": timing.short(clips / p50 * 1e3)},
            "efficiency": timing.short(1e3 * timing.percentiles(alone)[1] / p50),
            "traffic": counted,
            "traffic_planned": expected,
            "traffic_mb": timing.short(sum(counted.values()) / 1e6),
            "memory_mb": timing.short(took / 1e6),
            "memory_ratio": timing.short(took / planned),
        }
        if sum(expected.values()):
            ratio = sum(counted[kind] for kind in expected) / sum(expected.values())
            found["traffic_ratio"] = timing.short(ratio)
        return found

    def stalls(self, processes: int, way: str, how: str) -> list[float]:
        """Milliseconds that steps waited for a checkpoint, one behind every step."""
        config = self.config(processes, way, checkpoint_every=1, async_checkpoint=how == "async")
        out = self.folder(f"save-{processes}-{way}-{how}")
        rows = finish(config, processes, out, self.kind)
        return [1e3 * row["save_stall"] for row in rows[_FIRST:]]

    def restarts(self, processes: int, way: str, samples: int) -> list[float]:
        """Milliseconds from the start of the command that resumes to its first row."""
        out = self.folder(f"restart-{processes}-{way}")
        finish(self.config(processes, way, max_steps=1), processes, out, self.kind)
        took = []
        for number in range(2, samples + 2):
            began = time.perf_counter()
            with started(self.config(processes, way, max_steps=number), processes, out, self.kind):
                wait_for_row(out, number)
                took.append(1e3 * (time.perf_counter() - began))
        return took


def off(counted: Mapping[str, int], expected: Mapping[str, int]) -> str | None:
    """What is wrong with counted bytes, by kind."""
    total = sum(expected.values())
    for kind in (*expected, "other"):
        known = expected.get(kind, 0)
        if abs(counted[kind] - known) > TOLERANCE * (known or total):
            return f"{kind} takes {counted[kind]} bytes an update, the formula says {known}"
    return None


# -- the command ---------------------------------------------------------------------------------


@contextlib.contextmanager
def started(config: RunConfig, processes: int, out: Path, device: str) -> Iterator[Path]:
    """The run in `out` (resumed where there is one), in processes of its own; over at the block's end.

    Yields the file of what they say. Raises RuntimeError where they fail; ends them where the block does.
    """
    file, said = out.with_suffix(".yaml"), out.with_suffix(".txt")
    file.write_text(to_yaml(config))
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), "-m", "colaworld", "train"]
    given = ["--config", str(file), "--out", str(out), "--device", device]
    resume = ["--resume"] if (out / "checkpoints").is_dir() else []
    home = str(Path(colaworld.__file__).resolve().parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "COLAWORLD_IMPORT": str(Path(__file__).with_name("counting.py")),
    }
    with said.open("w") as stream:
        process = subprocess.Popen(
            [*command, config.recipe, *given, *resume],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            preexec_fn=_dies_with_us,
        )
    try:
        yield said
        status = process.wait(timeout=_SECONDS)
        if status:
            lines = said.read_text().strip().splitlines()[-5:]
            raise RuntimeError(f"{processes} processes ended with {status}: {' | '.join(lines)}")
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers, too
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _dies_with_us() -> None:
    """In a child: a SIGTERM when the process that started it is gone (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def finish(config: RunConfig, processes: int, out: Path, device: str) -> Rows:
    """The rows of a run that is over."""
    with started(config, processes, out, device):
        pass
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def wait_for_row(out: Path, number: int) -> None:
    """Until the run has `number` rows. TimeoutError where none comes."""
    file, end = out / "metrics.jsonl", time.monotonic() + _SECONDS
    while not file.is_file() or file.read_text().count("\n") < number:
        if time.monotonic() > end:
            raise TimeoutError(f"{out}: no step {number} within {_SECONDS} s")
        time.sleep(0.002)
