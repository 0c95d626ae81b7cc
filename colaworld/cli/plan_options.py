"""What the verbs share that play in an environment: its name first, the loop of its protocol, one word for a planner.

Not here: their own options (plan.py, goal_head.py), the protocols (planning/protocols.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colaworld.config import ConfigError
from colaworld.files import makeable
from colaworld.planning import TASKS
from colaworld.planning.protocols import frame_size, preset
from colaworld.runs.worlds import WorldFolder

if TYPE_CHECKING:
    from colaworld.models.world import World


def preset_of(argv: Sequence[str]) -> dict[str, Any]:
    """`mpc`, `how` and with --protocol `planner` of the environment that is named first, where it has a protocol: what
    they are unless told otherwise. Raises ConfigError where the protocol is another environment's."""
    env = argv[0] if argv else ""
    if env not in TASKS:
        return {}
    space = "real" if _said(argv, "--run") is None else _said(argv, "--space") or "latent"
    return preset(env, _said(argv, "--protocol"), space=space)


def _said(argv: Sequence[str], flag: str) -> str | None:
    for at, word in enumerate(argv):
        if word == flag:
            return argv[at + 1] if at + 1 < len(argv) else None
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def check_env(argv: Sequence[str], env: str, verb: str) -> None:
    """ConfigError where there is no such environment, or it does not come first."""
    TASKS[env]
    if argv[0] != env:
        raise ConfigError(f"name the environment first: colaworld {verb} {env} ...")


def check_file(flag: str, path: Path) -> None:
    """ConfigError where no file can be written there: said before anything is played."""
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: expected a file, found a folder")
    if not makeable(path.parent):
        raise ConfigError(f"{flag}: expected a file to be written, got {path}")


def named_planner(argv: Sequence[str]) -> list[str]:
    """--planner NAME spelled out as --planner.kind NAME."""
    spelled: list[str] = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        spelled.append(f"--planner.kind{equals}{value}" if flag == "--planner" else argument)
    return spelled


def trained_size(folder: WorldFolder, world: World, env: str, asked: int | None) -> tuple[int, int]:
    """Height and width of the frames that a world was trained on. ConfigError where they are not known, or `asked`
    (--size) is another size."""
    size = world.frame_size or folder.trained_size()
    if size is None:
        raise ConfigError(
            f"{folder.path}: the size of the frames it was trained on is not known; evaluate it first"
        )
    if asked is not None and frame_size(env, asked) != size:
        raise ConfigError(
            f"--size {asked}: frames are those of the run, {size[0]}x{size[1]} px; leave it out"
        )
    return size
