"""The same held-out clips as every arm rolls them out, under the actions that it infers: rows of pictures.

Not here: how a strip is made (evaluation/report/tiles.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from colaworld.evaluation.artefacts import Artefacts
from colaworld.evaluation.report.tiles import shown_frames, strip
from colaworld.studies.job import Job

CLIPS = 2


def rollouts_of(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """By data set: rows of tiles, the numbers of the frames that they show, and how many frames were given.

    Of each arm the first seed whose pictures are there and can be read. An arm that was evaluated on other clips
    than the first is left out.
    """
    found: dict[str, dict[str, tuple[int, Artefacts]]] = {}
    runs = [(job.base, *job.of) for job in jobs if job.of]
    # Jobs are in the order of seeds.
    for base, _, data, arm, seed in sorted(runs, key=lambda run: run[1].arms.index(run[3])):
        arms = found.setdefault(data.name, {})
        if arm.name not in arms and (artefacts := _read(base / "evaluation.npz")):
            arms[arm.name] = (seed, artefacts)
    return {data: _rows(arms) for data, arms in found.items() if arms}


def _read(path: Path) -> Artefacts | None:
    try:
        return Artefacts.load(path)
    except (OSError, ValueError, BadZipFile):
        return None


def _rows(arms: dict[str, tuple[int, Artefacts]]) -> dict[str, Any]:
    _, first = next(iter(arms.values()))
    alike = {
        f"{name}, seed {seed}": one
        for name, (seed, one) in arms.items()
        if one.history == first.history and np.array_equal(one.truth, first.truth)
    }
    rows = []
    for clip in range(min(CLIPS, len(first.truth))):
        rows.append(strip(first, "truth", clip, words="recorded", gap=clip > 0))
        rows += [strip(one, "inferred", clip, words=name) for name, one in alike.items()]
    return {"rows": rows, "frames": shown_frames(first), "history": first.history}
