"""A finished or unfinished run, read back: its configuration, its world, its evaluation.

Not here: how a run is made (build.py), what is measured (evaluation), any printing (cli).
"""

from __future__ import annotations

import logging
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from colaworld import __version__
from colaworld.action_differences import ActionMismatch
from colaworld.config import ConfigError, from_dict, leaves, to_dict, to_yaml
from colaworld.contracts import ClipBatch, to_float
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.loader import iterate_once
from colaworld.evaluation.evaluate import Evaluation, collect, run_evaluation
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.evaluation.text_effect import text_effect
from colaworld.files import read_json
from colaworld.models.backbones import build_backbone
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.quantizers import Quantizer
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel
from colaworld.runs.actions import check_actions
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig, read_config
from colaworld.runs.sizes import check_frames
from colaworld.runs.weights import load_backbone
from colaworld.training.checkpoint import (
    Checkpoint,
    finite,
    latest_checkpoint,
    load_strictly,
    load_weights,
)
from colaworld.training.run_folder import config_sha256

log = logging.getLogger(__name__)


def without_world(parts: Sequence[str]) -> str | None:
    """Why a run with these parts cannot be rolled out, and what it is good for; None: it can."""
    absent = [part for part in ("idm", "quantizer", "conditioner") if part not in parts]
    if not absent:
        return None
    if not parts:
        return (
            "a video model, which has no latent actions to evaluate or to roll out; other runs start "
            "from it with --backbone-weights"
        )
    return (
        f"it has no {', '.join(absent)}, so there are no latent actions to roll out or to evaluate; "
        f"phases start from its {', '.join(parts)} with init_from"
    )


def load_world(
    folder: Path, *, device: str = "cpu", checkpoint: Checkpoint | None = None
) -> tuple[World, RunConfig]:
    """The trained world of a run: weights/ when it is finished, else the last checkpoint; or that of one
    of its checkpoints."""
    config = read_config(folder)
    model = build_model(config, weights=False)
    why = without_world(config.parts())
    if why is not None:
        raise ConfigError(f"{folder} is a run of {config.recipe}: {why}")
    finished = finished_weights(folder) if checkpoint is None else None
    if finished is not None:
        load_weights(model, finished)
        check_model(config, trained_as(finished), folder)
    else:
        if checkpoint is None:
            checkpoint = latest_checkpoint(folder / "checkpoints")
            if checkpoint is None:
                raise ConfigError(f"{folder} has neither weights nor a complete checkpoint yet")
            log.info("%s is not finished; read from %s", folder, checkpoint.path.name)
        weights = checkpoint.tensors("ema") or checkpoint.tensors("model")
        load_strictly(model, finite(weights, checkpoint.path), source=str(checkpoint.path))
        if "config" in checkpoint.state:
            check_model(config, yaml.safe_load(checkpoint.state["config"]), folder)
    check_quantised(model.quantizer, folder)
    world = World(
        model.to(device).eval(),
        config.sampler,
        frame_size=frame_size(config.data),
        actions=config.action_contract,
    )
    return world, config


def finished_weights(folder: Path) -> Path | None:
    """The weights of a finished run, None where it has none."""
    weights = folder / "weights" / "model.safetensors"
    return weights if weights.is_file() else None


def trained_as(weights: Path) -> Any:
    """The configuration that a run wrote beside its weights."""
    return read_json(weights.parent / "config.json")["config"]


def check_model(config: RunConfig, trained: Any, folder: Path) -> None:
    """ConfigError where config.yaml was changed and makes another world of the same weights, or has them
    mean other actions."""
    trained = trained if isinstance(trained, dict) else {}
    was = trained.get("model", {})
    saved = from_dict(ModelConfig, was, where=f"{folder}: model, as trained")
    then, now = (dict(leaves(to_dict(model), "model")) for model in (saved, config.model))
    free = ("model.attention", "model.tokenizer.path")  # how it computes, where its files are now
    if "action_contract" in trained:
        then |= _of_actions(trained["action_contract"])
        now |= _of_actions(to_dict(config.action_contract))
    changed = [k for k in then | now if then.get(k) != now.get(k) and k not in free]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{folder}/config.yaml: it was changed after the training: {key}: {then.get(key)!r} when "
            f"trained, {now.get(key)!r} now; put it back"
        )


def _of_actions(contract: Any) -> dict[str, Any]:
    return dict(leaves({"action_contract": contract}))


def check_quantised(quantizer: Quantizer, folder: Path) -> None:
    """ConfigError where a training ended before there were codes."""
    if quantizer.continuous:
        steps = getattr(quantizer.config, "unquantized_steps", None)
        raise ConfigError(
            f"{folder} stopped while its latents still passed unquantised "
            f"(model.quantizer.unquantized_steps {steps}): it has no codes yet; train it further"
        )


