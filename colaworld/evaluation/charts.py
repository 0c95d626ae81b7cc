"""Charts as inline SVG: lines over phases, intervals, scatter, confusion matrix.

Colours are CSS classes (`c-inferred`, `c-1` ...), so that a chart follows the page from light to
dark and to paper; lines are labelled where they end instead of in a legend. Not here: the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import count

import numpy as np

_ids = count()  # SVG ids must be unique on a page


@dataclass(frozen=True)
class Series:
    """One line. Points with a NaN are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "c-1"  # a CSS class of the page
    label: bool = True


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name: a training phase."""

    name: str
    start: float
    stop: float


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """A tick's text: 0.25, 12, 1.5k, with a true minus sign."""
    thousands = abs(value) >= 1000 and value % 10 == 0
    text = f"{value / 1000:g}k" if thousands else f"{value:.4g}"
    return text.replace("-", "−")


def smooth(values: Sequence[float], *, width: int) -> np.ndarray:
    """Running median over about `width` values: spikes vanish, steps stay sharp."""
    array = np.asarray(values, dtype=float)
    half = max(0, width // 2)
    if half == 0 or array.size < 3:
        return array
    return np.array(
        [np.nanmedian(array[max(0, i - half) : i + half + 1]) for i in range(array.size)]
    )


def _thin(x: np.ndarray, y: np.ndarray, limit: int = 500) -> tuple[np.ndarray, np.ndarray]:
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if x.size <= limit:
        return x, y
    chosen = np.unique(np.linspace(0, x.size - 1, limit).round().astype(int))
    return x[chosen], y[chosen]


def _spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions near the wanted ones, at least `gap` apart and inside [low, high]."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [min(max(wanted[i], low), high) for i in order]
    for _ in range(40):
        for a in range(len(placed) - 1):
            overlap = gap - (placed[a + 1] - placed[a])
            if overlap > 0:
                placed[a] -= overlap / 2
                placed[a + 1] += overlap / 2
        placed = [min(max(p, low), high) for p in placed]
    result = [0.0] * len(wanted)
    for i, p in zip(order, placed, strict=True):
        result[i] = p
    return result


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    y_range: tuple[float, float] | None = None,
    x_ticks: Sequence[float] | None = None,
    points: bool = False,
    width: int = 720,
    height: int = 250,
    margin: int = 124,
) -> str:
    """Lines with labelled ends over named bands, as an <svg> element.

    y_range: by default what the lines span, with 5 % of air. points: mark every point.
    margin: room for the names at the right.
    """
    lines = [(s, *_thin(np.asarray(s.x, float), np.asarray(s.y, float))) for s in series]
    lines = [entry for entry in lines if entry[1].size]
    if not lines:
        return f'<p class="none">Nothing recorded for “{escape(title)}”.</p>'
    left, right, top, bottom = 52, margin, 26 if bands else 12, 40
    x_low = min([float(x.min()) for _, x, _ in lines] + [b.start for b in bands])
    x_high = max([float(x.max()) for _, x, _ in lines] + [b.stop for b in bands])
    if y_range is None:
        low = min(float(y.min()) for _, _, y in lines)
        high = max(float(y.max()) for _, _, y in lines)
        air = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
        y_range = (low - air, high + air)
    y_low, y_high = y_range
    x_span = (x_high - x_low) or 1.0

    def px(x: float) -> float:
        return left + (x - x_low) / x_span * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)

    clip = f"clip{next(_ids)}"
    floor = height - bottom
    out = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">',
        f'<clipPath id="{clip}"><rect x="{left}" y="{top - 2}" '
        f'width="{width - left - right + 4}" height="{floor - top + 4}"/></clipPath>',
    ]
    for i, band in enumerate(bands):
        a, b = px(band.start), px(band.stop)
        out.append(
            f'<rect class="band band-{i % 4}" x="{a:.1f}" y="{top}" width="{max(b - a, 1):.1f}" '
            f'height="{floor - top}"/>'
        )
        if b - a > 7 * len(band.name):
            out.append(
                f'<text class="band-name" x="{(a + b) / 2:.1f}" y="{top - 9}" '
                f'text-anchor="middle">{escape(band.name)}</text>'
            )
    for value in ticks(y_low, y_high):
        y = py(value)
        out.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        out.append(
            f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{short(value)}</text>"
        )
    for value in ticks(x_low, x_high, about=6) if x_ticks is None else x_ticks:
        out.append(
            f'<text class="tick" x="{px(value):.1f}" y="{floor + 17}" text-anchor="middle">'
            f"{short(value)}</text>"
        )
    out.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{floor}" y2="{floor}"/>')
    out.append(
        f'<text class="label" x="{(left + width - right) / 2:.1f}" y="{height - 5}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (top + floor) / 2
    out.append(
        f'<text class="label" x="12" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle:.1f})">{escape(y_label)}</text>'
    )
    for entry, x, y in lines:
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, y, strict=True))
        out.append(
            f'<polyline class="line {entry.style}" points="{path}" clip-path="url(#{clip})"/>'
        )
        if points or x.size == 1:
            out += [
                f'<circle class="dot {entry.style}" cx="{px(a):.1f}" cy="{py(b):.1f}" r="3">'
                f"<title>{escape(entry.name)}: {b:.3f} at {a:g}</title></circle>"
                for a, b in zip(x, y, strict=True)
            ]
    named = [(s, x, y) for s, x, y in lines if s.label]
    spots = _spread([py(float(y[-1])) for _, _, y in named], 15, top + 4, floor - 4)
    for (entry, x, y), spot in zip(named, spots, strict=True):
        end, mark = px(float(x[-1])), min(max(py(float(y[-1])), top), floor)
        out.append(
            f'<path class="leader" d="M{end + 3:.1f} {mark:.1f} L{width - right + 10} {spot:.1f}"/>'
        )
        out.append(
            f'<text class="name {entry.style}" x="{width - right + 13}" y="{spot + 4:.1f}">'
            f"{escape(entry.name)}</text>"
        )
    return "".join(out) + "</svg>"


