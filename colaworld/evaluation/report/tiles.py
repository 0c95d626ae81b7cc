"""Frames as data: URIs for the page: PNG for one image, animated PNG for a rollout, both lossless.

Every moving tile has a still twin (its last frame) for paper and for readers who asked their
system for less motion. Not here: making the rollouts (`artefacts.py`), the tables (`page.html`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from colaworld.evaluation.artefacts import Artefacts

TILE_SIDE = 112  # pixels kept of a tile's longer side: 48 tiles must stay a page one can send
SECONDS, HOLD = 0.35, 1.2  # a frame, and the last frame


def png(frames: np.ndarray, *, seconds: Sequence[float] = ()) -> bytes:
    """[T, H, W, 3] uint8 as a PNG; of more than one frame, one that plays for ever.

    seconds: how long each frame is shown, [T].
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"expected uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}")
    if len(frames) > 1 and len(seconds) != len(frames):
        raise ValueError(f"seconds: expected {len(frames)} durations, got {len(seconds)}")
    first, *others = (Image.fromarray(frame) for frame in frames)
    moving = {}
    if others:
        times = [round(1000 * s) for s in seconds]
        moving = {"save_all": True, "append_images": others, "duration": times, "loop": 0}
    file = io.BytesIO()
    first.save(file, "PNG", optimize=True, **moving)
    return file.getvalue()


def fit(frames: np.ndarray, *, side: int) -> np.ndarray:
    """[..., H, W, 3] -> no side longer than `side`, by averaging whole blocks; never enlarges."""
    factor = -(-max(frames.shape[-3], frames.shape[-2]) // side)
    if factor <= 1:
        return frames
    height, width = frames.shape[-3] // factor, frames.shape[-2] // factor
    cut = frames[..., : height * factor, : width * factor, :]
    blocks = cut.reshape(*frames.shape[:-3], height, factor, width, factor, 3)
    return blocks.mean(axis=(-4, -2)).round().astype(np.uint8)


@dataclass(frozen=True)
class Tile:
    """An image of the page, and the same in motion where it moves."""

    still: str  # data: URI
    moving: str | None
    width: int  # on the page
    small: bool  # shown enlarged, pixel by pixel
    alt: str


def tile(frames: np.ndarray, *, width: int, alt: str) -> Tile:
    """Of [T, H, W, 3] uint8, up to `width` wide: small frames grow in steps of a half."""
    frames = fit(frames, side=TILE_SIDE)
    own, moving = frames.shape[-2], None
    small = own < width
    shown = round(own * max(2, int(2 * width / own)) / 2) if small else width
    if len(frames) > 1:
        # the loop begins with its end, so a page that has just opened already shows differences
        seconds = [HOLD] + [SECONDS] * (len(frames) - 1)
        moving = _uri(png(np.roll(frames, 1, axis=0), seconds=seconds))
    return Tile(_uri(png(frames[-1:])), moving, shown, small, alt)


def _uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def code_blocks(artefacts: Artefacts, *, columns: int = 8) -> Iterator[dict[str, Any]]:
    """Tables of the grid: codes [(name, note)], rows of tiles (a start, then each code held from it).

    They are of nearly equal width: 12 codes are 6 + 6, not 8 + 4.
    """
    videos, names, notes = artefacts.every_code, artefacts.code_names, artefacts.code_notes
    starts, count = videos.shape[:2]
    per_block = -(-count // -(-count // columns))
    width = 108 if per_block > 6 else 144
    for first in range(0, count, per_block):
        shown = range(first, min(first + per_block, count))
        codes = [(names[c], notes[c].replace("_", " ") if notes else "") for c in shown]
        rows = []
        for s in range(starts):
            start = tile(videos[s, first, :1], width=width, alt=f"start {s + 1}")
            held = [
                tile(videos[s, c], width=width, alt=f"start {s + 1} under {names[c]}")
                for c in shown
            ]
            rows.append([start, *held])
        yield {"width": width, "codes": codes, "rows": rows}


def shown_frames(artefacts: Artefacts, *, columns: int = 9) -> list[int]:
    """Frame numbers that the strips show: the last given one and predicted ones."""
    first, length = artefacts.history - 1, artefacts.truth.shape[1]
    return sorted({round(i) for i in np.linspace(first, length - 1, min(columns, length - first))})


def strips(artefacts: Artefacts) -> Iterator[dict[str, Any]]:
    """Rows of tiles, three per clip: the truth, the rollouts under inferred and random actions."""
    kinds = {"truth": "truth", "inferred": "inferred actions", "random": "random actions"}
    for clip in range(len(artefacts.truth)):
        for name, words in kinds.items():
            yield strip(artefacts, name, clip, words=words, gap=name == "truth" and clip > 0)


def strip(
    artefacts: Artefacts, name: str, clip: int, *, words: str, gap: bool = False
) -> dict[str, Any]:
    """A row of tiles: the truth or a rollout of a clip, with the PSNR of its predicted frames.

    words: what it is called; gap: whether there is one above it.
    """
    video, truth, history = getattr(artefacts, name)[clip], artefacts.truth[clip], artefacts.history
    picked, score = shown_frames(artefacts), ""
    width = max(60, min(112, 900 // len(picked) - 6))
    if name != "truth":
        error = np.square((video[history:].astype(float) - truth[history:]) / 255)
        mean = np.maximum(error.mean(axis=(1, 2, 3)), 1e-6)
        score = f"{float((-10 * np.log10(mean)).mean()):.1f} dB"
    tiles = [
        tile(video[t : t + 1], width=width, alt=f"clip {clip + 1}, {words}, frame {t}")
        for t in picked
    ]
    return {"name": name, "words": words, "score": score, "gap": gap, "tiles": tiles}
