"""Charts as inline SVG: lines over phases, intervals, scatter, confusion matrix.

Colours are CSS classes (`c-inferred`, `c-1` ...), so that a chart follows the page from light to
dark and to paper; lines are labelled where they end instead of in a legend. Not here: the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from markupsafe import Markup, escape

_ids = count()  # SVG ids must be unique on a page


@dataclass(frozen=True)
class Series:
    """One line. Points with a NaN are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "c-1"  # a CSS class of the page
    label: bool = True
    low: Sequence[float | None] = ()  # bounds of each y; with `high`, a shade behind the line
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name: a training phase."""

    name: str
    start: float
    stop: float


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element: floats with one digit, names as in Python (class_, text_anchor), text escaped."""
    shown = []
    for key, value in attributes.items():
        value = f"{value:.1f}" if isinstance(value, float) else value
        shown.append(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"')
    return Markup(f"<{name}{''.join(shown)}>{''.join(map(escape, inside))}</{name}>")


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """The straight line that takes [low, high] to [start, stop]."""
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _tick(text: str, **attributes: object) -> Markup:
    return tag("text", text, class_="tick", **attributes)


def _labels(x: float, y: float, x_label: str, y_label: str, *, bottom: float, side: int) -> Markup:
    """The names of both axes: around x at height `bottom`, and turned around y at `side`."""
    turned = f"rotate(-90 {side} {y:.1f})"
    across = tag("text", x_label, class_="label", x=x, y=bottom, text_anchor="middle")
    up = {"class_": "label", "x": side, "y": y, "text_anchor": "middle", "transform": turned}
    return across + tag("text", y_label, **up)


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


def _floats(values: Sequence[float | None]) -> np.ndarray:
    """Numbers, with NaN for what is missing."""
    return np.array([np.nan if v is None else v for v in values], dtype=float)


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
    about: int = 6,
) -> Markup:
    """Lines with labelled ends over named bands, as an <svg> element.

    y_range: by default what the lines span, with 5 % of air. points: mark every point.
    margin: room for the names at the right. about: how many ticks x has without `x_ticks`.
    """
    lines = [(s, *_thin(np.asarray(s.x, float), np.asarray(s.y, float))) for s in series]
    lines = [entry for entry in lines if entry[1].size]
    shades = [(s, _floats(s.x), _floats(s.low), _floats(s.high)) for s in series if len(s.low)]
    shades = [entry for entry in shades if np.isfinite(entry[2]).any()]
    if not lines:
        return tag("p", f"Nothing recorded for “{title}”.", class_="none")
    left, right, top, floor = 52, width - margin, 26 if bands else 12, height - 40
    x_low = min([float(x.min()) for _, x, _ in lines] + [b.start for b in bands])
    x_high = max([float(x.max()) for _, x, _ in lines] + [b.stop for b in bands])
    if y_range is None:
        low = min(float(y.min()) for y in [e[2] for e in lines] + [np.nanmin(e[2]) for e in shades])
        high = max(
            float(y.max()) for y in [e[2] for e in lines] + [np.nanmax(e[3]) for e in shades]
        )
        air = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
        y_range = (low - air, high + air)
    px = _scale(x_low, x_high if x_high > x_low else x_low + 1.0, left, right)
    py = _scale(*y_range, floor, top)
    clip = f"clip{next(_ids)}"
    inner = tag("rect", x=left, y=top - 2, width=right - left + 4, height=floor - top + 4)
    out = [tag("clipPath", inner, id=clip)]
    for i, band in enumerate(bands):
        a, b = px(band.start), px(band.stop)
        kind = f"band band-{i % 4}"
        out.append(tag("rect", class_=kind, x=a, y=top, width=max(b - a, 1.0), height=floor - top))
        if b - a > 7 * len(band.name):
            at = {"x": (a + b) / 2, "y": top - 9, "text_anchor": "middle"}
            out.append(tag("text", band.name, class_="band-name", **at))
    for value in ticks(*y_range):
        y = py(value)
        out.append(tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        out.append(_tick(short(value), x=left - 8, y=y + 4, text_anchor="end"))
    for value in ticks(x_low, x_high, about=about) if x_ticks is None else x_ticks:
        out.append(_tick(short(value), x=px(value), y=floor + 17, text_anchor="middle"))
    out.append(tag("line", class_="axis", x1=left, x2=right, y1=floor, y2=floor))
    middle = ((left + right) / 2, (top + floor) / 2)
    out.append(_labels(*middle, x_label, y_label, bottom=height - 5, side=12))
    for entry, xs, bottom, top_ in shades:
        keep = np.isfinite(bottom) & np.isfinite(top_)
        there = list(zip(xs[keep], top_[keep], strict=True))
        back = list(zip(xs[keep], bottom[keep], strict=True))[::-1]
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in there + back)
        out.append(tag("polygon", class_=f"shade {entry.style}", points=path))
    for entry, xs, ys in lines:
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(xs, ys, strict=True))
        kind = f"line {entry.style}"
        out.append(tag("polyline", class_=kind, points=path, clip_path=f"url(#{clip})"))
        for a, b in zip(xs, ys, strict=True) if points or xs.size == 1 else ():
            words = tag("title", f"{entry.name}: {b:.3f} at {a:g}")
            out.append(tag("circle", words, class_=f"dot {entry.style}", cx=px(a), cy=py(b), r=3))
    named = [entry for entry in lines if entry[0].label]
    spots = _spread([py(float(y[-1])) for _, _, y in named], 15, top + 4, floor - 4)
    for (entry, xs, ys), spot in zip(named, spots, strict=True):
        end, mark = px(float(xs[-1])), min(max(py(float(ys[-1])), top), floor)
        leader = f"M{end + 3:.1f} {mark:.1f} L{right + 10} {spot:.1f}"
        out.append(tag("path", class_="leader", d=leader))
        out.append(tag("text", entry.name, class_=f"name {entry.style}", x=right + 13, y=spot + 4))
    box = f"0 0 {width} {height}"
    return tag("svg", *out, class_="chart", viewBox=box, role="img", aria_label=title)


