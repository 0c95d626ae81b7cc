"""colaworld goal-head: learn to tell whether a goal is reached, for `colaworld plan --head`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.plan_options import check_env, check_file, named_planner, preset_of, trained_size
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device
from colaworld.config import ConfigError
from colaworld.planning.config import (
    CategoricalConfig,
    GoalHeadConfig,
    MPCConfig,
    PlannerConfig,
)
from colaworld.planning.protocols import frame_size
from colaworld.runs.worlds import WorldFolder


@dataclass(frozen=True)
class GoalHeadOptions:
    """Options of `colaworld goal-head`."""

    env: Annotated[str, tyro.conf.Positional]
    """The environment, as that of `colaworld plan`."""
    run: Path | None = None
    """Read the latents of this run's tokenizer (`colaworld plan --cost latents`). None: read frames."""
    out: Path = Path("goal-head.safetensors")
    """The file; an earlier one is replaced."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    how: Annotated[GoalHeadConfig, tyro.conf.arg(name="")] = field(default_factory=GoalHeadConfig)
    """What is learnt."""
    planner: PlannerConfig = field(default_factory=CategoricalConfig)
    """Who plays one half of the episodes, in the true simulator."""
    mpc: MPCConfig = field(default_factory=MPCConfig)
    """The loop, of all episodes."""


def run(argv: list[str]) -> int:
    """Play, learn, print what held-out episodes say, write the file."""
    options: GoalHeadOptions = from_command_line(
        _preset(argv),
        named_planner(argv),
        program="colaworld goal-head",
        description="Learn from episodes whether a goal is reached, or how near it is: a cost for colaworld plan "
        "--head. Half of them are played by a planner in the true simulator, half at random.",
    )
    check_env(argv, options.env, "goal-head")
    folder = None if options.run is None else WorldFolder.of(options.run)
    check_file("--out", options.out)
    device = choose_device(options.device)

    from colaworld.planning.goal_head import save_head
    from colaworld.runs.goal_head import train_goal_head

    world, size = None, frame_size(options.env, options.how.size)
    if folder is not None:
        world = folder.load(device=device)
        if world.stride > 1:
            raise ConfigError(
                f"--run {folder.path}: a latent of this world is {world.stride} frames, a goal image is one; "
                "leave it out, and plan with --cost frames"
            )
        size = trained_size(folder, world, options.env, options.how.size)
    with bar("playing", stages=True) as progress:
        head, told = train_goal_head(
            options.env,
            world,
            size=size,
            planner=options.planner,
            mpc=options.mpc,
            config=options.how,
            device=device,
            watch=progress,
        )
    save_head(options.out, head, **told)
    print("\n".join(said(told["held_out"], head.config.discount)))
    print(f"{options.out}: colaworld plan {options.env} --head {options.out}")
    return 0


def _preset(argv: list[str]) -> GoalHeadOptions:
    """The options before those that were given: an environment's protocol decides the loop, as that of plan."""
    options, found = GoalHeadOptions(env=tyro.MISSING), preset_of(argv)
    if not found:
        return options
    return replace(options, mpc=found["mpc"], how=replace(options.how, over=found["how"].over))


def said(found: Mapping[str, Any], discount: float) -> list[str]:
    """What held-out episodes say, in lines."""
    lines = [
        f"held out: {found['episodes']} episodes, {found['moments']} moments, the goal is reached in "
        f"{found['reached']}"
    ]
    if discount == 0:
        lines.append(
            f"right in {found['accuracy']:.3f} (the more frequent answer: {found['baseline']:.3f}); of those that "
            f"are reached {found['found']:.2f} are found, of the others {found['false']:.2f} are taken for it"
        )
    lines.append(
        f"mean distance from the target {found['error']:.3f} (one number for all: {found['error_of_mean']:.3f})"
    )
    return lines


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
