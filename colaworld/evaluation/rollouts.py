"""The stream that measures score: held-out clips, rolled out under inferred and under wrong actions.

Each clip is rolled out from the same history with the same noise, its own, once per variant:

    inferred   the actions that the world itself reads off the true future
    random     codes drawn uniformly from the codebook, anew for every step
    shuffled   the inferred actions of another clip, of another episode where possible
    constant   one random code per clip, held for the whole rollout
    none       no action: the world's null action at every step, where it has one
    real       the recorded actions through the world's adapter, where it has one
    copy       no rollout: the last history frame, repeated

The history's own transitions keep their inferred codes throughout.

With continuous latents there is no codebook to draw from: "random" and "constant" then draw from
the inferred latents of other clips, which is harder to tell from the truth than a codebook draw.
"none" is the learned null action, which training puts in place of dropped actions (CoLA-World: one in
ten): the world's own answer to "the action is not known". It is not the video model without its
conditioner: joint training never runs that, so that its videos would be worse for another reason.
Not here: scoring (`measures`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import (
    ClipBatch,
    LatentActionModel,
    LatentActions,
    Rollout,
    WorldProtocol,
    to_float,
)
from colaworld.evaluation.settings import RandomStream
from colaworld.rng import ClipGenerator

VARIANTS = ("inferred", "random", "shuffled", "constant", "none", "real")


@dataclass(frozen=True)
class Donors:
    """Other clips, one for each of b: theirs are the actions that "shuffled" replays."""

    numbers: np.ndarray  # [b] among all clips
    clips: ClipBatch  # [b] the whole clips, on the CPU
    latent: LatentActions  # theirs, inferred, on the CPU


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
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    """Variant -> [b, h-1+n, N, d] on the CPU: the actions it was rolled out under; not of "real"."""
    donors: Donors | None = None  # of clips that are rolled out; of another episode where possible
    second: Donors | None = None  # the donors' donors: a third clip, of another episode than theirs
    world: WorldProtocol | None = None  # told the clips' frame rates
    seed: int = 0
    of: int = 0  # how many clips are rolled out in all
    _seen: dict[str, LatentActions] = field(default_factory=dict)

    def predicted(self, variant: str) -> Tensor:
        """[b, n, 3, H, W]: the frames of a rollout after the given ones."""
        return self.rollouts[variant][:, self.history :]

    @property
    def future(self) -> slice:
        """Of the h-1+n actions the n that lead to predicted frames."""
        return slice(self.history - 1, self.history - 1 + self.truth.shape[1])

    @property
    def given(self) -> Tensor:
        """[b, h, 3, H, W] in [0, 1], on the world's device."""
        return to_float(self.frames[:, : self.history], self.truth.device)

    @property
    def stride(self) -> int:
        """Pixel frames of the shortest rollout."""
        return getattr(self.world, "stride", 1)

    def reinferred(self, variant: str) -> LatentActions:
        """What the world takes for the n actions of the video it drew under `variant`; on the CPU.

        What is not finite (a sampler gone astray) is read as black: its PSNR is null anyway.
        """
        if variant not in self._seen:
            drawn = self.rollouts[variant].nan_to_num(0.0)
            found = read_actions(cast(WorldProtocol, self.world), drawn)
            self._seen[variant] = head(found, slice(None), self.future)
        return self._seen[variant]

    def inferred(self, frames: Tensor) -> LatentActions:
        """The latent actions of any frames [b', T, 3, H, W] in [0, 1]; on the CPU."""
        return read_actions(cast(WorldProtocol, self.world), frames)

    def roll(self, ways: Tensor, *, stream: RandomStream) -> Tensor:
        """Short rollouts from the given frames: codes [b, C, m, N, d] -> [b, C, m, 3, H, W].

        All ways of a clip see the same noise, that of `stream`; m is a multiple of `stride`.
        """
        device = self.truth.device
        videos = roll_ways(
            cast(WorldProtocol, self.world),
            self.given,
            self.latent.codes[:, : self.history - 1].to(device),
            ways.to(device),
            generator=lambda: noise_of(
                range(self.first, self.first + len(self.frames)),
                of=self.of,
                seed=self.seed,
                stream=stream,
                device=device,
            ),
        )
        return videos[:, :, 1:]


def noise_of(
    clips: range, *, of: int, seed: int, stream: RandomStream, device: torch.device | str
) -> ClipGenerator:
    """The noise of some of `of` clips by number: what batch a clip is in changes none of it."""
    return ClipGenerator(device, seed, int(stream), slots=clips, clips=of)


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
    world: LatentActionModel, frames: Tensor, *, batch_size: int, device: torch.device | str
) -> LatentActions:
    """Latent actions of many clips, batch by batch, on the CPU. frames: [M, T, 3, H, W] uint8."""
    codes, indices = [], []
    for part in frames.split(batch_size):
        found = read_actions(world, to_float(part, device))
        codes.append(found.codes)
        if found.indices is not None:
            indices.append(found.indices)
    return LatentActions(torch.cat(codes), torch.cat(indices) if indices else None)


