"""Weights of our own models: strictly into them, and out of a finished run, whole or not at all.

Not here: checkpoints (checkpoint.py), weights of other projects (models/backbones/weights.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from colaworld.files import check_recorded, recorded
from colaworld.models.backbones.weights import is_finite
from colaworld.training import shard_files
from colaworld.training.checkpoint import separate, write_folder, write_sealed
from colaworld.training.protocols import CheckpointError, UnstableTrainingError


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `weights` into `module`. CheckpointError names missing, left-over and misshapen keys.

    `source` says in the error where the weights came from.
    """
    check_fit(module, weights, source=source)
    own = module.state_dict()
    module.load_state_dict({name: shard_files.own_part(weights[name], own[name]) for name in own})


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """CheckpointError where keys of `weights` are missing in `module`, left over or misshapen."""
    own = module.state_dict()
    problems = []
    for label, keys in (
        ("missing", sorted(own.keys() - weights.keys())),
        ("left over", sorted(weights.keys() - own.keys())),
        (
            "misshapen",
            [
                f"{key} (expected {own[key].dtype} {list(own[key].shape)}, "
                f"got {weights[key].dtype} {list(weights[key].shape)})"
                for key in sorted(own.keys() & weights.keys())
                if own[key].shape != weights[key].shape or own[key].dtype != weights[key].dtype
            ],
        ),
    ):
        if keys:
            more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
            problems.append(f"{label}: {', '.join(keys[:8])}{more}")
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}; {'; '.join(problems)}. "
            "Was it made with another configuration?"
        )


def load_weights(module: nn.Module, path: Path) -> None:
    """Strictly load a safetensors file into `module`.

    Raises CheckpointError, or FileError where it is not as it was written.
    """
    load_strictly(module, finite(_read(path), path), source=str(path))


def _read(path: Path) -> dict[str, Tensor]:
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: expected a safetensors file, found something else")
    check_recorded(path.parent)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None


def finite(weights: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The same weights. CheckpointError where one is not finite."""
    for name, value in weights.items():
        if not is_finite(value):
            raise CheckpointError(f"{source}: {name} holds values that are not finite")
    return weights


def init_file(source: str) -> Path:
    """The tensor file that an `init_from` names. CheckpointError where there is none."""
    path = Path(source)
    path = path / "weights" / "model.safetensors" if path.is_dir() else path
    if not path.exists():
        raise CheckpointError(
            f"init_from: expected the folder of a finished run or a safetensors file, got {source!r}: "
            f"there is no {path}"
        )
    return path


def init_parts(model: nn.Module, source: str) -> list[str]:
    """Let the parts of `model` that `source` holds start from its weights; returns their names.

    Args:
        source: the folder of a finished run, or a safetensors file of a world model.

    Raises CheckpointError where there is no such file, or a part that it holds does not fit.
    """
    path = init_file(source)
    try:
        stored = _read(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"init_from: expected the folder of a finished run or a safetensors file, got {source!r}: "
            f"{error}"
        ) from None
    held = {key.split(".")[0] for key in stored}
    parts = [name for name, _ in model.named_children() if name in held]
    if not parts:
        raise CheckpointError(
            f"init_from: {path} holds none of {', '.join(n for n, _ in model.named_children())}; it "
            f"holds {', '.join(sorted(held))}"
        )

    def of_parts(key: str) -> bool:
        return key.split(".")[0] in parts

    # As the state of the whole model, which may hold a mark in place of a tokenizer's weights.
    own = {key: value for key, value in model.state_dict().items() if not of_parts(key)}
    given = {key: value for key, value in stored.items() if of_parts(key)}
    load_strictly(model, own | finite(given, path), source=str(path))
    return parts


def export_weights(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write `folder`/model.safetensors and config.json atomically: what a finished run is for.

    Raises CheckpointError where they cannot be written, UnstableTrainingError where a tensor is not
    finite.
    """
    for name, value in weights.items():
        if not is_finite(value):
            raise UnstableTrainingError(
                f"{folder}: not written, since {name} holds values that are not finite: the training "
                "diverged; begin anew with a lower learning rate"
            )

    def fill(temporary: Path) -> None:
        save_file(separate(weights), temporary / "model.safetensors")
        files = {"model.safetensors": recorded(temporary / "model.safetensors")}
        write_sealed(temporary / "config.json", {**config, "files": files}, folder)

    write_folder(folder, fill, sum(t.numel() * t.element_size() for t in weights.values()))
