"""The loop: see, plan, act, see again; several episodes side by side.

    seen --agent--> actions --task.step--> frames, success?   ... until the goal or the last step

An agent decides for all episodes that are still under way at once. So what is drawn for an episode depends
on those played beside it: equal seeds, episodes and batch give equal results. Not here: what is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from colaworld.planning.config import MPCConfig, PlannerConfig
from colaworld.planning.contracts import Cost, Dynamics, Objective, Plan, Seen, Start
from colaworld.planning.goals import Begun
from colaworld.planning.prior import CodeBigram
from colaworld.planning.search import search
from colaworld.planning.spaces import Continuous, Space
from colaworld.planning.tasks import Act, own


@dataclass(frozen=True)
class Decision:
    """What an agent does next in B environments."""

    actions: Tensor  # [B, k, A]: as planned, to be carried out
    cost: Tensor | None = None  # [B] of the plan
    calls: int = 0  # model calls for each environment
    imagine: Callable[[], Tensor | None] | None = None
    """Gives the frames [B, k, 3, H, W] that the plan expects, where somebody wants to see them."""
    plan: Plan | None = None


@dataclass(frozen=True)
class Asked:
    """What an agent decides by, in B environments."""

    seen: Seen
    goals: Tensor  # [B, 3, H, W] in [0, 1]
    steps: int  # the most actions that are carried out
    generator: torch.Generator  # of whatever is drawn
    before: Plan | None = None  # the last plan


class Agent(Protocol):
    """Chooses actions."""

    act: Act

    def decide(self, asked: Asked) -> Decision:
        """The next actions, 1 .. `asked.steps` of them."""
        ...


@dataclass
class PlanningAgent:
    """Plans in a dynamics under a cost.

    `cost` makes the cost of goal frames [B, 3, H, W]; `act` turns one planned action into what the
    environment takes.
    """

    dynamics: Dynamics
    space: Space
    planner: PlannerConfig
    config: MPCConfig
    cost: Callable[[Tensor], Cost]
    act: Act = own
    prior: CodeBigram | None = None

    def check(self, device: str) -> None:
        """Plan once where nothing costs anything. ValueError where planner, actions, prior, horizon and budget do
        not fit together."""
        free = Objective(
            lambda actions: torch.zeros(actions.shape[:2], device=device),
            budget=self.config.calls,
            stride=getattr(self.dynamics, "stride", 1),
        )
        drawn = torch.Generator(device=device).manual_seed(0)
        how: dict[str, Any] = {"horizon": self.config.horizon, "batch": 1, "generator": drawn}
        search(free, self.space, self.planner, prior=self.prior, **how)

    def decide(self, asked: Asked) -> Decision:
        state, cost = self.dynamics.begin(asked.seen), self.cost(asked.goals)
        objective = Objective.of(self.dynamics, cost, state, budget=self.config.calls)
        start = Start() if asked.before is None else asked.before.after(self.config.replan)
        if not self.config.warm_start:
            start = Start(last=start.last)
        plan = search(
            objective,
            self.space,
            self.planner,
            horizon=self.config.horizon,
            batch=len(asked.goals),
            generator=asked.generator,
            start=start,
            prior=self.prior,
        )

        def imagine() -> Tensor | None:
            expected = self.dynamics.imagine(state, plan.actions)
            return None if expected is None else expected[:, : asked.steps]

        return Decision(plan.actions[:, : asked.steps], plan.cost, plan.calls, imagine, plan)


@dataclass
class RandomAgent:
    """Acts without looking: uniform over the environment's own actions."""

    space: Space
    act: Act = own

    def decide(self, asked: Asked) -> Decision:
        shape = (len(asked.goals), asked.steps, self.space.width)
        generator, device = asked.generator, asked.generator.device
        if isinstance(self.space, Continuous):
            low, high = self.space.bounds(device)
            drawn = low + (high - low) * torch.rand(shape, generator=generator, device=device)
        else:
            drawn = torch.randint(self.space.size, shape, generator=generator, device=device)
        return Decision(drawn)


@dataclass
class Episode:
    """One episode as it was played."""

    seed: int
    success: bool = False
    steps: int = 0  # steps of the environment
    best: int | None = None  # the fewest that reach the goal, where they are known
    costs: list[float] = field(default_factory=list)  # of each plan
    goal: np.ndarray | None = None  # [H, W, 3] uint8
    real: list[np.ndarray] = field(default_factory=list)  # frames, the first included
    imagined: list[np.ndarray] = field(default_factory=list)  # those expected, from the second on


@dataclass(frozen=True)
class Played:
    """Episodes in the order of their seeds, and what deciding took."""

    episodes: list[Episode]
    decisions: int  # times that an agent was asked, for one or more episodes
    decided: int  # the same, counted for each episode
    calls: int  # model calls, over all episodes
    seconds: float  # spent deciding, over all episodes


