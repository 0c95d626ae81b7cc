"""What all stages share: points that are measured one by one within a time, rows, complaints.

A stage is a list of points. A point that fails is told and the next one runs; a point that would not
fit into what is left of the time is not begun, and named. Rows are written after every point, so that
a process that is stopped leaves what it had. Not here: what a point measures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import machine, rows, run
from ..case import Case, Skipped, Unavailable, Wish
from ..rows import Row
from ..timing import Times


@dataclass(frozen=True)
class Asked:
    """What a stage is asked for."""

    device: str = "cuda"
    samples: int = 20
    quick: bool = False
    """The most important points alone."""
    seconds: float = 60.0
    """For the whole stage."""
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds that remain."""
        return self.seconds - (time.monotonic() - self.began)

    def wish(self, *dtypes: str) -> Wish:
        """The same for the suites."""
        return Wish(dtypes=dtypes, device=self.device, samples=self.samples)


@dataclass(frozen=True)
class Wrong:
    """A point that failed, or a result of ours that is not right: the stage ends with 1."""

    label: str
    reason: str


Found = Row | Skipped | Wrong


@dataclass(frozen=True)
class Point:
    """One thing to measure."""

    label: str
    measure: Callable[[], Iterable[Found]]
    seconds: float = 5.0  # about what it takes: it is not begun with less left


Points = Callable[[Asked], Iterable[Point]]


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a terminal."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else 'no message'}"[:300]


def found(points: Iterable[Point], asked: Asked) -> Iterator[Found]:
    """Everything the points give, in their order; an error becomes a Wrong and the next one runs."""
    for point in points:
        left = asked.left()
        if left < point.seconds:
            yield Skipped(
                point.label, f"about {point.seconds:.0f} s, {max(left, 0):.0f} s are left"
            )
            continue
        try:
            yield from point.measure()
        except Unavailable as reason:
            yield Skipped(point.label, str(reason))
        except torch.OutOfMemoryError as error:
            yield Skipped(point.label, f"out of memory: {first_line(error)}")
        except Exception as error:
            yield Wrong(point.label, first_line(error))
        if asked.device.startswith("cuda"):
            torch.cuda.empty_cache()


def of_case(case: Case, asked: Asked) -> Iterator[Found]:
    """The rows of a case. An implementation that is wrong or raises is left out and told: the
    others are still timed. A RuntimeError of a rival is a reason not to time it."""
    torch._dynamo.reset()  # compilations of the case before count against a limit
    good = []
    for name in case.providers:
        label, ours = f"{case.label}/{name}", name in run.OURS
        try:
            fault = case.judge(name) if case.judge else None
        except Unavailable as reason:
            yield Skipped(label, str(reason))
        except RuntimeError as error:
            yield (Wrong if ours else Skipped)(label, first_line(error))
        else:
            if fault is None:
                good.append(name)
            else:
                yield (Wrong if ours else Skipped)(label, f"its results are wrong: {fault}")
    if good:
        measured = run.measure(case, asked.wish(case.dtype), impls=good)
        yield from measured.rows
        yield from measured.skipped


def row(
    suite: str,
    op: str,
    impl: str,
    *,
    shape: str,
    sizes: dict[str, int],
    dtype: str,
    mode: str,
    times: Times,
    **more: Any,
) -> Row:
    """A row with the fields that all rows have, without those that a whole run shares."""
    p20, p50, p80 = times
    made: Row = {"suite": suite, "op": op, "impl": impl, "shape": shape, "sizes": sizes}
    made |= {"dtype": dtype, "mode": mode, "p20_ms": p20, "p50_ms": p50, "p80_ms": p80}
    return made | {"gb_s": None, "peak_mb": None} | more


def main(points: Points, about: str | None, argv: list[str] | None = None) -> int:
    """One stage from the command line. 0; 1 where something is wrong; 2 without the device."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file for the JSON rows")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for the whole stage")
    parser.add_argument("--samples", type=int, default=20, help="samples of each implementation")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the stage itself")
    parser.add_argument("--quick", action="store_true", help="the most important points alone")
    given = parser.parse_args(argv)
    asked = Asked(given.device, given.samples, given.quick, given.seconds)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch sees no CUDA device; nothing was run")
        return 2
    given.out.parent.mkdir(parents=True, exist_ok=True)
    stamp = machine.stamp(given.device)
    kept: list[Row] = []
    wrong = 0
    for one in found(points(asked), asked):
        if isinstance(one, Skipped):
            print(f"not measured: {one.label}: {one.reason}", flush=True)
        elif isinstance(one, Wrong):
            wrong += 1
            print(f"WRONG {one.label}: {one.reason}", flush=True)
        else:
            kept.append(run.ordered(one | stamp))
            rows.write(given.out, kept)
            print(told(one), flush=True)
    print(f"{len(kept)} rows, {wrong} wrong, {asked.left():.0f} s left")
    return 1 if wrong else 0


def told(made: Row) -> str:
    """A row as one line."""
    line = f"{made['op']}/{made['shape']}/{made['dtype']}/{made['mode']} {made['impl']}: "
    line += f"{made['p50_ms']:.4g} ms"
    for name, unit in (("gb_s", "GB/s"), ("tflops", "TFLOP/s"), ("peak_mb", "MB"),
                       ("launches", "launches"), ("mfu", "MFU")):  # fmt: skip
        if made.get(name) is not None:
            line += f", {made[name]:.4g} {unit}"
    return line
