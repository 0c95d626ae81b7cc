"""How plans in a world become actions of an environment: by a table of codes, or as they are where a run knows real ones.

Not here: who plans (planning.py), the table itself (planning/action_map.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from colaworld.action_differences import stated
from colaworld.config import ConfigError
from colaworld.contracts import ActionSpec, to_float
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.once import iterate_once
from colaworld.models.world import World
from colaworld.planning.action_map import ActionMap
from colaworld.planning.dynamics import WorldDynamics, latent_space
from colaworld.planning.prior import CodeBigram
from colaworld.planning.spaces import Discrete
from colaworld.planning.tasks import Act, Task

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
    """Whether the environment takes places, and what is planned is the way from each to the next."""
    among: Tensor | None = None
    """[M, N]: the combinations of codes that are planned alone."""
    acted: dict[str, int] = field(default_factory=lambda: {"codes": 0, "unseen": 0})
    """Codes that were carried out, and those of them that no recorded step had."""

    def carry_out(self, action: Tensor, task: Task) -> Iterable[Any]:
        """`act`, with codes counted."""
        if self.action_map is not None:
            known = self.among is not None or bool(self.action_map.nearest(action[None])[1])
            self.acted["codes"] += 1
            self.acted["unseen"] += not known
        return self.act(action, task)


def steer(
    world: World,
    task: Task,
    data: DataConfig,
    *,
    clips: int,
    with_prior: bool = False,
    seen_alone: bool = False,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Steering:
    """A table from codes to the environment's actions, and the codes' bigram, from recorded clips.

    Args:
        data: a set with actions; its training share is read.
        clips: how many of its clips are read at most.
        with_prior: plans are drawn from the bigram.
        seen_alone: only combinations of codes that were counted are planned; an action is the number of one.

    Raises ConfigError where the set's actions are not those of the environment, DataError where it has none.
    """
    space = latent_space(world)
    places = task.place is not None
    found = ClipSet(replace(data, split="train", actions="as_recorded"))
    found.require_actions()
    spec = found.action_spec
    assert spec is not None, "a set with actions says which"
    check_spec(spec, task, where=str(data.path))
    size = (found.height, found.width)
    if world.frame_size not in (None, size):
        wanted, got = (f"{h}x{w}" for h, w in (world.frame_size, size))
        raise ConfigError(
            f"{data.path}: expected frames of {wanted} px (height x width), as the run was trained on, got {got}; "
            "name a set of that size with --data"
        )
    indices: list[Tensor] = []  # of each clip
    counted: list[Tensor] = []
    actions: list[Tensor] = []
    done = 0
    # Of places the ways: a code leads on from where it is.
    data = replace(data, actions="relative" if places else "as_recorded")
    for batch in iterate_once(data, batch_size=16, limit=clips, with_actions=True, split="train"):
        inferred = world.infer_actions(to_float(batch.frames, device))
        assert inferred.indices is not None and batch.actions is not None
        read = inferred.indices.cpu()
        indices += read.unbind(0)
        counted.append(read.flatten(0, 1))
        actions.append(batch.actions.flatten(0, 1))
        done += len(batch)
        if watch is not None:
            watch(done, clips, "reading codes off recorded clips")
    table = ActionMap.fit(torch.cat(counted), torch.cat(actions), space=space, spec=spec)
    if seen_alone:
        space = Discrete(len(table.codes))
        indices = [table.nearest(clip)[0][:, None] for clip in indices]
    prior = CodeBigram.from_indices(indices, space).to(device) if with_prior else None

    def act(codes: Tensor, task: Task) -> Iterable[Any]:
        action = table(table.codes[codes.cpu()] if seen_alone else codes[None])[0][0]
        return task.recorded(_from_place(action, task) if places else action)

    among = table.codes if seen_alone else None
    return Steering("latent", act, table, prior, int(table.counts.sum()), places, among)


def steer_real(world: World, task: Task) -> Steering:
    """Planned actions are the environment's own.

    Raises ConfigError where those the run knows are others, ValueError where it knows none.
    """
    dynamics = WorldDynamics(world, space="real")
    assert world.actions is not None
    check_spec(world.actions, task, where="this run", led_on=True)
    places = task.place is not None and world.actions.mode == "relative"

    def act(action: Tensor, task: Task) -> Iterable[Any]:
        if places:
            return task.recorded(_from_place(action, task))
        return task.recorded(action[0] if isinstance(dynamics.space, Discrete) else action)

    return Steering("real", act, places=places)


def _from_place(action: Tensor, task: Task) -> Tensor:
    """The places [k A] that ways [k A] lead to, one from the other, the first from where the task was sent last."""
    ways = action.view(task.block, task.action_spec.size).cumsum(0)
    return (ways + torch.tensor(task.place, dtype=ways.dtype, device=ways.device)).flatten()


def check_spec(spec: ActionSpec, task: Task, *, where: str, led_on: bool = False) -> None:
    """ConfigError unless actions of a set or a run are those of the environment: classes alike, or the
    numbers of as many steps as it takes at once, in its units and frame of reference, places where it takes places. What
    is not said is taken for the environment's.

    led_on: where it takes places, ways from one to the next will do as well.
    """
    wanted = task.action_spec
    words = {"discrete": "classes", "continuous": "numbers"}
    size = wanted.size * task.block
    names = [one.names for one in (spec, wanted)]
    if spec.kind == wanted.kind == "discrete" and all(names) and names[0] != names[1]:
        raise ConfigError(
            f"{where}: its actions are {', '.join(names[0])}; {task.name} takes {', '.join(names[1])}, in this "
            "order"
        )
    led_on &= task.place is not None and spec.mode == "relative"
    if spec.mode and wanted.mode and spec.mode != wanted.mode and not led_on:
        raise ConfigError(
            f"{where}: its actions are {spec.mode}, {task.name} takes {wanted.mode} ones; use data, or a run, of "
            f"{task.name}"
        )
    if spec.kind == wanted.kind and spec.size == size:
        for one in stated(wanted.every(task.block), spec):
            if one.kind == "wrong" and one.what != "mode":  # above
                raise ConfigError(
                    f"{where}: {one.what}: its actions are in {one.data!r}, those of {task.name} in {one.model!r}; use "
                    f"data, or a run, of {task.name}"
                )
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


def steering_told(steering: Steering) -> dict[str, Any] | None:
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
