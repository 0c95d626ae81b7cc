"""python -m colaworld.runs.weights RUN: make a finished nano.pretrain run the shipped generator.

Writes nano.safetensors (half precision, averaged weights) and nano.json (how it was made) beside
this file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from colaworld.runs.provenance import environment
from colaworld.runs.weights import SHIPPED

_POINTS = 60  # of the loss curve


def ship(run: Path, *, made_at: str) -> Path:
    """Raises ValueError where the run is not a finished pre-training."""
    weights = run / "weights" / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{run}: no weights/model.safetensors; the run is not finished")
    config = yaml.safe_load((run / "config.yaml").read_text())
    if config["schedule"] != ["pretrain"]:
        raise ValueError(
            f"{run}: expected a run of nano.pretrain, got schedule {config['schedule']}"
        )
    stored = {k.removeprefix("backbone."): v for k, v in load_file(weights).items()}
    half = {key: value.to(torch.float16).contiguous() for key, value in stored.items()}
    target = SHIPPED / "nano.safetensors"
    save_file(half, target)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    size = max(1, len(rows) // _POINTS)
    curve = [
        [block[-1]["step"], round(sum(row["loss"] for row in block) / len(block), 5)]
        for block in (rows[i : i + size] for i in range(0, len(rows), size))
    ]
    meta = Path(config["data"]["path"]) / "meta"
    info = json.loads((meta / "info.json").read_text())
    recorded = meta / "colaworld.json"
    config["data"]["path"] = "runs/nano-pretrain/data"
    card: dict[str, Any] = {
        "what": "action-free video generator of Crafter's map, 28x36 px, 4 frames",
        "recipe": "nano.pretrain",
        "reproduce": "make nano-pretrain",
        "commit": made_at,
        "environment": {k: v for k, v in environment(run).items() if k != "commit"},
        "parameters": sum(v.numel() for v in half.values()),
        "steps": rows[-1]["step"],
        "data": {k: info[k] for k in ("total_episodes", "total_frames", "fps") if k in info}
        | {"recorded": json.loads(recorded.read_text()) if recorded.is_file() else {}},
        "loss_curve": curve,
        "config": config,
    }
    (SHIPPED / "nano.json").write_text(json.dumps(card, indent=1) + "\n")
    return target


if __name__ == "__main__":
    from colaworld.runs.provenance import commit

    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m colaworld.runs.weights RUN [COMMIT]")
    made = ship(Path(sys.argv[1]), made_at=sys.argv[2] if len(sys.argv) == 3 else commit())
    print(f"{made.name}: {made.stat().st_size / 1e6:.2f} MB")
