"""What an adapted run is worth: `adaptation.json`, its world before and after fine-tuning on the same clips.

Not here: how it was trained (adaptation.py), what is measured (evaluation/adaptation.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from colaworld.config import ConfigError, to_dict
from colaworld.contracts import ClipBatch
from colaworld.data.clips import ClipSet
from colaworld.data.once import iterate_once
from colaworld.evaluation.adaptation import WAYS, head_error, scores, summary
from colaworld.evaluation.evaluate import collect
from colaworld.files import plain, write_atomically, write_json
from colaworld.metrics.video_encoder import load_video_encoder
from colaworld.models.world import World
from colaworld.runs.adaptation import BEFORE
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig
from colaworld.runs.estimates import error_told
from colaworld.runs.evaluation import heldout_clips
from colaworld.runs.load import load_world
from colaworld.runs.provenance import provenance
from colaworld.training.loggers import read_rows
from colaworld.training.weights import init_parts

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
_KEPT = ("adapter", "action_head")


def keep_adapter(out: Path) -> Callable[[nn.Module], None]:
    """What a training calls before it fine-tunes the world: writes the adapter as it is now."""

    def keep(model: nn.Module) -> None:
        tensors = {
            f"{part}.{key}": value.detach().cpu().clone().contiguous()
            for part in _KEPT
            for key, value in getattr(model, part).state_dict().items()
        }
        write_atomically(out / BEFORE, save(tensors))

    return keep


def world_before(config: RunConfig, out: Path, *, device: str = "cpu") -> World:
    """The world that a run was adapted from, with the adapter as it was before fine-tuning."""
    start = config.phases["adapter"].init_from
    if start is None or not (out / BEFORE).is_file():
        raise ConfigError(
            f"{out}: it has no {BEFORE}, the adapter before fine-tuning; adapt it anew"
        )
    model = build_model(config, weights=False)
    init_parts(model, start)
    init_parts(model, str(out / BEFORE))
    return World(model.to(device).eval(), config.sampler, actions=config.action_contract)


def measure(
    out: Path,
    *,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Roll held-out clips out before and after fine-tuning; writes `adaptation.json` and returns it."""
    after, config = load_world(out, device=device)
    worlds = {"before": after}  # with the adapter alone
    if "adapted" in config.schedule:
        worlds = {"before": world_before(config, out, device=device), "after": after}
    asked = config.evaluation
    data, heldout, horizon = heldout_clips(config)
    clips: ClipBatch = collect(
        iterate_once(data, batch_size=asked.batch_size, with_actions=True), clips=asked.clips
    )
    size = heldout.height, heldout.width
    total, done = len(worlds) * len(WAYS) * -(-len(clips) // asked.batch_size), 0

    def watch() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, "rollouts")

    found = {
        state: scores(
            replace(world, frame_size=size),
            clips,
            asked,
            horizon=horizon,
            device=device,
            watch=watch,
        )
        for state, world in worlds.items()
    }
    trained = ClipSet(config.data)
    episodes = clips.episode.numpy()
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        **summary(found, episodes, asked),
        "head": head_error(after, clips, asked, device=device),
        "codebook": codebook_path(out),
        "counts": {
            "labels": trained.labels or all_labels(trained),
            "clips": len(clips),
            "episodes": len(set(episodes.tolist())),
            "episode": episodes.tolist(),
            "history": asked.history,
            "horizon": horizon,
        },
        "frechet_name": load_video_encoder(asked.fvd).distance if asked.fvd else None,
        "adapter": to_dict(config.model.parts["adapter"]),
        "phases": {p.name: to_dict(p) for p in config.scheduled()},
        "seed": config.training.seed,
        "run": provenance(out, config),
        "from": config.phases["adapter"].init_from,
    }
    result = plain(result)
    write_json(out / "adaptation.json", result)
    return result


def all_labels(clips: ClipSet) -> int:
    """Recorded transitions of all episodes in use."""
    return sum(episode.frames - 1 for episode in clips.episodes)


def codebook_path(out: Path) -> dict[str, Any]:
    """Use of the codebook through the phases of a run: {phase: {step, utilisation, entropy}}; see
    training/adaptation.py for whose codes they are."""
    path: dict[str, Any] = {}
    last: Any = None
    for row in read_rows(out / "metrics.jsonl"):
        health = row.get("codebook")
        if not health or health == last:
            continue
        last = health
        of = path.setdefault(row["phase"], {"step": [], "utilisation": [], "entropy": []})
        of["step"].append(row["step"])
        of["utilisation"].append(health["utilisation"])
        of["entropy"].append(health["entropy_normalised"])
    return path


def told(result: dict[str, Any], *, names: tuple[str, ...] = ()) -> list[str]:
    """Lines beside the table: use of the codebook, what fine-tuning gained, the way back; `names`: of the
    channels."""
    lines = []
    for phase, of in result["codebook"].items():
        first, last = of["utilisation"][0], of["utilisation"][-1]
        lines.append(
            f"codebook during {phase}: utilisation {100 * first:.0f} % -> {100 * last:.0f} %, entropy "
            f"{of['entropy'][0]:.2f} -> {of['entropy'][-1]:.2f}"
        )
    if "gain" in result:
        lines += _gained(result["gain"]["psnr"])
    lines.append(f"the way back, latent to real: {error_told(result['head'], names)}")
    return lines


def _gained(gain: Mapping[str, Any]) -> list[str]:
    if gain["mean"] is None:
        return ["what fine-tuning gained cannot be told: rollouts are not finite"]
    bounds = "" if gain["low"] is None else f" [{gain['low']:+.2f}, {gain['high']:+.2f}]"
    lines = [f"fine-tuning gained {gain['mean']:+.2f} dB{bounds} under real actions"]
    if gain["high"] is not None and gain["high"] < 0:
        lines.append(
            "the world was better before: take the adapter alone (--steps 0), fewer steps, a lower "
            "--learning-rate, --lora, or more labels"
        )
    return lines
