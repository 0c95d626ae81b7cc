"""Behaviour cloning towards a goal image: a small network from (frame, goal frame) to the action that was recorded.

    goals are later frames of the same clip (hindsight; Ghosh et al. 2019, arXiv 1912.06088, without their iterations)

A bound that a planner should stand beside: it sees the data that the world saw, and its actions. Not here: reading the data
(runs/cloning.py).
Shape legend: C clips of T frames, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.contracts import ActionSpec, to_float
from colaworld.planning.config import CloningConfig
from colaworld.planning.mpc import Asked, Decision
from colaworld.planning.tasks import Task
from colaworld.rng import generator_for, seed_for

_LOOK = 100  # steps between two looks at the clips set aside
_PAIRS = 4096  # of frames and goals that an error is taken from, at most
_AT_ONCE = 256  # of them that the policy is given at once


class Policy(nn.Module):
    """Three convolutions and two layers over frame and goal frame, as one picture of six channels."""

    def __init__(self, size: tuple[int, int], outputs: int, width: int) -> None:
        super().__init__()
        self.see = nn.Sequential(
            *(nn.Conv2d(6, width // 2, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        )
        seen = self.see(torch.zeros(1, 6, *size)).shape[1]
        self.decide = nn.Sequential(
            nn.Linear(seen, 4 * width), nn.ReLU(), nn.Linear(4 * width, outputs)
        )

    def forward(self, frames: Tensor, goals: Tensor) -> Tensor:
        """[B, 3, H, W] each, in [0, 1] -> [B, outputs]."""
        return self.decide(self.see(torch.cat([frames, goals], dim=1) - 0.5))


@dataclass(frozen=True)
class Cloned:
    """A trained policy, and how wrong it is on episodes that it was neither trained nor chosen by."""

    choose: Callable[[Tensor, Tensor], Tensor]
    """frames and goals [B, 3, H, W] -> classes [B] or recorded numbers [B, A]."""
    error: float
    """Classes: share that is wrong. Numbers: share of the variance of each that is not told, in the mean over those
    that vary: one in px counts as much as one in radians."""
    baseline: float
    """The same of the most frequent class, or of the mean."""
    clips: tuple[int, int, int]
    """Trained on, chosen by, tested on; no episode is in two of them."""
    best_step: int
    classes: bool
    """What actions are: classes, or numbers."""
    by_number: tuple[float | None, ...] = ()
    """Numbers: the error of each; None of one that does not vary."""

    def told(self) -> dict[str, Any]:
        """For plan.json."""
        names = ("train", "chosen_by", "test")
        return {
            "error": self.error,
            "by_number": list(self.by_number),
            "baseline": self.baseline,
            "clips": dict(zip(names, self.clips, strict=True)),
            "best_step": self.best_step,
            "classes": self.classes,
        }


def clone(
    frames: Tensor,
    actions: Tensor,
    episodes: Tensor,
    *,
    spec: ActionSpec,
    config: CloningConfig,
    seed: int,
    device: str = "cpu",
    watch: Callable[[int, int, str], None] | None = None,
) -> Cloned:
    """Train a policy; the weights with the least error on a tenth of the episodes are taken.

    Args:
        frames: uint8 [C, T, 3, H, W].
        actions: int64 [C, T - 1] or floats [C, T - 1, A].
        episodes: int64 [C], which each clip is of.
        seed: of weights, split and draws.

    Raises ValueError where there are fewer than three episodes, or the loss is not finite.
    """
    parts = _split(episodes, seed)
    discrete = spec.kind == "discrete"
    known = actions[parts[0]].flatten(0, 1)
    shift, scale = torch.zeros(()), torch.ones(())
    if not discrete:
        shift, scale = known.mean(0), known.std(0, unbiased=False).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "cloning", "weights"))
        policy = Policy((frames.shape[3], frames.shape[4]), spec.size, config.width).to(device)

    def loss(pairs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        said, wanted = policy(*(to_float(part, device) for part in pairs[:2])), pairs[2]
        if discrete:
            return F.cross_entropy(said, wanted.to(device))
        return F.mse_loss(said, ((wanted - shift) / scale).to(device))

    def batches(pairs: tuple[Tensor, Tensor, Tensor]) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        return zip(*(part.split(_AT_ONCE) for part in pairs), strict=True)

    def drawn(rows: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, later ones, and the actions at the first."""
        clip = rows[torch.randint(len(rows), (count,), generator=rng)]
        ends = torch.randint(1, frames.shape[1], (count,), generator=rng)
        begins = (torch.rand(count, generator=rng) * ends).long()
        return frames[clip, begins], frames[clip, ends], actions[clip, begins]

    rng = generator_for("cpu", seed, "cloning")
    aside, test = (drawn(rows, min(_PAIRS, 20 * len(rows)), rng) for rows in parts[1:])
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    least, kept, best_step = float("inf"), {}, 0
    for step in range(1, config.steps + 1):
        optimizer.zero_grad()
        loss(drawn(parts[0], config.batch, rng)).backward()
        optimizer.step()
        if step % _LOOK == 0 or step == config.steps:
            with torch.no_grad():
                now = sum(float(loss(part)) * len(part[2]) for part in batches(aside))
            if now < least:
                least, best_step = now, step
                kept = {key: value.clone() for key, value in policy.state_dict().items()}
            if watch is not None:
                watch(step, config.steps, "cloning recorded actions")
    if not kept:
        raise ValueError(
            f"cloning.learning_rate: the loss is not finite at {config.learning_rate:g}; take less"
        )
    policy.load_state_dict(kept)
    policy.requires_grad_(False)

    def choose(now: Tensor, goals: Tensor) -> Tensor:
        said = policy(now, goals)
        return said.argmax(-1) if discrete else said * scale.to(device) + shift.to(device)

    said = torch.cat(
        [choose(to_float(one, device), to_float(to, device)).cpu() for one, to, _ in batches(test)]
    )
    counts = (len(parts[0]), len(parts[1]), len(parts[2]))
    if discrete:
        usual = known.bincount().argmax()
        error, baseline = (float((one != test[2]).double().mean()) for one in (said, usual))
        return Cloned(choose, error, baseline, counts, best_step, True)
    each = untold(said, test[2], known.double().mean(0))
    varying = [one for one in each if one is not None]
    error = sum(varying) / len(varying) if varying else 0.0
    return Cloned(choose, error, 1.0, counts, best_step, False, each)


