"""Is the run in this folder the run that is asked for? Configurations compared key by key.

Not here: restoring a run (trainer.py) or reading a checkpoint (checkpoint.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import yaml

from colaworld.training.contracts import ResumeError

# What may change between stopping and resuming: how long, how often, where. By the key's end.
FREE = (
    "max_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "sample_every",
    "tensorboard",
    "out",
    "resume",
    "recompute",  # the same gradients bit for bit
)
_FORMERLY = {"training.compile": {False: "no", True: "full"}}  # values of older configurations


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    entries: Any = None
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        entries = enumerate(value)
    if not entries:
        yield path, value
        return
    for key, inner in entries:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _bound(config_yaml: str) -> dict[str, Any]:
    """Flat key -> value of everything that may not change."""
    values = yaml.safe_load(config_yaml) or {}
    bound = {k: v for k, v in _leaves(values) if k.rsplit(".", 1)[-1] not in FREE}
    for key, meanings in _FORMERLY.items():
        if isinstance(bound.get(key), bool):
            bound[key] = meanings[bound[key]]
    return bound


def config_sha256(config_yaml: str) -> str:
    """Hash of what may not change between stopping and resuming."""
    return hashlib.sha256(json.dumps(_bound(config_yaml), sort_keys=True).encode()).hexdigest()


def check_same_config(saved_yaml: str, given_yaml: str, *, where: str) -> None:
    """ResumeError with every key that differs, apart from those that may (`FREE`)."""
    saved, given = _bound(saved_yaml), _bound(given_yaml)
    absent = "(absent)"
    lines = [
        f"  {key}: saved {saved.get(key, absent)!r}, given {given.get(key, absent)!r}"
        for key in sorted(saved.keys() | given.keys())
        if saved.get(key, absent) != given.get(key, absent)
    ]
    if lines:
        raise ResumeError(
            f"{where} was trained with another configuration; these keys differ:\n"
            + "\n".join(lines)
            + f"\nResume with the saved values, or train into a new folder "
            f"(only {', '.join(FREE)} may change)"
        )