def whisker(
    value: float,
    low: float | None,
    high: float | None,
    *,
    span: tuple[float, float],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """A number with its interval on a short scale, and what to compare it with, as an <svg>."""
    width, height, pad, axis = 176, 40, 6, 12
    a, b = span
    b = b if b > a else a + 1.0

    def px(v: float) -> float:
        return pad + (min(max(v, a), b) - a) / (b - a) * (width - 2 * pad)

    out = [f'<svg class="whisker" viewBox="0 0 {width} {height}" aria-hidden="true">']
    out.append(f'<line class="axis" x1="{pad}" x2="{width - pad}" y1="{axis}" y2="{axis}"/>')
    previous = -1e9
    for at, name in sorted(marks):
        x = px(at)
        out.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{axis - 7}" y2="{axis + 7}"/>'
        )
        half = 2.9 * len(name)
        place = min(max(x, half + 1), width - half - 1)
        if place - half > previous:  # a name that would overlap the one before is left to the text
            out.append(
                f'<text class="tick" x="{place:.1f}" y="{axis + 22}" text-anchor="middle">'
                f"{escape(name)}</text>"
            )
            previous = place + half + 4
    if low is not None and high is not None:
        out.append(
            f'<line class="range" x1="{px(low):.1f}" x2="{px(high):.1f}" y1="{axis}" y2="{axis}"/>'
        )
    out.append(f'<circle class="value" cx="{px(value):.1f}" cy="{axis}" r="5"/></svg>')
    return "".join(out)