@dataclass
class CloningAgent:
    """Does what the policy says, one action at a time."""

    cloned: Cloned

    @staticmethod
    def act(action: Tensor, task: Task) -> Iterable[Any]:
        return task.recorded(action)

    def decide(self, asked: Asked) -> Decision:
        return Decision(self.cloned.choose(asked.seen.frames[:, -1], asked.goals)[:, None])


def _split(episodes: Tensor, seed: int) -> list[Tensor]:
    """Rows to train on, to choose by and to test on: a tenth of the episodes each for the last two."""
    ids = episodes.unique()
    if len(ids) < 3:
        raise ValueError(f"cloning: expected clips of 3 or more episodes, got {len(ids)}")
    ids = ids[torch.randperm(len(ids), generator=generator_for("cpu", seed, "cloning", "split"))]
    tenth = max(1, len(ids) // 10)
    held = (ids[2 * tenth :], ids[:tenth], ids[tenth : 2 * tenth])
    return [torch.isin(episodes, one).nonzero().flatten() for one in held]


def untold(said: Tensor, done: Tensor, mean: Tensor) -> tuple[float | None, ...]:
    """Of each of A numbers the squared error of what was said [R, A] of what was done [R, A], as a share of its squared
    distance from `mean` [A]; None where that is nothing."""
    left = (said - done).double().square().mean(0)
    spread = (done.double() - mean).square().mean(0)
    return tuple(float(a / b) if b > 1e-12 else None for a, b in zip(left, spread, strict=True))
