"""How well a world obeys real actions: its rollouts against what was filmed, before and after it adapted.

    real       the recorded actions, through the adapter
    inferred   the latent actions that the world itself reads off the true future: what is possible at best
    none       no action, where the world has one that says so

All ways of a clip see the same start and the same noise, in each world. Not here: how a world is adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ClipBatch, LatentActions, Rollout, WorldProtocol, to_float
from colaworld.evaluation.rollouts import infer, roll, told
from colaworld.evaluation.settings import EvaluationConfig, RandomStream
from colaworld.evaluation.tables import columns
from colaworld.metrics.bootstrap import bootstrap_mean
from colaworld.metrics.image import psnr, ssim
from colaworld.rng import paired_generator

WAYS = ("real", "inferred", "none")
Scores = dict[str, dict[str, np.ndarray]]  # way -> measure -> [M], a number of each clip


class Obeying(WorldProtocol, Protocol):
    """A world that real actions steer; each call means what it does in `models.world.World`."""

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
    """PSNR (dB) and SSIM of each clip's predicted frames, averaged over the horizon, by way.

    Args:
        clips: [M] with actions, of at least config.history + horizon frames, on the CPU.
        watch: called after each batch.
    """
    history, length = config.history, config.history + horizon
    steps = length - 1
    found: dict[str, dict[str, list[Tensor]]] = {}
    null = getattr(world, "null_action", None)
    for first in range(0, len(clips), config.batch_size):
        rows = slice(first, first + config.batch_size)
        video = to_float(clips.frames[rows, :length], device)
        rated: Any = told(world, None if clips.fps is None else clips.fps[rows])
        given, truth = video[:, :history], video[:, history:]
        seen = infer(
            world, clips.frames[rows, :length], batch_size=config.batch_size, device=device
        )
        codes = {"inferred": seen.codes.to(device)}
        if null is not None:
            codes["none"] = codes["inferred"].clone()
            codes["none"][:, history - 1 :] = null.to(device, codes["inferred"].dtype)
        assert clips.actions is not None
        actions = clips.actions[rows, :steps].to(device)
        for way in WAYS:
            generator = paired_generator(device, config.seed, RandomStream.ROLLOUT_NOISE, first)
            if way == "real":
                with torch.no_grad():
                    made = rated.follow(given, actions, generator=generator).frames.float()
            elif way in codes:
                made = roll(rated, given, codes[way], generator=generator)
            else:
                continue
            predicted = made.clamp(0, 1)[:, history:]
            kept = found.setdefault(way, {"psnr": [], "ssim": []})
            kept["psnr"].append(psnr(predicted, truth).double().mean(1).cpu())
            kept["ssim"].append(ssim(predicted, truth).double().mean(1).cpu())
        watch()
    return {
        way: {name: torch.cat(parts).numpy() for name, parts in of.items()}
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

    result: dict[str, Any] = {
        state: {
            way: {
                **{name: interval(values) for name, values in of.items()},
                "lpips": None,
                "fvd": None,
                "per_clip": {name: values.tolist() for name, values in of.items()},
            }
            for way, of in ways.items()
        }
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
    frequent one; or mean absolute error of each number, beside its standard deviation."""
    seen = infer(world, clips.frames, batch_size=config.batch_size, device=device)
    parts = [world.decode_actions(c.to(device)).cpu() for c in seen.codes.split(config.batch_size)]
    made, true = torch.cat(parts), clips.actions
    assert true is not None
    if not true.is_floating_point():
        most = true.flatten().bincount().max().item() / true.numel()
        return {"accuracy": (made == true).double().mean().item(), "chance": most}
    error = (made.double() - true.double()).abs().flatten(0, 1)
    spread = true.double().flatten(0, 1).std(0, correction=0)
    return {"mae": error.mean(0).tolist(), "std": spread.tolist()}


def table(result: Mapping[str, Any]) -> str:
    """In the form of the paper's table of adaptation: PSNR, SSIM x 100, LPIPS x 100, FVD."""
    rows = [["", "", "PSNR", "SSIM", "LPIPS", "FVD"]]
    named = {"before": "adapter alone", "after": "fine-tuned"}
    told_way = {"real": "real actions", "inferred": "inferred actions", "none": "no action"}
    for state, name in named.items():
        for way in WAYS:
            of = result.get(state, {}).get(way)
            shown = [_shown(of, "psnr", 1), _shown(of, "ssim", 100)] if of else ["-", "-"]
            rows.append([name if way == "real" else "", told_way[way], *shown, "-", "-"])
    return columns(rows)


def _shown(of: Mapping[str, Any], name: str, scale: float) -> str:
    mean, low, high = (of[name][end] for end in ("mean", "low", "high"))
    text = f"{scale * mean:.2f}"
    if low is None or not np.isfinite(low):
        return text
    return f"{text} [{scale * low:.2f}, {scale * high:.2f}]"
