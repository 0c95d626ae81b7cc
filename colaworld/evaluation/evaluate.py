"""One call from a world and held-out clips to the numbers it is judged by.

The layout of the result is an interface that others read (see README.md of this room). Not here:
how a world is made of models (recipes), the measures (`metrics`), the page (`report.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colaworld.config import to_dict
from colaworld.contracts import ActionSpec, ClipBatch, LatentActions
from colaworld.evaluation.artefacts import (
    Artefacts,
    choose_clips,
    choose_codes,
    code_notes,
    roll_every_code,
    to_uint8,
)
from colaworld.evaluation.codebook import held_out_health
from colaworld.evaluation.contracts import World
from colaworld.evaluation.files import plain, write_json
from colaworld.evaluation.generation import VARIANTS, generation, infer
from colaworld.evaluation.linear_probe import ProbeOutcome, ProbeSkipped, probe_actions
from colaworld.metrics.bootstrap import bootstrap_mean
from colaworld.metrics.probe import ProbeConfig

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and on how much."""

    clips: int = 64
    """Held-out clips rolled out, four times each; the cost of an evaluation grows with it."""
    probe_clips: int = 256
    """Held-out clips whose actions are inferred, for the probe and for codebook health."""
    history: int = 1
    """Frames given at the start of every rollout."""
    horizon: int | None = None
    """Frames predicted after them; by default all that a clip holds."""
    batch_size: int = 16
    """Clips per call of the world."""
    bootstrap_samples: int = 1000
    """Resampled sets of episodes behind each 95 % interval."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The linear probe from latent to real actions."""
    shown_clips: int = 4
    """Clips shown as strips in the report."""
    shown_starts: int = 3
    """Start frames in the grid "same start, every code"."""
    shown_codes: int = 16
    """Codes in that grid, at most."""
    text_effect: bool = False
    """Also measure what the pre-trained generator loses without its cross-attention (paired flow
    loss, null caption against removed); its weights must hold a text path."""
    seed: int = 0
    """Of the noise, the wrong actions, the probe's split and the intervals."""

    def __post_init__(self) -> None:
        if self.clips < 2:
            raise ValueError(f"evaluation.clips: expected >= 2, got {self.clips}")
        for name in ("probe_clips", "history", "batch_size", "bootstrap_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name}: expected >= 1, got {getattr(self, name)}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"evaluation.horizon: expected >= 1 or none, got {self.horizon}")
        for name in ("shown_clips", "shown_starts", "shown_codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name}: expected >= 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Evaluation:
    """Numbers and pictures of one evaluation."""

    result: dict[str, Any]  # JSON
    artefacts: Artefacts

    def save(self, folder: str | Path) -> None:
        """evaluation.json and evaluation.npz in `folder`, each written atomically."""
        self.artefacts.save(Path(folder) / "evaluation.npz")
        write_json(Path(folder) / "evaluation.json", self.result)


def collect(batches: Iterable[ClipBatch], *, clips: int) -> ClipBatch:
    """The first `clips` clips as one batch on the CPU: clips x T x 3 x H x W bytes of memory."""
    kept, count = [], 0
    for batch in batches:
        if kept and batch.frames.shape[1:] != kept[0].frames.shape[1:]:
            raise ValueError(
                f"evaluation clips: expected one shape, got {list(kept[0].frames.shape[1:])} "
                f"and {list(batch.frames.shape[1:])}"
            )
        kept.append(batch.to("cpu"))
        count += len(batch)
        if count >= clips:
            break
    if count < 2:
        raise ValueError(
            f"evaluation needs at least 2 held-out clips, got {count}; "
            "hold out more episodes or ask for shorter clips"
        )
    with_actions = all(b.actions is not None for b in kept)
    return ClipBatch(
        frames=torch.cat([b.frames for b in kept])[:clips],
        episode=torch.cat([b.episode for b in kept])[:clips],
        start=torch.cat([b.start for b in kept])[:clips],
        actions=torch.cat([b.actions for b in kept])[:clips] if with_actions else None,
    )


def _head(actions: LatentActions, clips: slice | np.ndarray, steps: int) -> LatentActions:
    indices = actions.indices
    return LatentActions(
        actions.codes[clips, :steps], None if indices is None else indices[clips, :steps]
    )


def run_evaluation(
    world: World,
    batches: Iterable[ClipBatch],
    action_spec: ActionSpec | None,
    config: EvaluationConfig,
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Evaluate `world` on held-out clips.

    Args:
        batches: held-out clips, best in an order that mixes episodes; only as many as needed
            are drawn.
        action_spec: what `ClipBatch.actions` holds, or None when there are no real actions; the
            probe is then skipped and the result says why.
        progress: called as (done, total, what) after each part of the work.
        device: where the world lives.
    """
    data = collect(batches, clips=max(config.clips, config.probe_clips))
    frames, episodes = data.frames, data.episode.numpy()
    history = config.history
    horizon = frames.shape[1] - history if config.horizon is None else config.horizon
    length = history + horizon
    if horizon < 1 or length > frames.shape[1]:
        raise ValueError(
            f"evaluation: history {history} + horizon {horizon} do not fit into clips of "
            f"{frames.shape[1]} frames; load longer clips or lower evaluation.horizon"
        )
    rolled = min(config.clips, len(data))
    calls = -(-rolled // config.batch_size) * len(VARIANTS)
    done, total = 0, 0

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, what)

    latent = infer(world, frames, batch_size=config.batch_size, device=device)
    chosen, indices, names = choose_codes(world, latent, limit=config.shown_codes)
    total = calls + len(names) + 2
    advance("inferred actions")
    shown = choose_clips(episodes[:rolled], config.shown_clips)
    strips = {name: {} for name in ("inferred", "random")}

    def watch(rows: slice, name: str, video: Tensor) -> None:
        advance("rollouts")
        if name in strips:
            for clip in shown[(shown >= rows.start) & (shown < rows.stop)]:
                strips[name][int(clip)] = to_uint8(video[int(clip) - rows.start])

    scores = generation(
        world,
        frames[:rolled, :length],
        _head(latent, slice(rolled), length - 1),
        episodes[:rolled],
        history=history,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        watch=watch,
    )
    rng = np.random.default_rng([config.seed, 5])

    def interval(values: np.ndarray) -> dict[str, float]:
        return bootstrap_mean(
            values, episodes[:rolled], samples=config.bootstrap_samples, generator=rng
        ).as_dict()

    probe: ProbeOutcome | None = None
    skipped = None
    try:
        probe = probe_actions(
            latent,
            data.actions,
            frames,
            episodes,
            action_spec,
            config=config.probe,
            bootstrap_samples=config.bootstrap_samples,
            seed=config.seed,
            batch_size=config.batch_size,
        )
    except ProbeSkipped as reason:
        skipped = str(reason)
        log.warning("linear probe skipped: %s", skipped)
    advance("linear probe")

    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "delta_psnr": {
            name: {
                **interval(scores.delta(name)),
                "by_horizon": (scores.psnr["inferred"] - scores.psnr[name]).mean(0).tolist(),
            }
            for name in VARIANTS[1:]
        },
        "codebook": held_out_health(latent, codebook_size=world.codebook_size),
        "probe": None if probe is None else probe.summary,
        "probe_skipped": skipped,
        "rollout": {
            "psnr_by_horizon": scores.psnr["inferred"].mean(0).tolist(),
            "ssim_by_horizon": scores.ssim["inferred"].mean(0).tolist(),
            "psnr": interval(scores.psnr["inferred"].mean(1)),
            "ssim": interval(scores.ssim["inferred"].mean(1)),
            "psnr_first": interval(scores.psnr["inferred"][:, 0]),
            "psnr_last": interval(scores.psnr["inferred"][:, -1]),
            "variants": {
                name: {"psnr_by_horizon": values.mean(0).tolist()}
                for name, values in scores.psnr.items()
            },
            "error_against_copy": scores.error_against_copy(),
            "copy_ssim_by_horizon": scores.ssim["copy"].mean(0).tolist(),
        },
        "counts": {
            "clips": rolled,
            "episodes": int(np.unique(episodes[:rolled]).size),
            "probe_clips": len(data),
            "probe_episodes": int(np.unique(episodes).size),
            "transitions": len(data) * (frames.shape[1] - 1),
            "history": history,
            "horizon": horizon,
            "height": frames.shape[-2],
            "width": frames.shape[-1],
        },
        "world": {"codebook_size": world.codebook_size, "tokens": world.tokens},
        "action": None if action_spec is None else to_dict(action_spec),
        "config": to_dict(config),
    }
    starts = choose_clips(episodes, config.shown_starts)
    every_code = roll_every_code(
        world,
        frames[starts],
        _head(latent, starts, length - 1),
        chosen,
        history=history,
        steps=horizon,
        seed=config.seed,
        device=device,
        watch=lambda: advance("same start, every code"),
    )
    notes = code_notes(indices, latent, data.actions, action_spec)
    artefacts = Artefacts(
        history=history,
        truth=frames[shown, :length].movedim(2, -1).contiguous().numpy(),
        inferred=np.stack([strips["inferred"][int(c)] for c in shown]),
        random=np.stack([strips["random"][int(c)] for c in shown]),
        every_code=every_code,
        code_names=names,
        code_notes=notes or ("",) * len(names),
        probe_kind="" if probe is None else probe.summary["kind"],
        probe_predicted=np.zeros(0) if probe is None else probe.latent.predicted,
        probe_target=np.zeros(0) if probe is None else probe.latent.target,
        action_names=() if action_spec is None else tuple(action_spec.names),
    )
    return Evaluation(plain(result), artefacts)


def evaluate(
    world: World,
    batches: Iterable[ClipBatch],
    action_spec: ActionSpec | None,
    config: EvaluationConfig,
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The numbers alone: `run_evaluation(...).result`."""
    return run_evaluation(world, batches, action_spec, config, progress, device=device).result
