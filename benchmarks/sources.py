"""The loader on the same films in each format: opening, the first batch, batches, and memory.

Every run is a process of its own, forked from one that has imported everything and opened nothing: no
run finds what another left in memory. Memory is that of a further run, which is not timed.

    open    files that were never seen: each is probed       reopen   the index cache knows them
    first   reopened; the first batch                        cold     a cache of a quarter of the set
    cached  all frames stay in memory

`python -m benchmarks.sources JSON` is the process that forks. Not here: how sets are made (packed.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import colaworld
from colaworld.data.config import DataConfig
from colaworld.data.loader import ClipLoader

from . import packed, shapes
from .case import Case, Request, Unavailable

TESTS = ("tests/data/sources/test_same_clips.py",)
STAGES = ("open", "reopen", "first", "cold", "cached")
EPISODES, FRAMES = 24, 64
_MOST_SAMPLES = 5  # each opens the set anew, or goes through all of it
_SECONDS = 300  # that all runs of one set may take


def cases(request: Request) -> Iterator[Case]:
    config = shapes.run_config(request.recipe, request.overrides)
    height, width = shapes.frame_size(config)
    sizes = {"B": config.training.batch_size, "T": config.data.frames_per_clip}
    sizes |= {"height": height, "width": width, "episodes": EPISODES, "frames": FRAMES}
    runs = Runs(sizes, min(request.samples, _MOST_SAMPLES), config.data.workers)
    for stage in STAGES:
        yield runs.case(f"{shapes.family(config)}.{stage}", stage)


class Runs:
    """The sets of one size, and what their runs found; in a folder that goes when the process ends."""

    def __init__(self, sizes: dict[str, int], samples: int, workers: int) -> None:
        self.sizes, self.samples, self.workers = sizes, samples, workers
        self.found: Callable[[str], dict[str, Any]] = cache(self._found)
        self.sets: Callable[[], dict[str, Path]] = cache(self._sets)

    def case(self, name: str, stage: str) -> Case:
        shape = shapes.Shape(name, self.sizes, stage)
        clips = self.sizes["B"] if stage in ("first", "cold", "cached") else 0
        return Case.of(
            "data",
            "source",
            shape,
            "uint8/fwd",
            packed.FORMATS,
            lambda name: [lambda: None],  # what is timed happens in other processes
            tests=TESTS,
            ours=True,
            counts={"clips": clips} if clips else {},
            verify=self.fault,
            read=lambda name, samples: self.found(name)[stage]["ms"],
            details=lambda name, p50: {
                "threads": 1,
                "samples": self.samples,
                "peak_mb": self.found(name)[stage]["peak_mb"],
            },
        )

    def fault(self, name: str) -> str | None:
        """The clips of every format are those of the first."""
        same = self.found(name)["digest"] == self.found(packed.FORMATS[0])["digest"]
        return None if same else f"its clips are not those of {packed.FORMATS[0]}"

    def _sets(self) -> dict[str, Path]:
        from colaworld import envs
        from colaworld.data.sources.lerobot_writer import LeRobotWriter
        from colaworld.envs import behaviours

        self._folder = tempfile.TemporaryDirectory(prefix="colaworld-sources-")
        root = Path(self._folder.name)
        size = {name: self.sizes[name] for name in ("height", "width")}
        scene = envs.make("scene", **size, square=min(6, min(size.values()) - 2))
        acting = behaviours.make("sticky-random", scene, repeat=0.5)
        how: dict[str, Any] = {"fps": scene.fps, **size, "action": scene.action_spec}
        with LeRobotWriter(root / "lerobot-v3", **how, video_mb=1e-6) as writer:  # a film each
            for number in range(self.sizes["episodes"]):
                steps = self.sizes["frames"]
                played = envs.play(scene, acting, seed=0, episode=number, steps=steps)
                writer.add(played.frames, played.actions, task="scene")
            writer.finish()
        return packed.pack(root / "lerobot-v3", root)

    def _found(self, name: str) -> dict[str, Any]:
        if sys.platform != "linux":
            raise Unavailable("processes are forked and their memory is counted as Linux tells it")
        if name not in self.sets():
            raise Unavailable("needs the package h5py (extra hdf5)")
        asked = Asked(
            str(self.sets()[name]), self.sizes, samples=self.samples, workers=self.workers
        )
        home = str(Path(colaworld.__file__).resolve().parents[1])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        cached = str(Path(self._folder.name) / "index")
        changed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [sys.executable, "-m", f"{__package__}.sources", json.dumps(asked.__dict__)],
            env=os.environ | changed | {"COLAWORLD_CACHE": cached},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()[-3:]
            raise RuntimeError(
                f"{name}: its runs ended with {done.returncode}: {' | '.join(lines)}"
            )
        return json.loads(done.stdout)


# -- in the process that forks, and those that it starts -----------------------------------------


@dataclass(frozen=True)
class Asked:
    """What one process is to find out about one set."""

    path: str
    sizes: dict[str, int]
    samples: int
    workers: int

    def loader(self, *, share: float, workers: int) -> ClipLoader:
        """With a cache of `share` of the set's frames."""
        held = self.sizes["episodes"] * self.sizes["frames"]
        held *= 3 * self.sizes["height"] * self.sizes["width"]
        config = DataConfig(
            path=Path(self.path),
            frames_per_clip=self.sizes["T"],
            split="all",
            cache_mb=share * held / 1e6,
        )
        return ClipLoader(replace(config, workers=workers), batch_size=self.sizes["B"], seed=0)

    def touch(self) -> None:
        """No cache knows a file any more."""
        for file in Path(self.path).rglob("*"):
            os.utime(file)


