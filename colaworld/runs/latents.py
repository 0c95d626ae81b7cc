"""What infers latent actions, from wherever it is: a run, an exported world, a published model of others.

    model = load_latents("runs/demo")              # or an export, or a hub name
    model = load_latents("adaworld.safetensors")   # a layout of models/latent_action/published
    model.infer_actions(frames).codes              # contracts.LatentActionModel

Not here: the layouts, any measure (evaluation/latents.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from colaworld.config import ConfigError
from colaworld.contracts import LatentActionModel
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.once import iterate_once
from colaworld.evaluation.latents import measure_latents
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.models.latent_action.published import load_published
from colaworld.runs.config import read_config
from colaworld.runs.worlds import find, is_run, is_world, world_at

log = logging.getLogger(__name__)


def load_latents(
    source: str | Path,
    *,
    kind: str = "auto",
    device: torch.device | str = "cpu",
    tokenizer: str | None = None,
) -> LatentActionModel:
    """A model that infers latent actions, in evaluation mode.

    Args:
        source: a run folder, finished or not; an exported world; a safetensors file or a folder of one in a
            published layout; or a hub name of one of these.
        kind: "colaworld" for a run or an export, else the layout (`PUBLISHED`); "auto": what it is.
        tokenizer: where an exported world's is, if it did not come along.

    Raises WeightsError, ConfigError or FileError where nothing readable is there; ValueError on an unknown
    kind.
    """
    path = find(source)
    if (folder := world_at(path, kind=kind)) is not None:
        return folder.load(device=str(device), tokenizer=tokenizer)
    return load_published(path, kind=kind, device=device)


def probe_latents(
    sources: Sequence[str | Path],
    data: DataConfig,
    config: EvaluationConfig,
    *,
    kind: str = "auto",
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure several models on the same transitions of one data set.

    Each is given the frames at the size it was trained on; one that takes any size gets those of
    `data`. The rate, the crop and the length of clips are `data`'s for all. See `measure_latents`.

    Args:
        sources: as `load_latents` takes them.
        data: its split is used as it says.
        config: its probe_clips, batch_size, bootstrap_samples, probe and seed.
        kind: layout of those that are neither runs nor exports.
        progress: called as (clips done, clips of all, what).

    Returns:
        What `measure_latents` gives, by the name of the source.

    Raises ConfigError where a run was trained on episodes it would be measured on, or a source is named
    twice; DataError on data that cannot be used; and as `load_latents` does.
    """
    names = [str(source) for source in sources]
    if len(set(names)) != len(names):
        raise ConfigError(f"latents: expected each once, got {', '.join(names)}")
    results: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        model = _load(name, data, kind, device)
        size = model.frame_size or (data.height, data.width)
        fitted = replace(data, height=size[0], width=size[1])
        spec = ClipSet(fitted).matched_actions()
        before = number * config.probe_clips

        def watch(clips: int, name: str = name, before: int = before) -> None:
            if progress is not None:
                progress(before + clips, len(names) * config.probe_clips, name)

        results[name] = measure_latents(
            model,
            iterate_once(
                fitted,
                batch_size=config.batch_size,
                limit=config.probe_clips,
                with_actions=spec is not None,
                split=data.split,
            ),
            spec,
            config,
            device=device,
            watch=watch,
        )
        watch(config.probe_clips)
    return results


def _load(name: str, data: DataConfig, kind: str, device: str) -> LatentActionModel:
    folder = Path(name)
    if not is_run(folder):
        return load_latents(name, kind="auto" if is_world(folder) else kind, device=device)
    _check_unseen(folder, read_config(folder).data, data)
    return load_latents(name, device=device)


def _check_unseen(run: Path, trained: DataConfig, asked: DataConfig) -> None:
    """ConfigError where episodes that a run was trained on would be measured; a note on another rate."""
    if asked.path is None:
        return
    for one in trained.sets().values():
        if (one.stride, one.fps) != (asked.stride, asked.fps):
            rate = f"stride {one.stride}" if one.fps is None else f"{one.fps:g} frames/s"
            log.warning("%s was trained at %s, and is measured at another rate here", run, rate)
        if one.path is None or one.path.resolve() != asked.path.resolve():
            continue
        if asked.split != "heldout" or one.holdout != asked.holdout:
            raise ConfigError(
                f"{run} was trained on {asked.path}: expected data.split heldout and data.holdout "
                f"{one.holdout:g}, its own, got {asked.split} and {asked.holdout:g}: these episodes would "
                "be among those it knows"
            )
        if one.split != "train":
            log.warning("%s was trained on all of %s: its numbers say little", run, asked.path)
