"""Pictures of rows: bars per op, a roofline, the split of a step; PNG files and one HTML page.

Not here: measuring. Drawn by drawing.py, so that no plotting library has to be installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .drawing import Drawing
from .rows import Row, RowsError
from .table import speedup

# Ours in one strong colour; the baselines in greys; rivals between. Told apart in print, too.
_COLOURS = {
    "eager": "#9aa0a8",
    "compile": "#5d646d",
    "cpu": "#1c6a74",
    "triton": "#1c6a74",
    "cuda": "#1c6a74",
    "default": "#1c6a74",
    "default+compile": "#0f3f46",
}
_OTHERS = ("#bf5b2c", "#7a5ea8", "#9a7f1e", "#4a7fb5", "#a84a72")
_PARTS = {
    "data": "#9a7f1e",
    "tokenizer": "#4a7fb5",
    "lam": "#bf5b2c",
    "world_model": "#1c6a74",
    "optimizer": "#7a5ea8",
    "rest": "#9aa0a8",
}
_SOFT, _RULE = "#5d646d", "#d9d6cf"
_WIDTH, _LEFT, _BAR = 860, 170, 17


def colour(impl: str) -> str:
    """The colour of an implementation, the same in every picture."""
    return _COLOURS.get(impl) or _OTHERS[sum(impl.encode()) % len(_OTHERS)]


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """All pictures of `rows` and index.html; returns the files. RowsError on a wrong folder."""
    drawings = pictures(rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [drawing.png(folder / f"{name}.png") for name, drawing in drawings.items()]
        page = folder / "index.html"
        page.write_text(html(drawings, rows))
    except OSError as error:
        raise RowsError(f"--plot {folder}: cannot be written: {error}") from None
    return [*files, page]


def pictures(rows: Sequence[Row]) -> dict[str, Drawing]:
    """Drawings by file name."""
    timed = [row for row in rows if row.get("suite") != "machine"]
    found: dict[str, Drawing] = {}
    kinds = dict.fromkeys((row["op"], row["mode"], row["dtype"]) for row in timed)
    for op, mode, dtype in kinds:
        same = [r for r in timed if (r["op"], r["mode"], r["dtype"]) == (op, mode, dtype)]
        found[f"{op}-{mode}-{dtype}"] = bars(f"{op}, {mode}, {dtype}", same)
    if any("split_ms" in row for row in timed):
        found["step-split"] = split([row for row in timed if "split_ms" in row])
    roofline_rows = [row for row in timed if row.get("flops") and row.get("bytes")]
    if roofline_rows:
        for dtype in dict.fromkeys(row["dtype"] for row in roofline_rows):
            drawing = roofline(rows, dtype)
            if drawing is not None:
                found[f"roofline-{dtype}"] = drawing
    return found


def bars(title: str, rows: Sequence[Row]) -> Drawing:
    """Median times, each shape with its own scale; the thin line goes from p20 to p80."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    height = 44 + sum(34 + (_BAR + 5) * sum(r["shape"] == shape for r in rows) for shape in shapes)
    drawing = Drawing(_WIDTH, height, title)
    drawing.text(16, 26, title, size=16, bold=True)
    y, room = 44.0, _WIDTH - _LEFT - 190
    for shape in shapes:
        same = [row for row in rows if row["shape"] == shape]
        longest = max(row["p80_ms"] for row in same)
        sizes = ", ".join(f"{k} {v}" for k, v in same[0]["sizes"].items())
        drawing.text(16, y + 14, f"{shape}   ({sizes})", size=12, colour=_SOFT)
        y += 22
        for row in same:
            middle = y + _BAR / 2
            drawing.text(_LEFT - 8, middle + 4, row["impl"], size=12, anchor="end")
            drawing.rectangle(_LEFT, y, room * row["p50_ms"] / longest, _BAR, colour(row["impl"]))
            ends = [(_LEFT + room * row[p] / longest, middle) for p in ("p20_ms", "p80_ms")]
            drawing.line(ends, "#23272d", thick=1)
            ratio = speedup(rows, row, "eager")
            said = f"{row['p50_ms']:.3g} ms"
            said += f"   {ratio:.2f} x eager" if ratio and row["impl"] != "eager" else ""
            drawing.text(max(ends[1][0], ends[0][0]) + 8, middle + 4, said, size=11, colour=_SOFT)
            y += _BAR + 5
        y += 12
    return drawing


def split(rows: Sequence[Row]) -> Drawing:
    """Where a training step's time goes, part by part."""
    drawing = Drawing(_WIDTH, 84 + 30 * len(rows), "parts of a training step")
    drawing.text(16, 26, "parts of a training step, ms", size=16, bold=True)
    x = 16.0
    for part, tint in _PARTS.items():
        drawing.rectangle(x, 40, 11, 11, tint)
        drawing.text(x + 16, 50, part.replace("_", " "), size=11, colour=_SOFT)
        x += 110
    longest = max(sum(row["split_ms"].values()) for row in rows) or 1.0
    room = _WIDTH - _LEFT - 100
    for number, row in enumerate(rows):
        y, x = 66 + 30 * number, float(_LEFT)
        label = row["impl"] if row["dtype"] == "float32" else f"{row['impl']} {row['dtype']}"
        drawing.text(_LEFT - 8, y + 15, label, size=12, anchor="end")
        for part, tint in _PARTS.items():
            wide = room * row["split_ms"].get(part, 0.0) / longest
            drawing.rectangle(x, y, wide, 20, tint)
            x += wide
        total = sum(row["split_ms"].values())
        drawing.text(x + 8, y + 15, f"{total:.4g} ms", size=11, colour=_SOFT)
    return drawing


