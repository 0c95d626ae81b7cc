"""A head that tells from what is seen, and from a goal, whether the goal is reached or how near it is.

    discount 0       success: the target is 1 where the goal is reached, 0 elsewhere
    discount 0 .. 1  value: discount^k, k actions before it is reached, 0 where it never is

It reads frames, or the latents of one tokenizer: what a world imagines without decoding. In planning minus
its logit is a cost, as VP2 adds that of its classifiers (Tian et al. 2023, arXiv 2304.13723). Not here: who
plays the episodes it learns from (runs/goal_head.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from colaworld.config import Checked, Share, Size
from colaworld.files import FileError, write_atomically
from colaworld.metrics.published import fill, read_tensors
from colaworld.planning.config import Over
from colaworld.planning.contracts import Reads
from colaworld.planning.costs import over_steps
from colaworld.planning.tasks import Task
from colaworld.rng import generator_for

FORMAT_VERSION = 1
_KEY = "colaworld_goal_head"
HELD_OUT = 0.2  # of the episodes, which are not learnt from


@dataclass(frozen=True)
class HeadConfig(Checked, at="head."):
    """What a head is of; stored beside its weights."""

    env: str
    """Of which goals, see `goals_of`."""
    reads: Literal["frames", "latents"]
    shape: tuple[Size, Size, Size]
    """[C, h, w] of what it reads."""
    discount: Share = 0.0
    tokenizer: str | None = None
    """Fingerprint of the tokenizer whose latents it reads."""
    width: Size = 32
    """Channels inside."""


class Examples(NamedTuple):
    """What is seen in episodes. M moments."""

    seen: Tensor  # [M, C, h, w]
    goal: Tensor  # [M, C, h, w]
    left: Tensor  # [M] int64: actions until the goal is reached, -1: it never is
    episode: Tensor  # [M] int64

    def take(self, chosen: Tensor) -> Examples:
        return Examples(*(part[chosen] for part in self))


def goals_of(task: Task) -> str:
    """What tells the goals of an environment from others: its name, and what is to be done."""
    return " ".join(filter(None, (task.name, task.told.get("task"))))


class GoalHead(nn.Module):
    """A few convolutions over what is seen, the goal and their difference."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config, w = config, config.width
        layers: list[nn.Module] = []
        inside, (h, across) = 3 * config.shape[0], config.shape[1:]
        while max(h, across) >= 8 or not layers:
            layers += [nn.Conv2d(inside, w, 3, stride=2, padding=1), nn.SiLU()]
            inside, h, across = w, (h + 1) // 2, (across + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.out = nn.Sequential(nn.Linear(w * h * across, w), nn.SiLU(), nn.Linear(w, 1))

    def forward(self, seen: Tensor, goal: Tensor) -> Tensor:
        """[rows, C, h, w] each -> logits [rows]."""
        return self.out(self.body(torch.cat([seen, goal, seen - goal], dim=1)))[:, 0]


def targets(left: Tensor, discount: float) -> Tensor:
    """What is to be told of moments with so many actions left, in [0, 1]."""
    value = torch.as_tensor(discount, dtype=torch.float32) ** left.clamp_min(0)
    return value.where(left >= 0, 0)


