"""Pre-trained video generators: the shipped nano one, and how any is loaded.

Only safetensors are read. Not here: the keys of published layouts (models/backbones).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import nn

from colaworld.models.backbones.published import published_config
from colaworld.models.backbones.weights import WeightsError, load_weights
from colaworld.models.hub import PIPELINE, local_folder
from colaworld.models.parts import PARTS

SHIPPED = Path(__file__).parent
_PREFIX = "backbone."  # of the video model in the weights of a whole run
_OTHER_PARTS = ("idm.*", "quantizer.*", "conditioner.*", "fdm.*", "tokenizer.*")


def find_backbone_weights(name: str) -> Path:
    """What `name` means: "nano", a safetensors file, the folder of a finished run, a folder of
    published weights, or a name on the Hugging Face hub.

    Raises WeightsError where there is no such thing.
    """
    if name == "nano":
        path = SHIPPED / "nano.safetensors"
        if not path.exists():
            raise WeightsError(
                f"the shipped nano video model is missing ({path.name} beside colaworld/runs/"
                "weights); make nano-pretrain trains it"
            )
        return path
    try:
        path = local_folder(name, patterns=PIPELINE)
    except ValueError as error:
        raise WeightsError(
            f"backbone_weights: expected 'nano', a .safetensors file, the folder of a finished run or of "
            f"published weights, a name on the hub or None (random weights), got {name!r}: {error}"
        ) from error
    if (path / "config.yaml").is_file() or (path / "weights").is_dir():  # a run
        path = path / "weights" / "model.safetensors"
        if not path.is_file():
            raise WeightsError(
                f"backbone_weights: the run {name} is not finished ({path} does not exist); train it to its "
                "end"
            )
        return path
    return path / "transformer" if (path / "transformer").is_dir() else path


def load_backbone(backbone: nn.Module, name: str) -> None:
    """Load a video model strictly: leftovers, gaps and wrong shapes are errors that name keys."""
    path, layout = find_backbone_weights(name), backbone.layout()
    _check_described(backbone, path)

    def inside(key: str) -> str:
        return layout.rename(key.removeprefix(_PREFIX))

    drop = (*layout.drop, *_OTHER_PARTS, *(f"{name}.*" for name in PARTS))
    load_weights(backbone, path, replace(layout, rename=inside, drop=drop))


def _check_described(backbone: nn.Module, folder: Path) -> None:
    """WeightsError where config.json says otherwise than the recipe and no tensor's shape would."""
    file = folder / "config.json"
    try:
        described = json.loads(file.read_text()) if file.is_file() else {}
        kinds = {"_class_name", "model_type", "architectures"} & set(described)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{file}: not readable JSON: {error}") from None
    if not kinds:
        return
    asked, found = backbone.config, published_config(described, source=str(folder))
    for key in ("kind", *asked.identity_keys):
        here, there = (getattr(config, key, None) for config in (asked, found))
        if here != there:
            raise WeightsError(f"{file}: {key} is {there!r}, but model.backbone.{key} is {here!r}")
