"""Who plays in a plan: the agent of each row.

    world            the planner in the run's world
    oracle           the same planner in the true simulator
    cloning          a policy that was trained on recorded actions
    random           acts without looking
    copy             the same planner where the last frame stays, whatever is done

and with one part of them replaced by the truth (planning_limits.py says what that tells):

    world-inferred   world, planning real actions; the codes are those it infers from what truly happens
    oracle-codes     oracle, planning codes; what they do is what the run's table of codes says
    oracle-state     oracle; plans cost the distance that the simulator knows

Not here: the loop that they play in (planning.py), their costs (planning_costs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from colaworld.config import ConfigError
from colaworld.models.world import World
from colaworld.planning.cloning import Cloned, CloningAgent
from colaworld.planning.config import EpisodesConfig, MPCConfig, PlannerConfig, Row
from colaworld.planning.contracts import Dynamics
from colaworld.planning.dynamics import InferredDynamics, WorldDynamics
from colaworld.planning.exact import CopyDynamics, SimulatorDynamics
from colaworld.planning.goals import Goals
from colaworld.planning.mpc import Agent, PlanningAgent, RandomAgent
from colaworld.planning.spaces import Space
from colaworld.planning.tasks import Act, Task, own
from colaworld.runs.planning_costs import Pricing
from colaworld.runs.steering import Steering

NEEDS: dict[Row, tuple[Literal["latent", "real"], str]] = {
    "world-inferred": (
        "real",
        "an adapted run whose world plans real actions (--run, --space real)",
    ),
    "oracle-codes": ("latent", "a run whose world plans codes (--run, --space latent)"),
}


def check_rows(rows: Sequence[Row], space: Literal["latent", "real"] | None) -> None:
    """ConfigError where a row needs a world that plans in another space; None: there is no world."""
    for row in rows:
        wanted = NEEDS.get(row)
        if wanted is not None and wanted[0] != space:
            raise ConfigError(f"--rows {row}: it needs {wanted[1]}; leave it out")


@dataclass(frozen=True)
class Cast:
    """What agents are made of, as `plan_run` is given it."""

    task: Task
    goals: Goals
    planner: PlannerConfig
    mpc: MPCConfig
    config: EpisodesConfig
    pricing: Pricing
    world: World | None = None
    steering: Steering | None = None
    cloned: Cloned | None = None
    device: str = "cpu"

    def agents(self) -> dict[Row, Agent]:
        """Of the rows that are asked for, but for those that lack a world or a policy.

        Raises ConfigError or ValueError where what is asked does not fit together.
        """
        check_rows(self.config.rows, None if self.steering is None else self.steering.space)
        made = {name: _MAKERS[name](self) for name in self.config.rows}
        return {name: agent for name, agent in made.items() if agent is not None}

    def rolled(self) -> WorldDynamics:
        """The world, under what is planned in it. ConfigError where a penalty does not fit that."""
        world, steering = self.steered
        if self.config.penalty and steering.space == "latent":
            raise ConfigError(
                "--penalty: codes have no size of their own; expected 0, or --space real"
            )
        if self.config.penalty and self.task.place is not None and not steering.places:
            raise ConfigError(
                "--penalty: actions of this run are places, whose size says nothing of motion; expected 0"
            )
        return WorldDynamics(
            world, gives=self.config.cost, space=steering.space, among=steering.among
        )

    @property
    def steered(self) -> tuple[World, Steering]:
        """The world, and how its plans become actions."""
        assert self.world is not None and self.steering is not None, "a world is steered"
        return self.world, self.steering

    def simulator(self, act: Act = own, **how: Any) -> SimulatorDynamics:
        """The true simulator under actions that become the environment's by `act`."""
        how = {"last": self.config.over == "last", **how}
        return SimulatorDynamics(device=self.device, repeat=self.mpc.action_repeat, act=act, **how)

    def planning(self, dynamics: Dynamics, space: Space, **how: Any) -> PlanningAgent:
        """Plans as they are asked for, under what pictures say unless `how` has another cost."""
        how = {"cost": self.pricing(dynamics.gives, space), **how}
        return PlanningAgent(dynamics, space, self.planner, self.mpc, **how)


def _world(cast: Cast) -> Agent | None:
    if cast.world is None:
        return None
    rolled, (_, steering) = cast.rolled(), cast.steered
    return cast.planning(rolled, rolled.space, act=steering.carry_out, prior=steering.prior)


def _world_inferred(cast: Cast) -> Agent:
    rolled, (world, steering) = cast.rolled(), cast.steered
    true = InferredDynamics(world, cast.simulator(steering.act, last=False), gives=cast.config.cost)
    return cast.planning(true, rolled.space, act=steering.act)


def _oracle_codes(cast: Cast) -> Agent:
    rolled, (_, steering) = cast.rolled(), cast.steered
    true = cast.simulator(steering.act)
    return cast.planning(true, rolled.space, act=steering.act, prior=steering.prior)


def _oracle_state(cast: Cast) -> Agent:
    space = cast.task.space
    cost = cast.pricing.true(space, cast.goals)
    return cast.planning(cast.simulator(gives="distances"), space, cost=cost)


_MAKERS: dict[Row, Callable[[Cast], Agent | None]] = {
    "world": _world,
    "oracle": lambda cast: cast.planning(cast.simulator(), cast.task.space),
    "cloning": lambda cast: None if cast.cloned is None else CloningAgent(cast.cloned),
    "random": lambda cast: RandomAgent(cast.task.space),
    "copy": lambda cast: cast.planning(CopyDynamics(), cast.task.space),
    "world-inferred": _world_inferred,
    "oracle-codes": _oracle_codes,
    "oracle-state": _oracle_state,
}
