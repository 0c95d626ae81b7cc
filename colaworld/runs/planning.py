"""Plan with a run: its world and what stands beside it play the same episodes.

Not here: who plays (planning_rows.py), planners and the loop (planning), the page (planning_page.py), printing (cli).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colaworld import __version__
from colaworld.config import ConfigError, to_dict
from colaworld.envs.episodes import episode_seeds
from colaworld.metrics.proportion import wilson
from colaworld.models.world import World
from colaworld.planning.cloning import Cloned
from colaworld.planning.config import (
    OF_TASK,
    EpisodesConfig,
    GoalsConfig,
    MPCConfig,
    PlannerConfig,
)
from colaworld.planning.goals import Goals
from colaworld.planning.goals_file import GoalsFile, facts_of
from colaworld.planning.mpc import Episode, PlanningAgent, Played, play
from colaworld.planning.protocols import PROTOCOLS, episodes_of, protocol_of
from colaworld.planning.tasks import Task, make_task
from colaworld.rng import generator_for
from colaworld.runs.planning_costs import Pricing
from colaworld.runs.planning_limits import limits
from colaworld.runs.planning_rows import Cast
from colaworld.runs.provenance import commit
from colaworld.runs.steering import Steering, Watch, steering_told

FORMAT_VERSION = 1


def plan_run(
    env: str,
    world: World | None,
    *,
    size: tuple[int, int],
    planner: PlannerConfig,
    mpc: MPCConfig,
    config: EpisodesConfig,
    protocol: str | None = None,
    kept: tuple[Path, GoalsFile] | None = None,
    steering: Steering | None = None,
    cloned: Cloned | None = None,
    device: str = "cpu",
    watch: Watch | None = None,
) -> tuple[dict[str, Any], dict[str, list[Episode]]]:
    """Play every row of `config.rows`.

    Args:
        env: a name of `planning.TASKS`.
        world: what plans; None leaves its row out.
        size: height and width of frames.
        protocol: what departs from it is told; None: from the environment's, if it has one.
        kept: a file of goals and where it is; its first episodes are played. None: they are made from the seed.
        steering: as `steer` or `steer_real` give it; needed with a world.
        cloned: a policy (`cloned_from`); None leaves its row out.

    Returns:
        What plan.json holds, and the episodes of each row that are shown or filmed, with their frames.

    Raises ConfigError or ValueError where environment, run, planner and cost do not fit together.
    """
    height, width = size
    said = config.of_task()
    if kept is not None:
        path, file = kept
        file.check(path, env, config, size)
        config = replace(config, episodes=config.episodes or len(file.seeds))
        seeds, said = file.seeds[: config.episodes].tolist(), file.said
    else:
        config = replace(config, episodes=config.episodes or episodes_of(env))
        seeds = seeds_of(config)

    task = make_task(env, height=height, width=width, **said)
    goals = Goals(task, seeds)
    if kept is not None:
        file.compare(path, goals)
    pricing = Pricing(task, world, config, size=size, device=device)
    agents = Cast(
        task=task,
        goals=goals,
        planner=planner,
        mpc=mpc,
        config=config,
        pricing=pricing,
        world=world,
        steering=steering,
        cloned=cloned,
        device=device,
    ).agents()
    if not agents:
        raise ConfigError("--rows: nobody is left to play; a world needs --run, cloning --data")
    for name, agent in agents.items():  # before the first row plays for hours
        if isinstance(agent, PlanningAgent):
            try:
                agent.check(device)
            except ValueError as error:
                raise ConfigError(f"row {name}: {error}") from None
    rows: dict[str, Any] = {}
    shown: dict[str, list[Episode]] = {}
    for name, agent in agents.items():
        played = play(
            agent,
            goals.begin,
            seeds,
            mpc,
            generator=generator_for(device, config.seed, "plan", name),
            batch=config.batch,
            shown=max(config.shown, config.videos),
            watch=watch,
            label=name,
        )
        rows[name] = _row(played)
        shown[name] = played.episodes[: max(config.shown, config.videos)]
    won = {
        name: np.array([[int(one["success"]) for one in row["episodes"]]])
        for name, row in rows.items()
    }
    space = None if steering is None else steering.space
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "colaworld": __version__,
        "commit": commit(),
        "rows": rows,
        "limits": limits(won, space),
        "missing": [row for row in EpisodesConfig.rows if row not in rows],
        "protocol": {
            "env": env,
            "height": height,
            "width": width,
            "goal_offset": task.goal_offset,
            "block": task.block,
            **task.told,
            "goals": goals.hash,
            "goals_file": None if kept is None else {"path": str(path), "hash": file.hash},
            "episode_seeds": seeds,
            **{k: v for k, v in to_dict(config).items() if k not in ("rows", *OF_TASK)},
            "protocol": _departing(env, task, protocol, planner, mpc, config),
            "planner": to_dict(planner),
            "mpc": to_dict(mpc),
            "space": space,
            "codes": "all" if steering is None or steering.among is None else "seen",
            "prior": steering is not None and steering.prior is not None,
            "sampler": None if world is None else to_dict(world.sampler),
            "device": device,
            "threads": torch.get_num_threads(),
        },
        "cloning": None if cloned is None else cloned.told(),
        "action_map": None if steering is None else steering_told(steering),
    }
    return result, shown


def seeds_of(config: GoalsConfig) -> list[int]:
    """Those of the episodes that are asked for."""
    assert config.episodes is not None, "their number is known by now"
    return [episode_seeds(config.seed, number)[0] for number in range(config.episodes)]


def make_goals(
    env: str, size: tuple[int, int], config: GoalsConfig, *, watch: Watch | None = None
) -> GoalsFile:
    """Make the starts and goals of `config.episodes` episodes, for all who play them."""
    config = replace(config, episodes=config.episodes or episodes_of(env))
    said = config.of_task()
    task = make_task(env, height=size[0], width=size[1], **said)
    goals = Goals(task, seeds_of(config))
    for number, seed in enumerate(goals.seeds, 1):
        goals.begin(seed)
        if watch is not None:
            watch(number, len(goals.seeds), "episodes")
    return GoalsFile.of(env, said, task, goals)


def _departing(
    env: str,
    task: Task,
    name: str | None,
    planner: PlannerConfig,
    mpc: MPCConfig,
    config: EpisodesConfig,
) -> dict[str, Any] | None:
    """The protocol that an environment is played by, and what is otherwise."""
    found = protocol_of(env, name)
    if found is None:
        return None
    departs = found.departures(planner, mpc, config, task.frame_size[0], facts_of(task))
    known = next(key for key, one in PROTOCOLS.items() if one is found)
    return {
        "name": known,
        "source": found.source,
        "departs": departs,
        "always": found.always,
    }


def _row(played: Played) -> dict[str, Any]:
    """The numbers of a row."""
    episodes = played.episodes
    won = [one for one in episodes if one.success]
    longer = [one.steps - one.best for one in won if one.best is not None]
    depth = max((len(one.costs) for one in episodes), default=0)
    costs = [[one.costs[i] for one in episodes if i < len(one.costs)] for i in range(depth)]
    return {
        "success": wilson(len(won), len(episodes)).as_dict(),
        "successes": len(won),
        "more_than_fewest": sum(longer) / len(longer) if longer else None,
        "calls_per_decision": played.calls / max(played.decided, 1),
        "seconds_per_decision": played.seconds / max(played.decided, 1),
        "decisions": played.decided,
        "seconds": played.seconds,
        "cost_by_decision": [sum(of) / len(of) for of in costs],
        "episodes": [
            {"seed": one.seed, "success": one.success, "steps": one.steps, "costs": one.costs}
            for one in episodes
        ],
    }
