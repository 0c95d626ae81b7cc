"""How much of the real action does the latent action hold? A linear probe on held-out episodes.

One row per transition: feature = the action's codes, N x d values; target = the real action. The
split, the penalty and the classes are the same for the probe and for the pixel-difference
baseline. Training never sees a real action; this is the one place that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ActionSpec, LatentActions
from colaworld.metrics.bootstrap import bootstrap_statistic
from colaworld.metrics.probe import (
    ProbeConfig,
    ProbePrediction,
    chance_probe,
    linear_probe,
    pixel_differences,
    principal_components,
    split_by_episode,
)


class ProbeSkipped(ValueError):
    """There is nothing to probe; the message says why, in words for the reader of a report."""


@dataclass(frozen=True)
class ProbeOutcome:
    """The probe's numbers, and its answers row by row."""

    summary: dict[str, Any]  # the JSON of `probe`
    latent: ProbePrediction  # test rows, for the scatter or confusion matrix


def _flat_actions(actions: Tensor | None, spec: ActionSpec | None) -> Tensor:
    if spec is None or actions is None:
        raise ProbeSkipped("the data set has no real actions")
    flat = actions.flatten(0, 1)
    if spec.kind == "discrete":
        if flat.ndim != 1 or flat.is_floating_point():
            raise ValueError(
                f"actions: column {spec.column!r} is discrete, expected int64 [M, T-1], "
                f"got {actions.dtype} {tuple(actions.shape)}"
            )
        if int(flat.min()) < 0 or int(flat.max()) >= spec.size:
            raise ValueError(
                f"actions: column {spec.column!r} has {spec.size} classes, got "
                f"{int(flat.min())}..{int(flat.max())}"
            )
        return flat
    if flat.ndim != 2 or flat.shape[1] != spec.size:
        raise ValueError(
            f"actions: column {spec.column!r} has {spec.size} dimensions, expected "
            f"[M, T-1, {spec.size}], got {tuple(actions.shape)}"
        )
    return flat.float()


def _pixel_features(frames: Tensor, *, grid: int, batch_size: int) -> Tensor:
    parts = [pixel_differences(p.float() / 255.0, grid=grid) for p in frames.split(batch_size)]
    return torch.cat(parts).flatten(0, 1)


def probe_actions(
    latent: LatentActions,
    actions: Tensor | None,
    frames: Tensor,
    episodes: np.ndarray,
    spec: ActionSpec | None,
    *,
    config: ProbeConfig,
    bootstrap_samples: int,
    seed: int,
    batch_size: int = 64,
) -> ProbeOutcome:
    """Probe the latent actions of M clips.

    Args:
        latent: codes [M, T-1, N, d].
        actions: real ones, [M, T-1] int64 or [M, T-1, A] floats.
        frames: [M, T, 3, H, W] uint8, for the pixel-difference baseline.
        episodes: [M].

    Raises:
        ProbeSkipped: no actions, one episode, or actions that never change.
    """
    real = _flat_actions(actions, spec)
    if bool((real == real[:1]).all()):
        raise ProbeSkipped("the real action never changes in the held-out clips")
    steps = latent.codes.shape[1]
    row_episodes = np.repeat(np.asarray(episodes), steps)
    rng = np.random.default_rng([seed, 3])
    try:
        train, test = split_by_episode(row_episodes, test_share=config.test_share, generator=rng)
    except ValueError as error:
        raise ProbeSkipped(str(error)) from None
    features = latent.codes.flatten(0, 1).flatten(1)
    found = linear_probe(features, real, train, test, kind=spec.kind, config=config)
    pixels = _pixel_features(frames, grid=config.pixel_grid, batch_size=batch_size)
    pixels = principal_components(pixels, train, components=config.pixel_components)
    pixel = linear_probe(pixels, real, train, test, kind=spec.kind, config=config)
    chance = chance_probe(real, train, test, kind=spec.kind)

    def interval(statistic: Any) -> dict[str, float]:
        return bootstrap_statistic(
            statistic, row_episodes[test], samples=bootstrap_samples, generator=rng
        ).as_dict()

    discrete = spec.kind == "discrete"
    summary: dict[str, Any] = {
        "kind": "accuracy" if discrete else "r2",
        "score": interval(found.score),
        "baseline": max(chance.score(), pixel.score()),
        "chance": chance.score(),
        "pixel_difference": pixel.score(),
        # paired: the same resampled episodes answer for the probe and for its best baseline
        "margin": interval(
            lambda rows: found.score(rows) - max(chance.score(rows), pixel.score(rows))
        ),
        "macro_f1": interval(found.macro_f1) if discrete else None,
        "macro_f1_chance": chance.macro_f1() if discrete else None,
        "macro_f1_pixel_difference": pixel.macro_f1() if discrete else None,
        "l1": None if discrete else interval(found.l1),
        "l1_chance": None if discrete else chance.l1(),
        "l1_pixel_difference": None if discrete else pixel.l1(),
        "train_rows": int(train.size),
        "test_rows": int(test.size),
        "test_episodes": int(np.unique(row_episodes[test]).size),
    }
    return ProbeOutcome(summary, found)
