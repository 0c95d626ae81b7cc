"""Latent actions as columns of a LeRobot set: their names, and whose they are.

    latent_action.code     int64 [N]        entries of the codebook; absent where there is none
    latent_action.vector   float32 [N * d]  what the world is given, token after token
    latent_action.valid    bool             whether the row is an action at all

    estimated_action             int64, or float32 [A]   the real action that a world's head makes of the
                                                         vector; where the world was adapted to a robot
    estimated_action.confidence  float32                 of a class: the head's own probability

    meta/latent_actions.json   the model's hash, the data's, sizes, rate, what was left out; what real actions
                               were estimated, and how wrong the head was on held-out clips

Row t leads from frame t on. Not here: how they are made (runs/label.py), written (labelled_set.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from colaworld.data.errors import DataError
from colaworld.files import FileError, check_seal, read_json

CODE, VECTOR, VALID = (f"latent_action.{name}" for name in ("code", "vector", "valid"))
ESTIMATE, CONFIDENCE = "estimated_action", "estimated_action.confidence"
COLUMNS = (CODE, VECTOR, VALID, ESTIMATE, CONFIDENCE)  # in the order they are written
PROVENANCE = "meta/latent_actions.json"
FORMAT = 1  # raised when a column or a field of the provenance comes to mean something else


def read_labels(folder: Path | str) -> dict[str, Any]:
    """What a set says of its latent actions: the content of meta/latent_actions.json.

    Raises DataError where it has none, or they are of another format or not as they were written.
    """
    path = Path(folder) / PROVENANCE
    try:
        said = read_json(path, made_by="colaworld label")
        whole = isinstance(said, dict) and check_seal(path, said)
    except FileError as error:
        raise DataError(str(error)) from None
    model = said.get("model") if whole else None
    if not isinstance(model, dict) or not isinstance(model.get("hash"), str):
        raise DataError(
            f"{path}: expected what `colaworld label` writes, it was replaced or changed"
        )
    if said.get("format") != FORMAT:
        raise DataError(
            f"{path}: format {said.get('format')!r}; this release reads {FORMAT}: label again"
        )
    return said


def whose(said: Mapping[str, Any]) -> str:
    """In words, of what `read_labels` gives: "a run of nano.cola"."""
    model = said["model"]
    return model.get("named") or f"a run of {model.get('recipe')}"


def check_ours(folder: Path | str, features: Iterable[str]) -> None:
    """DataError where a set has a column by the name of an estimate that is none: a recorded action,
    which nothing may replace.

    `features`: the names of the set's columns.
    """
    there = [name for name in (ESTIMATE, CONFIDENCE) if name in features]
    if not there:
        return
    path = Path(folder) / PROVENANCE
    said = read_labels(folder) if path.is_file() else {}
    for name in there:
        if name not in said.get("columns", ()):
            raise DataError(
                f"{folder}: has a column {name!r} that `colaworld label` did not write (by {path}): it "
                "stays as it is; rename it to label the set"
            )


def check_labels(folder: Path | str, model_hash: str) -> dict[str, Any]:
    """`read_labels`, of the latent actions of one model (`latent_action_hash`).

    Raises DataError, with both hashes, where they are of another.
    """
    said = read_labels(folder)
    if said["model"]["hash"] != model_hash:
        raise DataError(
            f"{folder}: its latent actions are of another model: expected hash {model_hash}, got "
            f"{said['model']['hash']} ({whose(said)}); label the set with this model"
        )
    return said