def whisker(
    value: float,
    low: float | None,
    high: float | None,
    *,
    span: tuple[float, float],
    marks: Sequence[tuple[float, str]] = (),
    unit: str = "",
) -> Markup:
    """A number with its interval on a short scale, and what to compare it with, as an <svg>.

    Marks are named with their place; names that would overlap stand in rows below each other.
    """
    width, pad, axis = 176, 6, 12
    a, b = span
    b = b if b > a else a + 1.0
    scale = _scale(a, b, pad, width - pad)

    def px(v: float) -> float:
        return float(scale(min(max(v, a), b)))

    out = [tag("line", class_="axis", x1=pad, x2=width - pad, y1=axis, y2=axis)]
    ends: list[float] = []  # of each row of names, how far it is filled
    for at, name in sorted(marks):
        x, words = px(at), f"{name} {short(round(at, 2))}{unit and ' ' + unit}"
        half = 2.75 * len(words)
        place = min(max(x, half + 1), width - half - 1)
        row = next((r for r, end in enumerate(ends) if place - half > end), len(ends))
        ends[row:] = [place + half + 4, *ends[row + 1 :]]
        out.append(tag("line", class_="mark", x1=x, x2=x, y1=axis - 7, y2=axis + 7))
        out.append(_tick(words, x=place, y=axis + 22 + 12 * row, text_anchor="middle"))
    height = axis + 16 + 12 * max(1, len(ends))
    if low is not None and high is not None:
        out.append(tag("line", class_="range", x1=px(low), x2=px(high), y1=axis, y2=axis))
    out.append(tag("circle", class_="value", cx=px(value), cy=axis, r=5))
    box = f"0 0 {width} {height}"
    return tag("svg", *out, class_="whisker", viewBox=box, aria_hidden="true")


