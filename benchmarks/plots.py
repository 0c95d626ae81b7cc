"""Pictures of rows: bars per op and a roofline, PNG files. Needs matplotlib (extra `bench`).

Not here: measuring, and the table on the terminal (table.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rows import Row, writing
from .table import speedup


def colour(impl: str) -> str:
    """The colour of an implementation, the same in every picture."""
    return f"C{sum(impl.encode()) % 10}"


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """(figure, axes) that draw into files alone. ImportError names the extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'colaworld[bench]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """All pictures of `rows`; returns the files. RowsError on a folder that cannot be written."""
    timed = [row for row in rows if row.get("suite") != "machine"]
    figures = {}
    for op, mode, dtype in dict.fromkeys((row["op"], row["mode"], row["dtype"]) for row in timed):
        same = [r for r in timed if (r["op"], r["mode"], r["dtype"]) == (op, mode, dtype)]
        figures[f"{op}-{mode}-{dtype}"] = bars(f"{op}, {mode}, {dtype}", same)
    for dtype in dict.fromkeys(row["dtype"] for row in timed):
        figures[f"roofline-{dtype}"] = roofline(rows, dtype)
    files = [folder / f"{name}.png" for name, figure in figures.items() if figure is not None]
    with writing(f"--plot {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            figures[file.stem].savefig(file, dpi=120)
    return files


def bars(title: str, rows: Sequence[Row]) -> Any:
    """Median times with the stretch from p20 to p80, each beside how often it fits into eager's."""
    figure, axes = canvas(9, 1 + 0.28 * len(rows))
    names = [f"{row['shape']}  {row['impl']}" for row in rows]
    times = [row["p50_ms"] for row in rows]
    spread = [[r["p50_ms"] - r["p20_ms"] for r in rows], [r["p80_ms"] - r["p50_ms"] for r in rows]]
    drawn = axes.barh(range(len(rows)), times, xerr=spread, color=[colour(r["impl"]) for r in rows])
    ratios = [speedup(rows, row, "eager") for row in rows]
    axes.bar_label(drawn, ["" if r is None else f"{r:.2f} x eager" for r in ratios], padding=4)
    axes.set_yticks(range(len(rows)), names)
    axes.set(title=title, xlabel="ms", xscale="log")
    axes.invert_yaxis()
    return figure


def roofline(rows: Sequence[Row], dtype: str) -> Any | None:
    """GFLOP/s over operations a byte, under the measured copy and product; None without those."""
    ceilings = {r["op"]: r for r in rows if r.get("suite") == "machine" and r["dtype"] == dtype}
    points = [r for r in rows if r["dtype"] == dtype and r.get("flops") and r.get("bytes")]
    points = [r for r in points if r.get("suite") != "machine"]
    if not {"copy", "matmul"} <= set(ceilings) or not points:
        return None
    speed, peak = ceilings["copy"]["gb_s"], ceilings["matmul"]["tflops"] * 1e3
    figure, axes = canvas(9, 6)
    for impl in dict.fromkeys(row["impl"] for row in points):
        own = [row for row in points if row["impl"] == impl]
        x = [row["flops"] / row["bytes"] for row in own]
        y = [row["flops"] / row["p50_ms"] / 1e6 for row in own]
        axes.plot(x, y, "o", label=impl, color=colour(impl))
    (low, high), ridge = axes.get_xlim(), peak / speed
    low, high = min(max(low, 1e-3), ridge / 2), max(high, 2 * ridge)
    axes.plot([low, ridge, high], [low * speed, peak, peak], color="black", zorder=0)
    title = f"roofline, {dtype}: copy {speed:.3g} GB/s, product {peak:.4g} GFLOP/s"
    axes.set(title=title, xlabel="operations a byte", ylabel="GFLOP/s", xscale="log", yscale="log")
    axes.legend()
    return figure
