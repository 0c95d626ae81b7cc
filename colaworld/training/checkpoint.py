"""Checkpoints: folders of safetensors and JSON that exist whole or not at all.

    checkpoints/step_<phase index>_<step>/
        model.safetensors      every parameter and buffer
        ema.safetensors        the same with averaged weights, where an average is kept
        optimizer.safetensors  moments, as "<parameter>/<kind>"
        rng.safetensors        torch's global random state, for models that draw from it
        state.json             counters, gate, alarm, meters, loader, config; sizes and hashes

A checkpoint is written into a hidden sibling, synced, and renamed; state.json comes last and lists
the others, so a folder without a valid one is not a checkpoint. Nothing is ever unpickled.
Not here: what the state means (trainer.py, phase_state.py) or reading weights of other projects (models).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from colaworld.training.protocols import CheckpointError

FORMAT_VERSION = 1  # raised when the layout or the meaning of a field changes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk: its folder and what its state.json says."""

    path: Path
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of `name`.safetensors, on the CPU. {} where the file is not part of it."""
        file = f"{name}.safetensors"
        if file not in self.state["files"]:
            return {}
        try:
            return load_file(self.path / file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path / file}: cannot be read: {error}") from None


def write_checkpoint(
    path: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write the folder `path` atomically, replacing one of that name.

    Args:
        path: the folder to appear.
        tensors: file name without suffix -> tensors by name.
        state: JSON values; "format_version" and "files" are added.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written, or a value is not JSON.
            Whatever was at `path` before is still there and nothing half-written is left.
    """
    need = sum(t.numel() * t.element_size() for file in tensors.values() for t in file.values())

    def fill(folder: Path) -> dict[str, Any]:
        files = {}
        for name, values in tensors.items():
            file = folder / f"{name}.safetensors"
            save_file(_separate(values), file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        whole = {"format_version": FORMAT_VERSION, **state, "files": files}
        (folder / "state.json").write_text(_json(whole, path))
        return whole

    return Checkpoint(path, write_folder(path, fill, need))


def write_folder(path: Path, fill: Callable[[Path], Any], need: int = 0) -> Any:
    """Let `fill(temporary)` write files, then make them appear at `path` in one rename.

    Returns what `fill` returns; `need` (bytes) is named when the disk is full.
    """
    temporary = path.with_name(f".writing_{path.name}")
    replaced = path.with_name(f".replaced_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        result = fill(temporary)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if path.exists():
            _remove(replaced)
            os.replace(path, replaced)
            os.replace(temporary, path)
            _remove(replaced)
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        raise CheckpointError(_why(path, need, error)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return result


def _why(path: Path, need: int, error: Exception) -> str:
    home = path.parent
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    return (
        f"{path}: cannot be written (it needs {need / 1e6:.1f} MB, {free / 1e6:.1f} MB are free "
        f"there): {error}. Earlier checkpoints are untouched; make room or make the folder "
        "writable, then resume"
    )


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints in `folder`, oldest first. Others are named in a warning and left."""
    found = []
    for path in sorted(folder.glob("step_*")) if folder.is_dir() else []:
        try:
            found.append(read_checkpoint(path))
        except CheckpointError as error:
            log.warning("ignored as a checkpoint: %s", error)
    return sorted(found, key=lambda c: c.state["progress"]["global_step"])


def read_checkpoint(path: Path, *, hashes: bool = False) -> Checkpoint:
    """Open one checkpoint; CheckpointError says what is missing or wrong.

    Sizes of the files are always compared, their hashes only with `hashes` (they are read whole).
    """
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no valid state.json ({error})") from None
    if not isinstance(state, dict) or "files" not in state or "progress" not in state:
        raise CheckpointError(f"{path}: state.json is not that of a checkpoint")
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version {state.get('format_version')} is not {FORMAT_VERSION}, "
            "which this release reads"
        )
    for name, want in state["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != want["bytes"]:
            raise CheckpointError(f"{file}: expected {want['bytes']} bytes, found {size}")
        if hashes and _sha256(file) != want["sha256"]:
            raise CheckpointError(f"{file}: its content does not match the recorded sha256")
    return Checkpoint(path, state)


def latest_checkpoint(folder: Path, *, healthy: bool = False) -> Checkpoint | None:
    """The newest checkpoint in `folder` whose content is intact (and was healthy), or None."""
    for checkpoint in reversed(find_checkpoints(folder)):
        if healthy and not checkpoint.state.get("healthy"):
            continue
        try:
            return read_checkpoint(checkpoint.path, hashes=True)
        except CheckpointError as error:
            log.warning("ignored as a checkpoint: %s", error)
    return None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` and the newest healthy one."""
    found = find_checkpoints(folder)
    kept = found[-keep:]
    kept += [c for c in found if c.state.get("healthy")][-1:]
    for checkpoint in found:
        if all(checkpoint.path != k.path for k in kept):
            hidden = checkpoint.path.with_name(f".deleted_{checkpoint.path.name}")
            _remove(hidden)
            os.replace(checkpoint.path, hidden)  # never a half-deleted folder under a valid name
            _remove(hidden)


def sweep(folder: Path) -> None:
    """Clear up after a killed process: unfinished writes and deletions go, a checkpoint that was
    about to be replaced by one that never appeared comes back."""
    for path in folder.glob(".replaced_*"):
        original = path.with_name(path.name.removeprefix(".replaced_"))
        if not original.exists():
            os.replace(path, original)
    for prefix in ("writing", "replaced", "deleted"):
        for path in folder.glob(f".{prefix}_*"):
            log.warning("removed the unfinished %s", path)
            _remove(path)


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `weights` into `module`. CheckpointError names missing, left-over and misshapen keys.

    `source` says in the error where the weights came from.
    """
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
    module.load_state_dict(dict(weights))


def load_weights(module: nn.Module, path: Path) -> None:
    """Strictly load a safetensors file into `module`. Raises CheckpointError."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None
    load_strictly(module, weights, source=str(path))


def init_parts(model: nn.Module, source: str) -> list[str]:
    """Let the parts of `model` that `source` holds start from its weights; returns their names.

    Args:
        source: the folder of a finished run, or a safetensors file of a world model.

    Raises CheckpointError where there is no such file, or a part that it holds does not fit.
    """
    path = Path(source)
    path = path / "weights" / "model.safetensors" if path.is_dir() else path
    try:
        with safe_open(path, framework="pt") as file:
            held = {key.split(".")[0] for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"init_from: expected the folder of a finished run or a safetensors file, got {source!r}: "
            f"{error}"
        ) from None
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
    given = {key: value for key, value in load_file(path).items() if of_parts(key)}
    load_strictly(model, own | given, source=str(path))
    return parts


def export_weights(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write `folder`/model.safetensors and config.json atomically: what a finished run is for."""

    def fill(temporary: Path) -> None:
        save_file(_separate(weights), temporary / "model.safetensors")
        (temporary / "config.json").write_text(_json(config, folder))

    write_folder(folder, fill, sum(t.numel() * t.element_size() for t in weights.values()))


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two sharing memory (safetensors refuses shared tensors)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        if value.untyped_storage().data_ptr() in seen or (
            value.untyped_storage().nbytes() != value.numel() * value.element_size()
        ):
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


def _json(value: Any, path: Path) -> str:
    try:
        return json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the state to save is not plain JSON: {error}") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Make sure that a file or the entries of a folder are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """torch's global random state, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set torch's global random state to what `rng_tensors` gave."""
    if "cpu" in tensors:
        torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)
