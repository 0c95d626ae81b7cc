"""A finished or unfinished run, read back: its configuration and its world.

Not here: how a run is made (build.py), its evaluation (evaluation.py), an export (pretrained.py), any
printing (cli).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from colaworld.action_differences import RATE
from colaworld.config import ConfigError, from_dict, leaves, to_dict
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.files import read_json
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.quantizers import Quantizer
from colaworld.models.world import World
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig, read_config
from colaworld.training.checkpoint import Checkpoint, latest_checkpoint
from colaworld.training.weights import finite, load_strictly, load_weights

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


def trained_rate(config: RunConfig) -> float | None:
    """Frames per second of a run's clips, of the first set of a mixture: as it was asked for, by its action
    contract, or of its data set if that is there still. None: not known, or not one."""
    data = next(iter(config.data.sets().values()))
    if data.fps is not None:
        return data.fps
    if config.action_contract is not None and config.action_contract.rate is not None:
        return config.action_contract.rate
    try:
        clips = ClipSet(replace(data, frames_per_clip=1))
    except DataError:
        return None
    rates = [clips.fps(episode.index) for episode in clips.episodes]
    return clips.usual_fps if max(rates) <= (1 + RATE) * min(rates) else None


def frame_size(data: DataConfig) -> tuple[int, int] | None:
    """Height and width of clips; None where they are as recorded."""
    if data.height is not None and data.width is not None:
        return data.height, data.width
    return data.crop[2:] if isinstance(data.crop, tuple) else None
