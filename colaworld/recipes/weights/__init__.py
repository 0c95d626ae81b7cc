"""Pre-trained video generators: the shipped nano one, and how any is loaded.

Only safetensors are read. Not here: published layouts of other projects.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

SHIPPED = Path(__file__).parent
_PREFIX = "backbone."


class WeightsError(ValueError):
    """Weights that cannot be used: names the file and the keys."""


def find_generator(name: str) -> Path:
    """The file that `name` means: "nano", a .safetensors file, or the folder of a finished run."""
    if name == "nano":
        path = SHIPPED / "nano.safetensors"
        if not path.exists():
            raise WeightsError(
                f"the shipped nano generator is missing ({path.name} beside colaworld/recipes/"
                "weights); make nano-pretrain trains it"
            )
        return path
    path = Path(name)
    if path.is_dir():
        path = path / "weights" / "model.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"generator: expected 'nano', a .safetensors file, the folder of a finished run or "
            f"None (random weights), got {name!r} ({path} does not exist)"
        )
    return path


def load_generator(backbone: nn.Module, name: str) -> None:
    """Load a generator strictly: leftovers, gaps and wrong shapes are errors that name keys."""
    path = find_generator(name)
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}") from None
    inside = {k[len(_PREFIX) :]: v for k, v in stored.items() if k.startswith(_PREFIX)}
    stored = inside or stored
    wanted = backbone.state_dict()
    problems = [f"missing {key}" for key in wanted if key not in stored]
    problems += [f"left over {key}" for key in stored if key not in wanted]
    problems += [
        f"{key}: expected {list(wanted[key].shape)}, got {list(stored[key].shape)}"
        for key in wanted
        if key in stored and stored[key].shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise WeightsError(
            f"{path} does not fit the backbone of this config: {'; '.join(problems[:8])}{more}"
        )
    backbone.load_state_dict({key: value.to(torch.float32) for key, value in stored.items()})
