"""Train a goal head: play episodes of an environment, see where the goal is reached, learn to tell.

Half of the episodes are played by a planner in the true simulator, half at random. They are none of those
that `colaworld plan` plays under any seed. Not here: the head itself (planning/goal_head.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colaworld import __version__
from colaworld.config import to_dict
from colaworld.envs.episodes import episode_seeds
from colaworld.models.world import World
from colaworld.planning.config import GoalHeadConfig, MPCConfig, PlannerConfig
from colaworld.planning.costs import GoalDistance
from colaworld.planning.exact import SimulatorDynamics
from colaworld.planning.goal_head import Examples, GoalHead, HeadConfig, fit, goals_of
from colaworld.planning.goals import begin
from colaworld.planning.mpc import Episode, PlanningAgent, RandomAgent, play
from colaworld.planning.tasks import make_task
from colaworld.rng import generator_for, seed_for
from colaworld.runs.provenance import commit
from colaworld.runs.steering import Watch


def train_goal_head(
    env: str,
    world: World | None,
    *,
    size: tuple[int, int],
    planner: PlannerConfig,
    mpc: MPCConfig,
    config: GoalHeadConfig,
    device: str = "cpu",
    watch: Watch | None = None,
) -> tuple[GoalHead, dict[str, Any]]:
    """A head for goals of an environment, and what its file shall tell.

    Args:
        env: a name of `planning.TASKS`.
        world: whose latents it reads; None: it reads frames.
        size: height and width of frames.

    Raises ConfigError where the environment is not of that size, ValueError where too few goals are reached.
    """
    task = make_task(env, height=size[0], width=size[1], **config.of_task())
    count = config.episodes or 200
    seeds = [episode_seeds(seed_for("goal head", config.seed), i)[0] for i in range(count)]
    planned = PlanningAgent(
        SimulatorDynamics(device=device, last=config.over == "last", repeat=mpc.action_repeat),
        task.space,
        planner,
        mpc,
        lambda goals: GoalDistance(goals, reads="frames", over=config.over),
    )
    played: list[Episode] = []
    for name, agent, part in (
        ("oracle", planned, seeds[::2]),
        ("random", RandomAgent(task.space), seeds[1::2]),
    ):
        generator = generator_for(device, config.seed, "goal head", name)
        found = play(
            *(agent, lambda seed: begin(copy.deepcopy(task), seed), part, mpc),
            generator=generator,
            batch=config.batch,
            shown=len(part),
            watch=watch,
            label=name,
        )
        played += found.episodes
    examples = examples_of(played, world, device=device)
    shape = examples.seen.shape[1:]
    of = HeadConfig(
        goals_of(task),
        "frames" if world is None else "latents",
        (shape[0], shape[1], shape[2]),
        config.discount,
        None if world is None else world.model.tokenizer.fingerprint(),
    )
    head, measured = fit(of, examples, seed=config.seed, steps=config.fit_steps)
    told = {
        "held_out": measured,
        "training": to_dict(config),
        "goal_offset": task.goal_offset,
        "planner": to_dict(planner),
        "mpc": to_dict(mpc),
        "colaworld": __version__,
        "commit": commit(),
    }
    return head, told


def examples_of(
    episodes: Sequence[Episode], world: World | None, *, device: str = "cpu"
) -> Examples:
    """What is seen in episodes that were kept (`play: shown`), in frames or in the latents of a world."""
    seen, goal, left, number = [], [], [], []
    for index, one in enumerate(episodes):
        assert one.goal is not None, "kept episodes have their goal"
        moments = len(one.real)
        seen.append(_read(torch.stack([torch.from_numpy(f) for f in one.real]), world, device))
        goal.append(_read(torch.from_numpy(one.goal)[None], world, device).expand_as(seen[-1]))
        rest = torch.arange(moments - 1, -1, -1)
        left.append(rest if one.success else torch.full_like(rest, -1))
        number.append(torch.full_like(rest, index))
    return Examples(torch.cat(seen), torch.cat(goal), torch.cat(left), torch.cat(number))


def _read(frames: Tensor, world: World | None, device: str) -> Tensor:
    """uint8 [T, H, W, 3] -> [T, C, h, w]: frames in [0, 1], or the latent of each by itself."""
    made = frames.to(device).movedim(-1, 1).float() / 255
    if world is None:
        return made
    return torch.cat(
        [world.model.tokenizer.encode(part[:, None])[:, :, 0] for part in made.split(64)]
    ).float()
