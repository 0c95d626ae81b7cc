"""`colaworld record`: film a simulator into a LeRobot v3 data set.

Not here: playing (envs/episodes.py) or the file layout (data/sources/lerobot_writer.py); this wires the two.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from colaworld import envs
from colaworld.cli.command_line import from_command_line
from colaworld.cli.errors import FORESEEN, report_error
from colaworld.cli.progress import bar
from colaworld.config import Checked, Count, Natural, Positive, Range, Seed, Size, to_dict
from colaworld.data.config import EncodingConfig
from colaworld.envs import behaviours
from colaworld.envs.variation import COLOUR, Factor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordConfig(Checked, at="--"):
    """What to film, and how much of it."""

    env: Annotated[
        Literal["crafter", "point-mass", "pusht", "robodesk", "scene"], tyro.conf.Positional
    ]
    """The simulator. All but scene and point-mass are extras: pip install 'colaworld[crafter]'. robodesk needs a scene as well:
    pip install --no-deps robodesk==1.0.0."""
    out: Path
    """The folder to make. It appears when everything is written, and not before."""
    episodes: Count = 100
    """How many episodes."""
    steps: Count = 100
    """Frames per episode (fewer where the environment ends it)."""
    seed: Seed = 0
    """Fixes everything: the same seed gives the same frames."""
    first_episode: Natural = 0
    """Number of the first episode, so that a set can be continued elsewhere with the same seed."""
    behaviour: Literal["random", "sticky-random", "scripted", "noisy-scripted", "mixture"] = (
        "sticky-random"
    )
    """Who acts. mixture: in each episode sticky-random, scripted or noisy-scripted."""
    repeat: Annotated[float, Range(ge=0, le=1)] = 0.5
    """sticky-random: probability of repeating the last action."""
    noise: Annotated[float, Range(ge=0, le=1)] = 0.2
    """noisy-scripted: standard deviation as a share of half the actions' range; where actions are classes,
    probability of a random one."""
    size: Size | None = None
    """Pixels: crafter per cell (default 4), pusht per side (96), robodesk per side (64), scene and point-mass per side (32)."""
    quality: Literal["paper", "fast"] = "fast"
    """robodesk: with shadows and reflections as in the papers, or without, about 30 times quicker."""
    view: Literal["map", "full"] = "map"
    """crafter: the map only, or also the two inventory rows."""
    start: Literal["center", "varied"] = "center"
    """crafter: in the meadow at the centre, or at a random place with more to see."""
    vary: Factor | None = None
    """Another look in one factor, for data a model was not trained on: turned hues, stripes, or other places. The
    same seed gives the same states and actions."""
    actions: tuple[str, ...] = ()
    """crafter: the actions to choose from (default: noop and the four moves)."""
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    """How the video is compressed."""
    video_mb: Positive = 200.0
    """A video file is closed after the episode in which it reaches this size."""
    workers: Annotated[int, Range(ge=1, le=1024)] = 1
    """Processes that play. The result is the same for any number."""
    overwrite: bool = False
    """Replace a recorded set of that name. Anything else stays."""


def make_env(config: RecordConfig) -> envs.Env:
    """The environment that a configuration asks for."""
    options: dict[str, Any] = {}
    if config.env == "crafter":
        options = {"view": config.view, "start": config.start}
        if config.size is not None:
            options["cell"] = config.size
        if config.actions:
            options["actions"] = config.actions
    elif config.actions:
        raise ValueError(f"--actions: {config.env} has no named actions to choose from")
    elif config.size is not None and config.env in ("scene", "point-mass"):
        options = {"height": config.size, "width": config.size}
    elif config.size is not None:
        options = {"size": config.size}
    own = {"quality": "robodesk", "view": "crafter", "start": "crafter"}
    for name, env in own.items():
        if config.env != env and getattr(config, name) != getattr(RecordConfig, name):
            raise ValueError(f"--{name}: only {env} has it, got it for {config.env}; leave it out")
    if config.env == "robodesk":
        options["quality"] = config.quality
    return envs.make(config.env, vary=config.vary, **options)


def _variation(config: RecordConfig, env: Any) -> dict[str, str] | None:
    if config.vary is None:
        return None
    value = COLOUR if config.vary == "colour" else env.VARIATIONS[config.vary]
    return {"factor": config.vary, "value": value}


def _behaviour(config: RecordConfig, env: envs.Env) -> behaviours.Behaviour:
    return behaviours.make(config.behaviour, env, repeat=config.repeat, noise=config.noise)


_worker: tuple[envs.Env, behaviours.Behaviour] | None = None  # per process


def _end_with_parent() -> None:
    """In a worker: leave when the process that started it is gone, whatever it died of."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _play(config: RecordConfig, episode: int) -> envs.Episode:
    global _worker
    if _worker is None:
        env = make_env(config)
        _worker = env, _behaviour(config, env)
    return envs.play(*_worker, seed=config.seed, episode=episode, steps=config.steps)


