"""The stream that measures score: held-out clips, rolled out under inferred and under wrong actions.

Each clip is rolled out from the same history with the same noise, once per variant:

    inferred   the actions that the world itself reads off the true future
    random     codes drawn uniformly from the codebook, anew for every step
    shuffled   the inferred actions of another clip, of another episode where possible
    constant   one random code per clip, held for the whole rollout
    copy       no rollout: the last history frame, repeated

The history's own transitions keep their inferred codes throughout.

With continuous latents there is no codebook to draw from: "random" and "constant" then draw from
the inferred latents of other clips, which is harder to tell from the truth than a codebook draw.
Not here: scoring (`measures`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ClipBatch, LatentActions, Rollout, WorldProtocol, to_float
from colaworld.evaluation.settings import RandomStream
from colaworld.rng import paired_generator

VARIANTS = ("inferred", "random", "shuffled", "constant")


@dataclass(frozen=True)
class Batch:
    """b held-out clips of T frames, and what the world made of them: h given, n predicted frames."""

    first: int  # number of its first clip among all
    frames: Tensor  # [b, T, 3, H, W] uint8, on the CPU; T >= h + n
    episodes: np.ndarray  # [b]
    latent: LatentActions  # inferred: codes [b, T-1, N, d], on the CPU
    actions: Tensor | None  # real ones, [b, T-1] int64 or [b, T-1, A] floats, where there are any
    history: int  # h
    truth: Any = None  # Tensor [b, n, 3, H, W] in [0, 1], on the world's device; None: no rollouts
    rollouts: Mapping[str, Tensor] = field(default_factory=dict)
    """Variant -> [b, h+n, 3, H, W] in [0, 1], on the world's device; none of clips that are not
    rolled out."""

    def predicted(self, variant: str) -> Tensor:
        """[b, n, 3, H, W]: the frames of a rollout after the given ones."""
        return self.rollouts[variant][:, self.history :]


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
    world: WorldProtocol, frames: Tensor, *, batch_size: int, device: torch.device | str
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


def told(world: WorldProtocol, fps: Tensor | None) -> WorldProtocol:
    """The world, told the frame rate of each clip [B] as in training, where it listens to one."""
    if fps is None or not (is_dataclass(world) and hasattr(world, "fps")):
        return world
    return replace(world, fps=fps)


def roll(
    world: WorldProtocol, history: Tensor, codes: Tensor, *, generator: torch.Generator
) -> Tensor:
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


def roll_ways(
    world: WorldProtocol,
    given: Tensor,
    before: Tensor,
    codes: Tensor,
    *,
    generator: Callable[[], torch.Generator],
) -> Tensor:
    """Several ways on from each start, all under the same noise.

    A world with `rollout_candidates` encodes the start once and rolls all of them out together.

    Args:
        given: [S, h, 3, H, W] floats; before: [S, h-1, N, d] codes between its frames.
        codes: [S, C, n, N, d].
        generator: makes the noise's generator, in the same state at every call.

    Returns:
        [S, C, n+1, 3, H, W] in [0, 1]; the first frame of each is the last given one.
    """
    candidates = getattr(world, "rollout_candidates", None)
    if candidates is None:
        parts = [
            roll(world, given, torch.cat([before, way], dim=1), generator=generator())
            for way in codes.unbind(1)
        ]
        return torch.stack(parts, dim=1)[:, :, given.shape[1] - 1 :]
    with torch.no_grad():
        made = candidates(given, codes, context_codes=before, generator=generator())
    start = given[:, None, -1:].expand(-1, codes.shape[1], -1, -1, -1, -1)
    return torch.cat([start, made.float().clamp(0, 1)], dim=2)


def variant_codes(
    world: WorldProtocol,
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
    rng = np.random.default_rng([seed, RandomStream.CODES])
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


def head(actions: LatentActions, clips: slice | np.ndarray, steps: int) -> LatentActions:
    """The first `steps` transitions of some clips."""
    indices = actions.indices
    return LatentActions(
        actions.codes[clips, :steps], None if indices is None else indices[clips, :steps]
    )


def stream(
    world: WorldProtocol,
    clips: ClipBatch,
    latent: LatentActions,
    *,
    variants: Collection[str],
    history: int,
    horizon: int,
    rolled: int,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    watch: Callable[[], None] = lambda: None,
) -> Iterator[Batch]:
    """All clips in batches; the first `rolled` of them rolled out under `variants`.

    The generator starts anew from the same seed for each variant of a batch: paired noise.

    Args:
        clips: [M] clips of at least history + horizon frames, on the CPU.
        latent: their inferred latent actions, from `infer`.
        variants: names out of VARIANTS, and "copy".
        watch: called after each rollout.
    """
    length, episodes = history + horizon, clips.episode.numpy()
    steered = head(latent, slice(rolled), length - 1)
    codes = variant_codes(
        world, steered, episodes[:rolled], history=history, seed=seed, device=device
    )
    starts = [*range(0, rolled, batch_size), *range(rolled, len(clips), batch_size)]
    for start, stop in zip(starts, [*starts[1:], len(clips)], strict=True):
        rows = slice(start, stop)
        truth, rollouts = None, {}
        if start < rolled:
            video = to_float(clips.frames[rows, :length], device)
            rated = told(world, None if clips.fps is None else clips.fps[rows])
            given, truth = video[:, :history], video[:, history:]
            for name in (v for v in VARIANTS if v in variants):
                generator = paired_generator(device, seed, RandomStream.ROLLOUT_NOISE, start)
                rollouts[name] = roll(
                    rated, given, codes[name][rows].to(device), generator=generator
                )
                watch()
            if "copy" in variants:
                still = given[:, -1:].expand_as(truth)
                rollouts["copy"] = torch.cat([given, still], dim=1)
        yield Batch(
            first=start,
            frames=clips.frames[rows],
            episodes=episodes[rows],
            latent=head(latent, rows, clips.frames.shape[1] - 1),
            actions=None if clips.actions is None else clips.actions[rows],
            history=history,
            truth=truth,
            rollouts=rollouts,
        )