def roofline(rows: Sequence[Row], dtype: str) -> Drawing | None:
    """GFLOP/s over operations per byte, both logarithmic, under the two measured roofs."""
    roofs = {r["op"]: r for r in rows if r.get("suite") == "machine" and r["dtype"] == dtype}
    points = [
        r
        for r in rows
        if r.get("suite") != "machine" and r.get("flops") and r.get("bytes") and r["dtype"] == dtype
    ]
    if set(roofs) != {"copy", "matmul"} or not points:
        return None
    speed, peak = roofs["copy"]["gb_s"], roofs["matmul"]["tflops"] * 1e3
    place = [(r["flops"] / r["bytes"], r["flops"] / r["p50_ms"] / 1e6, r) for r in points]
    ridge = peak / speed
    low_x = min([ridge, *(x for x, _, _ in place)]) / 2
    high_x = max([ridge, *(x for x, _, _ in place)]) * 2
    low_y = min([peak, *(y for _, y, _ in place)]) / 2
    high_y = max([peak, *(y for _, y, _ in place)]) * 2
    width, height, left, top, bottom, right = _WIDTH, 520, 64, 48, 46, 190

    def px(x: float) -> float:
        return left + math.log(x / low_x) / math.log(high_x / low_x) * (width - left - right)

    def py(y: float) -> float:
        return (
            height
            - bottom
            - math.log(y / low_y) / math.log(high_y / low_y) * (height - top - bottom)
        )

    drawing = Drawing(width, height, f"roofline, {dtype}")
    drawing.text(16, 26, f"roofline, {dtype}", size=16, bold=True)
    for value in _decades(low_x, high_x):
        x = px(value)
        drawing.line([(x, top), (x, height - bottom)], _RULE)
        drawing.text(x, height - bottom + 16, f"{value:g}", size=11, anchor="middle")
    for value in _decades(low_y, high_y):
        y = py(value)
        drawing.line([(left, y), (width - right, y)], _RULE)
        drawing.text(left - 6, y + 4, f"{value:g}", size=11, anchor="end")
    middle = (left + width - right) / 2
    said = "floating-point operations per byte that must move"
    drawing.text(middle, height - 10, said, size=12, colour=_SOFT, anchor="middle")
    drawing.text(left - 48, top - 8, "GFLOP/s", size=12, colour=_SOFT)
    start = max(low_x, low_y / speed)
    roof = [(px(start), py(speed * start)), (px(ridge), py(peak)), (px(high_x), py(peak))]
    drawing.line(roof, "#23272d", thick=2)
    drawing.text(px(high_x) + 6, py(peak) + 4, f"matmul {peak:.3g} GFLOP/s", size=11)
    drawing.text(roof[0][0] + 10, roof[0][1] + 18, f"copy {speed:.3g} GB/s", size=11)
    best: dict[tuple[str, str, str], tuple[float, float, Row]] = {}
    for x, y, row in place:
        drawing.dot(px(x), py(y), 4, colour(row["impl"]))
        key = (row["op"], row["shape"], row["mode"])
        if key not in best or y > best[key][1]:
            best[key] = (x, y, row)
    taken: list[tuple[float, float]] = []
    for x, y, row in sorted(best.values(), key=lambda p: -p[1]):  # the fastest of each is named
        spot = (px(x) + 7, py(y) + 4)
        if all(abs(spot[1] - t) > 11 or abs(spot[0] - s) > 150 for s, t in taken):
            words = f"{row['op']} {row['shape']} {row['mode']}"
            drawing.text(*spot, words, size=9, colour=_SOFT)
            taken.append(spot)
    for number, impl in enumerate(dict.fromkeys(r["impl"] for r in points)):
        y = top + 60 + 18 * number
        drawing.dot(width - right + 24, y - 4, 4, colour(impl))
        drawing.text(width - right + 34, y, impl, size=11)
    return drawing


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high]; of a short stretch twos and fives as well."""
    steps = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]


def html(drawings: dict[str, Drawing], rows: Sequence[Row]) -> str:
    """One page with every picture inside; nothing is loaded from elsewhere."""
    about = ""
    if rows:
        row = rows[0]
        versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
        about = f"{row['device']}; {row['threads']} thread(s); {versions}; commit {row['commit']}; "
        about += row["date"]
    figures = "\n".join(f"<figure>{drawing.svg()}</figure>" for drawing in drawings.values())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>colaworld benchmarks</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ margin: 2.5rem auto; max-width: 900px; padding: 0 1rem; color: #23272d; background: #fcfbf8;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }}
p {{ color: #5d646d; }} figure {{ margin: 1.5rem 0; }}
svg {{ max-width: 100%; height: auto; border: 1px solid #e5e2da; border-radius: 8px; }}
</style></head><body>
<h1>colaworld benchmarks</h1>
<p>{escape(about)}</p>
<p>Medians, providers in turns; the thin line spans the 20th to the 80th percentile. Read ratios: each
group was timed in one run. How: benchmarks/README.md.</p>
{figures}
</body></html>
"""
