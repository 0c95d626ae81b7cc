"""Every shipped kernel, run from its PTX: what was run, whether it was right, what was found.

    python tests/ptx                        print the table (minutes)
    python tests/ptx --arch 90 --op adaln   a part of it
    python tests/ptx --write                print it and write coverage.md beside this file

Not here: the calls (`cases.py`, `native_cases.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ptx import cases, native_cases
from ptx.count import Counts
from ptx.faults import Fault, Reports
from ptx.native_driver import Native

TABLE = Path(__file__).parent / "coverage.md"


@dataclass
class Row:
    """One kernel, dtype and architecture."""

    kernel: str
    compiler: str
    dtype: str
    arch: int
    calls: int = 0  # configurations, or shapes
    blocks: int = 0
    instructions: int = 0  # of warps
    error: float = 0.0
    reports: int = 0
    remarks: int = 0  # what compilers do and GPUs bear: see faults.py
    opcodes: Counter[str] = field(default_factory=Counter)  # by the name before the first dot
    wrong: list[str] = field(default_factory=list)


def triton_rows(
    op: str, arch: int, *, one: bool = False, only: list[cases.Case] | None = None
) -> Iterator[Row]:
    """The configurations of one file of kernels; each is compared, each must have been launched.

    `one`: a call for each kernel and dtype alone; `only`: these calls alone.
    """
    from ptx.triton_driver import on_ptx

    rows: dict[tuple[str, str], Row] = {}
    launches = []
    for case in only if only is not None else cases.cases(op, arch, one=one):
        with on_ptx(arch) as session:
            try:
                found = case.run()
                most, wrong = cases.worst(found, cases.DTYPES[case.dtype])
            except (Fault, AssertionError) as fault:
                most, wrong = float("inf"), [str(fault)]
        launches += session.launches
        for kernel in dict.fromkeys(ran.kernel for ran in session.launches):
            row = rows.setdefault(
                (kernel, case.dtype), Row(f"{op}.{kernel}", "triton", case.dtype, arch)
            )
            add(row, (r.counts for r in session.launches if r.kernel == kernel), most)
            row.reports += sum(k == kernel for k, _, _ in session.reports.found)
            row.remarks += sum(k == kernel for k, _, _ in session.reports.remarks)
            row.wrong += [f"{case.label}: {w}" for w in wrong]
            if session.reports:
                row.wrong.append(f"{case.label}: {session.reports}")
    everything = not one and only is None
    for label in cases.missed(op, arch, launches) if everything else ():
        row = rows.setdefault(("", ""), Row(op, "triton", "", arch))
        row.wrong.append(f"{label}: was not run")
    yield from rows.values()


def native_rows(native: Native, *, only: list[cases.Case] | None = None) -> Iterator[Row]:
    """The kernels of nvcc; each there is must have been launched. `only`: these calls alone."""
    rows: dict[tuple[str, str], Row] = {}
    for case in native_cases.cases(native) if only is None else only:
        native.launches.clear()
        native.reports = Reports()
        try:
            most, wrong = cases.worst(case.run(), cases.DTYPES[case.dtype])
        except (Fault, AssertionError) as fault:
            most, wrong = float("inf"), [str(fault)]
        for kernel in dict.fromkeys(ran.kernel for ran in native.launches):
            row = rows.setdefault(
                (kernel, case.dtype), Row(kernel, "nvcc", case.dtype, native.arch)
            )
            add(row, (r.counts for r in native.launches if r.kernel == kernel), most)
            row.reports += len(native.reports)
            row.remarks += len(native.reports.remarks)
            row.wrong += [f"{case.label}: {w}" for w in wrong]
            if native.reports:
                row.wrong.append(f"{case.label}: {native.reports}")
    missed = set() if only is not None else set(native.kernels) - {name for name, _ in rows}
    for kernel in sorted(missed):
        rows[kernel, ""] = Row(kernel, "nvcc", "", native.arch, wrong=["was not run"])
    yield from rows.values()


def add(row: Row, counts: Iterator[Counts], most: float) -> None:
    row.calls += 1
    for c in counts:
        row.blocks += c.blocks
        row.instructions += sum(c.instructions.values())
        for opcode, count in c.instructions.items():
            row.opcodes[opcode.split(".")[0]] += count
    row.error = max(row.error, most)


def markdown(rows: list[Row]) -> str:
    lines = [
        "| kernel | by | dtype | sm | calls | blocks | warp instructions | largest error | reports | remarks |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.kernel} | {r.compiler} | {r.dtype} | {r.arch} | {r.calls} | {r.blocks} | "
        f"{r.instructions} | {r.error:.1e} | {r.reports} | {r.remarks} |"
        for r in rows
    ]
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
            if op == "nvcc":
                rows += native_rows(Native.built() if arch == 90 else Native.compiled(arch))
            else:
                rows += triton_rows(op, arch)
    print(markdown(rows))
    for row in rows:
        for wrong in row.wrong:
            print(f"WRONG {row.kernel} {row.dtype} sm_{row.arch}: {wrong}")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    return int(any(r.wrong for r in rows))


if __name__ == "__main__":
    sys.exit(main())
