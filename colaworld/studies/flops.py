"""Operations of a study's runs, and how arms are made equal in them.

Counted from a traced step of each phase, forward and backward, products of matrices alone; without looks at
control, previews and evaluation. Not here: what is in a row (rows.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import yaml

from colaworld.config import ConfigError, from_dict, to_yaml
from colaworld.runs.config import RunConfig
from colaworld.studies.study import DataSet, Study, config_of


def flops_of(
    config: RunConfig, steps: Mapping[str, int], *, height: int, width: int
) -> float | None:
    """Of so many steps of each phase, on frames of that size; None where the model cannot be traced."""
    alike = replace(config, data=replace(config.data, path=None), backbone_weights=None)
    alike = replace(alike, training=replace(config.training, seed=0))
    told = _of_clip(to_yaml(alike), height, width)
    clips = config.training.batch_size * config.training.accumulate
    return None if told is None else sum(told[phase] * clips * n for phase, n in steps.items())


def scales(study: Study, data: DataSet) -> dict[str, float]:
    """By arm: with how many times its own steps it takes as many operations as the reference arm.

    1 for all unless the study's budget is `flops`. Raises ConfigError where the size of frames is not known
    yet, or a model cannot be traced.
    """
    if study.budget != "flops":
        return {arm.name: 1.0 for arm in study.arms}
    total = {}
    for arm in study.arms:
        config = config_of(study, data, arm)
        height, width = _frame_size(study, data, config)
        steps = {phase.name: phase.steps for phase in config.scheduled()}
        flops = flops_of(config, steps, height=height, width=width)
        if not flops:
            raise ConfigError(
                f"study {study.name!r}, arm {arm.name!r}: budget='flops' counts operations, but this model "
                "cannot be traced; say budget='clips' or 'own'"
            )
        total[arm.name] = flops
    return {name: total[study.reference] / flops for name, flops in total.items()}


def _frame_size(study: Study, data: DataSet, config: RunConfig) -> tuple[int, int]:
    if config.data.height is not None and config.data.width is not None:
        return config.data.height, config.data.width
    if data.path is None:
        raise ConfigError(
            f"study {study.name!r}, data {data.name!r}: budget='flops' counts operations before anything is "
            "recorded, so the data's changes must say data.height and data.width"
        )
    from colaworld.data.clips import ClipSet

    clips = ClipSet(replace(config.data, path=data.path))
    return clips.height, clips.width


@functools.cache
def _of_clip(config_yaml: str, height: int, width: int) -> dict[str, float] | None:
    """By phase; counted once for all seeds of an arm, since it takes seconds."""
    from colaworld.runs.work import flops_of_clip

    values = yaml.safe_load(config_yaml)
    values.pop("config_version")
    try:
        return flops_of_clip(from_dict(RunConfig, values), height=height, width=width)
    except RuntimeError:  # a part of one's own that looks at values
        return None
