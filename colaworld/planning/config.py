"""The configuration of each planner and of the loop around it; `kind` tells planners apart. Imports no torch.

A planner registers itself, in `__init__.py` or in your own file; importing it is enough:

    register_planner(MyConfig, my_planner, plans="continuous")

Not here: the planners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from colaworld.config import (
    Checked,
    ConfigError,
    Count,
    Natural,
    Positive,
    Range,
    Seed,
    Share,
    Weight,
)
from colaworld.registry import Registry

Over = Literal["last", "all", "best"]
"""Which steps of a plan count, see costs.py."""
Fraction = Annotated[float, Range(gt=0, le=1)]
Steps = Annotated[int, Range(ge=1, le=10_000)]


class PlannerConfig(Checked, at="planner."):
    """What the configuration of every planner says: a frozen dataclass with a default everywhere."""

    kind: str
    """Its name, a `Literal` field."""

    @staticmethod
    def kinds() -> tuple[type[PlannerConfig], ...]:
        """The configurations of all registered planners."""
        return tuple(entry.config for entry in PLANNERS.values())


class Registered(NamedTuple):
    """How a kind of planner is called."""

    config: type[PlannerConfig]
    plan: Callable[..., Any]
    """(objective, space, its configuration, horizon=, batch=, generator=, start=, prior=) -> a `Plan`."""
    plans: Literal["continuous", "discrete", "any"]
    """Which actions it searches over; others are translated (spaces.py)."""


PLANNERS: Registry[Registered] = Registry("planner", ConfigError)


def register_planner(
    config: type[PlannerConfig],
    plan: Callable[..., Any],
    *,
    plans: Literal["continuous", "discrete", "any"],
) -> None:
    """Make the kind `config.kind` known. Raises ConfigError where another has this name."""
    PLANNERS.add(config.kind, Registered(config, plan, plans))


TASKS: Registry[Callable[..., Any]] = Registry("environment with goals", ConfigError)
"""Name -> (height=, width=, and options of its own) -> a `tasks.Task`."""


@dataclass(frozen=True)
class ShootingConfig(PlannerConfig):
    """Random shooting: draw candidates once, take the best."""

    kind: Literal["shooting"] = "shooting"
    """Which planner."""
    candidates: Count = 256
    """Action sequences that are rolled out."""


@dataclass(frozen=True)
class CEMConfig(PlannerConfig):
    """Cross-entropy method over continuous actions."""

    kind: Literal["cem"] = "cem"
    """Which planner."""
    candidates: Count = 64
    """Action sequences a round."""
    iterations: Steps = 5
    """Rounds."""
    elites: Fraction = 0.1
    """Share of the candidates that the next round is fitted to; at least two of them."""
    std: tuple[Positive, ...] = (0.5,)
    """Standard deviation of the first round as a share of half an action's range: one for all
    dimensions, or one of each."""
    min_std: Share = 0.02
    """The deviation never falls below this share of half the range."""
    momentum: Share = 0.1
    """Weight of the round before in mean and deviation."""


@dataclass(frozen=True)
class ICEMConfig(PlannerConfig):
    """CEM with coloured noise, elites that are kept, and fewer candidates from round to round."""

    kind: Literal["icem"] = "icem"
    """Which planner."""
    candidates: Count = 64
    """Action sequences of the first round."""
    iterations: Steps = 5
    """Rounds."""
    elites: Fraction = 0.1
    """Share of the first round's candidates that a round is fitted to; at least two of them."""
    std: tuple[Positive, ...] = (0.5,)
    """As that of cem."""
    min_std: Share = 0.02
    """As that of cem."""
    momentum: Share = 0.1
    """Weight of the round before in mean and deviation."""
    colour: Annotated[float, Range(ge=0, le=10)] = 2.0
    """Exponent of the noise over time: its power falls as 1 / frequency^colour. 0: white."""
    decay: Annotated[float, Range(ge=1, le=10)] = 1.25
    """Each round has this many times fewer candidates, but never fewer than twice the elites."""
    keep: Annotated[float, Range(ge=0, le=1)] = 0.3
    """Share of the elites that join the next round, and the next decision."""


