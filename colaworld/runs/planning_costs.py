"""What plans cost, as `colaworld plan` is asked: distance from the goal, a head, what actions cost.

Not here: the costs themselves (planning/costs.py, encoders.py, goal_head.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colaworld.config import ConfigError
from colaworld.models.world import World
from colaworld.planning.config import EpisodesConfig
from colaworld.planning.contracts import Cost, Reads
from colaworld.planning.costs import ActionPenalty, GoalDistance, TrueDistance, WeightedSum
from colaworld.planning.encoders import load_encoder
from colaworld.planning.goal_head import GoalHeadCost, check_head, goals_of, load_head
from colaworld.planning.goals import Goals
from colaworld.planning.spaces import Continuous, Space
from colaworld.planning.tasks import Located, Task


def check_costs(config: EpisodesConfig, *, with_world: bool) -> None:
    """What can be said before a world is read. Raises ConfigError where settings contradict each other."""
    if config.encoder is not None and config.cost != "frames":
        raise ConfigError("--encoder: it sees frames; leave --cost at frames")
    if config.head is None:
        if config.distance_weight == 0:
            raise ConfigError("--distance-weight 0: nothing tells the goal then; name a --head")
        if config.head_weight != 1:
            raise ConfigError("--head-weight: there is no head; name a --head, or leave it out")
        return
    if config.distance_weight == config.head_weight == 0:
        raise ConfigError("--distance-weight 0, --head-weight 0: nothing tells the goal then")
    reads = load_head(config.head)[0].config.reads
    if reads != config.cost or (reads == "latents" and not with_world):
        where = f"--cost {reads}" + " and a --run" * (reads == "latents")
        raise ConfigError(f"--head {config.head}: it reads {reads}; plan with {where}")
    lost = [row for row in ("oracle", "oracle-codes", "copy") if row in config.rows]
    if reads == "latents" and config.distance_weight == 0 and lost:
        raise ConfigError(
            f"--distance-weight 0: nothing tells the goal in row {' and '.join(lost)}, as the head reads latents; "
            "leave it out of --rows"
        )


class Pricing:
    """Makes the cost of each row, encoder and head read once.

    Raises ConfigError where settings contradict each other, FileError or ValueError where a file is none of
    its kind, or of another environment, size or tokenizer.
    """

    def __init__(
        self,
        task: Task,
        world: World | None,
        config: EpisodesConfig,
        *,
        size: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.world, self.device = config, world, device
        if config.cost == "latents" and world is not None and world.stride > 1:
            raise ConfigError(
                f"--cost latents: a latent of this world is {world.stride} frames, a goal image is one; "
                "use frames"
            )
        check_costs(config, with_world=world is not None)
        self.encoder = (
            None if config.encoder is None else load_encoder(config.encoder, device=device)
        )
        self.head = None
        if config.head is not None:
            self.head, _ = load_head(config.head, device=device)
            reads = self.head.config.reads
            shape, tokenizer = [3, *size], None
            if reads == "latents":
                assert world is not None
                shape = list(self._goal(torch.zeros(1, 3, *size, device=device), reads).shape[1:])
                tokenizer = world.model.tokenizer.fingerprint()
            check_head(self.head, config.head, env=goals_of(task), shape=shape, tokenizer=tokenizer)

    def __call__(self, reads: Reads, space: Space) -> Callable[[Tensor], Cost]:
        """What makes the cost of goal frames [B, 3, H, W] where dynamics give `reads`."""
        config = self.config
        headed = self.head is not None and self.head.config.reads == reads

        def make(goals: Tensor) -> Cost:
            goal = self._goal(goals, reads)
            parts: list[tuple[float, Cost]] = []
            if config.distance_weight:
                encoder = self.encoder
                distance = GoalDistance(goal, reads=reads, over=config.over, encoder=encoder)
                parts.append((config.distance_weight, distance))
            if headed and self.head is not None:
                parts.append((config.head_weight, GoalHeadCost(self.head, goal, over=config.over)))
            return WeightedSum(*parts, *self._penalty(space))

        return make

    def true(self, space: Space, goals: Goals) -> Callable[[Tensor], Cost]:
        """What makes the cost that the simulator knows (`TrueDistance`), in the place of distance and head.

        Its scale, one for all episodes, is that of the picture, its weight included: at their starts both cost alike in
        the mean. A planner that weighs costs (mppi) needs that, and so does what actions cost beside it.
        Raises ConfigError where the environment does not tell how far its goals are.
        """
        tasks = [goals.begin(seed).task for seed in goals.seeds]
        away = [task.distance() for task in tasks if isinstance(task, Located)]
        if len(away) < len(tasks):
            raise ConfigError(
                f"--rows oracle-state: {tasks[0].name} does not tell how far a goal is (tasks.Located); leave it out"
            )
        first, goal = (
            torch.from_numpy(part).to(self.device).movedim(-1, 1).float() / 255
            for part in goals.frames()
        )
        seen = GoalDistance(goal, reads="frames", encoder=self.encoder)(first[:, None, None], first)
        left = sum(one**2 for one in away) / len(away)
        scale = (self.config.distance_weight or 1.0) * float(seen.mean()) / left if left else 0.0
        cost = TrueDistance(scale=scale or 1.0, over=self.config.over)
        return lambda goals: WeightedSum((1.0, cost), *self._penalty(space))

    def _penalty(self, space: Space) -> list[tuple[float, Cost]]:
        if not self.config.penalty:
            return []
        idle = (0.0,) * space.width if isinstance(space, Continuous) else (0,)
        return [(self.config.penalty, ActionPenalty(idle))]

    def _goal(self, goals: Tensor, reads: Reads) -> Tensor:
        """Goal frames as the cost reads them."""
        if reads != "latents":
            return goals
        assert self.world is not None
        return self.world.model.tokenizer.encode(goals[:, None])[:, :, 0]
