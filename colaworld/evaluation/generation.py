"""Do the latent actions steer? Rollouts of held-out clips under inferred and under wrong actions.

A world that ignores its actions can still draw good pictures, so fidelity alone proves nothing.
Each clip is rolled out four times from the same history with the same noise:

    inferred   the actions that the world itself reads off the true future
    random     codes drawn uniformly from the codebook, anew for every step
    shuffled   the inferred actions of another clip, of another episode where possible
    constant   one random code per clip, held for the whole rollout

delta-PSNR of a variant is PSNR(inferred) - PSNR(variant), per clip, averaged over the horizon
(after Genie, arXiv 2402.15391). A fifth row, "copy", repeats the last history frame: what a world
without motion would score. The history's own transitions keep their inferred codes throughout.

With continuous latents there is no codebook to draw from: "random" and "constant" then draw from
the inferred latents of other clips, which is harder to tell from the truth than a codebook draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import LatentActions, Rollout
from colaworld.evaluation.contracts import World, seeded, to_float
from colaworld.metrics.image import PSNR_CAP, psnr, ssim

VARIANTS = ("inferred", "random", "shuffled", "constant")
_NOISE, _CODES = 1, 2  # streams of randomness under one seed


@dataclass(frozen=True)
class Generation:
    """Scores of every clip, variant and step: horizon n, M clips."""

    psnr: dict[str, np.ndarray]  # variant or "copy" -> [M, n] dB
    ssim: dict[str, np.ndarray]  # "inferred" and "copy" -> [M, n]
    episodes: np.ndarray  # [M]

    def delta(self, variant: str) -> np.ndarray:
        """[M] PSNR(inferred) - PSNR(variant), dB, averaged over the horizon."""
        return (self.psnr["inferred"] - self.psnr[variant]).mean(axis=1)

    def error_against_copy(self) -> float:
        """Squared error of the rollouts as a share of that of repeating the last history frame.

        Pooled over clips and steps, because in a mean of dB the clips in which nothing moves
        decide. NaN where no clip moves at all.
        """
        error = {name: 10 ** (-self.psnr[name] / 10) for name in ("inferred", "copy")}
        if self.psnr["copy"].min() >= PSNR_CAP - 1e-3:
            return float("nan")
        return float(error["inferred"].mean() / error["copy"].mean())


def derangement(episodes: np.ndarray, *, generator: np.random.Generator) -> np.ndarray:
    """For each clip the number of another clip, of another episode unless one episode holds most.

    episodes: [M], M >= 2. Returns a permutation [M] without fixed points.
    """
    count = episodes.size
    if count < 2:
        raise ValueError(f"shuffled actions need at least 2 clips, got {count}")
    ids, sizes = np.unique(episodes, return_counts=True)
    rank = {e: r for r, e in enumerate(generator.permutation(ids))}
    within = generator.permutation(count)
    order = within[np.argsort([rank[episodes[i]] for i in within], kind="stable")]
    # clips now lie episode by episode: a step of the largest episode's size leaves each episode
    step = int(sizes.max()) if 2 * sizes.max() <= count else 1
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, -step)
    return other


def infer(
    world: World, frames: Tensor, *, batch_size: int, device: torch.device | str
) -> LatentActions:
    """Latent actions of many clips, batch by batch, on the CPU. frames: [M, T, 3, H, W] uint8."""
    codes, indices = [], []
    for part in frames.split(batch_size):
        with torch.no_grad():
            found = world.infer_actions(to_float(part, device))
        expected = (part.shape[0], part.shape[1] - 1, world.tokens)
        if tuple(found.codes.shape[:3]) != expected:
            raise ValueError(
                f"World.infer_actions: expected codes [{expected[0]}, {expected[1]}, "
                f"{expected[2]}, d] for {part.shape[1]} frames, got {tuple(found.codes.shape)}"
            )
        codes.append(found.codes.cpu())
        if world.codebook_size is not None:
            if found.indices is None:
                raise ValueError("World.infer_actions: codebook_size is set but indices are None")
            indices.append(found.indices.cpu())
    return LatentActions(torch.cat(codes), torch.cat(indices) if indices else None)


def roll(world: World, history: Tensor, codes: Tensor, *, generator: torch.Generator) -> Tensor:
    """One checked rollout without gradients: [B, h+n, 3, H, W] float in [0, 1]."""
    with torch.no_grad():
        result: Rollout = world.rollout(history, codes, generator=generator)
    expected = (history.shape[0], codes.shape[1] + 1, *history.shape[2:])
    if tuple(result.frames.shape) != expected or result.history != history.shape[1]:
        raise ValueError(
            f"World.rollout: expected {expected} with history {history.shape[1]}, "
            f"got {tuple(result.frames.shape)} with history {result.history}"
        )
    return result.frames.float().clamp(0, 1)


def variant_codes(
    world: World,
    actions: LatentActions,
    episodes: np.ndarray,
    *,
    history: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Codes [M, h-1+n, N, d] on the CPU for each of VARIANTS, equal over the history."""
    codes = actions.codes
    count, steps, tokens, _ = codes.shape
    rng = np.random.default_rng([seed, _CODES])
    future = slice(history - 1, steps)
    n = steps - (history - 1)
    other = torch.from_numpy(derangement(episodes, generator=rng))
    if world.codebook_size is not None:

        def draw(per_clip: int) -> Tensor:
            drawn = rng.integers(0, world.codebook_size, size=(count, per_clip, tokens))
            with torch.no_grad():
                return world.lookup(torch.from_numpy(drawn).to(device)).cpu().to(codes.dtype)

    else:

        def draw(per_clip: int) -> Tensor:
            donors = np.stack([derangement(episodes, generator=rng) for _ in range(per_clip)], 1)
            times = rng.integers(0, steps, size=(count, per_clip))
            return codes[torch.from_numpy(donors), torch.from_numpy(times)]

    result = {name: codes.clone() for name in VARIANTS}
    result["random"][:, future] = draw(n)
    result["shuffled"][:, future] = codes[other][:, future]
    result["constant"][:, future] = draw(1).expand(-1, n, -1, -1)
    return result


