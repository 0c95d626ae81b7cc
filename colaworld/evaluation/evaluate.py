"""One call from a world and held-out clips to the numbers it is judged by.

The layout of the result is an interface that others read (see README.md of this room). Not here:
how a world is made of models (recipes), any number (`measures`), the page (`report`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colaworld.config import to_dict
from colaworld.contracts import ActionSpec, ClipBatch, WorldProtocol
from colaworld.evaluation.artefacts import Artefacts, EveryCode, Strips, choose_clips
from colaworld.evaluation.layout import FORMAT_VERSION
from colaworld.evaluation.measures import MEASURES
from colaworld.evaluation.measures.measure import Setting
from colaworld.evaluation.rollouts import infer, stream, variants_of
from colaworld.evaluation.settings import EvaluationConfig, RandomStream
from colaworld.evaluation.tables import paper_row
from colaworld.files import plain, write_json

log = logging.getLogger(__name__)
GRID_PIXELS = 4_000_000  # generated for "same start, every code": 7 videos of 8 frames at 256 x 256
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Evaluation:
    """Numbers and pictures of one evaluation."""

    result: dict[str, Any]  # JSON
    artefacts: Artefacts

    def save(self, folder: str | Path) -> None:
        """evaluation.json and evaluation.npz in `folder`, each written atomically.

        What is there of an earlier evaluation goes first, its page too, and the numbers are written
        before what shows them: a kill leaves files missing, never files of two evaluations.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        beside = Path(folder).glob("evaluation-*.json")  # of other data sets
        for path in (*beside, Path(folder) / "report.html", Path(folder) / "evaluation.npz"):
            path.unlink(missing_ok=True)
        write_json(Path(folder) / "evaluation.json", self.result)
        self.artefacts.save(Path(folder) / "evaluation.npz")


def collect(batches: Iterable[ClipBatch], *, clips: int) -> ClipBatch:
    """The first `clips` clips as one batch on the CPU: clips x T x 3 x H x W bytes of memory."""
    kept: list[ClipBatch] = []
    count = 0
    for batch in batches:
        if kept and batch.frames.shape[1:] != kept[0].frames.shape[1:]:
            raise ValueError(
                f"evaluation clips: expected one shape, got {list(kept[0].frames.shape[1:])} "
                f"and {list(batch.frames.shape[1:])}"
            )
        kept.append(batch.to("cpu"))
        count += len(batch)
        if count >= clips:
            break
    if count < 2:
        raise ValueError(
            f"evaluation needs at least 2 held-out clips, got {count}; "
            "hold out more episodes or ask for shorter clips"
        )
    actions = [b.actions for b in kept if b.actions is not None]
    rates = [b.fps for b in kept if b.fps is not None]
    return ClipBatch(
        frames=torch.cat([b.frames for b in kept])[:clips],
        episode=torch.cat([b.episode for b in kept])[:clips],
        start=torch.cat([b.start for b in kept])[:clips],
        actions=torch.cat(actions)[:clips] if len(actions) == len(kept) else None,
        fps=torch.cat(rates)[:clips] if len(rates) == len(kept) else None,
    )


