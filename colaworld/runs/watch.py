"""A run's checkpoints evaluated as they appear: how control and meaning grow while it trains.

    evaluations.jsonl    in the run's folder, a row for each checkpoint: where training stood, and the
                         headline numbers of an evaluation, each with its interval

Rows that are there are kept and their checkpoints left out, so watching goes on where it stopped. It ends
with the run: finished, or over without being so (`over`).
Not here: measuring (evaluation.py), the curves (evaluation/report).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from colaworld.config import ConfigError
from colaworld.evaluation.layout import check_row
from colaworld.files import FileError, held, read_json, write_atomically
from colaworld.runs.load import finished_weights
from colaworld.training.checkpoint import Checkpoint, CheckpointError, find_checkpoints
from colaworld.training.run_folder import ENDED

log = logging.getLogger(__name__)
FILE = "evaluations.jsonl"
SILENT = 300.0  # seconds
_WRITTEN = ("config.yaml", "metrics.jsonl")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of evaluations.jsonl, none where there is no file. Raises FileError on what is no row."""
    path = folder / FILE
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(
        path.read_bytes().splitlines() if path.is_file() else (), start=1
    ):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON
            raise FileError(f"{path}, line {number}: not JSON: {error}; delete it") from None
        check_row(row, source=f"{path}, line {number}")
        rows.append(row)
    return rows


def row_of(checkpoint: Checkpoint, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluation of a checkpoint."""
    progress = checkpoint.state["progress"]
    run = result.get("run") or {}
    codebook, probe = result.get("codebook") or {}, result.get("probe") or {}
    return {
        "global_step": progress["global_step"],
        "step": progress["step"],
        "phase": progress["phase"],
        "checkpoint": checkpoint.path.name,
        "delta_psnr": result["delta_psnr"]["random"],
        "psnr": result["rollout"]["psnr"],
        "probe": probe.get("score"),
        "entropy_normalised": codebook.get("entropy_normalised"),
        "rolled": result["clips"]["rolled"],
        "settings": result["config"],
        "commit": run.get("commit"),
    }


def over(folder: Path) -> str | None:
    """Why a run that is not finished does not go on, in words; None: it may.

    Without ended.json (killed) it is over once no process holds it and its rows are old: where a file
    system does not share locks between machines, rows are all there is to see.
    """
    file = folder / ENDED
    if file.is_file():
        said = read_json(file, made_by="`colaworld train`")
        if not isinstance(said, dict) or not {"status", "why"} <= said.keys():
            raise FileError(f"{file}: expected status and why, got {said!s:.80}; delete it")
        return f"{said['status']}: {said['why']}"
    latest = [p.stat().st_mtime for name in _WRITTEN if (p := folder / name).is_file()]
    if not latest:
        return "its files are gone"
    if time.time() - max(latest) < SILENT or held(folder):
        return None
    return f"no process trains in it, and nothing was written for {SILENT:.0f} s (killed?)"


def watch(
    folder: Path,
    measure: Callable[[Checkpoint], Mapping[str, Any]],
    *,
    settings: Mapping[str, Any],
    poll: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Rows as they are made, oldest checkpoint first; ends when the run is finished, or is seen to be
    `over` in two looks, which is warned of, and all are done.

    Args:
        folder: of a run, which may still train.
        measure: evaluates one checkpoint, to a result of `run_evaluation`.
        settings: of the evaluation, as JSON, and of the "sampler"; rows made under others are refused.
        poll: seconds between two looks.
        sleep: waits so long.

    Raises:
        ConfigError: evaluations.jsonl holds rows of other settings, or of other clips.
    """
    rows = read_rows(folder)
    for row in rows:
        changed = [k for k, v in settings.items() if row.get("settings", {}).get(k, v) != v]
        if changed:
            key, was = changed[0], row["settings"][changed[0]]
            named = key if key == "sampler" else f"evaluation.{key}"
            raise ConfigError(
                f"{folder / FILE}: its rows were made with {named} {was!r}, asked for "
                f"{settings[key]!r}; ask for the same, or move the file away"
            )
    done = {row["checkpoint"] for row in rows}
    before = None
    while True:
        # Before the look: what is there then is all.
        finished = finished_weights(folder) is not None
        why = None if finished else over(folder)
        waiting = [c for c in find_checkpoints(folder / "checkpoints") if c.path.name not in done]
        for checkpoint in waiting:
            done.add(checkpoint.path.name)
            try:
                row = row_of(checkpoint, measure(checkpoint))
            except (CheckpointError, FileNotFoundError) as error:
                if checkpoint.path.is_dir():
                    raise
                log.warning("%s was deleted before it was read: %s", checkpoint.path.name, error)
                continue
            except ConfigError as error:  # as of a training whose codes have not begun yet
                log.warning("%s cannot be evaluated: %s", checkpoint.path.name, error)
                continue
            row["settings"] = {**row["settings"], **settings}
            if rows and rows[0].get("rolled", row["rolled"]) != row["rolled"]:
                raise ConfigError(
                    f"{folder / FILE}: its rows were measured on other clips (data, or how they are cut); "
                    "ask for the same --data, or move the file away"
                )
            rows = sorted([*rows, row], key=lambda r: r["global_step"])
            write_atomically(folder / FILE, "".join(json.dumps(r) + "\n" for r in rows))
            yield row
        if waiting:
            continue
        if finished:
            return
        if why is not None and why == before:
            log.warning(
                "%s is not finished (%s): watching ends; once it is resumed, watch again",
                folder,
                why,
            )
            return
        before = why
        sleep(poll)
