"""Behaviour cloning of recorded actions: the clips that a policy is trained on.

Not here: the policy (planning/cloning.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from colaworld.config import ConfigError
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.once import iterate_once
from colaworld.planning.cloning import Cloned, clone
from colaworld.planning.config import CloningConfig
from colaworld.planning.tasks import Task
from colaworld.runs.steering import Watch, check_spec


def cloned_from(
    data: DataConfig,
    task: Task,
    config: CloningConfig,
    *,
    seed: int,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Cloned:
    """A policy of the training share of a set with actions. Its goals are up to as far away as those of the task.

    Raises ConfigError where the set's actions are not those of the environment, DataError where it has none, or no
    clips that reach as far.
    """
    ahead = -(-task.goal_offset // task.block)
    data = replace(data, split="train", actions="as_recorded", frames_per_clip=1 + max(ahead, 1))
    found = ClipSet(data)
    found.require_actions()
    spec = found.action_spec
    assert spec is not None, "a set with actions says which"
    check_spec(spec, task, where=str(data.path))
    if (found.height, found.width) != task.frame_size:
        raise ConfigError(
            f"{data.path}: its frames are {found.height}x{found.width} px (height x width), those to be planned "
            f"in {task.frame_size[0]}x{task.frame_size[1]}"
        )
    read = list(
        iterate_once(data, batch_size=64, limit=config.clips, with_actions=True, split="train")
    )
    actions = torch.cat([batch.actions for batch in read if batch.actions is not None])
    return clone(
        torch.cat([batch.frames for batch in read]),
        actions,
        torch.cat([batch.episode for batch in read]),
        spec=spec,
        config=config,
        seed=seed,
        device=device,
        watch=watch,
    )
