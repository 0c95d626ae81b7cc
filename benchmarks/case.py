"""What one benchmark is: a value that `colaworld bench`, the GPU script and pytest-benchmark all run.

Not here: how it is timed (timing.py), which ones there are (ops/, models.py, training.py, ...).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .shapes import Shape

SUITES = ("ops", "models", "training", "data", "rollout", "planning", "scale")
MODES = ("fwd", "fwd_bwd")

Call = Callable[[], object]
Provider = Callable[[], Sequence[Call]]  # makes the calls that take turns; nothing runs before


class Unavailable(Exception):
    """An implementation cannot run here. The message says why; the row is left out."""


def require_compiler(device: str) -> None:
    """Unavailable where torch.compile has nothing to compile with."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device.startswith("cpu") and not any(shutil.which(name.split()[0]) for name in names):
        raise Unavailable(f"torch.compile finds no C++ compiler ({', '.join(names)})")


def error(found: Tensor, exact: Tensor, size: float | None = None) -> float:
    """|| found - exact || over || exact || or `size`; other shapes are infinitely far."""
    if found.shape != exact.shape:
        return float("inf")
    gap = (found.double() - exact.double()).norm().item()
    return gap / ((exact.double().norm().item() if size is None else size) or 1.0)


def off(
    name: str, found: Tensor, exact: Tensor, bound: float, size: float | None = None
) -> str | None:
    """What is wrong with a result: an error beyond the bound, or not a number."""
    gap = error(found, exact, size)
    return None if gap <= bound else f"{name} is off by {gap:.2e}, expected at most {bound:.2e}"


@dataclass(frozen=True)
class Request:
    """What to measure. Suites read what concerns them."""

    recipe: str = "nano.cola"
    """Where shapes and models come from."""
    dtypes: tuple[str, ...] = ("float32",)
    device: str = "cpu"
    samples: int = 20
    data: Path | None = None
    """The data set of training and data; None: a small one is recorded."""
    peak_tflops: float | None = None
    """What MFU is a share of; None: the matrix products that this run measured."""
    measured_tflops: Mapping[str, float] = field(default_factory=dict)
    """Those, by dtype."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values put over the recipe's, as `config.from_dict` takes them (tests make things tiny)."""


class Skipped(NamedTuple):
    """Something that was asked for and is not timed, and why."""

    label: str
    reason: str


class Failed(NamedTuple):
    """An implementation of ours that raised or gave a wrong result: never timed."""

    label: str
    reason: str


@dataclass(frozen=True)
class Case:
    """One op (or model, step, loader) at one shape, and every implementation of it."""

    suite: str
    op: str
    shape: str  # its name
    sizes: Mapping[str, int]
    dtype: str
    mode: str  # "fwd" or "fwd_bwd"
    providers: Mapping[str, Provider]  # by the name that the row carries, the baseline first
    tests: tuple[str, ...] = ()  # what must pass first, relative to the repository
    verify: Callable[[str], str | None] | None = None  # impl -> what is wrong with its results
    bytes_moved: int | None = None  # every input and output once
    flops: int | Callable[[], int] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)  # of one call: {"clips": 8}
    details: Callable[[str, float], dict[str, Any]] | None = None  # (impl, p50 ms) -> more fields
    close: Callable[[], None] = lambda: None
    read: Callable[[str, int], Sequence[float]] | None = (
        None  # (impl, samples) -> ms, where they are not those of a call
    )
    rotated_mb: Callable[[], float] | None = None  # inputs that take turns, all copies together
    heavy: bool = False  # runs only when it is named
    most: int | None = None  # samples that are taken at most, where a call takes seconds
    ours: bool = False  # whether an error or a wrong result of any of them is a failure
    graph: bool = False  # on a GPU timed as replays of a CUDA graph, without Python between calls

    @classmethod
    def of(
        cls,
        suite: str,
        op: str,
        shape: Shape,
        how: str,
        ways: Iterable[str],
        make: Any,
        **more: Any,
    ) -> Case:
        """The case at `shape`; `how` is "dtype/mode", `make(way)` the calls of one of the `ways`."""
        providers = {way: partial(make, way) for way in ways}
        sizes, heavy = shape.sizes, shape.heavy
        return cls(suite, op, shape.name, sizes, *how.split("/"), providers, heavy=heavy, **more)

    @property
    def label(self) -> str:
        return f"{self.op}/{self.shape}/{self.dtype}/{self.mode}"