def play(
    agent: Agent,
    begin: Callable[[int], Begun],
    seeds: Sequence[int],
    config: MPCConfig,
    *,
    generator: torch.Generator,
    batch: int = 16,
    shown: int = 0,
    watch: Callable[[int, int, str], None] | None = None,
    label: str = "episodes",
) -> Played:
    """Play one episode for each seed.

    Args:
        begin: an environment at the start of the episode of a seed; `Goals.begin`.
        generator: of plans; the noise inside dynamics comes from one drawn from it at each decision.
        batch: episodes side by side.
        shown: keep the frames of so many episodes, real and imagined.
        watch: told (episodes done, all, label).
    """
    if batch < 1:
        raise ValueError(f"play: batch: expected 1 or more, got {batch}")
    played: list[Episode] = []
    decisions = decided = calls = 0
    seconds = 0.0
    for first in range(0, len(seeds), batch):
        group = [
            _Running(begin(seed), seed, context=config.context, shown=first + number < shown)
            for number, seed in enumerate(seeds[first : first + batch])
        ]
        running = [i for i, one in enumerate(group) if not one.episode.success]
        taken, plans = 0, None
        while running and taken < config.steps:
            steps = min(config.replan, config.steps - taken)
            seen = _seen([group[i] for i in running], config.context, generator)
            goals = _frames([group[i].goal for i in running], generator.device)
            began = time.perf_counter()
            decision = agent.decide(Asked(seen, goals, steps, generator, plans))
            if generator.device.type == "cuda":
                torch.cuda.synchronize(generator.device)
            seconds += time.perf_counter() - began
            if not 1 <= decision.actions.shape[1] <= steps:
                raise ValueError(
                    f"{label}: decided: expected 1 .. {steps} actions, got {decision.actions.shape[1]}"
                )
            decisions, decided = decisions + 1, decided + len(running)
            calls += decision.calls * len(running)
            imagined = None
            if decision.imagine is not None and any(group[i].shown for i in running):
                imagined = decision.imagine()
            for row, i in enumerate(running):
                group[i].carry_out(decision, imagined, row, agent.act, config.action_repeat)
            taken += decision.actions.shape[1]
            left = [row for row, i in enumerate(running) if not group[i].episode.success]
            plans = None
            if decision.plan is not None:
                plans = decision.plan.rows(
                    torch.tensor(left, device=generator.device, dtype=torch.long)
                )
            running = [running[row] for row in left]
        played += [one.episode for one in group]
        if watch is not None:
            watch(len(played), len(seeds), label)
    return Played(played, decisions, decided, calls, seconds)


class _Running:
    """An episode under way."""

    def __init__(self, begun: Begun, seed: int, *, context: int, shown: bool) -> None:
        task, frame, self.goal = begun
        self.task, self.shown, self._context = task, shown, context
        best = task.goal_offset if task.shortest else None
        self.episode = Episode(seed, best=best, success=task.succeeded())
        self.latest = [frame]
        if shown:
            self.episode.goal, self.episode.real = self.goal, [frame]

    def carry_out(
        self, decision: Decision, imagined: Tensor | None, row: int, act: Act, repeat: int
    ) -> None:
        """Take the decided actions, until the goal is reached."""
        episode = self.episode
        if decision.cost is not None:
            episode.costs.append(float(decision.cost[row]))
        for number, action in enumerate(decision.actions[row]):
            self._step(act(action, self.task), repeat)
            frame = self.task.frame()
            self.latest = [*self.latest, frame][-self._context :]
            if self.shown:
                episode.real.append(frame)
                if imagined is not None:
                    expected = imagined[row, number].clamp(0, 1).mul(255).round().byte()
                    episode.imagined.append(expected.movedim(0, -1).cpu().numpy())
            if episode.success:
                return

    def _step(self, steps: Iterable[Any], repeat: int) -> None:
        for one in steps:
            for _ in range(repeat):
                self.task.step(one)
                self.episode.steps += 1
                self.episode.success = self.task.succeeded()
                if self.episode.success:
                    return


def _seen(running: Sequence[_Running], context: int, generator: torch.Generator) -> Seen:
    """The last frames of each, and a generator of their noise."""
    length = min(context, *(len(one.latest) for one in running))
    frames = torch.stack([_frames(one.latest[-length:], generator.device) for one in running])
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    noise = torch.Generator(device=generator.device).manual_seed(int(seed))
    return Seen(frames, noise, [one.task for one in running])


def _frames(pictures: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """uint8 [H, W, 3] each -> [T, 3, H, W] floats in [0, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).to(device)
    return stacked.movedim(-1, 1).float() / 255
