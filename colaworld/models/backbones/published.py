"""config.json of a published video model -> our configuration, for every registered backbone.

Not here: what each one's settings mean (`<backbone>/published.py`), or reading weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from colaworld.config import from_dict
from colaworld.models.backbones.backbone import BACKBONES, BackboneConfig, Text
from colaworld.models.backbones.weights import WeightsError

Config = TypeVar("Config", bound=BackboneConfig)


def published_config(
    described: Mapping[str, Any], *, text: Text = "removed", causal: bool = True, source: str = ""
) -> BackboneConfig:
    """The configuration of what a config.json describes.

    Args:
        described: the file's content.
        text, causal: of the configuration; no config.json says them.
        source: the folder, for errors.

    Raises WeightsError on something else, or a setting this library does not have.
    """
    if text not in get_args(Text):
        raise ValueError(f"text: expected one of {', '.join(get_args(Text))}, got {text!r}")
    names = [described.get("_class_name"), described.get("model_type")]
    more = described.get("architectures")
    names += more if isinstance(more, list) else [more]
    known = {name: read for entry in BACKBONES.values() for name, read in entry.published.items()}
    for name, read in known.items():
        if name in names:
            return read(described, text=text, causal=causal, source=source)
    raise WeightsError(
        f"{source}/config.json describes {' '.join(str(n) for n in names if n) or 'no known model'}; "
        f"known: {', '.join(known)}, and worlds exported by colaworld"
    )


def require(described: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    """WeightsError where a setting is there and is another than the one implemented here."""
    for key, value in wanted.items():
        found = described.get(key, value)
        found = tuple(found) if isinstance(found, list) else found
        if found != value:
            raise WeightsError(
                f"{source}/config.json: {key} is {found!r}; only {value!r} is supported"
            )


def checked(kind: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """The configuration. ConfigError on a value of another type or out of its range."""
    return from_dict(kind, values, where=f"{source}/config.json")