def _episodes(config: RecordConfig) -> Iterator[envs.Episode]:
    """In order, whatever the number of workers; at most 2 per worker are held."""
    numbers = range(config.first_episode, config.first_episode + config.episodes)
    if config.workers <= 1:
        env = make_env(config)
        behaviour = _behaviour(config, env)
        for number in numbers:
            yield envs.play(env, behaviour, seed=config.seed, episode=number, steps=config.steps)
        return
    import multiprocessing
    from collections import deque
    from concurrent.futures import ProcessPoolExecutor

    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(config.workers, mp_context=spawn, initializer=_end_with_parent)
    try:
        waiting: deque[Any] = deque()
        for number in numbers:
            waiting.append(pool.submit(_play, config, number))
            if len(waiting) >= 2 * config.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def record(config: RecordConfig, *, progress: bool = True) -> dict[str, Any]:
    """Film and write the set. Returns a summary; raises DataError or ValueError on a wrong wish."""
    from colaworld.data.sources.lerobot_writer import LeRobotWriter, check_target

    check_target(config.out, overwrite=config.overwrite)
    env = make_env(config)
    _behaviour(config, env)  # a wrong one fails here
    made_by = {
        "environment": env.name,
        "environment_version": env.version,
        "behaviour": config.behaviour,
        "repeat": config.repeat if config.behaviour in ("sticky-random", "mixture") else None,
        "noise": config.noise if config.behaviour in ("noisy-scripted", "mixture") else None,
        "seed": config.seed,
        "first_episode": config.first_episode,
        "steps": config.steps,
        "view": config.view if env.name == "crafter" else None,
        "quality": config.quality if env.name == "robodesk" else None,
        "start": config.start if env.name == "crafter" else None,
        "variation": _variation(config, env),
        "action_names": list(env.action_spec.names),
        "encoding": to_dict(config.encoding),
    }
    started = time.perf_counter()
    writer = None
    try:
        for episode in _show(_episodes(config), config.episodes, progress):
            if writer is None:
                height, width = episode.frames.shape[1:3]
                writer = LeRobotWriter(
                    config.out,
                    fps=env.fps,
                    height=height,
                    width=width,
                    action=env.action_spec,
                    encoding=config.encoding,
                    robot_type=env.name,
                    made_by=made_by,
                    video_mb=config.video_mb,
                    overwrite=config.overwrite,
                )
            writer.add(episode.frames, episode.actions, task=f"{env.name}: {config.behaviour}")
        assert writer is not None
        writer.finish()
    except BaseException:  # Ctrl-C too: leave nothing half-written
        if writer is not None:
            writer.abort()
        raise
    return {
        "out": str(config.out),
        "episodes": writer.episodes,
        "frames": writer.frames,
        "height": writer.height,
        "width": writer.width,
        "psnr": min(writer.psnr),
        "seconds": time.perf_counter() - started,
    }


def _show(episodes: Iterator[Any], total: int, progress: bool) -> Iterator[Any]:
    """The same episodes; each is told to the progress bar when it has been taken in."""
    if not progress:
        yield from episodes
        return
    with bar("recording") as told:
        for count, episode in enumerate(episodes, 1):
            yield episode
            told(count, total, "episodes")


class _Stopped(BaseException):
    """SIGTERM or SIGHUP came."""


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `_Stopped`, so that they clean up as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise _Stopped(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)


def run(argv: list[str]) -> int:
    """`colaworld record ENV --out DIR ...`. Returns the exit status."""
    config = from_command_line(
        RecordConfig, argv, program="colaworld record", description="Record a simulator."
    )
    try:
        with _stopped_by_signals():
            made = record(config)
    except FORESEEN as error:
        return report_error("colaworld record", error)
    except (KeyboardInterrupt, _Stopped) as stop:
        print("colaworld record: interrupted; nothing was left behind", file=sys.stderr)
        return 128 + (stop.args[0] if isinstance(stop, _Stopped) else signal.SIGINT)
    print(
        f"{made['out']}: {made['episodes']} episodes, {made['frames']} frames of "
        f"{made['height']}x{made['width']} px in {made['seconds']:.0f} s; decoded frames match "
        f"the originals at {made['psnr']:.1f} dB PSNR"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
