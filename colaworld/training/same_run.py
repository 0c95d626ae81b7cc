"""Is it the same run? A resumed one keeps its configuration, but for what changes no result.

Not here: the folder that it is resumed in (run_folder.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import yaml

from colaworld.config import leaves, renamed
from colaworld.models.latent_action.quantizers.config import FORMER_KEYS
from colaworld.training.protocols import ResumeError

# What may change between stopping and resuming: how long, how often, where. By the key's end.
FREE = (
    "max_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "async_checkpoint",
    "log_every",
    "peak_tflops",
    "trackio",
    "wandb",
    "sample_every",
    "tensorboard",
    "out",
    "resume",
    "workers",  # the same clips
    "timeout",
    "recompute",  # the same gradients bit for bit
    "probe_clips",  # read, never trained on
)
# Fields that early configurations do not have, and what they did; by the key, or its last two names.
_LATER: dict[str, Any] = {
    "data.recorded_fps": None,
    "training.control_every": 0,
    "training.control_clips": 32,
    "gate.control": 0.0,
    "gate.floor": 0.3,
    "gate.control_floor": 0.0,
    "alarm.control_floor": 0.0,
    "data.streams": None,
    "data.mixture": {},
    "action_contract": None,
    "data.actions": "as_recorded",
    "data.labels": None,
    "data.labels_seed": 0,
    "model.backbone.clip_fps": False,
    "model.backbone.round_times": False,
    "objective.average": "frames",
    "objective.frozen_history": None,
    "objective.alignment_weight": 1.0,
    "objective.idm_view": "same",
    "objective.idm_shift": 2,
    "idm.input": "frame",
    "idm.standardise_frames": False,
    "quantizer.scale_floor": 0.0,
    "conditioner.nested_dropout": 0.0,
}
# Free too, by the whole key: how long a phase is, what previews and evaluations alone read, and how data that
# differ are met.
_ALSO_FREE = re.compile(
    r"phases\.\w+\.(steps|gate\.missed)|(sampler|evaluation)\..*|training\.(devices|parallel\..*)"
    r"|data\.unlike_actions"
)
_FORMERLY = {"training.compile": {False: "no", True: "full"}}  # values of older configurations


def _bound(config_yaml: str) -> dict[str, Any]:
    """Flat key -> value of everything that may not change."""
    values = yaml.safe_load(config_yaml) or {}
    bound = {
        k: v
        for k, v in ((renamed(k), v) for k, v in leaves(values))
        if not _free(k) and not _says_nothing(k, v)
    }
    passes = [bound.pop(f"training.{name}", 1) for name in ("batch_size", "accumulate")]
    if all(isinstance(number, int) for number in passes):
        bound["training.batch_size x training.accumulate"] = passes[0] * passes[1]  # of an update
    for key, meanings in _FORMERLY.items():
        if isinstance(bound.get(key), bool):
            bound[key] = meanings[bound[key]]
    return bound


def _free(key: str) -> bool:
    if key.startswith("model."):
        return False
    return key.rsplit(".", 1)[-1] in FREE or _ALSO_FREE.fullmatch(key) is not None


def _says_nothing(key: str, value: Any) -> bool:
    """Whether configurations of other versions may leave this out."""
    for known in (key, ".".join(key.split(".")[-2:])):
        if known in _LATER:
            return value == _LATER[known]
    where, _, name = key.rpartition(".")
    if name == "init_from" or key == "model.parts":
        return not value
    return where == "model.quantizer" and name in FORMER_KEYS and value == FORMER_KEYS[name]


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
            "(only phases.*.steps, phases.*.gate.missed, sampler.*, evaluation.*, training.parallel.*, "
            "data.unlike_actions, how many passes an update is cut into, "
            f"{', '.join(FREE)} may change)"
        )
