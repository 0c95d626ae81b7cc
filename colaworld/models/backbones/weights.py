"""Reads weights in a published layout into a module: strict, tensor by tensor, safetensors only.

A file is read through its header first, so that a missing, renamed or misshapen key is an error
before any number is touched; then one tensor at a time goes to its device and dtype, with no second
copy of the model in memory. Not here: where files come from (recipes) or what a layout's keys mean
(beside each video model).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from colaworld.files import check_recorded, read_json

INDEX = "*.safetensors.index.json"
_SHOWN = 8  # keys in an error


class WeightsError(ValueError):
    """Weights that cannot be used: names the file and the keys."""


@dataclass(frozen=True)
class Layout:
    """How stored keys become those of a module, and which may be left out on purpose."""

    rename: Callable[[str], str] = lambda key: key
    """From a stored key to the module's."""
    drop: tuple[str, ...] = ()
    """Patterns (after renaming) of stored keys that the module does without: an explicit list."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """Stored keys that the module computes; what is stored must be these values, floating-point ones
    as far as bfloat16 holds them."""
    float32: tuple[str, ...] = ()
    """Patterns (after renaming) of keys that stay float32 when the rest becomes half precision."""


def files_of(path: Path) -> list[Path]:
    """The safetensors files of a folder (one, or the shards its index names) or the file itself.

    Raises WeightsError: nothing there, several candidates, or a shard that is missing.
    """
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():  # to open a pipe is to wait for ever
        raise WeightsError(f"{path}: expected a file or a folder, found something else")
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder")
    indices = sorted(path.glob(INDEX))
    if len(indices) == 1:
        try:
            names = list(dict.fromkeys(read_json(indices[0])["weight_map"].values()))
            outside = [
                name for name in names if Path(name).is_absolute() or ".." in Path(name).parts
            ]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{indices[0]}: not an index of shards: {error!r}") from None
        if outside:
            raise WeightsError(
                f"{indices[0]}: expected names of files in this folder, got {outside[0]!r}"
            )
        shards = [path / name for name in names]
        gone = [shard.name for shard in shards if not shard.is_file()]
        if gone:
            raise WeightsError(f"{path}: shards named by {indices[0].name} are missing: {gone}")
        return shards
    found = sorted(p for p in path.glob("*.safetensors") if p.is_file())
    if len(found) == 1:
        return found
    pickled = [p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if not found and pickled:
        raise WeightsError(
            f"{path}: holds {', '.join(sorted(pickled))}, but only safetensors are read: a pickle "
            "runs code when it is opened; convert it first (safetensors.torch.save_file)"
        )
    names = ", ".join(p.name for p in (*indices, *found)) or "nothing of the kind"
    raise WeightsError(f"{path}: expected one .safetensors file or one {INDEX}, found {names}")


def load_weights(
    module: nn.Module,
    path: Path | str,
    layout: Layout | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    verify: bool | None = True,
) -> None:
    """Fill every parameter and buffer of `module` from `path`, or change nothing.

    Args:
        module: may be on the meta device; then its tensors are created on `device`, else those that
            exist are filled in place.
        path: a safetensors file, or a folder with one or with shards and their index.
        layout: how stored keys relate to the module's; None: they are the same.
        device: of meta tensors; None: the CPU.
        dtype: of meta tensors, for floating-point ones; None: as stored. Keys that the layout keeps
            in float32 are float32 whenever a dtype is given.
        verify: compare the files with the sums that a config.json of ours records beside them; None:
            whoever calls has done it.

    Raises:
        WeightsError: an unreadable file; keys that are missing, left over or of another shape; a
            constant of another value; a tensor that is not finite.
        FileError: a file is not as it was written.
    """
    path, layout = Path(path), layout or Layout()
    sources = match(module, path, layout)
    wanted = _wanted(module, layout)
    still = [k for k, v in module.named_buffers() if k not in wanted and v.device.type == "meta"]
    if still:
        raise WeightsError(
            f"{type(module).__name__}: {', '.join(still)} are stored nowhere; build the module on a "
            "real device, not on meta"
        )
    if verify is not None:
        check_recorded(path if path.is_dir() else path.parent, verify=verify)
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for key, (file, stored) in sources.items():
        by_file.setdefault(file, []).append((key, stored))
    for file, keys in by_file.items():
        with safe_open(file, framework="pt") as opened:
            for key, stored in keys:
                wide = any(fnmatch.fnmatchcase(key, pattern) for pattern in layout.float32)
                asked = torch.float32 if dtype is not None and wide else dtype
                value, old = opened.get_tensor(stored), wanted[key]
                if not is_finite(value):
                    raise WeightsError(f"{file}: {stored} holds values that are not finite")
                kind = old.dtype if old.device.type != "meta" else asked
                if kind is not None and kind != value.dtype and value.is_floating_point():
                    value = value.to(kind)
                    if not is_finite(value):
                        name = str(kind).removeprefix("torch.")
                        raise WeightsError(f"{file}: {stored} holds values beyond those of {name}")
                _place(module, key, old, value, device)


def match(module: nn.Module, path: Path, layout: Layout) -> dict[str, tuple[Path, str]]:
    """Where each key of `module` is stored: file and name there. Reads headers (and constants) alone.

    Raises WeightsError where keys are missing, left over or of another shape.
    """
    wanted = _wanted(module, layout)
    sources: dict[str, tuple[Path, str]] = {}
    misshapen: dict[str, str] = {}
    problems: list[str] = []
    for file in files_of(path):
        for stored, (shape, kind) in header(file).items():
            key = layout.rename(stored)
            name = stored if stored.endswith(key) else f"{stored} ({key})"
            if key in sources:
                problems.append(f"{name} twice, in {sources[key][0].name} and {file.name}")
            elif key in wanted:
                sources[key] = (file, stored)
                if shape != list(wanted[key].shape):
                    misshapen[key] = f"{name}: expected {list(wanted[key].shape)}, got {shape}"
                elif wanted[key].is_floating_point() and "F" not in kind:
                    misshapen[key] = f"{name}: expected floating-point numbers, got {kind}"
            elif key in layout.constants:
                problems += _constant(file, stored, layout.constants[key])
            elif not any(fnmatch.fnmatchcase(key, pattern) for pattern in layout.drop):
                problems.append(f"left over {name}{_near(key, wanted)}")
    # In the module's order, which begins where the cause is seen first.
    problems = [misshapen[key] for key in wanted if key in misshapen] + problems
    problems = [f"missing {key}" for key in wanted if key not in sources] + problems
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(
            f"{path} does not fit the {type(module).__name__} of this config: "
            f"{'; '.join(problems[:_SHOWN])}{more}"
        )
    return sources


def _wanted(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    wanted = module.state_dict(keep_vars=True)
    return {key: value for key, value in wanted.items() if key not in layout.constants}


def header(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype (F32, BF16, I8 ...) of each key."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {key: (x.get_shape(), x.get_dtype()) for key, x in slices.items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: not a readable safetensors file: {error}") from None


def is_finite(value: Tensor) -> bool:
    """Whether no number of `value` is NaN or infinite; true of whole numbers."""
    if not value.is_floating_point():
        return True
    return bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())


def _constant(file: Path, stored: str, expected: Tensor) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        found = opened.get_tensor(stored)
    if found.shape != expected.shape:
        return [f"{stored}: expected {list(expected.shape)}, got {list(found.shape)}"]
    # Its dtype does not say how exact it is: an average of bfloat16 weights, stored as float32, holds
    # what bfloat16 keeps of a constant, which is eight bits.
    tolerance = 2.0**-8 if found.is_floating_point() else 0.0
    if not torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=0):
        return [f"{stored}: not the values that this model has"]
    return []


def _near(key: str, wanted: Sequence[str] | Mapping[str, Tensor]) -> str:
    near = difflib.get_close_matches(key, list(wanted), n=1, cutoff=0.9)
    return f" (expected {near[0]}?)" if near else ""


def _place(
    module: nn.Module,
    key: str,
    old: Tensor,
    value: Tensor,
    device: torch.device | str | None,
) -> None:
    if old.device.type != "meta":
        with torch.no_grad():
            old.copy_(value)
        return
    # A tensor that stays as stored is a window into the file: the copy makes it ours.
    value = value.to(device or "cpu", copy=True)
    owner_name, _, name = key.rpartition(".")
    owner = module.get_submodule(owner_name)
    if isinstance(old, nn.Parameter):
        owner.register_parameter(name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        owner.register_buffer(name, value)
