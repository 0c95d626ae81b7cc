"""How well a world obeys real actions: its rollouts against what was filmed, before and after it adapted.

    real       the recorded actions, through the adapter
    inferred   the latent actions that the world itself reads off the true future: what is possible at best
    none       no action, where the world has one that says so

All ways of a clip see the same start and the same noise, in each world. Not here: how a world is adapted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from colaworld.action_contract import ActionContract
from colaworld.contracts import ClipBatch, LatentActions, Rollout, WorldProtocol
from colaworld.evaluation.rollouts import infer, stream
from colaworld.evaluation.settings import EvaluationConfig, RandomStream
from colaworld.evaluation.tables import columns
from colaworld.metrics.bootstrap import bootstrap_mean
from colaworld.metrics.frechet import Gaussian, frechet_distance
from colaworld.metrics.i3d import MIN_FRAMES
from colaworld.metrics.image import psnr, ssim
from colaworld.metrics.lpips import MIN_SIDE, load_lpips
from colaworld.metrics.video_encoder import load_video_encoder

log = logging.getLogger(__name__)
WAYS = ("real", "inferred", "none")
Scores = dict[str, dict[str, np.ndarray]]  # way -> measure -> [M], a number of each clip


class Obeying(WorldProtocol, Protocol):
    """A world that real actions steer; each call means what it does in `models.world.World`."""

    obeys: bool
    """True."""
    actions: ActionContract | None
    """What its real actions are."""

    def encode_actions(self, actions: Tensor, frames: Tensor | None = None) -> LatentActions:
        """Codes of real actions."""
        ...

    def decode_actions(self, codes: Tensor) -> Tensor:
        """Real actions of codes, as estimated."""
        ...

    def follow(
        self, context_frames: Tensor, actions: Tensor, *, generator: torch.Generator
    ) -> Rollout:
        """A rollout under real actions."""
        ...


def scores(
    world: Obeying,
    clips: ClipBatch,
    config: EvaluationConfig,
    *,
    horizon: int,
    device: torch.device | str = "cpu",
    watch: Callable[[], None] = lambda: None,
) -> Scores:
    """PSNR (dB), SSIM and, where weights are given, LPIPS of each clip's predicted frames, averaged over the
    horizon, by way; with the features of FVD, under "features" [M, D], also of the way "truth".

    Args:
        clips: [M] with actions, of at least config.history + horizon frames, on the CPU.
        watch: called after each rollout.
    """
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    perceive = load_lpips(config.lpips, config.lpips_trunk)[0].to(device) if config.lpips else None
    encoder = None
    if config.fvd and horizon >= MIN_FRAMES:
        encoder = load_video_encoder(config.fvd)
    small = min(clips.frames.shape[-2:]) < MIN_SIDE[config.lpips_trunk]

    def keep(way: str, **parts: Any) -> None:
        kept = found.setdefault(way, {})
        for name, part in parts.items():
            value = part.double().cpu().numpy() if isinstance(part, Tensor) else part
            kept.setdefault(name, []).append(value)

    for batch in stream(
        world,
        clips,
        infer(world, clips.frames, batch_size=config.batch_size, device=device),
        variants=WAYS,
        history=config.history,
        horizon=horizon,
        rolled=len(clips),
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        watch=watch,
    ):
        if encoder is not None:
            keep("truth", features=encoder.features(batch.truth))
        for way in batch.rollouts:
            made, truth = batch.predicted(way), batch.truth
            keep(way, psnr=psnr(made, truth).mean(1), ssim=ssim(made, truth).mean(1))
            if perceive is not None and not small:
                keep(way, lpips=perceive(made, truth).mean(1))
            if encoder is not None:
                keep(way, features=encoder.features(made))
    return {
        way: {name: np.concatenate(parts) for name, parts in of.items()}
        for way, of in found.items()
    }


def summary(
    found: Mapping[str, Scores], episodes: np.ndarray, config: EvaluationConfig
) -> dict[str, Any]:
    """{state: {way: {psnr, ssim: {mean, low, high}, clips}}}, and what fine-tuning gained under real actions.

    Args:
        found: scores by state of the world, "before" and "after".
        episodes: [M] of the clips; intervals are over them.
    """

    def interval(values: np.ndarray) -> dict[str, float]:
        rng = np.random.default_rng([config.seed, RandomStream.ADAPTATION])
        return bootstrap_mean(
            values, episodes, samples=config.bootstrap_samples, generator=rng
        ).as_dict()

    def of_way(ways: Scores, way: str) -> dict[str, Any]:
        values = {name: of for name, of in ways[way].items() if name != "features"}
        fvd = None
        if "features" in ways[way]:
            sides = [ways[side]["features"] for side in (way, "truth")]
            if all(np.isfinite(side).all() for side in sides):
                fvd = frechet_distance(*map(Gaussian.of, sides))
            else:
                log.warning("fvd of %s cannot be told: rollouts are not finite", way)
        return {
            "lpips": None,
            **{name: interval(of) for name, of in values.items()},
            "fvd": fvd,
            "per_clip": {name: of.tolist() for name, of in values.items()},
        }

    result: dict[str, Any] = {
        state: {way: of_way(ways, way) for way in ways if way != "truth"}
        for state, ways in found.items()
    }
    if {"before", "after"} <= found.keys():
        result["gain"] = {
            name: interval(found["after"]["real"][name] - found["before"]["real"][name])
            for name in ("psnr", "ssim")
        }
    return result


def head_error(
    world: Obeying,
    clips: ClipBatch,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """How far decoded actions are from recorded ones: accuracy of classes beside that of the most
    frequent one, and of each class the share that is found (recall; None: there is none of it); or mean
    absolute error of each number, beside its standard deviation."""
    seen = infer(world, clips.frames, batch_size=config.batch_size, device=device)
    parts = [world.decode_actions(c.to(device)).cpu() for c in seen.codes.split(config.batch_size)]
    made, true = torch.cat(parts), clips.actions
    assert true is not None
    if not true.is_floating_point():
        size = 0 if world.actions is None else world.actions.size
        counts = true.flatten().bincount(minlength=size)
        hits = true[made == true].bincount(minlength=len(counts))
        found = zip(hits.tolist(), counts.tolist(), strict=True)
        return {
            "accuracy": (made == true).double().mean().item(),
            "chance": counts.max().item() / true.numel(),
            "recall": [hit / count if count else None for hit, count in found],
        }
    error = (made.double() - true.double()).abs().flatten(0, 1)
    spread = true.double().flatten(0, 1).std(0, correction=0)
    return {"mae": error.mean(0).tolist(), "std": spread.tolist()}


def table(result: Mapping[str, Any]) -> str:
    """In the form of the paper's table of adaptation: PSNR, SSIM x 100, LPIPS x 100, FVD (by its own name
    where it is that of another encoder: `frechet_name`)."""
    distance = result.get("frechet_name") or "FVD"
    rows = [["", "", "PSNR", "SSIM", "LPIPS", distance]]
    named = {"before": "adapter alone", "after": "fine-tuned"}
    told_way = {"real": "real actions", "inferred": "inferred actions", "none": "no action"}
    for state, name in named.items():
        for way in WAYS if state in result else ():
            of = result[state].get(way)
            scales = {"psnr": 1, "ssim": 100, "lpips": 100}
            shown = [_shown(of or {}, measure, scale) for measure, scale in scales.items()]
            fvd = (of or {}).get("fvd")
            shown.append("-" if fvd is None else f"{fvd:.2f}")
            rows.append([name if way == "real" else "", told_way[way], *shown])
    return columns(rows)


def _shown(of: Mapping[str, Any], name: str, scale: float) -> str:
    if of.get(name) is None or of[name]["mean"] is None:
        return "-"
    mean, low, high = (of[name][end] for end in ("mean", "low", "high"))
    text = f"{scale * mean:.2f}"
    if low is None or not np.isfinite(low):
        return text
    return f"{text} [{scale * low:.2f}, {scale * high:.2f}]"
