"""A finished or unfinished run, read back: its configuration, its world, its evaluation.

Not here: how a run is made (base.py), what is measured (evaluation), any printing (cli).
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colaworld import __version__
from colaworld.config import ConfigError, load_yaml
from colaworld.contracts import LatentActions, Rollout
from colaworld.data.loader import ClipSet, iterate_once
from colaworld.evaluation.evaluate import Evaluation, run_evaluation
from colaworld.flow.samplers import SamplerConfig
from colaworld.models.world_model import WorldModel
from colaworld.recipes.base import RunConfig, build_model
from colaworld.training.checkpoint import latest_checkpoint, load_strictly, load_weights


@dataclass(frozen=True)
class TrainedWorld:
    """A world model with a way to sample from it: what evaluation calls a world."""

    model: WorldModel
    sampler: SamplerConfig

    @property
    def codebook_size(self) -> int | None:
        return self.model.codebook_size

    @property
    def tokens(self) -> int:
        return self.model.tokens

    @torch.no_grad()
    def infer_actions(self, frames: Tensor) -> LatentActions:
        return self.model.infer_actions(frames)

    @torch.no_grad()
    def lookup(self, indices: Tensor) -> Tensor:
        return self.model.lookup(indices)

    @torch.no_grad()
    def rollout(self, history: Tensor, codes: Tensor, *, generator: torch.Generator) -> Rollout:
        return self.model.rollout(history, codes, generator=generator, sampler=self.sampler)


def read_config(folder: Path) -> RunConfig:
    """config.yaml of a run folder. Raises ConfigError, naming what is missing."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    return load_yaml(path, RunConfig)


def load_world(folder: Path, *, device: str = "cpu") -> tuple[TrainedWorld, RunConfig]:
    """The trained world of a run: weights/ when it is finished, else the last checkpoint."""
    config = read_config(folder)
    model = build_model(config, weights=False)
    if not hasattr(model, "conditioner"):
        raise ConfigError(
            f"{folder} is a run of {config.recipe}, which has no latent actions to evaluate"
        )
    finished = folder / "weights" / "model.safetensors"
    if finished.is_file():
        load_weights(model, finished)
    else:
        checkpoint = latest_checkpoint(folder / "checkpoints")
        if checkpoint is None:
            raise ConfigError(f"{folder} has neither weights nor a complete checkpoint yet")
        weights = checkpoint.tensors("ema") or checkpoint.tensors("model")
        load_strictly(model, weights, source=str(checkpoint.path))
    return TrainedWorld(model.to(device).eval(), config.sampler), config


def evaluate_run(
    folder: Path,
    *,
    config: RunConfig | None = None,
    horizon: int = 8,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Measure a run on held-out episodes.

    `config` replaces the run's own data, sampler and evaluation settings. Clips are as long as
    history + horizon, whatever the clips of training were.
    """
    world, stored = load_world(folder, device=device)
    config = config or stored
    world = replace(world, sampler=config.sampler)
    horizon = config.evaluation.horizon or horizon
    data = replace(config.data, frames_per_clip=config.evaluation.history + horizon)
    heldout = ClipSet(replace(data, split="heldout"))
    labelled = heldout.source.action_spec is not None
    batches = iterate_once(data, batch_size=config.evaluation.batch_size, with_actions=labelled)
    return run_evaluation(
        world,
        batches,
        heldout.source.action_spec,
        replace(config.evaluation, horizon=horizon),
        progress,
        device=device,
    )


def environment(folder: Path) -> dict[str, Any]:
    """What a report says about where its numbers come from."""
    seconds = 0.0
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is not None:
        seconds = float(latest.state["progress"]["seconds"])
    return {
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "wall_seconds": seconds,
        "versions": {
            "colaworld": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The source's commit, "+" behind it when files differ from it; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "runs.py"):
            return git("rev-parse", "--short=12", "HEAD") + ("+" if git("diff", "HEAD") else "")
    except (OSError, subprocess.CalledProcessError):
        pass  # an installed package, or no git: the caller shows "unknown"
    return "unknown"
