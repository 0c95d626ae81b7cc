"""Published weights of the networks that measure, from files that the user names: read, never run.

safetensors, or a state dict in the pickle format of torch, read by `torch.load(weights_only=True)`,
which builds tensors and calls nothing else. Not here: any network.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from colaworld.files import FileError

_READ = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_READ |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
_SPARE = "num_batches_tracked"  # a counter of batch norm; some published files lack it


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by their keys, on the CPU.

    Raises FileError, which names the file (and the key), where it is missing, unreadable, holds
    anything but tensors under their names, or values that are not finite.
    """
    if not path.is_file():
        raise FileError(f"{path}: expected a file of weights, found none")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        elif is_torchscript(path):
            raise FileError(
                f"{path}: expected a state dict, got a TorchScript archive, which is code"
            )
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileError:
        raise
    except SafetensorError as error:
        raise FileError(f"{path}: no safetensors file: {error}") from None
    except UnpicklingError:  # torch's words end in how to run what is in it
        raise FileError(
            f"{path}: expected a state dict of tensors alone, got a pickle of something else or of more"
        ) from None
    except Exception as error:  # torch names no class: zip, EOF and runtime errors
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(f"{path}: expected a state dict of tensors alone: {first}") from None
    if not isinstance(found, Mapping):
        raise FileError(f"{path}: expected tensors by name, got {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str):
            raise FileError(f"{path}: expected tensors by name, got a key {key!r:.40}")
        if not isinstance(value, Tensor):
            raise FileError(
                f"{path}: {key}: expected a tensor, got {type(value).__name__}; a training "
                "checkpoint holds its state dict under a key: save that alone"
            )
        dense = value.layout is torch.strided and not (value.is_meta or value.is_nested)
        if not dense or value.dtype not in _READ:
            kind = "dense" if dense else "sparse, nested or empty"
            raise FileError(
                f"{path}: {key}: expected a dense tensor of numbers, got a {kind} one of {value.dtype}"
            )
        if not torch.isfinite(value.float()).all():
            raise FileError(f"{path}: {key}: holds values that are not finite in float32")
    return dict(found)


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    ignore: Collection[str] = (),
) -> None:
    """Copy `tensors`, read from `path`, into a module whose keys are theirs.

    ignore: beginnings of keys that the file may hold besides.

    Raises FileError, which names file and key: missing, left over, of another shape or type.
    """
    wanted = {k: v for k, v in module.state_dict().items() if not k.endswith(_SPARE)}
    for key, mine in wanted.items():
        if key not in tensors:
            raise FileError(f"{path}: {key}: missing, expected a tensor {list(mine.shape)}")
        theirs = tensors[key]
        if theirs.shape != mine.shape or not theirs.is_floating_point():
            raise FileError(
                f"{path}: {key}: expected floats {list(mine.shape)}, got {theirs.dtype} "
                f"{list(theirs.shape)}"
            )
    for key in tensors:
        if key not in wanted and not key.endswith(_SPARE) and not key.startswith(tuple(ignore)):
            raise FileError(f"{path}: {key}: there is no such tensor in this network")
    module.load_state_dict({key: tensors[key] for key in wanted}, strict=False)
