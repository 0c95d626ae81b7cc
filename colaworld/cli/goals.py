"""colaworld goals: make the starts and goals of episodes once, so that everybody plays the same ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.plan_options import check_file
from colaworld.cli.progress import bar
from colaworld.planning import TASKS
from colaworld.planning.config import GoalsConfig
from colaworld.planning.protocols import frame_size


@dataclass(frozen=True)
class GoalsOptions:
    """Options of `colaworld goals`."""

    env: Annotated[str, tyro.conf.Positional]
    """The environment: crafter, point-mass, pusht, robodesk, scene, or one of your own (COLAWORLD_IMPORT)."""
    out: Path = Path("goals.safetensors")
    """The file to write; an earlier one is replaced."""
    which: Annotated[GoalsConfig, tyro.conf.arg(name="")] = field(default_factory=GoalsConfig)
    """The episodes."""


def run(argv: list[str]) -> int:
    """Make them and write the file; prints its hash."""
    options: GoalsOptions = from_command_line(
        GoalsOptions(env=tyro.MISSING),
        argv,
        program="colaworld goals",
        description="Make starts and goals of an environment's episodes once: colaworld plan --goals FILE plays them.",
    )
    TASKS[options.env]  # raises where there is none of this name
    check_file("--out", options.out)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.runs.planning import make_goals

    with bar("goals") as progress:
        made = make_goals(
            options.env, frame_size(options.env, options.which.size), options.which, watch=progress
        )
    made.save(options.out)
    height, width = made.frame_size
    facts = ", ".join(f"{key} {value}" for key, value in made.is_of.items())
    print(
        f"{options.out}: {len(made.seeds)} episodes of {options.env}, {height}x{width} px, {facts}; hash {made.hash}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
