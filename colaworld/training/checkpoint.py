"""Checkpoints: folders of safetensors and JSON that exist whole or not at all.

    checkpoints/step_<phase index>_<step>/
        model.safetensors      every parameter and buffer; where processes hold parts of them:
                               model/rank_0000.safetensors and so on (shard_files.py)
        ema.safetensors        the same with averaged weights, where an average is kept
        optimizer.safetensors  moments, as "<parameter>/<kind>"
        rng.safetensors        torch's global random state, for models that draw from it
        state.json             counters, gate, alarm, meters, loader, config; sizes and hashes of
                               the other files, and of itself

A checkpoint is written into a hidden sibling, synced, and renamed; state.json comes last and lists
the others, so a folder without a valid one is not a checkpoint. Nothing is ever unpickled.
Not here: what the state means (trainer.py, phase_state.py), how weights go into models (weights.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from colaworld.files import (
    SEAL,
    FileError,
    check_seal,
    check_sha256,
    read_json,
    recorded,
    seal,
    share,
    sync,
    write_refused,
)
from colaworld.training import shard_files
from colaworld.training.distributed import Distributed
from colaworld.training.protocols import CheckpointError
from colaworld.training.sharding import is_sharded

FORMAT_VERSION = 1  # raised when the layout or the meaning of a field changes
_MOST = 10**10  # of steps or seconds in all
log = logging.getLogger(__name__)

_COUNT, _WORD, _PART = (int,), (str,), (dict, type(None))
_FIELDS: dict[str, tuple[type, ...]] = {  # of state.json, as far as it must be known to be read
    **{"files": (dict,), "progress": (dict,), "loader": (dict, list), "config": _WORD},
    **{"guard": (dict,), "gate": _PART, "alarm": _PART, "health": _PART, "ema_updates": _COUNT},
}
_PROGRESS: dict[str, tuple[type, ...]] = {
    **{"phase": _COUNT, "step": _COUNT, "global_step": _COUNT, "round": _COUNT},
    **{"over": (str, type(None)), "started": (list,), "ended": (list,), "seconds": (float, int)},
}


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk: its folder and what its state.json says."""

    path: Path
    state: Mapping[str, Any]

    def tensors(
        self, name: str, like: Callable[[str], Tensor | None] = lambda key: None
    ) -> dict[str, Tensor]:
        """All tensors of `name`, whole and on the CPU; {} where there are none.

        Where `like(key)` is sharded and of the same shape, this process's part alone is read.
        """
        files = [f for f in self.state["files"] if f.split("/")[0] in (name, f"{name}.safetensors")]
        try:
            return shard_files.read([self.path / file for file in files], like)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.path / name}: cannot be read: {error}") from None

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """What is missing or misshapen in the state is said as a CheckpointError."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.path}: its state.json does not fit this run ({error!r}); delete it to go on "
                "from the checkpoint before it"
            ) from error


def own_files(
    tensors: Mapping[str, Mapping[str, Tensor]], rank: int
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, dict[str, str]]]:
    """What process `rank` writes of `tensors`, by file without suffix, and headers of those files.

    Tensors that are sharded lie in a folder with a file of each process; others are the main one's.
    """
    files: dict[str, Mapping[str, Tensor]] = {}
    headers = {}
    for name, values in tensors.items():
        if any(is_sharded(value) for value in values.values()):
            file = f"{name}/rank_{rank:04d}"
            files[file], headers[file] = shard_files.parts(values, main=rank == 0)
        elif rank == 0:
            files[name] = values
    return files, headers


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    headers: Mapping[str, dict[str, str]] | None = None,
    processes: Distributed | None = None,
) -> Checkpoint:
    """Write the folder `path` atomically, replacing one of that name.

    Args:
        path: the folder to appear.
        tensors: file name without suffix -> tensors by name. Of this process, see `own_files`.
        state: JSON values; "format_version", "files" and the hash of all are added.
        headers: of those files that have one, as text.
        processes: those that write together, on a file system that all share. The main one commits
            when the files of each are on the disk.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written, or a value is not JSON; on
            every process. Whatever was at `path` before is still there and nothing half-written is
            left.
    """
    need = sum(t.numel() * t.element_size() for file in tensors.values() for t in file.values())

    def fill(folder: Path) -> dict[str, Any]:
        files = {}
        for name, values in tensors.items():
            file = folder / f"{name}.safetensors"
            file.parent.mkdir(exist_ok=True)
            save_file(separate(values), file, metadata=(headers or {}).get(name))
            if processes is not None and not processes.is_main:
                share(file)
                sync(file)
            files[f"{name}.safetensors"] = recorded(file)
        return files

    def finish(folder: Path, written: list[dict[str, Any]]) -> dict[str, Any]:
        files = {name: sums for own in written for name, sums in own.items()}
        whole = {"format_version": FORMAT_VERSION, **state, "files": files}
        return write_sealed(folder / "state.json", whole, path)

    # Without its parents: a run that was moved away meanwhile does not come back.
    state = write_folder(path, fill, need, finish=finish, parents=False, processes=processes)
    return Checkpoint(path, state)


def write_folder(
    path: Path,
    fill: Callable[[Path], Any],
    need: int = 0,
    *,
    finish: Callable[[Path, list[Any]], Any] = lambda folder, filled: filled[0],
    parents: bool = True,
    processes: Distributed | None = None,
) -> Any:
    """Let `fill(temporary)` write files, then make them appear at `path` in one rename.

    Returns what `finish(temporary, what fill returned)` returns; `need` (bytes) is named when the
    disk is full. `parents`: make folders above that of `path`, too. Of several `processes` each
    fills, and the main one finishes with what all returned.
    """
    processes = processes or Distributed(alone=True)
    temporary = path.with_name(f".writing_{path.name}")
    replaced = path.with_name(f".replaced_{path.name}")

    def begin() -> None:
        path.parent.mkdir(parents=parents, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()

    def commit(filled: list[Any]) -> Any:
        result = finish(temporary, filled)
        for file in temporary.rglob("*"):
            if file.is_file():
                share(file)  # safetensors makes its files private
            sync(file)
        sync(temporary)
        if os.path.lexists(path):
            _remove(replaced)
            os.replace(path, replaced)
            os.replace(temporary, path)
            _remove(replaced)
        else:
            os.replace(temporary, path)
        sync(path.parent)
        return result

    def refused(call: Callable[[], Any]) -> Callable[[], Any]:
        def told() -> Any:
            try:
                return call()
            except (OSError, SafetensorError) as error:
                why, cause = write_refused(path, error, need)
                raise CheckpointError(
                    f"{why}, then resume. Earlier checkpoints are untouched"
                ) from cause

        return told

    try:
        processes.on_main(refused(begin))
        filled = processes.gather(processes.on_each(refused(lambda: fill(temporary))))
        return processes.on_main(refused(lambda: commit(filled)))
    except BaseException:
        if processes.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.lexists(replaced) and not os.path.lexists(path):
                os.replace(replaced, path)
        raise


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints in `folder`, oldest first. Others are named in a warning and left."""
    found = []
    for path in sorted(folder.glob("step_*")) if folder.is_dir() else []:
        try:
            found.append(read_checkpoint(path))
        except CheckpointError as error:
            log.warning("ignored as a checkpoint: %s", error)
    return sorted(found, key=lambda c: c.state["progress"]["global_step"])


