"""The atlas as one HTML file: self-contained, no script, no request. Not here: the pictures (atlas.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from colaworld.evaluation.atlas import Atlas, Entry
from colaworld.evaluation.report.charts import tag
from colaworld.evaluation.report.templates import write_page
from colaworld.evaluation.report.tiles import tile

_WIDTH, _CELL = 112, 24
_REAL = 4  # real actions told of each latent one


def write_atlas(
    path: str | Path, atlas: Atlas, *, title: str, version: str, made: str, again: str
) -> Path:
    """Write the page, atomically. `made`: from what; `again`: the command that makes it again."""
    rows = [_row(entry, atlas.action_names) for entry in atlas.entries]
    replay = next((e.replay for e in atlas.entries if e.replay is not None), None)
    return write_page(
        path,
        Path(__file__).with_name("atlas.html"),
        title=title,
        foot=again,
        version=version,
        made=made,
        atlas=atlas,
        shown=len(atlas.entries),
        rows=rows,
        grid=None if atlas.grid is None else pair_grid(atlas.grid),
        replays=replay is not None,
        steps=0 if replay is None else len(replay) - 1,
        examples=max(len(entry.examples) for entry in atlas.entries),
        measured=any(row["real"] for row in rows),
    )


def _row(entry: Entry, names: tuple[str, ...]) -> dict[str, Any]:
    said = f"under {entry.name}"
    return {
        "entry": entry,
        "shift": ", ".join(f"{pixels:+d}" if pixels else "0" for pixels in entry.shift),
        "difference": tile(entry.difference[None], width=_WIDTH, alt=f"mean difference {said}"),
        "replay": None
        if entry.replay is None
        else tile(entry.replay, width=_WIDTH, alt=f"replay {said}"),
        "examples": [
            tile(pair, width=_WIDTH, alt=f"example {number} {said}")
            for number, pair in enumerate(entry.examples, start=1)
        ],
        "real": real_lines(entry, names),
    }


def real_lines(entry: Entry, names: tuple[str, ...]) -> list[str]:
    """What was really done, a line for each of the most frequent classes or of the dimensions."""
    if entry.real:
        lines = [f"{name.replace('_', ' ')} {share:.0%}" for name, share in entry.real[:_REAL]]
        rest = sum(share for _, share in entry.real[_REAL:])
        return [*lines, f"others {rest:.0%}"] if rest else lines
    named = names or tuple(f"dimension {i}" for i in range(len(entry.mean)))
    values = list(zip(named, entry.mean, entry.spread, strict=True)) if entry.mean else []
    lines = [f"{name} {mean:+.3g} ± {spread:.2g}" for name, mean, spread in values[: 2 * _REAL]]
    return [*lines, f"{len(values) - len(lines)} more"] if len(values) > len(lines) else lines


def pair_grid(shares: np.ndarray) -> Markup:
    """A square cell for each pair of codes, the darker the more frequent. shares: [K, K]."""
    size = len(shares)
    side, edge = size * _CELL, 30
    most = max(float(shares.max()), 1e-12)
    parts = []
    for i in range(size):
        at = edge + i * _CELL + _CELL / 2
        label = {"class_": "count", "text_anchor": "middle"}
        parts.append(tag("text", str(i), x=at, y=float(edge - 8), **label))
        parts.append(tag("text", str(i), x=float(edge - 12), y=at + 4, **label))
    for i, j in np.argwhere(shares > 0):
        share = float(shares[i, j])
        where = {"x": float(edge + j * _CELL + 1), "y": float(edge + i * _CELL + 1)}
        opacity = f"{0.12 + 0.88 * share / most:.2f}"
        said = tag("title", f"{i}·{j}: {share:.1%}")
        parts.append(
            tag(
                "rect",
                said,
                class_="cell",
                **where,
                width=_CELL - 2,
                height=_CELL - 2,
                fill_opacity=opacity,
            )
        )
    whole = side + edge + 2
    return tag(
        "svg",
        *parts,
        class_="chart",
        viewBox=f"0 0 {whole} {whole}",
        style=f"max-width:{whole}px",
        role="img",
        aria_label="share of each pair of codes",
    )
