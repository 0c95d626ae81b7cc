"""Where the weights of a tokenizer are, and how they get into it: safetensors only, strictly.

Not here: what the weights mean (the tokenizers), or backbones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_INDEX = "*.safetensors.index.json"


def local_folder(path: str, *, patterns: list[str] | None = None) -> Path:
    """A folder or file on this machine; a name on the Hugging Face hub is downloaded (once).

    `path` is a hub name only if nothing of that name is here and it looks like OWNER/NAME.
    Raises ValueError that says what to do where neither is to be had.
    """
    here = Path(path).expanduser()
    if here.exists():
        return here
    if len(here.parts) != 2 or path.startswith((".", "/", "~")):
        raise ValueError(
            f"{path}: no such file or folder; give the folder that holds the weights, or the name "
            "OWNER/NAME of a repository on the Hugging Face hub"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{path} is not a folder here, and names on the Hugging Face hub need the package "
            "huggingface_hub: pip install colaworld[vae]"
        ) from error
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # offline, not found, not allowed
        raise ValueError(
            f"{path} is neither a folder here nor could it be fetched from the Hugging Face hub: "
            f"{error}. Without a network, download it elsewhere and give the local folder"
        ) from error


def load_weights(module: nn.Module, path: str) -> None:
    """Fill `module` from a .safetensors file, or a folder with one or with an index of shards.

    Tensor by tensor, so that no second copy of the weights is held, and cast to the module's dtype.
    Raises ValueError that names the file and every missing, left-over or misshapen key.
    """
    folder = local_folder(path, patterns=["*.safetensors", "*.json"])
    own = module.state_dict()
    seen: set[str] = set()
    left_over, misshapen = [], []
    with torch.no_grad():
        for name, value in _tensors(folder):
            if name not in own:
                left_over.append(name)
            elif own[name].shape != value.shape:
                shapes = f"expected {list(own[name].shape)}, got {list(value.shape)}"
                misshapen.append(f"{name} ({shapes})")
                seen.add(name)
            else:
                own[name].copy_(value)
                seen.add(name)
    problems = {
        "missing": sorted(own.keys() - seen),
        "left over": left_over,
        "misshapen": misshapen,
    }
    told = [
        f"{label}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if names[8:] else "")
        for label, names in problems.items()
        if names
    ]
    if told:
        raise ValueError(
            f"{folder}: these are not the weights of this {type(module).__name__}; "
            f"{'; '.join(told)}; compare the sizes in its config"
        )


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    for file in _files(path):
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a mapping)
                    yield name, stored.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: cannot be read as safetensors: {error}") from None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    indices = sorted(path.glob(_INDEX))
    if len(indices) == 1:
        names = json.loads(indices[0].read_text())["weight_map"].values()
        return [path / name for name in sorted(set(names))]
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    listed = ", ".join(f.name for f in found) or "none"
    raise ValueError(
        f"{path}: expected one .safetensors file, or shards with one index, found {listed}; "
        "give the file itself. Other formats (.pt, .bin) are not read"
    )