def read_checkpoint(
    path: Path, *, hashes: bool = False, share: tuple[int, int] = (0, 1)
) -> Checkpoint:
    """Open one checkpoint; CheckpointError says what is missing or wrong.

    Sizes of the files are always compared, their hashes only with `hashes` (they are read whole); of
    `share` (r, n) those of every n-th file from r on.
    """
    try:
        state = read_json(path / "state.json")
    except FileError as error:
        raise CheckpointError(f"{path}: no valid state.json ({error})") from None
    if not isinstance(state, dict) or "files" not in state or "progress" not in state:
        raise CheckpointError(f"{path}: state.json is not that of a checkpoint")
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version {state.get('format_version')!r} is not {FORMAT_VERSION}, "
            "which this release reads"
        )
    try:
        _check_state(path / "state.json", state, whole=not check_seal(path / "state.json", state))
        for number, (name, want) in enumerate(sorted(state["files"].items())):
            file = path / name
            size = file.stat().st_size if file.is_file() else None
            if size != want["bytes"]:
                raise FileError(f"{file}: expected {want['bytes']} bytes, found {size}")
            if hashes and number % share[1] == share[0]:
                check_sha256(file, want["sha256"])
        if hashes:
            _check_phase(path / "state.json", state)
    except FileError as error:
        raise CheckpointError(str(error)) from None
    return Checkpoint(path, state)


