"""Where numbers come from: commit, weights, versions, machine.

Not here: the numbers.
"""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from colaworld import __version__
from colaworld.config import to_yaml
from colaworld.files import read_json
from colaworld.runs.config import RunConfig
from colaworld.runs.load import finished_weights
from colaworld.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
)
from colaworld.training.same_run import config_sha256


def environment(folder: Path) -> dict[str, Any]:
    """What a report says about where its numbers come from."""
    seconds = 0.0
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is not None:
        seconds = float(latest.state["progress"]["seconds"])
    return {
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "wall_seconds": seconds,
        "versions": {
            "colaworld": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def provenance(
    folder: Path, config: RunConfig, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Which weights an evaluation is of, and of which source: for evaluation.json."""
    weights = None if checkpoint is not None else finished_weights(folder)
    if checkpoint is None and weights is None:
        checkpoint = latest_checkpoint(folder / "checkpoints")
    made: dict[str, Any] = {
        "recipe": config.recipe,
        "config_sha256": config_sha256(to_yaml(config)),
        "colaworld": __version__,
        "commit": commit(),
    }
    if weights is not None:
        files = read_json(weights.parent / "config.json").get("files", {})
        sums = {name: of.get("sha256") for name, of in files.items()}
        return made | {"weights": "weights", "weights_sha256": sums}
    assert checkpoint is not None
    progress = checkpoint.state["progress"]
    step = {name: progress[name] for name in ("phase", "step", "global_step")}
    return made | {"weights": checkpoint.path.name, **step}


def commit() -> str:
    """The source's commit, "+" behind it when files differ from it; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "provenance.py"):
            return git("rev-parse", "--short=12", "HEAD") + ("+" if git("diff", "HEAD") else "")
    except (OSError, subprocess.CalledProcessError):
        pass  # an installed package, or no git: the caller shows "unknown"
    return "unknown"
