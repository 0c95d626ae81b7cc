"""Parts of a world model by name: what phases can train besides tokenizer and backbone.

A part registers itself, here or in your own package; importing the file is enough:

    register_part(Part("mapper", MapperConfig, lambda config, model: Mapper(config)))

Those of the package are built by a `Later`, so that a configuration is read without torch.

Its configuration is the field of that name in `ModelConfig`, or `ModelConfig.parts["mapper"]`. A part
with blocks that may be recomputed or compiled one by one names their lists: `block_lists = ("blocks",)`.
Not here: any part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colaworld.config import ConfigError
from colaworld.registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Part:
    """How a part is made."""

    name: str
    """The attribute of `WorldModel`, and what phases call it."""
    config: type
    """Its configuration, a dataclass with defaults; or, where there are several kinds, their base with
    `kinds()`, the first of which is the default."""
    build: Callable[[Any, Any], nn.Module]
    """(its configuration, the world model with `config`, tokenizer, backbone and what it needs)."""
    needs: tuple[str, ...] = ()
    """Parts that are built before it, where a run has them."""
    compile: bool = False
    """`torch.compile` it in a training step, as one full graph."""


PARTS: Registry[Part] = Registry("part", ConfigError, reserved=("tokenizer", "backbone"))


def register_part(part: Part) -> None:
    """Make a part known. Raises ConfigError on a name that is taken."""
    PARTS.add(part.name, part)


def build_order(names: Iterable[str]) -> tuple[str, ...]:
    """These parts, each behind those it needs; independent ones by name.

    Raises ConfigError on an unknown part, or parts that need each other.
    """
    wanted, order = sorted(set(names)), []

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ConfigError(f"parts that need each other: {' -> '.join((*above, name))}")
        for needed in PARTS[name].needs:
            if needed in wanted:
                add(needed, (*above, name))
        if name not in order:
            order.append(name)

    for name in wanted:
        add(name, ())
    return tuple(order)