def rollouts(
    world: World,
    frames: Tensor,
    codes: dict[str, Tensor],
    *,
    history: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
) -> Iterator[tuple[slice, str, Tensor]]:
    """(which clips, variant, frames [b, h+n, 3, H, W]) for every batch and variant.

    The generator starts anew from the same seed for each variant of a batch: paired noise.
    """
    count = frames.shape[0]
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        given = to_float(frames[rows, :history], device)
        for name, values in codes.items():
            generator = seeded(device, seed, _NOISE, start)
            yield rows, name, roll(world, given, values[rows].to(device), generator=generator)


def generation(
    world: World,
    frames: Tensor,
    actions: LatentActions,
    episodes: np.ndarray,
    *,
    history: int,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    watch: Callable[[slice, str, Tensor], None] | None = None,
) -> Generation:
    """Roll every clip out under every variant and score it against the truth.

    Args:
        frames: [M, h+n, 3, H, W] uint8 held-out clips.
        actions: their inferred latent actions, from `infer`.
        episodes: [M] the episode of each clip.
        history: h, frames given; the other n are predicted.
        watch: called with (clips, variant, frames [b, h+n, 3, H, W]) after each rollout.
    """
    count, length = frames.shape[:2]
    if not 1 <= history < length:
        raise ValueError(f"history: expected 1..{length - 1} of {length} frames, got {history}")
    codes = variant_codes(world, actions, episodes, history=history, seed=seed, device=device)
    n = length - history
    scores = {name: np.zeros((count, n)) for name in (*VARIANTS, "copy")}
    similarity = {name: np.zeros((count, n)) for name in ("inferred", "copy")}
    for rows, name, video in rollouts(
        world, frames, codes, history=history, batch_size=batch_size, seed=seed, device=device
    ):
        truth = to_float(frames[rows, history:], device)
        shown = {name: video[:, history:]}
        if name == "inferred":
            last = to_float(frames[rows, history - 1 : history], device)
            shown["copy"] = last.expand_as(truth)
        for key, predicted in shown.items():
            scores[key][rows] = psnr(predicted, truth).cpu().numpy()
            if key in similarity:
                similarity[key][rows] = ssim(predicted, truth).cpu().numpy()
        if watch is not None:
            watch(rows, name, video)
    return Generation(scores, similarity, np.asarray(episodes))
