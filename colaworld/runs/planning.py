"""Plan with a run: its world, the true simulator and two bounds from below play the same episodes.

    world      the planner in the run's world
    oracle     the same planner in the true simulator
    random     acts without looking
    copy       the same planner where the last frame stays, whatever is done

Not here: planners and the loop (planning), the page (planning_page.py), printing (cli).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from colaworld import __version__
from colaworld.config import ConfigError, to_dict
from colaworld.contracts import ActionSpec, to_float
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.loader import iterate_once
from colaworld.envs.episodes import episode_seeds
from colaworld.metrics.proportion import wilson
from colaworld.models.world import World
from colaworld.planning.action_map import ActionMap, from_last_place
from colaworld.planning.config import OF_TASK, EpisodesConfig, MPCConfig, PlannerConfig, Row
from colaworld.planning.contracts import Cost, Reads
from colaworld.planning.costs import ActionPenalty, GoalDistance, WeightedSum
from colaworld.planning.dynamics import WorldDynamics, latent_space
from colaworld.planning.exact import CopyDynamics, SimulatorDynamics
from colaworld.planning.goals import Goals
from colaworld.planning.mpc import Act, Agent, Episode, PlanningAgent, Played, RandomAgent, play
from colaworld.planning.prior import CodeBigram
from colaworld.planning.protocols import PROTOCOLS, protocol_of
from colaworld.planning.spaces import Continuous, Discrete, Space
from colaworld.planning.tasks import Task, make_task
from colaworld.rng import generator_for
from colaworld.runs.provenance import commit

FORMAT_VERSION = 1
LEFT_OUT = (
    "behaviour cloning",
)  # a bound that a result should stand beside and that is not played
Watch = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Steering:
    """How plans in a world become actions of an environment, and what that rests on."""

    space: Literal["latent", "real"]
    act: Act
    action_map: ActionMap | None = None
    prior: CodeBigram | None = None
    steps: int = 0
    """Recorded steps that the table was counted from."""
    places: bool = False
    """Whether actions are places, and the table holds their distance from the one before."""
    acted: dict[str, int] = field(default_factory=lambda: {"codes": 0, "unseen": 0})
    """Codes that were carried out, and those of them that no recorded step had."""


def plan_run(
    env: str,
    world: World | None,
    *,
    size: tuple[int, int],
    planner: PlannerConfig,
    mpc: MPCConfig,
    config: EpisodesConfig,
    protocol: str | None = None,
    steering: Steering | None = None,
    device: str = "cpu",
    watch: Watch | None = None,
) -> tuple[dict[str, Any], dict[str, list[Episode]]]:
    """Play every row of `config.rows`.

    Args:
        env: a name of `planning.TASKS`.
        world: what plans; None leaves its row out.
        size: height and width of frames.
        protocol: what departs from it is told; None: from the environment's, if it has one.
        steering: as `steer` or `steer_real` give it; needed with a world.

    Returns:
        What plan.json holds, and the shown episodes of each row with their frames.

    Raises ConfigError or ValueError where environment, run, planner and cost do not fit together.
    """
    height, width = size

    def make() -> Task:
        return make_task(env, height=height, width=width, **config.of_task())

    task = make()
    seeds = [episode_seeds(config.seed, number)[0] for number in range(config.episodes)]
    goals = Goals(make, seeds)
    agents = _agents(world, task, planner, mpc, config, steering, device)
    if not agents:
        raise ConfigError("--rows: nobody is left to play; a world needs --run")
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
            shown=config.shown,
            watch=watch,
            label=name,
        )
        rows[name] = _row(played)
        shown[name] = played.episodes[: config.shown]
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "colaworld": __version__,
        "commit": commit(),
        "rows": rows,
        "missing": [
            *LEFT_OUT,
            *(r for r in ("world", "oracle", "random", "copy") if r not in rows),
        ],
        "protocol": {
            "env": env,
            "height": height,
            "width": width,
            "goal_offset": task.goal_offset,
            "block": task.block,
            **task.told,
            "goals": goals.hash,
            "episode_seeds": seeds,
            **{k: v for k, v in to_dict(config).items() if k not in ("rows", *OF_TASK)},
            "protocol": _departing(env, protocol, planner, mpc, config, height),
            "planner": to_dict(planner),
            "mpc": to_dict(mpc),
            "space": None if steering is None else steering.space,
            "prior": steering is not None and steering.prior is not None,
            "sampler": None if world is None else to_dict(world.sampler),
            "device": device,
            "threads": torch.get_num_threads(),
        },
        "action_map": None if steering is None else _told(steering),
    }
    return result, shown


def _departing(
    env: str,
    name: str | None,
    planner: PlannerConfig,
    mpc: MPCConfig,
    config: EpisodesConfig,
    size: int,
) -> dict[str, Any] | None:
    """The protocol that an environment is played by, and what is otherwise."""
    found = protocol_of(env, name)
    if found is None:
        return None
    departs = found.departures(planner, mpc, replace(config, size=size))
    known = next(key for key, one in PROTOCOLS.items() if one is found)
    return {"name": known, "source": found.source, "departs": departs}


def steer(
    world: World,
    task: Task,
    data: DataConfig,
    *,
    clips: int,
    with_prior: bool = False,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Steering:
    """A table from codes to the environment's actions, and the codes' bigram, from recorded clips.

    Args:
        data: a set with actions; its training share is read.
        clips: how many of its clips are read at most.
        with_prior: plans are drawn from the bigram.

    Raises ConfigError where the set's actions are not those of the environment, DataError where it has none.
    """
    space = latent_space(world)
    found = ClipSet(replace(data, split="train"))
    found.require_actions()
    spec = found.action_spec
    assert spec is not None, "a set with actions says which"
    check_spec(spec, task, where=str(data.path))
    places = spec.mode == "absolute" and task.place is not None
    indices: list[Tensor] = []  # of each clip
    counted: list[Tensor] = []
    actions: list[Tensor] = []
    done = 0
    for batch in iterate_once(data, batch_size=16, limit=clips, with_actions=True, split="train"):
        inferred = world.infer_actions(to_float(batch.frames, device))
        assert inferred.indices is not None and batch.actions is not None
        read, then = inferred.indices.cpu(), batch.actions
        indices += read.unbind(0)
        if places:
            read, then = read[:, 1:], from_last_place(then, task.action_spec.size)
        counted.append(read.flatten(0, 1))
        actions.append(then.flatten(0, 1))
        done += len(batch)
        if watch is not None:
            watch(done, clips, "reading codes off recorded clips")
    if places and not sum(map(len, counted)):
        raise ConfigError(
            f"{data.path}: clips of {data.frames_per_clip} frames, and an action that is a place is told from "
            "the one before; expected 3 or more (data.frames-per-clip)"
        )
    table = ActionMap.fit(torch.cat(counted), torch.cat(actions), space=space, spec=spec)
    prior = CodeBigram.from_indices(indices, space).to(device) if with_prior else None
    acted = {"codes": 0, "unseen": 0}

    def act(codes: Tensor, task: Task) -> Iterable[Any]:
        chosen, known = table(codes[None])
        acted["codes"] += 1
        acted["unseen"] += int(not known)
        action = chosen[0]
        if places:
            action = action + torch.tensor(task.place, dtype=torch.float32).repeat(task.block)
        return task.recorded(action)

    return Steering("latent", act, table, prior, int(table.counts.sum()), places, acted)


def steer_real(world: World, task: Task) -> Steering:
    """Planned actions are the environment's own.

    Raises ConfigError where those the run knows are others, ValueError where it knows none.
    """
    dynamics = WorldDynamics(world, space="real")
    assert world.actions is not None
    check_spec(world.actions, task, where="this run")

    def act(action: Tensor, task: Task) -> Iterable[Any]:
        return task.recorded(action[0] if isinstance(dynamics.space, Discrete) else action)

    return Steering("real", act)


def check_spec(spec: ActionSpec, task: Task, *, where: str) -> None:
    """ConfigError unless actions of a set or a run are those of the environment: classes alike, or the
    numbers of as many steps as it takes at once."""
    wanted = task.action_spec
    words = {"discrete": "classes", "continuous": "numbers"}
    size = wanted.size * task.block
    names = [one.names for one in (spec, wanted)]
    if spec.kind == wanted.kind == "discrete" and all(names) and names[0] != names[1]:
        raise ConfigError(
            f"{where}: its actions are {', '.join(names[0])}; {task.name} takes {', '.join(names[1])}, in this "
            "order"
        )
    if spec.kind == wanted.kind and spec.size == size:
        return
    if spec.kind == wanted.kind == "continuous" and spec.size % wanted.size == 0:
        at_once = spec.size // wanted.size
        raise ConfigError(
            f"{where}: an action is {at_once} steps of {task.name} (data.stride), and {task.block} are planned "
            f"at once; pass --block {at_once}, and mind that --mpc.steps counts such actions"
        )
    raise ConfigError(
        f"{where}: its actions are {spec.size} {words[spec.kind]}, {task.name} takes {size} "
        f"{words[wanted.kind]}; use data, or a run, of {task.name}"
    )


def _agents(
    world: World | None,
    task: Task,
    planner: PlannerConfig,
    mpc: MPCConfig,
    config: EpisodesConfig,
    steering: Steering | None,
    device: str,
) -> dict[Row, Agent]:
    simulator = SimulatorDynamics(device=device)
    made: dict[Row, Agent] = {}
    for name in config.rows:
        if name == "random":
            made[name] = RandomAgent(task.space)
        elif name == "oracle" or name == "copy":
            dynamics: Any = simulator if name == "oracle" else CopyDynamics()
            cost = _cost(config, None, "frames", task.space)
            made[name] = PlanningAgent(dynamics, task.space, planner, mpc, cost)
        elif world is not None:
            assert steering is not None, "a world is steered"
            if config.cost == "latents" and world.stride > 1:
                raise ConfigError(
                    f"--cost latents: a latent of this world is {world.stride} frames, a goal image is one; "
                    "use frames"
                )
            if config.penalty and steering.space == "latent":
                raise ConfigError(
                    "--penalty: codes have no size of their own; expected 0, or --space real"
                )
            rolled = WorldDynamics(world, gives=config.cost, space=steering.space)
            cost = _cost(config, world, config.cost, rolled.space)
            made[name] = PlanningAgent(
                rolled, rolled.space, planner, mpc, cost, steering.act, steering.prior
            )
    return made


def _cost(
    config: EpisodesConfig, world: World | None, reads: Reads, space: Space
) -> Callable[[Tensor], Cost]:
    def make(goals: Tensor) -> Cost:
        goal = goals
        if reads == "latents":
            assert world is not None
            goal = world.model.tokenizer.encode(goals[:, None])[:, :, 0]
        distance = GoalDistance(goal, reads=reads, over=config.over)
        if not config.penalty:
            return distance
        idle = (0.0,) * space.width if isinstance(space, Continuous) else (0,)
        return WeightedSum((1.0, distance), (config.penalty, ActionPenalty(idle)))

    return make


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


def _told(steering: Steering) -> dict[str, Any] | None:
    """The table from codes to actions, for plan.json."""
    table = steering.action_map
    if table is None:
        return None
    return {
        "recorded_steps": steering.steps,
        "codes": table.codes.tolist(),
        "actions": table.actions.tolist(),
        "counts": table.counts.tolist(),
        "places": steering.places,
        "agreement": table.agreement,
        "baseline": table.baseline,
        "absent": list(table.absent),
        "carried_out": steering.acted["codes"],
        "carried_out_unseen": steering.acted["unseen"],
    }
