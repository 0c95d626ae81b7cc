"""Latent actions measured by themselves: how well they tell the real ones, how a codebook is used.

Nothing is rolled out, so whatever infers latent actions can be measured: a world, or a published model
of others. The measures are those of evaluation that need no rollouts, on clips that pass by and are not kept.
Not here: making models or clips (runs/latents.py), the measures themselves (`measures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from colaworld.contracts import ActionSpec, ClipBatch, LatentActionModel
from colaworld.evaluation.measures import MEASURES
from colaworld.evaluation.measures.measure import Headline, Measure, Setting
from colaworld.evaluation.rollouts import Batch, infer
from colaworld.evaluation.settings import EvaluationConfig, RandomStream
from colaworld.evaluation.tables import columns, headlines
from colaworld.files import plain


def _measures() -> list[type[Measure]]:
    return [measure for measure in MEASURES.values() if not measure.variants]


def measure_latents(
    model: LatentActionModel,
    batches: Iterable[ClipBatch],
    action_spec: ActionSpec | None,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] = lambda clips: None,
) -> dict[str, Any]:
    """Measure what `model` infers from clips, with the keys that evaluation.json has for it.

    Args:
        batches: clips of equal length; all of them are used, one batch at a time.
        action_spec: what `ClipBatch.actions` holds; None: there are none, and the result says so.
        config: its probe, bootstrap_samples and seed.
        device: where the model lives.
        watch: called with the number of clips so far.

    Raises ValueError on fewer than two clips, or codes that are not [B, T - 1, N, d].
    """
    rng = np.random.default_rng([config.seed, RandomStream.SHARED_INTERVALS])
    setting = Setting(model.codebook_size, action_spec, config, rng)
    measures = [measure(setting) for measure in _measures()]
    episodes: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    count, transitions = 0, 0
    for clips in batches:
        latent = infer(model, clips.frames, batch_size=config.batch_size, device=device)
        episodes.append(clips.episode.numpy())
        starts.append(clips.start.numpy())
        batch = Batch(
            first=count,
            frames=clips.frames,
            episodes=episodes[-1],
            latent=latent,
            actions=clips.actions,
            history=1,
        )
        for measure in measures:
            measure.update(batch)
        count += len(clips)
        transitions += len(clips) * latent.codes.shape[1]
        watch(count)
    if count < 2:
        raise ValueError(
            f"latent actions: at least 2 clips are needed to measure them, got {count}"
        )
    result: dict[str, Any] = {}
    for measure in measures:
        result |= measure.result()
    which = np.concatenate(episodes)
    result["counts"] = {
        "clips": count,
        "episodes": int(np.unique(which).size),
        "transitions": transitions,
        "height": clips.frames.shape[-2],
        "width": clips.frames.shape[-1],
    }
    result["clips"] = {"episode": which.tolist(), "start": np.concatenate(starts).tolist()}
    result["world"] = {
        "codebook_size": model.codebook_size,
        "tokens": model.tokens,
        "dim": model.dim,
    }
    return plain(result)


def side_by_side(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Models by name as text: a row each, and what the numbers are to be compared with.

    Raises ValueError where they were measured on different clips.
    """
    first, *others = results
    for name in others:
        if results[name]["clips"] != results[first]["clips"]:
            raise ValueError(f"{name} was measured on other clips than {first}; measure both again")
    found: dict[str, dict[str, Headline]] = {
        name: {h.name: h for h in headlines(result, _measures())}
        for name, result in results.items()
    }
    named = list(dict.fromkeys(title for shown in found.values() for title in shown))
    rows = [["latents", "tokens x width", "codes", *named]]
    for name, result in results.items():
        world = result["world"]
        size = f"{world['tokens']} x {world['dim']}", str(world["codebook_size"] or "continuous")
        cells = [found[name][title].text() if title in found[name] else "-" for title in named]
        rows.append([name, *size, *cells])
    lines = [columns(rows)]
    for title in named:
        notes = {n: shown[title].note for n, shown in found.items() if title in shown}
        told = [f"{n}: {note}" for n, note in notes.items() if note]
        if len(set(notes.values())) == 1:
            told = [note for note in set(notes.values()) if note]
        lines += [f"{title}: {'; '.join(told)}"] * bool(told)
    counts = results[first]["counts"]
    lines.append(
        f"{counts['transitions']} transitions in {counts['clips']} clips of {counts['episodes']} "
        "episodes; 95 % intervals over episodes"
    )
    return "\n".join(lines)