def scatter(predicted: np.ndarray, target: np.ndarray, *, title: str, limit: int = 600) -> str:
    """Predicted against true values of one dimension, with the diagonal. [M] floats each."""
    size, left, bottom, top = 260, 40, 38, 8
    if target.size > limit:
        chosen = np.linspace(0, target.size - 1, limit).round().astype(int)
        predicted, target = predicted[chosen], target[chosen]
    both = np.concatenate([predicted, target])
    low, high = float(both.min()), float(both.max())
    air = (high - low) * 0.04 or 1.0
    low, high = low - air, high + air

    def px(v: float) -> float:
        return left + (v - low) / (high - low) * (size - left - 8)

    def py(v: float) -> float:
        return size - bottom - (v - low) / (high - low) * (size - bottom - top)

    out = [
        f'<svg class="chart square" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="{escape(title, quote=True)}: predicted against true">'
    ]
    for value in ticks(low, high, about=4):
        out.append(
            f'<line class="grid" x1="{left}" x2="{size - 8}" y1="{py(value):.1f}" '
            f'y2="{py(value):.1f}"/>'
            f'<text class="tick" x="{left - 6}" y="{py(value) + 4:.1f}" text-anchor="end">'
            f"{short(value)}</text>"
            f'<text class="tick" x="{px(value):.1f}" y="{size - bottom + 15}" '
            f'text-anchor="middle">{short(value)}</text>'
        )
    out.append(
        f'<line class="mark" x1="{px(low):.1f}" y1="{py(low):.1f}" x2="{px(high):.1f}" '
        f'y2="{py(high):.1f}"/>'
    )
    out += [
        f'<circle class="point" cx="{px(t):.1f}" cy="{py(p):.1f}" r="2.2"/>'
        for p, t in zip(predicted.tolist(), target.tolist(), strict=True)
    ]
    out.append(
        f'<text class="label" x="{(left + size) / 2}" y="{size - 6}" text-anchor="middle">'
        f"true {escape(title)}</text>"
        f'<text class="label" x="11" y="{(size - bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 11 {(size - bottom) / 2})">predicted</text></svg>'
    )
    return "".join(out)


def confusion(
    predicted: np.ndarray, target: np.ndarray, *, names: Sequence[str] = (), limit: int = 18
) -> str:
    """Share of each true class (row) that was read as each class (column). [M] ints each.

    At most `limit` classes, the most frequent ones; the rest is pooled in a last column.
    """
    classes = np.unique(np.concatenate([target, predicted]))
    frequent = {int(c): int((target == c).sum()) for c in classes}
    shown = sorted(sorted(frequent, key=lambda c: -frequent[c])[:limit])
    rows = [c for c in shown if frequent[c]]
    pooled = len(classes) > len(shown)
    columns = [*shown, None] if pooled else list(shown)

    def name(c: int | None) -> str:
        if c is None:
            return "others"
        return names[c].replace("_", " ") if c < len(names) else f"action {c}"

    cell = 30
    left = 12 + int(6.6 * max(len(name(c)) for c in rows)) + 44
    top = 14 + int(4.9 * max(len(name(c)) for c in columns))
    width, height = left + cell * len(columns) + 60, top + cell * len(rows) + 30
    out = [
        f'<svg class="chart matrix" viewBox="0 0 {width} {height}" style="max-width:{width}px" '
        'role="img" aria-label="Confusion matrix of the linear probe">'
    ]
    for j, c in enumerate(columns):
        x = left + cell * (j + 0.5)
        out.append(
            f'<text class="tick" x="{x + 3:.1f}" y="{top - 7}" '
            f'transform="rotate(-45 {x + 3:.1f} {top - 7})">{escape(name(c))}</text>'
        )
    for i, r in enumerate(rows):
        y = top + cell * i
        given = predicted[target == r]
        out.append(
            f'<text class="tick" x="{left - 8}" y="{y + cell / 2 + 4}" text-anchor="end">'
            f'{escape(name(r))} <tspan class="count">{given.size}</tspan></text>'
        )
        for j, c in enumerate(columns):
            hits = np.isin(given, shown, invert=True).sum() if c is None else (given == c).sum()
            share = float(hits) / given.size
            strong = " strong" if share > 0.55 else ""
            out.append(
                f'<rect class="cell" x="{left + cell * j + 1}" y="{y + 1}" width="{cell - 2}" '
                f'height="{cell - 2}" rx="3" style="fill-opacity:{0.04 + 0.96 * share:.3f}">'
                f"<title>{escape(name(r))} read as {escape(name(c))}: {share:.0%}</title></rect>"
            )
            if share >= 0.05:
                out.append(
                    f'<text class="cell-text{strong}" x="{left + cell * (j + 0.5)}" '
                    f'y="{y + cell / 2 + 4}" text-anchor="middle">{share * 100:.0f}</text>'
                )
    out.append(
        f'<text class="label" x="{left + cell * len(columns) / 2}" y="{height - 8}" '
        'text-anchor="middle">read from the latent action, % of each true action</text></svg>'
    )
    return "".join(out)
