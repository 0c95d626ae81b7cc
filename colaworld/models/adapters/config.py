"""The configuration of each kind of adapter, and of the head that goes back; `kind` tells them apart.

An adapter registers itself, in `__init__.py` or in your own package; importing the file is enough:

    register_adapter(MyConfig, MyAdapter)

What depends on the data set (how many numbers an action has, their mean and spread) are fields, so that
a model is built without it. Not here: the adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from colaworld.config import Checked, ConfigError, Range, Size
from colaworld.registry import Registry

Values = tuple[Annotated[float, Range(ge=-1e30, le=1e30)], ...]


class AdapterConfig(Checked, at="model.parts.adapter."):
    """What the configuration of every adapter says: a frozen dataclass with a default everywhere."""

    kind: str
    """Its name, a `Literal` field; saved configurations carry it."""
    discrete: bool
    """Whether actions are classes."""
    size: int
    """How many classes, or numbers of a transition."""
    mean: Values
    """Of the numbers of a transition."""
    std: Values
    """Of the numbers of a transition."""
    quantise: bool
    """Whether its outputs are replaced by the nearest codes."""

    @staticmethod
    def kinds() -> tuple[type[AdapterConfig], ...]:
        """The configurations of all registered adapters."""
        return tuple(entry.config for entry in ADAPTERS.values())


class Registered(NamedTuple):
    """How a kind of adapter is made."""

    config: type[AdapterConfig]
    build: Callable[..., Any]
    """(its configuration, tokens=, dim=, patch=) -> an `Adapter`."""


ADAPTERS: Registry[Registered] = Registry("adapter", ConfigError)


def register_adapter(config: type[AdapterConfig], build: Callable[..., Any]) -> None:
    """Make the kind `config.kind` known. Raises ConfigError where another has this name."""
    ADAPTERS.add(config.kind, Registered(config, build))


def check_statistics(where: str, config: Any) -> None:
    """ConfigError unless mean and std are those of `size` numbers, or not given."""
    for name in ("mean", "std"):
        values = getattr(config, name)
        if config.discrete and values:
            raise ConfigError(f"{where}{name}: classes have none, got {values!r}")
        if len(values) not in (0, config.size):
            raise ConfigError(
                f"{where}{name}: expected {config.size} values, one for each number of a transition "
                f"({where}size), or none, got {len(values)}"
            )
    if any(value < 0 for value in config.std):
        raise ConfigError(f"{where}std: expected values of 0 or more, got {config.std!r}")


@dataclass(frozen=True)
class CommonConfig(AdapterConfig):
    """What every adapter here has."""

    discrete: bool = False
    """Whether actions are classes (their number is `size`) or numbers."""
    size: Size = 1
    """How many classes there are; or numbers of a transition: with a frame stride s, those of its s
    recorded actions, one after another."""
    mean: Values = ()
    """Of each number; none: 0."""
    std: Values = ()
    """Standard deviation of each number; none: 1. One that never varies (0) counts as 1."""
    quantise: bool = False
    """Replace the outputs by the nearest codes (straight-through gradient). The paper does not say;
    here outputs are continuous, and the nearest codes are watched."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_statistics("model.parts.adapter.", self)


@dataclass(frozen=True)
class MLPAdapterConfig(CommonConfig):
    """Two layers from the action to the code (the paper's); classes enter one-hot."""

    kind: Literal["mlp"] = "mlp"
    """Which adapter."""
    hidden: Size = 256
    """Width between its two layers."""


@dataclass(frozen=True)
class TableAdapterConfig(CommonConfig):
    """A learned code for each class; it starts from the mean latent action of that class."""

    kind: Literal["table"] = "table"
    """Which adapter."""
    discrete: bool = True
    """Classes alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.discrete:
            raise ConfigError(
                "model.parts.adapter.kind: 'table' needs classes, these actions are continuous; "
                "expected 'mlp' or 'attention'"
            )


@dataclass(frozen=True)
class AttentionAdapterConfig(CommonConfig):
    """Queries made of the action look at the patches of the frame that it is taken in."""

    kind: Literal["attention"] = "attention"
    """Which adapter."""
    width: Size = 64
    """Channels of queries, keys and values."""
    heads: Size = 2
    """Attention heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (4 * self.heads):
            raise ConfigError(
                "model.parts.adapter.width: expected a multiple of 4 x heads "
                f"({4 * self.heads}), got {self.width}"
            )


@dataclass(frozen=True)
class ActionHeadConfig(Checked, at="model.parts.action_head."):
    """The way back: what an inferred latent action is in the robot's own terms."""

    discrete: bool = False
    """Whether actions are classes (their number is `size`) or numbers."""
    size: Size = 1
    """How many classes there are, or numbers of a transition."""
    mean: Values = ()
    """Of each number; none: 0."""
    std: Values = ()
    """Standard deviation of each number; none: 1. One that never varies (0) counts as 1."""
    hidden: Annotated[int, Range(ge=0, le=65_536)] = 256
    """Width of the hidden layer; 0: a linear map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_statistics("model.parts.action_head.", self)