def timed(asked: Asked, stage: str) -> list[float]:
    """Milliseconds: one of opening or of a first batch; of batches the mean over each epoch."""
    began = time.perf_counter()
    share = 0.25 if stage == "cold" else 2.0
    with closing(asked.loader(share=share, workers=asked.workers)) as loader:
        opened = time.perf_counter()
        if stage in ("open", "reopen"):
            return [1e3 * (opened - began)]
        next(loader)
        if stage == "first":
            return [1e3 * (time.perf_counter() - opened)]
        epoch, took = -(-len(loader) // asked.sizes["B"]), []
        for turn in range(asked.samples + 1):
            began = time.perf_counter()
            for _ in range(epoch):
                next(loader)
            if turn:  # in the first, all is decoded
                took.append(1e3 * (time.perf_counter() - began) / epoch)
        return took


def digest(asked: Asked) -> str:
    """Of the frames of an epoch's first batches and where they are from."""
    total = hashlib.sha256()
    with closing(asked.loader(share=2.0, workers=0)) as loader:
        for _ in range(4):
            batch = next(loader)
            for values in (batch.frames, batch.episode, batch.start):
                total.update(values.numpy().tobytes())
    return total.hexdigest()


def memory_of(work: Callable[[], Any]) -> float:
    """MB that the process's own pages (not those of libraries) grow at most, looked at each millisecond."""
    before, most, over = _own_kb(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(1e-3):
            most = max(most, _own_kb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return round((max(most, _own_kb()) - before) / 1024, 1)


def _own_kb() -> int:
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own. RuntimeError where that process fails."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as stream:
                json.dump(work(), stream)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a run failed")
    return json.loads(said)


def find(asked: Asked, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """By stage the times in ms and the memory in MB; and the digest of the clips."""
    found: dict[str, Any] = {"digest": forked(partial(digest, asked))}
    for stage in stages:
        took: list[float] = []
        while len(took) < asked.samples:
            if stage == "open":
                asked.touch()
            took += forked(partial(timed, asked, stage))
        if stage == "open":
            asked.touch()
        peak = forked(partial(memory_of, partial(timed, asked, stage)))
        found[stage] = {"ms": took, "peak_mb": peak}
    return found


if __name__ == "__main__":
    print(json.dumps(find(Asked(**json.loads(sys.argv[1])))))
