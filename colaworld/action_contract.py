"""What a model, or a data set, means by an action: channels, units, mode, frame, rate and statistics.

    contract = ActionContract("action", "continuous", 2, ("x", "y"), units=("m", "m"), rate=10.0)
    contract.hash                                       # 16 hex digits over all of it

Imports no torch and no numpy. Not here: how one is made of a data set (data/action_statistics.py), who asks
for it (runs/actions.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from colaworld.config import Checked, ConfigError, Natural, Range, to_dict
from colaworld.contracts import ActionSpec

LARGEST = 3.4e38  # of a float32, as actions are kept
Recorded = Annotated[float, Range(ge=-LARGEST, le=LARGEST)]


@dataclass(frozen=True)
class Normaliser(Checked, at="normaliser."):
    """The statistics of an action column, per channel, and which of them its numbers are scaled by."""

    kind: Literal["mean_std", "min_max", "quantile", "none"] = "none"
    """mean_std: to mean 0 and deviation 1; min_max: low to high become -1 to 1; quantile: q01 to q99 do;
    none: as recorded, and of classes always."""
    count: Natural = 0
    """Rows they were computed from."""
    mean: tuple[Recorded, ...] = ()
    """Mean of each channel."""
    std: tuple[Annotated[float, Range(ge=0, le=LARGEST)], ...] = ()
    """Standard deviation of each, that of the population (divided by count)."""
    low: tuple[Recorded, ...] = ()
    """Smallest value of each."""
    high: tuple[Recorded, ...] = ()
    """Largest value of each."""
    q01: tuple[Recorded, ...] = ()
    """The value below which a hundredth of each lies."""
    q99: tuple[Recorded, ...] = ()
    """The value above which a hundredth of each lies."""
    counts: tuple[Natural, ...] = ()
    """Discrete: rows of each class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {"mean_std": ("mean", "std"), "min_max": ("low", "high"), "none": ()}
        for name in needed.get(self.kind, ("q01", "q99")):
            if not getattr(self, name):
                raise ConfigError(f"normaliser.{name}: kind {self.kind!r} needs it, got none")

    def shift_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel (shift, scale): (value - shift) / scale is normalised. A channel that never changes
        has scale 1. ConfigError where `kind` is "none"."""
        if self.kind == "none":
            raise ConfigError("normaliser.kind: expected one that scales, got 'none'")
        if self.kind == "mean_std":
            shift, scale = self.mean, self.std
        else:
            ends = (self.low, self.high) if self.kind == "min_max" else (self.q01, self.q99)
            pairs = list(zip(*ends, strict=True))
            shift = tuple((low + high) / 2 for low, high in pairs)
            scale = tuple((high - low) / 2 for low, high in pairs)
        return shift, tuple(
            size if size > 1e-6 * max(1.0, abs(at)) else 1.0
            for at, size in zip(shift, scale, strict=True)
        )


_PER_CHANNEL = ("mean", "std", "low", "high", "q01", "q99")


@dataclass(frozen=True)
class ActionContract(ActionSpec):
    """An `ActionSpec` with its rate and statistics: a contract stands wherever a spec is wanted."""

    rate: float | None = None
    """Actions a second, one for each step from frame to frame. None: not known."""
    normaliser: Normaliser = field(default_factory=Normaliser)
    """Statistics of the recorded actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ConfigError(f"ActionContract.rate: expected > 0 or None, got {self.rate!r}")
        discrete = self.kind == "discrete"
        for name in (*_PER_CHANNEL, "counts"):
            given = len(getattr(self.normaliser, name))
            allowed = (0, self.size) if (name == "counts") == discrete else (0,)
            if given not in allowed:
                raise ConfigError(
                    f"ActionContract.normaliser.{name}: expected {allowed[-1]} values for "
                    f"{self.size} {self.kind} actions, got {given}"
                )

    @classmethod
    def of(cls, spec: ActionSpec, *, rate: float | None, normaliser: Normaliser) -> ActionContract:
        """A spec with rate and statistics."""
        return cls(**_said(spec), rate=rate, normaliser=normaliser)

    @property
    def spec(self) -> ActionSpec:
        """The same without rate and statistics."""
        return ActionSpec(**_said(self))

    def every(self, stride: int) -> ActionContract:
        """As `ActionSpec.every`, with the rate of such steps; a channel's statistics stand for all its
        copies."""
        rate = None if self.rate is None else self.rate / stride
        copies = 1 if self.kind == "discrete" else stride
        of = {name: getattr(self.normaliser, name) * copies for name in _PER_CHANNEL}
        normaliser = replace(self.normaliser, **of)
        return ActionContract.of(self.spec.every(stride), rate=rate, normaliser=normaliser)

    def told(self) -> str:
        """In a line, for a person."""
        units = self.units or ("",) * self.size
        if self.kind == "discrete":
            what = f"{self.size} classes" + (f": {', '.join(self.names)}" if self.names else "")
        else:
            names = self.names or tuple(map(str, range(self.size)))
            pairs = zip(names, units, strict=True)
            what = "channels " + ", ".join(f"{n} ({u})" if u else n for n, u in pairs)
            what += "".join(f", {fact}" for fact in (self.mode, self.frame) if fact)
        rate = "" if self.rate is None else f", {self.rate:g} Hz"
        return f"column {self.column!r}, {what}{rate}; contract {self.hash}"

    @property
    def hash(self) -> str:
        """16 hex digits over every field, those of the normaliser too; numbers to 6 digits, so that
        sums in another order give the same one."""
        text = json.dumps(_rounded(to_dict(self)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _said(spec: ActionSpec) -> dict[str, Any]:
    return {one.name: getattr(spec, one.name) for one in fields(ActionSpec)}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return f"{value:.6g}" if isinstance(value, float) else value
