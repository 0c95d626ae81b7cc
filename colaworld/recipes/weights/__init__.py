"""Pre-trained video generators: the shipped nano one, and how any is loaded.

Only safetensors are read. Not here: published layouts of other projects.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from colaworld.models.backbones.weights import WeightsError, load_weights

SHIPPED = Path(__file__).parent
_PREFIX = "backbone."  # of the generator in the weights of a whole run
_OTHER_PARTS = ("idm.*", "quantizer.*", "conditioner.*", "fdm.*", "tokenizer.*")


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
    path, layout = find_generator(name), backbone.layout()

    def inside(key: str) -> str:
        return layout.rename(key.removeprefix(_PREFIX))

    load_weights(backbone, path, replace(layout, rename=inside, drop=layout.drop + _OTHER_PARTS))
