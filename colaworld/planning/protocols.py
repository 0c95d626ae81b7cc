"""The field's protocols: what an environment is played by unless told otherwise, and what departs from it.

An environment's loop and episodes are its protocol's; the planner is where it is asked for by name (`--protocol`), since
theirs are meant for a GPU. Imports no torch. Not here: goals and success, which are the tasks'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from colaworld.config import ConfigError, to_dict
from colaworld.planning.config import (
    CEMConfig,
    EpisodesConfig,
    MPCConfig,
    MPPIConfig,
    PlannerConfig,
)
from colaworld.registry import Registry


@dataclass(frozen=True)
class PlanningProtocol:
    """How results of an environment are compared."""

    env: str
    source: str
    mpc: MPCConfig
    planner: PlannerConfig
    episodes: int
    how: Mapping[str, Any] = field(default_factory=dict)
    """Values of an `EpisodesConfig`; its defaults otherwise."""
    goals: Mapping[str, Any] = field(default_factory=dict)
    """How far they are, how many steps an action has, how it is drawn: facts of the environment."""
    size: int | None = None
    """Pixels per side; None: nothing compares by it here."""
    always: str = ""
    """What is otherwise here whatever is set."""

    def departures(
        self,
        planner: PlannerConfig,
        mpc: MPCConfig,
        config: EpisodesConfig,
        height: int,
        facts: Mapping[str, Any],
    ) -> dict[str, list[Any]]:
        """What is played otherwise: setting -> [here, in the protocol]. `facts`: as `goals_file.facts_of` has them."""
        said = to_dict(config)
        pairs: dict[str, tuple[Any, Any]] = {
            key: (said[key], value)
            for key, value in {"episodes": self.episodes, **self.how}.items()
        }
        pairs |= {key: (facts[key], value) for key, value in self.goals.items()}
        if self.size is not None:
            pairs["size"] = (height, self.size)
        pairs |= {f"mpc.{key}": pair for key, pair in _beside(mpc, self.mpc).items()}
        if planner.kind != self.planner.kind:
            pairs["planner.kind"] = (planner.kind, self.planner.kind)
        else:
            pairs |= {
                f"planner.{key}": pair for key, pair in _beside(planner, self.planner).items()
            }
        return {key: list(pair) for key, pair in pairs.items() if pair[0] != pair[1]}


PROTOCOLS: Registry[PlanningProtocol] = Registry("protocol", ConfigError)
PROTOCOLS.add(
    "stable-worldmodel",
    PlanningProtocol(
        "pusht",
        "github.com/galilai-group/stable-worldmodel, scripts/plan/config/pusht.yaml and solver/cem.yaml, 2026",
        MPCConfig(horizon=5, replan=5, steps=10),  # of 5 steps each: 50 are allowed
        CEMConfig(candidates=300, iterations=30, elites=0.1, min_std=0.0, momentum=0.0),
        50,
        {"over": "last", "penalty": 0.0},
        {"goal_offset": 25, "block": 5},
        # Their CEM begins with the deviation of recorded actions, and has the mean among its candidates.
        always="episodes of our scripted pusher, gym-pusht's smaller T, and a CEM that begins with half of half the range",
    ),
)
PROTOCOLS.add(
    "vp2",
    PlanningProtocol(
        "robodesk",
        "Tian et al. 2023, arXiv 2304.13723; 50 candidates as in the method's paper, VP2's own are 200",
        MPCConfig(horizon=10, replan=1, steps=15, context=2),
        MPPIConfig(candidates=50, gamma=0.05, beta=0.5, std=(0.5, 0.5, 0.5, 0.1, 0.1)),
        100,
        {"over": "all", "penalty": 0.0, "cost": "frames", "encoder": None},
        {"block": 1, "quality": "paper"},
        size=64,
        always="starts and goals of our scripted hand, not VP2's recorded ones",
    ),
)


def protocol_of(env: str, name: str | None = None) -> PlanningProtocol | None:
    """That of an environment, if it has one. Raises ConfigError where `name` is another's, or nobody's."""
    if name is None:
        return next((one for one in PROTOCOLS.values() if one.env == env), None)
    if PROTOCOLS[name].env != env:
        raise ConfigError(f"--protocol {name}: it is of {PROTOCOLS[name].env}, not of {env}")
    return PROTOCOLS[name]


def episodes_of(env: str) -> int:
    """How many episodes are played unless told otherwise."""
    found = protocol_of(env)
    return 50 if found is None else found.episodes


def frame_size(env: str, size: int | None) -> tuple[int, int]:
    """Height and width of frames without a run; `size` as `GoalsConfig.size`."""
    if env == "crafter":  # 7 x 9 cells
        return 7 * (size or 4), 9 * (size or 4)
    found = protocol_of(env)
    side = size or (found and found.size) or 32
    return side, side


def preset(env: str, name: str | None, *, space: str) -> dict[str, Any]:
    """What `mpc`, `how` and, given a name, `planner` are unless told otherwise; fields of the options of `plan`.

    `space`: codes have no dimensions to name, and take the first of several deviations.
    """
    found = protocol_of(env, name)
    if found is None:
        return {}
    made: dict[str, Any] = {"mpc": found.mpc, "how": EpisodesConfig(**found.how)}
    if name is not None:
        planner: Any = found.planner
        if space == "latent" and len(getattr(planner, "std", ())) > 1:
            planner = replace(planner, std=planner.std[:1])
        made["planner"] = planner
    return made


def _beside(here: Any, there: Any) -> dict[str, tuple[Any, Any]]:
    return {key: (value, to_dict(there)[key]) for key, value in to_dict(here).items()}