def _fingerprint(*tensors: torch.Tensor | None) -> str:
    """16 hexadecimal digits that depend on every value and on the shapes."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            for row in tensor:  # clip by clip: a copy of all would be as large as all
                digest.update(row.numpy().tobytes())
    return digest.hexdigest()


def run_evaluation(
    world: WorldProtocol,
    batches: Iterable[ClipBatch],
    action_spec: ActionSpec | None,
    config: EvaluationConfig,
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Evaluate `world` on held-out clips.

    Args:
        batches: held-out clips, best in an order that mixes episodes; only as many as needed
            are drawn.
        action_spec: what `ClipBatch.actions` holds, or None when there are no real actions; the
            probe is then skipped and the result says why.
        progress: called as (done, total, what) after each part of the work.
        device: where the world lives.
    """
    clips = collect(batches, clips=max(config.clips, config.probe_clips))
    frames, episodes = clips.frames, clips.episode.numpy()
    history, rolled = config.history, min(config.clips, len(clips))
    horizon = frames.shape[1] - history if config.horizon is None else config.horizon
    if horizon < 1 or history + horizon > frames.shape[1]:
        raise ValueError(
            f"evaluation: history {history} + horizon {horizon} do not fit into clips of "
            f"{frames.shape[1]} frames; load longer clips or lower evaluation.horizon"
        )
    setting = Setting(
        world.codebook_size,
        action_spec,
        config,
        np.random.default_rng([config.seed, RandomStream.SHARED_INTERVALS]),
    )
    measures = [measure(setting) for measure in MEASURES.values()]  # wrong weights end it at once
    latent = infer(world, frames, batch_size=config.batch_size, device=device)
    strips = Strips(setting, choose_clips(episodes[:rolled], config.shown_clips))
    seen_by = [*measures, strips]
    variants = {name for measure in seen_by for name in measure.variants}
    ways = len(variants & set(variants_of(world, clips)))
    single = sum(measure.steps(rolled) for measure in measures)
    # What is only shown costs at most half of what is measured.
    most = min(rolled * ways // 2, GRID_PIXELS // (horizon * frames.shape[-2] * frames.shape[-1]))
    grid = EveryCode(world, latent, limit=min(config.shown_codes, max(4, most)))
    starts = choose_clips(episodes, max(1, min(config.shown_starts, most // len(grid.names))))
    grid_batch = max(1, config.batch_size // len(starts))
    rollouts = -(-rolled // config.batch_size) * ways
    log.info(
        "%d frames to generate: %d clips x %d ways x %d steps, %d single steps, and %d starts x %d "
        "codes x %d steps",
        (rolled * ways + len(starts) * len(grid.names)) * horizon + single,
        *(rolled, ways, horizon, single, len(starts), len(grid.names), horizon),
    )
    parts = rollouts + -(-len(grid.names) // grid_batch) + 2
    done = 0

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, parts, what)

    advance("inferred actions")
    for batch in stream(
        world,
        clips,
        latent,
        variants=variants,
        history=history,
        horizon=horizon,
        rolled=rolled,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        watch=lambda: advance("rollouts"),
    ):
        for measure in seen_by:
            if batch.rollouts or not measure.variants or measure.every_clip:
                measure.update(batch)
    result: dict[str, Any] = {"format_version": FORMAT_VERSION}
    shown: dict[str, Any] = {}
    for measure in seen_by:
        found = measure.result()
        assert not found.keys() & result.keys(), f"{type(measure).__name__}: key of another measure"
        result |= found
        shown |= measure.shown()
    advance("measures")
    result["counts"] = {
        "clips": rolled,
        "episodes": int(np.unique(episodes[:rolled]).size),
        "probe_clips": len(clips),
        "probe_episodes": int(np.unique(episodes).size),
        "transitions": len(clips) * (frames.shape[1] - 1),
        "history": history,
        "horizon": horizon,
        "height": frames.shape[-2],
        "width": frames.shape[-1],
    }
    result["clips"] = {  # which they were, and each one's numbers: for paired comparisons
        "rolled": _fingerprint(frames[:rolled, : history + horizon]),
        "probed": _fingerprint(frames, clips.actions),
        "episode": episodes[:rolled].tolist(),
        "values": {
            name: values.tolist()
            for measure in measures
            for name, values in measure.per_clip().items()
        },
    }
    result["world"] = {"codebook_size": world.codebook_size, "tokens": world.tokens}
    result["action"] = None if action_spec is None else to_dict(action_spec)
    result["config"] = to_dict(config)
    shown["every_code"] = grid.roll(
        frames[starts, :history],
        latent.codes[starts, : history - 1],
        fps=None if clips.fps is None else clips.fps[starts],
        steps=horizon,
        seed=config.seed,
        at_once=grid_batch,
        device=device,
        watch=lambda: advance("same start, every code"),
    )
    artefacts = Artefacts(
        history=history,
        code_names=grid.names,
        code_notes=grid.notes(latent, clips.actions, action_spec),
        **shown,
    )
    result = plain(result)
    result["paper_row"] = paper_row(result)
    return Evaluation(result, artefacts)
