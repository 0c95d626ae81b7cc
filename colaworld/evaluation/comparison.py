"""Several evaluated runs side by side: what was evaluated alike is compared, the rest is named.

The first run is the one the others are held against. A run on other clips, of another size or
horizon stands in no table: its numbers answer another question. Differences are paired: both runs
of a difference are resampled by the same episodes. Not here: the numbers (`measures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from colaworld.evaluation.layout import OWN_NOISE
from colaworld.evaluation.measures.measure import Headline, number
from colaworld.evaluation.settings import RandomStream
from colaworld.evaluation.tables import columns, headlines
from colaworld.metrics.bootstrap import bootstrap_statistic

_OLDER = "of an earlier version, which does not say on which clips; evaluate it again to compare it"
_DIFFERENCE = "difference"


@dataclass(frozen=True)
class Comparison:
    """The first run, those evaluated alike (best delta-PSNR first), and what is to be known of others."""

    rows: list[list[str]]  # a header, then each run, and below it the differences to the first
    alike: list[str]  # names in the order of the rows
    notes: dict[str, str]  # name -> in what it differs; not compared where it is not in `alike`

    def text(self) -> str:
        """For a terminal."""
        lines = [columns(self.rows)]
        for name, note in self.notes.items():
            lines.append(f"{name}: {note if name in self.alike else f'not compared: {note}'}")
        return "\n".join(lines)


def comparison(results: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Of evaluations by name. Raises ValueError without any."""
    if not results:
        raise ValueError("compare: expected at least one run")
    first, *others = results
    base = results[first]
    apart = {name: _apart(results[name], base) for name in others}
    notes = {name: "; ".join(found) for name, found in apart.items() if found}
    like = [name for name in others if not apart[name]]
    for name in like:
        if hints := _hints(results[name], base):
            notes[name] = "; ".join(hints)
    gains = {name: results[name]["delta_psnr"]["random"]["mean"] for name in like}
    like.sort(key=lambda name: (gains[name] is None, -(gains[name] or 0.0)))
    alike = [first, *like]
    cells = {name: _cells(results[name]) for name in alike}
    named = list(dict.fromkeys(column for found in cells.values() for column in found))
    rows = [["run", *named]]
    for name in alike:
        shown = [cells[name].get(column) for column in named]
        rows.append([name, *("-" if cell is None else cell.text() for cell in shown)])
        if name != first and "clips" in base and "clips" in results[name]:
            pairs = [
                (cell, cells[first].get(column)) for cell, column in zip(shown, named, strict=True)
            ]
            told = [_difference(*pair, results[name], base) for pair in pairs]
            rows.append([f"  {_DIFFERENCE} to {first}", *told])
    return Comparison(rows, alike, notes)


def _cells(result: Mapping[str, Any]) -> dict[str, Headline]:
    """Judged numbers by the name of their column: what means something else has another name."""
    found = {h.name: h for h in headlines(result) if h.judgement is not None}
    if result["world"]["codebook_size"] is None:  # random actions are then other clips' latents
        for name in [n for n in found if n.endswith("over random codes")]:
            now = name.replace("random codes", "others' latents")
            found = {now if n == name else n: h for n, h in found.items()}
    return found


def _apart(result: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Why two evaluations cannot be compared, in words; empty where they can."""
    found = []
    named = [(r.get("data") or {}).get("name") for r in (result, base)]
    if None not in named and named[0] != named[1]:
        found.append(f"data set {named[0]}, not {named[1]}")
    a, b = result["counts"], base["counts"]
    if (a["height"], a["width"]) != (b["height"], b["width"]):
        found.append(f"{a['height']}x{a['width']} px, not {b['height']}x{b['width']}")
    for key, words in (
        ("clips", "{} clips"),
        ("episodes", "{} episodes"),
        ("history", "{} given frames"),
        ("horizon", "horizon {}"),
    ):
        if a[key] != b[key]:
            found.append(f"{words.format(a[key])}, not {b[key]}")
    rolled = [(r.get("clips") or {}).get("rolled") for r in (result, base)]
    if not found and None not in rolled and rolled[0] != rolled[1]:
        found.append("other clips or other pixels of the same number and size")
    return found


def _hints(result: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know of a run that is in it."""
    found = []
    if "clips" not in result or "clips" not in base:
        whose = "this one" if "clips" not in result else "the first"
        return [f"it is not known that both saw the same clips: {whose} is {_OLDER}"]
    kinds = [(r.get("probe") or {}).get("kind") for r in (result, base)]
    if None not in kinds and kinds[0] != kinds[1]:
        found.append(f"its probe is measured by {kinds[0]}, not {kinds[1]}")
    elif result["clips"]["probed"] != base["clips"]["probed"]:
        found.append("its probe and codebook were measured on other clips or actions")
    seeds = [(r.get("config") or {}).get("seed") for r in (result, base)]
    if seeds[0] != seeds[1]:
        found.append(f"other noise (evaluation.seed {seeds[0]}, not {seeds[1]})")
    versions = [r.get("format_version", 1) for r in (result, base)]
    if len({version < OWN_NOISE for version in versions}) == 2:
        found.append(f"other noise (format_version {versions[0]}, not {versions[1]})")
    if len({r["world"]["codebook_size"] is None for r in (result, base)}) == 2:
        shown = [number(r["delta_psnr"]["shuffled"]["mean"], "dB") for r in (result, base)]
        found.append(
            "continuous latents against codes: compare delta-PSNR over shuffled actions, "
            f"{shown[0]} to {shown[1]}"
        )
    return found


def _difference(
    cell: Headline | None,
    first: Headline | None,
    result: Mapping[str, Any],
    base: Mapping[str, Any],
) -> str:
    """ "+0.30 [+0.10, +0.50]": a number minus the first run's, with a paired interval where it has one."""
    if cell is None or first is None or cell.value is None or first.value is None:
        return "-"
    digits = cell.digits
    if cell.over is None:
        same = result["clips"]["probed"] == base["clips"]["probed"]
        return f"{cell.value - first.value:+.{digits}f}" if same else "-"
    mine, theirs = (
        {name: np.asarray(values, float) for name, values in r["clips"]["values"].items()}
        for r in (result, base)
    )
    over = cell.over

    def gap(rows: np.ndarray) -> float:
        taken = [{name: v[rows] for name, v in values.items()} for values in (mine, theirs)]
        return over(taken[0]) - over(taken[1])

    try:
        found = bootstrap_statistic(
            gap,
            base["clips"]["episode"],
            samples=1000,
            generator=np.random.default_rng([0, RandomStream.COMPARISON]),
        )
    except KeyError:  # one of both files lacks this measure's numbers of each clip
        return "-"
    if not np.isfinite(found.low):
        return f"{found.mean:+.{digits}f}"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