@dataclass(frozen=True)
class MPPIConfig(PlannerConfig):
    """Model predictive path integral: the mean of all candidates, weighted by exp(-gamma cost)."""

    kind: Literal["mppi"] = "mppi"
    """Which planner."""
    candidates: Count = 200
    """Action sequences a round (VP2: 200; the paper plans with 50)."""
    iterations: Steps = 1
    """Rounds (VP2: 1); each is drawn around the mean of the one before."""
    gamma: Positive = 0.05
    """How sharply low costs are preferred: weights are exp(-gamma (cost - lowest cost)). It is in units
    of the cost: VP2's .05 is meant for squared errors summed over pixels and frames."""
    beta: Share = 0.5
    """Weight of the noise one step before in that of a step."""
    std: tuple[Positive, ...] = (0.5,)
    """As that of cem (VP2 on RoboDesk: .5 .5 .5 .1 .1)."""


@dataclass(frozen=True)
class CategoricalConfig(PlannerConfig):
    """Cross-entropy method over discrete actions: codes, or classes of real actions."""

    kind: Literal["categorical"] = "categorical"
    """Which planner."""
    candidates: Count = 64
    """Action sequences a round."""
    iterations: Steps = 5
    """Rounds."""
    elites: Fraction = 0.1
    """Share of the candidates that the next round is fitted to; at least two of them."""
    momentum: Share = 0.1
    """Weight of the round before in the probabilities."""
    smoothing: Annotated[float, Range(ge=0, le=1e6)] = 0.1
    """Candidates per action that count as elites although they are none, so that no probability falls to
    zero; under a data prior they are spread as it says."""
    trust: Share = 0.5
    """How far the first round follows the plan of the decision before."""
    bins: Annotated[int, Range(ge=2, le=1000)] = 5
    """Values that each dimension of continuous actions is cut into, ends included."""


@dataclass(frozen=True)
class BeamConfig(PlannerConfig):
    """Beam search over discrete actions: extend the best beginnings step by step."""

    kind: Literal["beam"] = "beam"
    """Which planner."""
    width: Count = 8
    """Beginnings that are kept."""
    branch: Count = 32
    """Actions that each is extended by: all there are, or so many, drawn without repeats."""
    bins: Annotated[int, Range(ge=2, le=1000)] = 5
    """As that of categorical."""


@dataclass(frozen=True)
class MPCConfig(Checked, at="mpc."):
    """The loop: how far plans look, how much of them is carried out, when an episode ends."""

    horizon: Steps = 5
    """Actions of a plan."""
    replan: Steps = 1
    """Actions that are carried out before the next plan."""
    steps: Count = 20
    """Planned actions of an episode at most: what has not reached its goal by then has failed."""
    action_repeat: Steps = 1
    """Times that the environment repeats each action (RoboDesk in VP2: inside the environment)."""
    context: Steps = 2
    """Frames that a world sees, the current one last; fewer at the start of an episode."""
    warm_start: bool = True
    """Begin each plan from the one before."""
    calls: Count | None = None
    """Budget of a decision in model calls, one for each step of each candidate. None: as many as the
    planner makes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replan > self.horizon:
            raise ConfigError(
                f"mpc.replan: expected at most the {self.horizon} actions of a plan (mpc.horizon), got "
                f"{self.replan}"
            )


@dataclass(frozen=True)
class CloningConfig(Checked, at="cloning."):
    """Behaviour cloning: a small policy from recorded actions, to stand beside a planner."""

    clips: Count = 4000
    """Recorded clips that are read at most; each is as long as goals are far."""
    steps: Count = 2000
    """Steps of its training."""
    batch: Count = 64
    """Pairs of a frame and a later one in a step."""
    width: Annotated[int, Range(ge=2, le=4096)] = 64
    """Channels of its convolutions; four times as many in the layer behind them."""
    learning_rate: Positive = 1e-3
    """Of Adam."""


Row = Literal[
    "world",
    "oracle",
    "cloning",
    "random",
    "copy",
    "world-inferred",
    "oracle-codes",
    "oracle-state",
]


@dataclass(frozen=True)
class GoalsConfig(Checked, at="--"):
    """Which starts and goals."""

    episodes: Count | None = None
    """Episodes; of each row. None: all of --goals, or those of the environment's protocol, or 50."""
    seed: Seed = 0
    """Of episodes; when they are played, of plans and noise as well."""
    task: str | None = None
    """What is to be done. crafter: reach or collect; robodesk: push_red, push_green, push_blue, open_slide,
    open_drawer, flat_block_off_table, upright_block_off_table. None: the first."""
    goal_offset: Annotated[int, Range(ge=1, le=1000)] | None = None
    """Steps from start to goal: in scene, point-mass and crafter the fewest that reach it, in pusht and robodesk those
    of a script. None: the environment's own (scene 3, point-mass and crafter 4, pusht 25, robodesk 10)."""
    block: Count | None = None
    """pusht, point-mass, robodesk: steps of one planned action; those of a run's data (data.stride). None: the
    environment's own (pusht 5)."""
    quality: Literal["paper", "fast"] | None = None
    """robodesk: with shadows and reflections, or without (None: fast). It is to be that of the run's data."""
    size: Annotated[int, Range(ge=2, le=1024)] | None = None
    """Pixels of frames without a run, per side; crafter: per cell. None: 32, crafter 4, robodesk 64."""

    def of_task(self) -> dict[str, Any]:
        """What is the environment's to know, where it was said."""
        said = {name: getattr(self, name) for name in OF_TASK}
        return {name: value for name, value in said.items() if value is not None}


