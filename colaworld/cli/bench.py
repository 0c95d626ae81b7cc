"""`colaworld bench [SUITE ...]`: time ops, models, training, data, rollout, planning and several processes, with their proof.

From the command line to the suites in `benchmarks/`, and their tables, files and pictures. Not here:
what is timed and how (benchmarks/README.md).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device
from colaworld.config import Checked, Count, Positive

Suite = Literal["ops", "models", "training", "data", "rollout", "planning", "scale"]
AUTO = Path("auto")
_PACKAGE = "colaworld.benchmarks"


@dataclass(frozen=True)
class BenchOptions(Checked, at="--"):
    """Options of `colaworld bench`."""

    suites: Annotated[tuple[Suite, ...], tyro.conf.Positional] = ("ops",)
    """What to time: ops (each against eager, torch.compile, SDPA and packages), models (IDM, a pair
    of video model blocks, the world model), training (a step and its parts), data (the loader against
    what a step needs, each format, decoders), rollout (generated frames a second), planning (a decision at 50 and 200
    candidates), scale (1, 2 and 4 processes: a step, its
    traffic and memory against the formulas, saving, restarting)."""
    json: Path | None = None
    """Write the rows to this file. Without a name: benchmarks/results/SUITE_DEVICE.json of the
    checkout, one file per suite."""
    compare: Path | None = None
    """Rows of another run: the ratio of every row to it, marked where it is beyond noise."""
    plot: Path | None = None
    """A folder for bars and a roofline, PNG files (matplotlib, extra `bench`)."""
    rows: Path | None = None
    """Show, compare or plot the rows of this file instead of timing anything."""
    recipe: str = "nano.cola"
    """Where shapes, models and the step come from."""
    only: tuple[str, ...] = ()
    """Cases whose label (op/shape/dtype/mode) holds one of these words; also how a case that takes
    too long for every run is asked for."""
    impl: tuple[str, ...] = ()
    """Only these implementations: eager, compile, cpu, sdpa:flash, default ..."""
    dtype: tuple[Literal["float32", "bfloat16", "float64"], ...] = ("float32",)
    """Models, training, rollout and planning run bfloat16 as autocast."""
    device: str = "cpu"
    """cpu, cuda, or auto."""
    threads: Count | None = None
    """Threads of torch; default: as torch chooses."""
    samples: Count = 20
    """Samples per implementation, taken in turns. Fewer than 20 are for looking, not for keeping."""
    data: Path | None = None
    """training, data and scale: a data set; default: a small one is recorded into a temporary folder."""
    peak_tflops: Positive | None = None
    """training: what MFU is a share of; default: the matrix product that this run measures."""


def suite(name: str) -> ModuleType:
    """The module `name` of the benchmarks: installed inside the package, or from the checkout.

    ImportError where neither is there.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise ImportError(
            "colaworld bench: this installation has no benchmarks; install the package again, or "
            "run from a checkout"
        )
    return importlib.import_module(f"{_PACKAGE}.{name}")


def run(argv: list[str], *, overrides: dict[str, Any] | None = None) -> int:
    """Time, show, write. Returns 0, or 1 where tests or results are wrong.

    `overrides` are values put over the recipe's (for tests).
    """
    options = from_command_line(
        BenchOptions,
        named_json(argv),
        program="colaworld bench",
        description=(
            "Times with their proof: the tests of what is timed run first, results are judged (ops "
            "and models against float64, training, rollout, planning and scale against a plain run in the same "
            "dtype), and nothing is printed while either is wrong."
        ),
    )
    rows, table = suite("rows"), suite("table")
    old = rows.read(options.compare) if options.compare else None  # before the long work
    if options.plot is not None:
        suite("plots").canvas(1, 1)
        rows.check_writable(options.plot / "roofline.png")
    files = {} if options.json is None else _files(options)
    for file in files.values():
        rows.check_writable(file)
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.rows is not None:
        found, skipped = rows.read(options.rows), ()
    else:
        try:
            found, skipped = _measure(options, console, overrides or {})
        except suite("gate").GateError as error:
            print(f"colaworld bench: {error}", file=sys.stderr)
            return 1
    table.show(found, skipped, console)
    if old is not None:
        table.show_comparison(rows.compare(found, old), console)
    for name, file in files.items():
        mine = [r for r in found if name == "*" or r.get("suite") in (name, "machine")]
        print(f"rows: {rows.write(file, mine)}")
    if options.plot is not None:
        print(f"plots: {len(suite('plots').write(options.plot, found))} files in {options.plot}")
    return 0


def _measure(options: BenchOptions, console: Any, overrides: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    request = suite("case").Request(
        recipe=options.recipe,
        dtypes=tuple(dict.fromkeys(options.dtype)),
        device=choose_device(options.device),
        samples=options.samples,
        data=options.data,
        peak_tflops=options.peak_tflops,
        overrides=overrides,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        with bar("timing") as progress:
            measured = suite("run").run(
                tuple(dict.fromkeys(options.suites)),
                request,
                only=options.only,
                impls=options.impl,
                log=lambda text: console.print(text, markup=False, highlight=False),
                progress=progress,
            )
    finally:
        torch.set_num_threads(before)
    return measured.rows, measured.skipped


def named_json(argv: list[str]) -> list[str]:
    """The same arguments, a bare --json spelled out as --json auto."""
    spelled: list[str] = []
    for position, argument in enumerate(argv):
        spelled.append(argument)
        following = argv[position + 1] if position + 1 < len(argv) else "-"
        if argument == "--json" and (following.startswith("-") or following in get_args(Suite)):
            spelled.append(str(AUTO))
    return spelled


def _files(options: BenchOptions) -> dict[str, Path]:
    """Where rows go: by suite, or all ("*") to one file. ValueError where --json needs a name."""
    assert options.json is not None
    if options.json != AUTO:
        return {"*": options.json}
    root = suite("gate").repository()
    if root is None:
        raise ValueError("--json: name a file; only a checkout has benchmarks/results")
    if options.only or options.impl or options.rows:
        raise ValueError(
            "--json: name a file; without a name it replaces whole suites in benchmarks/results, "
            "and --only, --impl and --rows leave cases out"
        )
    kind = choose_device(options.device).partition(":")[0]
    results = root / "benchmarks" / "results"
    return {name: results / f"{name}_{kind}.json" for name in dict.fromkeys(options.suites)}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