def _check_state(path: Path, state: Mapping[str, Any], *, whole: bool) -> None:
    """FileError unless the fields hold what is read from them; `whole`: and all are there.

    A state that carries its hash is as it was written; this is for those of before."""
    for values, fields, needed in (
        (state, _FIELDS, ("files", "progress")),
        (state["progress"], _PROGRESS, ("global_step",)),
    ):
        if not isinstance(values, dict):
            raise FileError(f"{path}: progress: expected an object, got {values!r}")
        for name, kinds in fields.items():
            if name not in values and (whole or name in needed):
                raise FileError(f"{path}: it has no {name}")
            value = values.get(name)
            if name in values and (type(value) not in kinds or (type(value) is int and value < 0)):
                raise FileError(f"{path}: {name} holds {str(value)[:60]!r}")
    _check_counts(path, state)
    for name, sums in state["files"].items():
        if (
            name not in (Path(name).name, "/".join(Path(name).parts[-2:]))
            or ".." in name
            or not isinstance(sums, dict)
            or {"bytes", "sha256"} - sums.keys()
        ):
            raise FileError(f"{path}: files: {name[:60]!r} is not a file with its size and hash")


def _check_counts(path: Path, state: Mapping[str, Any]) -> None:
    """FileError where counts contradict each other: a hash does not tell who wrote them."""
    progress, rows = state["progress"], state.get("rows", {"bytes": _MOST, "sha256": ""})
    if not isinstance(rows, dict) or [type(rows.get(k)) for k in ("bytes", "sha256")] != [int, str]:
        raise FileError(f"{path}: rows: expected bytes and their sha256, got {str(rows)[:60]}")
    total = progress["global_step"]
    limits = {"global_step": min(_MOST, rows["bytes"]), "seconds": _MOST}  # a row has many bytes
    limits |= dict.fromkeys(("phase", "step", "round"), total)  # a phase or a rollback takes steps
    found = [(name, progress.get(name, 0), limit) for name, limit in limits.items()]
    found.append(("ema_updates", state.get("ema_updates", 0), total))
    for entry in progress.get("ended", ()):
        steps = entry.get("steps") if isinstance(entry, dict) else entry
        found.append(
            ("ended", steps if isinstance(entry, dict) and type(steps) is int else -1, total)
        )
    for name, value, limit in found:
        if not 0 <= value <= limit:
            raise FileError(f"{path}: {name}: expected 0 .. {limit}, got {str(value)[:60]}")


def _check_phase(path: Path, state: Mapping[str, Any]) -> None:
    """FileError where it stands in a phase, or at a step, that its own configuration does not have."""
    progress = state["progress"]
    try:
        config = yaml.safe_load(state.get("config", "")) or {}
        schedule, last = config["schedule"], len(config["schedule"]) - 1
        phase = config["phases"][schedule[min(progress.get("phase", 0), last)]]
        limits = {"phase": last, "step": int(phase["steps"])}
    except (yaml.YAMLError, LookupError, TypeError, ValueError):
        return  # nothing to compare with; `check_same_config` will say what differs
    for name, limit in limits.items():
        if progress.get(name, 0) > limit:
            raise FileError(f"{path}: {name}: expected 0 .. {limit}, got {progress[name]}")


def latest_checkpoint(
    folder: Path, *, healthy: bool = False, processes: Distributed | None = None
) -> Checkpoint | None:
    """The newest checkpoint in `folder` whose content is intact (and was healthy), or None.

    Several `processes` share the work of reading its files, and all come to the same.
    """
    processes = processes or Distributed(alone=True)
    share = processes.rank, processes.world_size

    def candidates() -> list[Path]:
        found = find_checkpoints(folder)
        return [c.path for c in found if not healthy or c.state.get("healthy")]

    def read(path: Path) -> Checkpoint:
        return read_checkpoint(path, hashes=True, share=share)

    for path in reversed(processes.on_main(candidates)):
        try:
            found = processes.on_each(functools.partial(read, path))
        except CheckpointError as error:
            if processes.is_main:
                log.warning("ignored as a checkpoint: %s", error)
            continue
        if SEAL not in found.state and processes.is_main:
            log.warning("%s: from before state.json had a sum; it is taken as it is", found.path)
        return found
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
        if not os.path.lexists(original):
            os.replace(path, original)
    for prefix in ("writing", "replaced", "deleted"):
        for path in folder.glob(f".{prefix}_*"):
            log.warning("removed the unfinished %s", path)
            _remove(path)


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def write_sealed(file: Path, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """JSON with its own hash. `path`: what an error names."""
    try:
        sealed = seal(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the state to save is not plain JSON: {error}") from None
    file.write_text(json.dumps(sealed, indent=1))
    return sealed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:  # what a link leads to belongs to someone else; to look into a pipe is to wait for ever
        path.unlink(missing_ok=True)


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """torch's global random state, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set torch's global random state to what `rng_tensors` gave. CheckpointError on what it never gives."""
    try:
        torch.set_rng_state(tensors["cpu"])
        if "cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda"], device)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"rng.safetensors: cpu or cuda is no random state: {error}") from None