def frame_size(data: DataConfig) -> tuple[int, int] | None:
    """Height and width of clips; None where they are as recorded."""
    if data.height is not None and data.width is not None:
        return data.height, data.width
    return data.crop[2:] if isinstance(data.crop, tuple) else None


def evaluate_run(
    folder: Path,
    *,
    config: RunConfig | None = None,
    horizon: int = 8,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
    checkpoint: Checkpoint | None = None,
    unseen: bool = False,
) -> Evaluation:
    """Measure a run on held-out episodes, as it is or as it was at one of its checkpoints.

    `unseen`: all episodes of the set count as held out, since none was trained on.
    `config` replaces the run's own data, sampler and evaluation settings. Clips are as long as
    history + horizon, whatever the clips of training were. Without a horizon in the configuration
    it is `horizon`, or less where the held-out episodes are shorter.

    Raises ConfigError or DataError where data and run do not fit.
    """
    world, stored = load_world(folder, device=device, checkpoint=checkpoint)
    config = config or stored
    sets = stored.data.sets().values()
    trained = next((one for one in sets if _same(one.path, config.data.path)), None)
    if unseen and trained is not None:
        raise ConfigError(
            f"{config.data.path}: {folder} was trained on this set, so not all of its episodes are unseen; "
            "measure its held-out ones (unseen False)"
        )
    _check_heldout(trained or stored.data, config.data)
    world = replace(world, sampler=config.sampler)
    data, heldout, asked = heldout_clips(config, horizon=horizon, unseen=unseen)
    split: Literal["heldout", "all"] = "all" if unseen else "heldout"
    size = heldout.height, heldout.width
    world = replace(world, frame_size=size)  # each clip comes with its own frame rate
    spec = heldout.source.action_spec
    if world.obeys and spec is not None:
        try:
            check_actions(world, heldout)
        except ActionMismatch as error:
            log.warning("no rollouts under real actions: %s", error)
            world = replace(world, actions=None)

    def batches() -> Iterator[ClipBatch]:
        size = config.evaluation.batch_size
        return iterate_once(data, batch_size=size, with_actions=spec is not None, split=split)

    text = None
    if config.evaluation.text_effect:  # first, since a video model without text is told at once
        text = _text_effect(stored, world.model, batches(), config.evaluation, device)
    found = run_evaluation(
        world,
        batches(),
        spec,
        replace(config.evaluation, horizon=asked),
        progress,
        device=device,
    )
    more: dict[str, Any] = {"run": provenance(folder, stored, checkpoint)}
    if text is not None:
        more["text"] = text
    return replace(found, result=found.result | more)


def heldout_clips(
    config: RunConfig, *, horizon: int = 8, unseen: bool = False
) -> tuple[DataConfig, ClipSet, int]:
    """Held-out clips of history + horizon frames: their data, the set they are of, and the horizon.

    Without one in the configuration that is `horizon`, or less where episodes are shorter. `unseen`: all
    episodes count as held out. Raises ConfigError or DataError where there are none that long.
    """
    history = config.evaluation.history
    asked = config.evaluation.horizon
    stride = config.model.tokenizer.temporal_stride
    if asked is not None and (history - 1) % stride == 0 and asked % stride:
        raise ConfigError(
            f"evaluation.horizon: the tokenizer makes one latent of {stride} frames; expected a "
            f"multiple of {stride}, or None for as many as the episodes allow, got {asked}"
        )
    split: Literal["heldout", "all"] = "all" if unseen else "heldout"
    data = replace(config.data, split=split, labels=None, frames_per_clip=history + (asked or 1))
    try:
        heldout = ClipSet(data)
    except DataError as error:
        if asked is None:
            raise
        raise DataError(
            f"{error} (evaluation.history {history} + evaluation.horizon {asked} frames were "
            "asked; --evaluation.horizon None predicts as many as the episodes allow)"
        ) from None
    if asked is None:
        possible = _longest_horizon(heldout, history)
        if possible < horizon:
            log.info("held-out episodes are short: %d frames are predicted", possible)
        asked = whole_latents(min(horizon, possible), history, stride)
        data = replace(data, frames_per_clip=history + asked)
    check_frames(
        config.model,
        config.parts(),
        height=heldout.height,
        width=heldout.width,
        frames=data.frames_per_clip,
    )
    return data, heldout, asked