# Settings that an environment has a value of its own for.
OF_TASK = ("task", "goal_offset", "block", "quality")


@dataclass(frozen=True)
class EpisodesConfig(GoalsConfig, at="--"):
    """Which episodes are played, and what their plans cost."""

    batch: Count = 16
    """Episodes that are planned side by side; what is drawn for one depends on the others."""
    cost: Literal["frames", "latents"] = "frames"
    """Where the distance from the goal image is measured in the world: in pixels, or in latents, which are
    not decoded then. The other rows measure in pixels."""
    over: Over = "all"
    """Which steps of a plan count: the last, the sum of all (VP2), or the nearest."""
    encoder: Path | None = None
    """Measure the distance between features, those of the frozen encoder in this folder (DINOv2 and others of
    transformers; extra `features`). In all rows; with --cost frames."""
    distance_weight: Weight = 1.0
    """Weight of the distance from the goal image."""
    head: Path | None = None
    """A file of `colaworld goal-head`: minus its logit is added to the cost, in all rows if it reads frames, in that
    of the world if it reads latents (--cost latents)."""
    head_weight: Weight = 1.0
    """Weight of that."""
    penalty: Weight = 0.0
    """Weight of what actions cost themselves: squares of numbers, or a count of classes other than the
    first. In the space of codes there is none."""
    rows: tuple[Row, ...] = ("world", "oracle", "cloning", "random", "copy")
    """Who plays: the world, the planner in the true simulator, a policy that was trained on recorded actions (needs
    data), random actions, the planner where nothing ever changes. To see what limits the world: oracle-state (the oracle
    with the true distance as its cost), with --space latent oracle-codes (the oracle under the table of codes), with
    --space real world-inferred (the world under the codes of what truly happens)."""
    shown: Natural = 3
    """Episodes whose frames the page shows, real beside imagined."""
    videos: Natural = 0
    """Episodes of each row that are written as films: real, imagined and goal side by side."""
    clips: Count = 256
    """Recorded clips that are read at most, to count what codes stand for."""


@dataclass(frozen=True)
class GoalHeadConfig(GoalsConfig, at="--"):
    """What `colaworld goal-head` learns from. Of its episodes (200 unless said) one half is played by a planner in the true
    simulator; a fifth is held out."""

    batch: Count = 16
    """Episodes that are played side by side."""
    over: Over = "all"
    """As that of plan, of the planner that plays."""
    discount: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """0: learn whether the goal is reached. Above: learn its value, this to the power of the actions that are
    left."""
    fit_steps: Count = 600
    """Updates, of 64 moments each; without a discount the goal is reached in half of them."""