def scatter(predicted: np.ndarray, target: np.ndarray, *, title: str, limit: int = 600) -> Markup:
    """Predicted against true values of one dimension, with the diagonal. [M] floats each."""
    size, left, floor, top = 260, 40, 222, 8
    if target.size > limit:
        chosen = np.linspace(0, target.size - 1, limit).round().astype(int)
        predicted, target = predicted[chosen], target[chosen]
    both = np.concatenate([predicted, target])
    low, high = float(both.min()), float(both.max())
    air = (high - low) * 0.04 or 1.0
    low, high = low - air, high + air
    px, py = _scale(low, high, left, size - 8), _scale(low, high, floor, top)
    out = []
    for value in ticks(low, high, about=4):
        x, y = px(value), py(value)
        out.append(tag("line", class_="grid", x1=left, x2=size - 8, y1=y, y2=y))
        out.append(_tick(short(value), x=left - 6, y=y + 4, text_anchor="end"))
        out.append(_tick(short(value), x=x, y=floor + 15, text_anchor="middle"))
    out.append(tag("line", class_="mark", x1=px(low), y1=py(low), x2=px(high), y2=py(high)))
    for p, t in zip(predicted.tolist(), target.tolist(), strict=True):
        out.append(tag("circle", class_="point", cx=px(t), cy=py(p), r="2.2"))
    middle = ((left + size) / 2, floor / 2)
    out.append(_labels(*middle, f"true {title}", "predicted", bottom=size - 6, side=11))
    about = {"role": "img", "aria_label": f"{title}: predicted against true"}
    return tag("svg", *out, class_="chart square", viewBox=f"0 0 {size} {size}", **about)


def confusion(
    predicted: np.ndarray, target: np.ndarray, *, names: Sequence[str] = (), limit: int = 18
) -> Markup:
    """Share of each true class (row) that was read as each class (column). [M] ints each.

    At most `limit` classes, the most frequent ones; the rest is pooled in a last column.
    """
    classes = np.unique(np.concatenate([target, predicted]))
    frequent = {int(c): int((target == c).sum()) for c in classes}
    shown = sorted(sorted(frequent, key=lambda c: -frequent[c])[:limit])
    rows = [c for c in shown if frequent[c]]
    columns = [*shown, None] if len(classes) > len(shown) else list(shown)

    def name(c: int | None) -> str:
        if c is None:
            return "others"
        return names[c].replace("_", " ") if c < len(names) else f"action {c}"

    cell = 30
    left = 12 + int(6.6 * max(len(name(c)) for c in rows)) + 44
    top = 14 + int(4.9 * max(len(name(c)) for c in columns))
    width, height = left + cell * len(columns) + 60, top + cell * len(rows) + 8
    out = []
    for j, c in enumerate(columns):
        x = left + cell * (j + 0.5) + 3
        out.append(_tick(name(c), x=x, y=top - 7, transform=f"rotate(-45 {x:.1f} {top - 7})"))
    for i, r in enumerate(rows):
        y = top + cell * i
        given = predicted[target == r]
        size = tag("tspan", str(given.size), class_="count")
        words = escape(name(r)) + " " + size
        out.append(_tick(words, x=left - 8, y=y + cell / 2 + 4, text_anchor="end"))
        for j, c in enumerate(columns):
            hits = np.isin(given, shown, invert=True).sum() if c is None else (given == c).sum()
            share = float(hits) / given.size
            told = tag("title", f"{name(r)} read as {name(c)}: {share:.0%}")
            at: dict[str, Any] = {
                "x": left + cell * j + 1,
                "y": y + 1,
                "width": cell - 2,
                "height": cell - 2,
            }
            shade = f"fill-opacity:{0.04 + 0.96 * share:.3f}"
            out.append(tag("rect", told, class_="cell", **at, rx=3, style=shade))
            if share >= 0.05:
                at = {"x": left + cell * (j + 0.5), "y": y + cell / 2 + 4, "text_anchor": "middle"}
                strong = "cell-text strong" if share > 0.55 else "cell-text"
                out.append(tag("text", f"{share * 100:.0f}", class_=strong, **at))
    about = {"role": "img", "aria_label": "Confusion matrix of the linear probe"}
    box, wide = f"0 0 {width} {height}", f"max-width:{width}px"
    return tag("svg", *out, class_="chart matrix", viewBox=box, style=wide, **about)