def provenance(
    folder: Path, config: RunConfig, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Which weights an evaluation is of, and of which source: for evaluation.json."""
    weights = None if checkpoint is not None else finished_weights(folder)
    if checkpoint is None and weights is None:
        checkpoint = latest_checkpoint(folder / "checkpoints")
    made: dict[str, Any] = {
        "recipe": config.recipe,
        "config_sha256": config_sha256(to_yaml(config)),
        "colaworld": __version__,
        "commit": commit(),
    }
    if weights is not None:
        files = read_json(weights.parent / "config.json").get("files", {})
        sums = {name: of.get("sha256") for name, of in files.items()}
        return made | {"weights": "weights", "weights_sha256": sums}
    assert checkpoint is not None
    progress = checkpoint.state["progress"]
    step = {name: progress[name] for name in ("phase", "step", "global_step")}
    return made | {"weights": checkpoint.path.name, **step}


def _text_effect(
    config: RunConfig,
    model: WorldModel,
    batches: Iterator[ClipBatch],
    asked: EvaluationConfig,
    device: str,
) -> dict[str, Any]:
    """The generator this run started from, with the null caption and without cross-attention."""
    if config.backbone_weights is None:
        raise ConfigError(
            "evaluation.text_effect: this run started from random weights, there is no pre-trained "
            "generator to measure"
        )
    if "text" not in {f.name for f in fields(config.model.backbone)}:
        raise ConfigError(
            f"evaluation.text_effect: a backbone of kind {config.model.backbone.kind!r} has no "
            "cross-attention to text that could be removed"
        )
    velocities = []
    for text in ("null", "removed"):
        generator = build_backbone(replace(config.model.backbone, text=text))
        load_backbone(generator, config.backbone_weights)
        velocities.append(generator.to(device).eval().velocity)
    frames = collect(batches, clips=asked.clips).frames.split(asked.batch_size)
    latents = torch.cat([model.tokenizer.encode(to_float(part, device)) for part in frames])
    return text_effect(*velocities, latents, batch_size=asked.batch_size, seed=asked.seed)


def _check_heldout(trained: DataConfig, asked: DataConfig) -> None:
    """ConfigError where episodes that were trained on would count as held out."""
    if asked.split not in (trained.split, "heldout"):
        raise ConfigError(
            f"data.split: evaluation is on held-out episodes, got {asked.split!r}; leave it out"
        )
    if asked.frames_per_clip != trained.frames_per_clip:
        raise ConfigError(
            f"data.frames_per_clip: got {asked.frames_per_clip}, but clips of an evaluation are as "
            "long as evaluation.history + evaluation.horizon; set those"
        )
    if not _same(asked.path, trained.path):
        return
    if asked.holdout != trained.holdout:
        raise ConfigError(
            f"data.holdout: the run held out {trained.holdout:g} of its episodes, got "
            f"{asked.holdout:g}: another share may hold episodes that were trained on; leave it "
            "out, and take fewer clips with evaluation.clips"
        )
    if trained.split != "train":
        log.warning(
            "this run trained on data.split %r: the episodes it is now measured on were trained "
            "on, and the numbers say little about others",
            trained.split,
        )


def _same(one: Path | None, other: Path | None) -> bool:
    """Whether two paths lead to one folder, as written or not."""
    return one is not None and other is not None and one.resolve() == other.resolve()


def whole_latents(horizon: int, history: int, stride: int) -> int:
    """The longest horizon up to this one with which a clip is 1 + stride * k frames."""
    whole = horizon - (history + horizon - 1) % stride
    if whole < 1:
        raise DataError(
            f"{horizon} frames can be predicted behind {history}, and the tokenizer makes one latent "
            f"of {stride} (clips of 1 + {stride} k frames): held-out episodes are too short"
        )
    return whole


def _longest_horizon(clips: ClipSet, history: int) -> int:
    """Frames after the history that half of the episodes or more can give; at least 1.

    `clips` are those of a horizon of 1.
    """
    lengths: dict[int, int] = {}  # of the longest segment of each episode, on its clock
    for segment in clips.segments:
        length = segment.stop - segment.first
        lengths[segment.episode] = max(length, lengths.get(segment.episode, 0))
    longest = sorted(lengths.values())[(len(lengths) - 1) // 2]
    stride = (clips.span(clips.segments[0].episode) - 1) // history
    return max(1, (longest - 1) // stride + 1 - history)


def environment(folder: Path) -> dict[str, Any]:
    """What a report says about where its numbers come from."""
    seconds = 0.0
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is not None:
        seconds = float(latest.state["progress"]["seconds"])
    return {
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
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
        if git("ls-files", "--error-unmatch", "load.py"):
            return git("rev-parse", "--short=12", "HEAD") + ("+" if git("diff", "HEAD") else "")
    except (OSError, subprocess.CalledProcessError):
        pass  # an installed package, or no git: the caller shows "unknown"
    return "unknown"
