"""Rows on the terminal: one table per op, with the ratio to the baselines beside each time.

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
from .rows import Comparison, Row, grouped

BASELINES = ("eager", "compile", "plain", "one-by-one")
_MORE = ("launches", "activation_mb", "mfu", "step_clips_s", "headroom")
_MORE += (
    "s_per_decision",
    "efficiency",
    "traffic_mb",
    "traffic_ratio",
    "memory_mb",
    "memory_ratio",
)
_COLOUR = {"faster": "green", "slower": "red", "noise": "dim"}


def speedup(rows: Sequence[Row], row: Row, name: str) -> float | None:
    """How many times faster than the row of `name` that was timed in turns; None where it has none."""
    same = [(r["impl"], *_group(r)) == (name, *_group(row)) for r in rows]
    return rows[same.index(True)]["p50_ms"] / row["p50_ms"] if any(same) else None


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
    for said in grouped(skipped):
        console.print(f"not timed: {said}", style="yellow", markup=False)


def _empty(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in left:
        table.add_column(head, overflow="fold")
    for head in right:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _group(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("op", "shape", "dtype", "mode", "threads"))


def _table(op: str, rows: Sequence[Row], everything: Sequence[Row]) -> Table:
    def cells(row: Row) -> dict[str, str]:
        roof = copy_speed(everything, row["dtype"])
        share = f"{row['gb_s'] / roof:.0%}" if roof and row["gb_s"] else ""
        found = {"p50 ms": _number(row["p50_ms"])}
        found["p20 .. p80"] = f"{row['p20_ms']:.3g} .. {row['p80_ms']:.3g}"
        found |= {f"x {name}": _number(speedup(rows, row, name), ".2f") for name in BASELINES}
        found |= {"GB/s": _number(row["gb_s"]), "% copy": share, "peak MB": _number(row["peak_mb"])}
        found |= {n.replace("_s", "/s"): _number(v) for n, v in row.get("rates", {}).items()}
        return found | {name: _number(row.get(name)) for name in _MORE}

    made = [cells(row) for row in rows]
    heads = list(dict.fromkeys(head for one in made for head, cell in one.items() if cell))
    table, before = _empty(op, ("shape", "impl"), heads), None
    for row, one in zip(rows, made, strict=True):
        name = ""
        if _group(row) != before:
            table.add_section()
            sizes = " ".join(f"{k}{v}" for k, v in row["sizes"].items())
            name = f"{row['shape']} {row['dtype']} {row['mode']}\n[dim]{sizes}[/]"
        table.add_row(name, escape(row["impl"]), *(one.get(head, "") for head in heads))
        before = _group(row)
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


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


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