def fit(
    config: HeadConfig, examples: Examples, *, seed: int, steps: int = 600, batch: int = 64
) -> tuple[GoalHead, dict[str, Any]]:
    """Train on most episodes, measure on the rest (`HELD_OUT` of them, drawn by the seed).

    For success half of each batch are moments in which the goal is reached. Returns the head and what was measured:
    `error` is the mean distance from the target, `error_of_mean` that of one number for all; for success
    also `accuracy`, `baseline` (the more frequent answer), and `found` and `false` alarms as shares.
    Raises ValueError where on either side the goal is reached nowhere, or everywhere.
    """
    rng = generator_for("cpu", seed, "goal head")
    names = examples.episode.unique()
    mixed = names[torch.randperm(len(names), generator=rng)]
    held = torch.isin(examples.episode, mixed[: max(1, round(HELD_OUT * len(names)))])
    parts = {"training": examples.take(~held), "held-out": examples.take(held)}
    for what, part in parts.items():
        reached = int((part.left == 0).sum())
        if not 0 < reached < len(part.left):
            raise ValueError(
                f"goal head: the goal is reached in {reached} of the {len(part.left)} {what} moments; expected some "
                "of both: more --episodes, or more steps (--mpc.steps)"
            )
    learnt = parts["training"]
    device = learnt.seen.device
    target = targets(learnt.left, config.discount).to(device)
    groups = [torch.arange(len(learnt.left))]
    if config.discount == 0:  # the goal is reached in few moments: half of each batch
        groups = [
            (learnt.left == 0).nonzero()[:, 0].cpu(),
            (learnt.left != 0).nonzero()[:, 0].cpu(),
        ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        head = GoalHead(config)
    head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        size = (batch // len(groups),)
        rows = torch.cat([of[torch.randint(len(of), size, generator=rng)] for of in groups])
        logit = head(learnt.seen[rows], learnt.goal[rows])
        loss = F.binary_cross_entropy_with_logits(logit, target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    head.eval().requires_grad_(False)
    return head, measure(head, parts["held-out"])


@torch.no_grad()
def measure(head: GoalHead, examples: Examples) -> dict[str, Any]:
    """How right it is, see `fit`."""
    pairs = zip(examples.seen.split(256), examples.goal.split(256), strict=True)
    logit = torch.cat([head(seen, goal) for seen, goal in pairs])
    wanted = targets(examples.left, head.config.discount).to(logit)
    found: dict[str, Any] = {
        "episodes": len(examples.episode.unique()),
        "moments": len(wanted),
        "reached": int((examples.left == 0).sum()),
        "error": float((logit.sigmoid() - wanted).abs().mean()),
        "error_of_mean": float((wanted - wanted.mean()).abs().mean()),
    }
    if head.config.discount == 0:
        said, true = logit > 0, wanted > 0.5
        share = float(true.float().mean())
        found |= {
            "accuracy": float((said == true).float().mean()),
            "baseline": max(share, 1 - share),
            "found": float(said[true].float().mean()),
            "false": float(said[~true].float().mean()),
        }
    return found


def save_head(path: Path, head: GoalHead, **told: Any) -> None:
    """One safetensors file, whole or not at all; configuration and what else is `told` in its header."""
    described = {"format_version": FORMAT_VERSION, **asdict(head.config), **told}
    tensors = {key: value.cpu().contiguous() for key, value in head.state_dict().items()}
    write_atomically(path, save(tensors, metadata={_KEY: json.dumps(described)}))


def load_head(path: Path, *, device: torch.device | str = "cpu") -> tuple[GoalHead, dict[str, Any]]:
    """The head in a file, and all that its header says. FileError where it is none of ours."""
    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {})[_KEY])
        fields = {name: described[name] for name in HeadConfig.__dataclass_fields__}
        if described["format_version"] != FORMAT_VERSION:
            raise ValueError
        head = GoalHead(HeadConfig(**fields | {"shape": tuple(fields["shape"])}))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise FileError(
            f"{path}: expected a file that `colaworld goal-head` wrote, in format {FORMAT_VERSION}"
        ) from None
    fill(head, read_tensors(path), path)
    return head.to(device).eval().requires_grad_(False), described


def check_head(
    head: GoalHead, path: Path, *, env: str, shape: Sequence[int], tokenizer: str | None
) -> None:
    """ValueError where a head is of another environment, size or tokenizer."""
    of = head.config
    for what, mine, wanted in (
        ("environment", of.env, env),
        (f"{of.reads} [C, h, w]", list(of.shape), list(shape)),
        ("tokenizer", of.tokenizer, tokenizer),
    ):
        if mine != wanted:
            raise ValueError(
                f"{path}: this head is of another {what}: expected {wanted}, got {mine}; train one with colaworld "
                "goal-head"
            )


class GoalHeadCost:
    """Minus the logit of a head.

    Args:
        head: what tells.
        goal: [B, C, h, w], frames in [0, 1] or latents, as the head reads them.
        over: which steps count, as in `costs.GoalDistance`.
        rows: how many the head is given at once.
    """

    def __init__(
        self, head: GoalHead, goal: Tensor, *, over: Over = "all", rows: int = 256
    ) -> None:
        self.head, self.goal, self.over, self._rows = head, goal, over, rows
        self.reads: Reads = head.config.reads

    @torch.no_grad()
    def __call__(self, imagined: Tensor, actions: Tensor) -> Tensor:
        """Raises ValueError where what is imagined has another shape than the head reads."""
        if tuple(imagined.shape[3:]) != self.head.config.shape or len(imagined) != len(self.goal):
            wanted = ", ".join(map(str, (len(self.goal), "n", "T", *self.head.config.shape)))
            raise ValueError(f"cost: expected {self.reads} [{wanted}], got {list(imagined.shape)}")
        if self.over == "last":
            imagined = imagined[:, :, -1:]
        goal = self.goal[:, None, None].expand_as(imagined).flatten(0, 2)
        pairs = zip(imagined.flatten(0, 2).split(self._rows), goal.split(self._rows), strict=True)
        logit = torch.cat([self.head(seen.float(), to.float()) for seen, to in pairs])
        return over_steps(-logit.view(imagined.shape[:3]), self.over)
