"""Every shipped kernel, run from its PTX: what was run, whether it was right, what was found.

    python tests/ptx                        print the table (minutes)
    python tests/ptx --arch 90 --op adaln   a part of it
    python tests/ptx --write                print it and write coverage.md beside this file

Not here: the calls (`cases.py`, `native_cases.py`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ptx import cases, native_cases
from ptx.count import Counts
from ptx.faults import Fault, Reports
from ptx.native_driver import Missing, Native

TABLE = Path(__file__).parent / "coverage.md"


@dataclass
class Row:
    """One kernel, dtype and architecture."""

    kernel: str
    compiler: str
    dtype: str
    arch: int
    calls: int = 0
    counts: Counts = field(default_factory=Counts)
    error: float = 0.0  # the largest of its calls
    reports: int = 0
    remarks: int = 0  # what compilers do and GPUs bear: see faults.py
    wrong: list[str] = field(default_factory=list)


Rows = dict[tuple[str, str], Row]


def triton_rows(
    op: str, arch: int, *, one: bool = False, only: list[cases.Case] | None = None
) -> list[Row]:
    """The configurations of one file of kernels; each is compared, each must have been launched.

    `one`: a call for each kernel and dtype alone; `only`: these calls alone.
    """
    from ptx.triton_driver import on_ptx

    rows: Rows = {}
    launches = []
    for case in only if only is not None else cases.cases(op, arch, one=one):
        with on_ptx(arch) as session:
            most, wrong = judged(case)
        launches += session.launches
        ran = [(f"{op}.{r.kernel}", r.counts) for r in session.launches]
        enter(rows, ("triton", arch), case, ran, session.reports, most, wrong)
    if not one and only is None:
        for label in cases.missed(op, arch, launches):
            row = rows.setdefault(("", ""), Row(op, "triton", "", arch))
            row.wrong.append(f"{label}: was not run")
    return list(rows.values())


def native_rows(native: Native, *, only: list[cases.Case] | None = None) -> list[Row]:
    """The kernels of nvcc; each there is must have been launched. `only`: these calls alone."""
    rows: Rows = {}
    for case in native_cases.cases(native) if only is None else only:
        native.launches.clear()
        native.reports = Reports()
        most, wrong = judged(case)
        ran = [(r.kernel, r.counts) for r in native.launches]
        enter(rows, ("nvcc", native.arch), case, ran, native.reports, most, wrong)
    missed = set() if only is not None else set(native.kernels) - {name for name, _ in rows}
    for kernel in sorted(missed):
        rows[kernel, ""] = Row(kernel, "nvcc", "", native.arch, wrong=["was not run"])
    return list(rows.values())


def judged(case: cases.Case) -> tuple[float, list[str]]:
    """The largest error of a call, and what is wrong with it."""
    try:
        return cases.worst(case.run(), cases.DTYPES[case.dtype])
    except (Fault, AssertionError) as fault:
        return float("inf"), [str(fault)]


def enter(
    rows: Rows,
    of: tuple[str, int],
    case: cases.Case,
    ran: list[tuple[str, Counts]],
    reports: Reports,
    most: float,
    wrong: list[str],
) -> None:
    """One call into the rows of the kernels that it launched."""
    wrong = [*wrong, str(reports)] if reports else wrong
    for kernel in dict.fromkeys(name for name, _ in ran) or [case.op]:
        row = rows.setdefault((kernel, case.dtype), Row(kernel, of[0], case.dtype, of[1]))
        row.calls += 1
        for name, counts in ran:
            if name == kernel:
                row.counts.add(counts)
        row.error = max(row.error, most)
        bare = kernel.removeprefix(f"{case.op}.")
        row.reports += sum(key[0] == bare for key in reports.found)
        row.remarks += sum(key[0] == bare for key in reports.remarks)
        row.wrong += [f"{case.label}: {w}" for w in wrong]


TITLE = """# What was run from its PTX

Written by `python tests/ptx --write`. Small tensors; errors are relative, against float64; remarks are what
compilers do and GPUs bear (`faults.py`). Nothing here was run on a GPU.
"""


def plain(row: Row) -> dict[str, object]:
    """A row as JSON has it."""
    # Not dataclasses.asdict: Python 3.11 makes counters of pairs out of counters.
    return {**vars(row), "counts": dict(vars(row.counts))}


def made_with() -> str:
    """Versions, and the commit."""
    root = Path(__file__).resolve().parents[2]
    found = []
    for name, command in (("commit", ("git", "-C", root, "describe", "--always", "--dirty")),
                          ("nvcc", ("nvcc", "--version"))):  # fmt: skip
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        found.append(f"{name} {(re.search('V([0-9.]+)', said) or re.match('(.*)', said))[1]}")
    found += [f"{n} {version(n)}" for n in ("triton", "torch", "numpy") if find_spec(n) is not None]
    return ", ".join(found) + "."


HEAD = (
    "kernel", "by", "dtype", "sm", "calls", "blocks", "warp instructions", "of bytes read used",
    "written", "largest error", "reports", "remarks",
)  # fmt: skip


def markdown(rows: list[Row]) -> str:
    """A table; what is used is of the sectors of 32 bytes that the accesses touch."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for r in rows:
        c = r.counts
        cells = (
            r.kernel, r.compiler, r.dtype, r.arch, r.calls, c.blocks, c.executed(),
            f"{c.used('ld'):.0%}", f"{c.used('st'):.0%}", f"{r.error:.1e}", r.reports, r.remarks,
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="*", default=[90, 80])
    parser.add_argument("--op", nargs="*", default=[*cases.FILES, "nvcc"])
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    rows = []
    for arch in asked.arch:
        for op in asked.op:
            try:
                if op == "nvcc":
                    rows += native_rows(Native.built() if arch == 90 else Native.compiled(arch))
                else:
                    rows += triton_rows(op, arch)
            except Missing as reason:
                print(f"{op} of sm_{arch} is left out: {reason}")
    table = markdown(rows)
    print(table)
    for row in rows:
        for wrong in row.wrong:
            print(f"WRONG {row.kernel} {row.dtype} sm_{row.arch}: {wrong}")
    if asked.json:
        asked.json.write_text(json.dumps([plain(r) for r in rows], indent=1))
    if asked.write:
        TABLE.write_text(f"{TITLE}{made_with()}\n\n{table}\n")
    return int(any(r.wrong for r in rows))


if __name__ == "__main__":
    sys.exit(main())
