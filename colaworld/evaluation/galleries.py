"""The report's pictures as HTML tables: "same start, every code", and inferred against truth.

Every moving tile has a still twin (its last frame) for paper and for readers who asked their
system for less motion. Not here: making the rollouts (`artefacts.py`).
"""

from __future__ import annotations

from html import escape

import numpy as np

from colaworld.evaluation.artefacts import Artefacts
from colaworld.evaluation.pictures import animated_png, data_uri, fit, png

TILE_SIDE = 112  # pixels kept of a tile's longer side: 48 tiles must stay a page one can send
SECONDS, HOLD = 0.35, 1.2  # a frame, and the last frame


def _display(frames: np.ndarray, width: int) -> tuple[int, str]:
    """Display width up to `width`, and the image's class: small frames grow in steps of a half."""
    own = frames.shape[-2]
    if own >= width:
        return width, ""
    return round(own * max(2, int(2 * width / own)) / 2), ' class="small"'


def still(image: np.ndarray, *, width: int, alt: str) -> str:
    """One <img> of [H, W, 3] uint8."""
    image = fit(image, side=TILE_SIDE)
    shown, kind = _display(image, width)
    return (
        f'<img{kind} src="{data_uri(png(image))}" width="{shown}" alt="{escape(alt, quote=True)}">'
    )


def moving(frames: np.ndarray, *, width: int, alt: str) -> str:
    """An animated tile of [T, H, W, 3] uint8 and its still twin."""
    frames = fit(frames, side=TILE_SIDE)
    shown, kind = _display(frames, width)
    small = " small" if kind else ""
    # the loop begins with its end, so that a page that has just opened already shows differences
    seconds = [HOLD] + [SECONDS] * (len(frames) - 1)
    animation = data_uri(animated_png(np.roll(frames, 1, axis=0), seconds=seconds))
    last = data_uri(png(frames[-1]))
    alt = escape(alt, quote=True)
    return (
        f'<img class="moving{small}" src="{animation}" width="{shown}" alt="{alt}">'
        f'<img class="still{small}" src="{last}" width="{shown}" alt="{alt}, last frame">'
    )


def every_code(artefacts: Artefacts, *, columns: int = 8) -> str:
    """Rows are starts, columns are codes; each tile plays one code held from one start."""
    videos = artefacts.every_code
    starts, codes = videos.shape[:2]
    # blocks of nearly equal width: 12 codes are 6 + 6, not 8 + 4
    blocks = -(-codes // columns)
    per_block = -(-codes // blocks)
    out = []
    for first in range(0, codes, per_block):
        shown = range(first, min(first + per_block, codes))
        width = 108 if per_block > 6 else 144
        out.append('<div class="scroll"><table class="tiles"><thead><tr>')
        out.append('<th scope="col" class="edge">start</th>')
        for c in shown:
            note = artefacts.code_notes[c] if artefacts.code_notes else ""
            small = (
                f"<small>{escape(note.replace('_', ' ').replace('-', '−'))}</small>" if note else ""
            )
            name = escape(artefacts.code_names[c])
            out.append(f'<th scope="col" style="max-width:{width}px">{name}{small}</th>')
        out.append("</tr></thead><tbody>")
        for s in range(starts):
            start = still(videos[s, shown[0], 0], width=width, alt=f"start {s + 1}")
            out.append(f'<tr><td class="edge">{start}</td>')
            for c in shown:
                alt = f"start {s + 1} under {artefacts.code_names[c]}"
                out.append(f"<td>{moving(videos[s, c], width=width, alt=alt)}</td>")
            out.append("</tr>")
        out.append("</tbody></table></div>")
    return "".join(out)


def _psnr(video: np.ndarray, truth: np.ndarray) -> float:
    error = np.square((video.astype(np.float64) - truth) / 255).mean(axis=(1, 2, 3))
    return float((-10 * np.log10(np.maximum(error, 1e-6))).mean())


def strips(artefacts: Artefacts, *, columns: int = 9) -> str:
    """For each shown clip: the truth, the rollout under inferred and under random actions."""
    length, history = artefacts.truth.shape[1], artefacts.history
    picked = range(history - 1, length)  # the last given frame and the predicted ones
    if len(picked) > columns:
        picked = sorted({round(i) for i in np.linspace(history - 1, length - 1, columns)})
    width = max(60, min(112, 900 // len(picked) - 6))
    out = ['<div class="scroll"><table class="tiles"><thead><tr><th scope="col"></th>']
    for t in picked:
        name = "given" if t < history else f"step {t - history + 1}"
        out.append(f'<th scope="col">{name}</th>')
    out.append("</tr></thead><tbody>")
    kinds = (("truth", "truth"), ("inferred", "inferred actions"), ("random", "random actions"))
    for clip in range(artefacts.truth.shape[0]):
        for row, (name, words) in enumerate(kinds):
            video = getattr(artefacts, name)[clip]
            gap = ' class="gap"' if row == 0 and clip else ""
            out.append(f'<tr{gap}><th scope="row" class="row"><span class="key {name}"></span>')
            score = ""
            if name != "truth":
                score = f"{_psnr(video[history:], artefacts.truth[clip][history:]):.1f} dB"
            out.append(f"{words}<small>{score}</small></th>")
            for t in picked:
                given = ' class="given"' if t < history else ""
                alt = f"clip {clip + 1}, {words}, frame {t}"
                out.append(f"<td{given}>{still(video[t], width=width, alt=alt)}</td>")
            out.append("</tr>")
    return "".join(out) + "</tbody></table></div>"
