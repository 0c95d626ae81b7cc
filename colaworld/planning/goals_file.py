"""A file of starts and goals: made once, so that results of others are of the same episodes.

    NAME.safetensors   "seeds" [n] int64, "first" and "goals" [n, H, W, 3] uint8; what they are of as metadata

An environment is made again from its seeds when it is played, and its frames must be those of the file. Not here: how
episodes are made (tasks.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from colaworld.config import ConfigError
from colaworld.files import FileError, write_atomically
from colaworld.planning.config import OF_TASK, GoalsConfig
from colaworld.planning.goals import Goals, hash_of
from colaworld.planning.tasks import Task

FORMAT_VERSION = 1


@dataclass(frozen=True)
class GoalsFile:
    """What a file of goals holds."""

    env: str
    said: dict[str, Any]
    """What the environment was asked for: options of its task."""
    is_of: dict[str, Any]
    """What that came to: task, goal offset, block, quality, as far as it has them."""
    seeds: np.ndarray  # [n] int64
    first: np.ndarray  # [n, H, W, 3] uint8
    goals: np.ndarray  # [n, H, W, 3] uint8
    hash: str

    @classmethod
    def of(cls, env: str, said: dict[str, Any], task: Task, goals: Goals) -> GoalsFile:
        """Those of some episodes of `task`, which was made with the options `said`."""
        first, last = goals.frames()
        return cls(
            env, said, facts_of(task), np.asarray(goals.seeds, np.int64), first, last, goals.hash
        )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.first.shape[1], self.first.shape[2]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        facts = {
            "format_version": FORMAT_VERSION,
            "env": self.env,
            "said": self.said,
            "is_of": self.is_of,
            "hash": self.hash,
        }
        arrays = {"seeds": self.seeds, "first": self.first, "goals": self.goals}
        write_atomically(path, save(arrays, {"goals": json.dumps(facts, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> GoalsFile:
        """Read one. Raises FileError where there is none, or it is not as it was written."""
        if not path.is_file():
            raise FileError(f"{path}: expected a file of `colaworld goals`, found none")
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads(file.metadata()["goals"])
                seeds, first, goals = (file.get_tensor(k) for k in ("seeds", "first", "goals"))
            version = facts["format_version"]
            made = cls(
                facts["env"], facts["said"], facts["is_of"], seeds, first, goals, facts["hash"]
            )
            fits = made.hash == hash_of(made.seeds, made.first, made.goals)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise FileError(f"{path}: no file of `colaworld goals` ({error})") from None
        if version != FORMAT_VERSION:
            raise FileError(
                f"{path}: format_version: expected {FORMAT_VERSION}, got {version!r:.40}"
            )
        if not fits:
            raise FileError(f"{path}: its seeds and frames do not match the recorded hash")
        if not made.whole:
            raise FileError(
                f"{path}: no file of `colaworld goals` (its seeds, frames or settings are not as it writes them)"
            )
        return made

    @property
    def whole(self) -> bool:
        """Whether its parts are as `of` makes them."""
        frames = (len(self.seeds), *self.first.shape[1:3], 3)
        said = [one for one in (self.said, self.is_of) if isinstance(one, dict)]
        return (
            isinstance(self.env, str)
            and len(said) == 2
            and all(one.keys() <= {*OF_TASK} for one in said)
            and self.seeds.dtype == np.int64
            and self.seeds.ndim == 1
            and len(self.seeds) > 0
            and int(self.seeds.min()) >= 0
            and all(
                one.dtype == np.uint8 and one.shape == frames for one in (self.first, self.goals)
            )
        )

    def check(
        self, path: Path, env: str, config: GoalsConfig, size: tuple[int, int] | None
    ) -> None:
        """ConfigError unless `env` and what the configuration asks for are those of the file, and frames
        have the size (height, width)."""
        if env != self.env:
            raise ConfigError(f"--goals {path}: it is of {self.env}, and {env} is to be played")
        for key, value in config.of_task().items():
            if self.is_of.get(key) != value:
                raise ConfigError(
                    f"--{key.replace('_', '-')} {value}: --goals {path} is of {self.is_of.get(key)}"
                )
        if size is not None and size != self.frame_size:
            mine, here = ("x".join(map(str, one)) for one in (self.frame_size, size))
            raise ConfigError(
                f"--goals {path}: its frames are {mine} px (height x width), expected {here}"
            )
        if config.episodes is not None and config.episodes > len(self.seeds):
            raise ConfigError(
                f"--episodes {config.episodes}: --goals {path} holds {len(self.seeds)}"
            )

    def compare(self, path: Path, goals: Goals) -> None:
        """ConfigError unless episodes that are made here look as those of the file."""
        at = {int(seed): number for number, seed in enumerate(self.seeds)}
        for seed in goals.seeds:
            begun, number = goals.begin(seed), at[seed]
            kept = self.first[number], self.goals[number]
            if any((a != b).any() for a, b in zip((begun.frame, begun.goal), kept, strict=True)):
                raise ConfigError(
                    f"--goals {path}: the episode of seed {seed} looks otherwise here; the file was made with another "
                    f"version of {self.env}, or another way to draw it"
                )


def facts_of(task: Task) -> dict[str, Any]:
    """What a task came to: of `OF_TASK` what it has."""
    known = {"goal_offset": task.goal_offset, "block": task.block, **task.told}
    return {key: known[key] for key in OF_TASK if key in known}