def read_actions(world: LatentActionModel, video: Tensor) -> LatentActions:
    """The checked latent actions of [b, T, 3, H, W] in [0, 1], moved to the CPU."""
    with torch.no_grad():
        found = world.infer_actions(video)
    expected = (video.shape[0], video.shape[1] - 1, world.tokens)
    if tuple(found.codes.shape[:3]) != expected:
        raise ValueError(
            f"{type(world).__name__}.infer_actions: expected codes [{expected[0]}, {expected[1]}, "
            f"{expected[2]}, d] for {video.shape[1]} frames, got {tuple(found.codes.shape)}"
        )
    if world.codebook_size is None:
        return LatentActions(found.codes.cpu())
    if found.indices is None:
        raise ValueError(
            f"{type(world).__name__}.infer_actions: codebook_size is set but indices are None"
        )
    return LatentActions(found.codes.cpu(), found.indices.cpu())


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


def follow(
    world: WorldProtocol, history: Tensor, actions: Tensor, *, generator: torch.Generator
) -> Tensor:
    """One rollout under real actions without gradients: [B, h+n, 3, H, W] float in [0, 1]."""
    with torch.no_grad():
        made: Rollout = cast(Any, world).follow(history, actions, generator=generator)
    return made.frames.float().clamp(0, 1)


def variants_of(world: WorldProtocol, clips: ClipBatch | None = None) -> tuple[str, ...]:
    """Those of VARIANTS that this world can be rolled out under; "real" where it `obeys` the real actions
    that the clips have."""
    able = {
        "none": getattr(world, "null_action", None) is not None,
        "real": getattr(world, "obeys", False) and clips is not None and clips.actions is not None,
    }
    return tuple(v for v in VARIANTS if able.get(v, True))


def variant_codes(
    world: WorldProtocol,
    actions: LatentActions,
    episodes: np.ndarray,
    *,
    history: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Codes [M, h-1+n, N, d] on the CPU for each of `variants_of`, equal over the history."""
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

    result = {name: codes.clone() for name in variants_of(world)}  # no "real": it is no code
    if "none" in result:
        result["none"][:, future] = world.null_action.to("cpu", codes.dtype)  # type: ignore[attr-defined]
    result["random"][:, future] = draw(n)
    result["shuffled"][:, future] = codes[other][:, future]
    result["constant"][:, future] = draw(1).expand(-1, n, -1, -1)
    return result


def head(actions: LatentActions, clips: slice | np.ndarray, steps: int | slice) -> LatentActions:
    """The first `steps` transitions of some clips, or those of a slice."""
    kept = steps if isinstance(steps, slice) else slice(steps)
    indices = actions.indices
    return LatentActions(
        actions.codes[clips][:, kept], None if indices is None else indices[clips][:, kept]
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

    The noise starts anew from the same seeds for each variant: paired noise.

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
    # the first draw of this stream is the one that "shuffled" is made from
    lent = derangement(
        episodes[:rolled], generator=np.random.default_rng([seed, RandomStream.CODES])
    )

    def donors(numbers: np.ndarray) -> Donors:
        chosen = ClipBatch(
            clips.frames[numbers],
            clips.episode[numbers],
            clips.start[numbers],
            None if clips.actions is None else clips.actions[numbers],
        )
        return Donors(numbers, chosen, head(latent, numbers, clips.frames.shape[1] - 1))

    starts = [*range(0, rolled, batch_size), *range(rolled, len(clips), batch_size)]
    for start, stop in zip(starts, [*starts[1:], len(clips)], strict=True):
        rows = slice(start, stop)
        truth, rollouts, more = None, {}, cast(dict[str, Any], {})
        if start < rolled:
            video = to_float(clips.frames[rows, :length], device)
            rated = told(world, None if clips.fps is None else clips.fps[rows])
            given, truth = video[:, :history], video[:, history:]
            for name in (v for v in variants_of(world, clips) if v in variants):
                generator = noise_of(
                    range(start, stop),
                    of=rolled,
                    seed=seed,
                    stream=RandomStream.ROLLOUT_NOISE,
                    device=device,
                )
                if name == "real":
                    assert clips.actions is not None
                    actions = clips.actions[rows, : length - 1].to(device)
                    rollouts[name] = follow(rated, given, actions, generator=generator)
                else:
                    own = codes[name][rows].to(device)
                    rollouts[name] = roll(rated, given, own, generator=generator)
                watch()
            if "copy" in variants:
                still = given[:, -1:].expand_as(truth)
                rollouts["copy"] = torch.cat([given, still], dim=1)
            more = {
                "codes": {name: codes[name][rows] for name in codes},
                "donors": donors(lent[rows]),
                "second": donors(lent[lent[rows]]),
                "world": rated,
            }
        yield Batch(
            first=start,
            frames=clips.frames[rows],
            episodes=episodes[rows],
            latent=head(latent, rows, clips.frames.shape[1] - 1),
            actions=None if clips.actions is None else clips.actions[rows],
            history=history,
            truth=truth,
            rollouts=rollouts,
            seed=seed,
            of=rolled,
            **more,
        )
