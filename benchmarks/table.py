"""Rows on the terminal: one table per op, with the ratio to the two baselines beside each time.

Not here: measuring (run.py), files (rows.py), pictures (plots.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .case import Skipped
from .rows import Comparison, Row

BASELINES = ("eager", "compile")
_COLOUR = {"faster": "green", "slower": "red", "noise": "dim"}


def baseline(rows: Iterable[Row], row: Row, name: str) -> Row | None:
    """The row of `name` that was timed in turns with `row`."""
    same = ("op", "shape", "dtype", "mode", "threads")
    return next((r for r in rows if r["impl"] == name and all(r[k] == row[k] for k in same)), None)


def speedup(rows: Sequence[Row], row: Row, name: str) -> float | None:
    """How many times faster than `name`; None where it has no row."""
    other = baseline(rows, row, name)
    return None if other is None else other["p50_ms"] / row["p50_ms"]


def copy_speed(rows: Iterable[Row], dtype: str) -> float | None:
    """GB/s of a copy in the same run, in this dtype where there is one."""
    found = sorted((r["dtype"] != dtype, r["gb_s"]) for r in rows if r["op"] == "copy")
    return found[0][1] if found else None


def show(rows: Sequence[Row], skipped: Sequence[Skipped], console: Console) -> None:
    """All rows, then what has none and why."""
    ceilings = [row for row in rows if row.get("suite") == "machine"]
    for first in rows[:1]:
        said = f"{first['device']}, {first['threads']} thread(s), "
        said += f"torch {first['versions'].get('torch')}, commit {first['commit']}"
        console.print(escape(said), highlight=False)
    for row in (row for row in ceilings if row["op"] in ("copy", "matmul")):
        what = f"{row['gb_s']} GB/s" if row["op"] == "copy" else f"{row['tflops']} TFLOP/s"
        console.print(f"ceiling: {row['op']} {row['dtype']} {what}", highlight=False)
    timed = [row for row in rows if row not in ceilings]
    for op in dict.fromkeys(row["op"] for row in timed):
        console.print(_table(op, [row for row in timed if row["op"] == op], rows))
    if any("split_ms" in row for row in timed):
        console.print(_split([row for row in timed if "split_ms" in row]))
    for said in unavailable(skipped):
        console.print(f"not timed: {said}", style="yellow", markup=False)


def unavailable(skipped: Iterable[Skipped]) -> list[str]:
    """What has no row and why; the same reason of one implementation said once for all cases."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for one in skipped:
        case, _, impl = one.label.rpartition("/")
        who = impl if case.count("/") == 3 else one.label  # op/shape/dtype/mode/impl
        groups.setdefault((who, one.reason), {})[one.label] = None
    return [
        f"{who} ({len(labels)} cases): {reason}"
        if len(labels) > 1
        else f"{next(iter(labels))}: {reason}"
        for (who, reason), labels in groups.items()
    ]


def _empty(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in left:
        table.add_column(head, overflow="fold")
    for head in right:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _table(op: str, rows: Sequence[Row], everything: Sequence[Row]) -> Table:
    right: list[str] = ["p50 ms", "p20 .. p80", *(f"x {name}" for name in BASELINES)]
    right += ["GB/s", "% copy"] if any(r["gb_s"] for r in rows) else []
    right += ["peak MB"]
    rates = list(dict.fromkeys(name for row in rows for name in row.get("rates", {})))
    right += [name.replace("_s", "/s") for name in rates]
    fields = ("launches", "activation_mb", "mfu", "step_clips_s", "headroom")
    more = [name for name in fields if any(name in row for row in rows)]
    table, before = _empty(op, ("shape", "impl"), (*right, *more)), None
    for row in rows:
        group = (row["shape"], row["dtype"], row["mode"])
        if before not in (None, group):
            table.add_section()
        sizes = " ".join(f"{k}{v}" for k, v in row["sizes"].items())
        name = f"{row['shape']} {row['dtype']} {row['mode']}\n[dim]{sizes}[/]"
        cells = [name if group != before else "", escape(row["impl"]), f"{row['p50_ms']:.4g}"]
        cells.append(f"{row['p20_ms']:.3g} .. {row['p80_ms']:.3g}")
        cells += [_ratio(speedup(rows, row, name)) for name in BASELINES]
        if any(r["gb_s"] for r in rows):
            roof = copy_speed(everything, row["dtype"])
            share = f"{row['gb_s'] / roof:.0%}" if roof and row["gb_s"] else ""
            cells += [_number(row["gb_s"]), share]
        cells.append(_number(row["peak_mb"]))
        cells += [_number(row.get("rates", {}).get(rate)) for rate in rates]
        cells += [_number(row.get(name)) for name in more]
        table.add_row(*cells)
        before = group
    return table


def _split(rows: Sequence[Row]) -> Table:
    """Milliseconds of each part of a training step."""
    parts = list(dict.fromkeys(part for row in rows for part in row["split_ms"]))
    heads = [part.replace("_", " ") for part in parts]
    table = _empty("parts of a step, ms", ("shape", "impl"), heads)
    for row in rows:
        cells = [_number(row["split_ms"].get(part)) for part in parts]
        table.add_row(f"{row['shape']} {row['dtype']}", escape(row["impl"]), *cells)
    return table


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def show_comparison(found: Comparison, console: Console) -> None:
    """Ratio per row, marked where it is beyond noise."""
    if len(found.devices) > 1:
        said = (
            f"rows of different devices ({'; '.join(found.devices)}): ratios are not of code alone"
        )
        console.print(said, style="yellow", markup=False)
    table = _empty("new / old", ("op", "shape", "impl"), ("old ms", "new ms", "ratio", ""))
    for change in found.changes:
        row, style = change.row, _COLOUR[change.verdict]
        name = f"{row['shape']} {row['dtype']} {row['mode']}"
        times = (f"{change.old['p50_ms']:.4g}", f"{row['p50_ms']:.4g}", f"{change.ratio:.2f}")
        said = "within noise" if change.verdict == "noise" else change.verdict
        table.add_row(row["op"], name, escape(row["impl"]), *times, f"[{style}]{said}[/]")
    console.print(table)
    compared, added, gone = map(len, (found.changes, found.added, found.gone))
    console.print(f"{compared} rows compared, {added} new, {gone} not measured now")
