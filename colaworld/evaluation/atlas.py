"""The codebook, drawn: what was seen to happen under each action, and what the world makes of it.

An action is a tuple of N codes. Of continuous latents there are none: then it is the group of those
nearest to one of a few latents that lie far from each other. Not here: the page (report/atlas_page.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import (
    ActionSpec,
    ClipBatch,
    LatentActionModel,
    WorldProtocol,
    to_float,
)
from colaworld.evaluation.artefacts import far_apart, to_uint8
from colaworld.evaluation.report.tiles import fit
from colaworld.evaluation.rollouts import infer, noise_of, roll_ways, told
from colaworld.evaluation.settings import RandomStream
from colaworld.models.inputs import check_count

_LOOKED_AT = 128  # transitions of an action that its difference and its shift are measured on
_SIDE, _REACH = 64, 8  # cells that a shift is looked for on, and how far


@dataclass(frozen=True)
class Entry:
    """One action. Pictures are uint8 [H, W, 3]; a shift is of the picture's content, in pixels."""

    name: str  # "3·1", or "latent 4"
    codes: tuple[int, ...]  # empty for continuous latents
    count: int  # transitions seen under it
    share: float  # of all transitions
    difference: np.ndarray  # mean of next frame - frame, grey where nothing changes
    shift: tuple[int, int]  # x to the right, y down: the most frequent one
    agreement: float  # share of its transitions that shift so
    examples: np.ndarray  # [E, 2, H, W, 3]: frame and next frame
    real: tuple[tuple[str, float], ...] = ()  # discrete: (name, share), most frequent first
    mean: tuple[float, ...] = ()  # continuous: of the real action, by dimension
    spread: tuple[float, ...] = ()  # and its standard deviation
    replay: np.ndarray | None = None  # [n + 1, H, W, 3]: held from one start


@dataclass(frozen=True)
class Atlas:
    """Entries, most frequent first. Legend: K codes, N tokens."""

    entries: tuple[Entry, ...]
    transitions: int
    episodes: int
    actions: int  # how many different ones were seen
    codebook_size: int | None
    tokens: int
    grid: np.ndarray | None  # [K, K] shares by the codes of both tokens, where N is 2
    action_names: tuple[str, ...] = field(default=())


def draw_atlas(
    world: LatentActionModel,
    clips: ClipBatch,
    action_spec: ActionSpec | None = None,
    *,
    limit: int = 32,
    examples: int = 3,
    steps: int = 6,
    batch_size: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Atlas:
    """Sort the transitions of clips by their inferred action and look at each kind.

    Args:
        world: only `infer_actions` is needed; what can roll out is replayed from the first clip's first
            frame.
        clips: M clips of T frames, on the CPU.
        action_spec: what `clips.actions` holds, if there are any.
        limit: actions shown, the most frequent ones.
        examples: transitions shown of each, of different episodes as far as there are any.
        steps: frames of a replay; 0: none.

    Raises ValueError on counts below 1 (examples, steps and seed: below 0), and on clips of one frame.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        check_count(value, f"draw_atlas: {name}")
    for name, value in (("examples", examples), ("steps", steps), ("seed", seed)):
        check_count(value, f"draw_atlas: {name}", 0)
    latent = infer(world, clips.frames, batch_size=batch_size, device=device)
    count, length = clips.frames.shape[:2]
    codes = latent.codes.flatten(0, 1)  # [R, N, d], R = M (T - 1)
    if latent.indices is not None:
        kinds, member = torch.unique(latent.indices.flatten(0, 1), dim=0, return_inverse=True)
        names = ["·".join(map(str, row)) for row in kinds.tolist()]
    else:
        centres = far_apart(codes, limit)
        member = torch.cdist(codes.flatten(1), centres.flatten(1)).argmin(dim=1)
        kinds, names = None, [f"latent {i + 1}" for i in range(len(centres))]
    uses = torch.bincount(member, minlength=len(names))
    shown = uses.argsort(descending=True, stable=True)[:limit].tolist()
    shown = [kind for kind in shown if uses[kind]]
    replays = None
    if steps and hasattr(world, "rollout"):
        acting = cast(WorldProtocol, world)
        if kinds is None:
            chosen = torch.stack([codes[member == kind].mean(0) for kind in shown])
        else:
            with torch.no_grad():
                chosen = acting.lookup(kinds[shown].to(device)).cpu()
        replays = _replays(acting, clips, chosen, steps, seed, device)
    rng = np.random.default_rng([seed, RandomStream.ATLAS])
    episodes = clips.episode.repeat_interleave(length - 1).numpy()
    entries = []
    for place, kind in enumerate(shown):
        rows = rng.permutation(np.flatnonzero((member == kind).numpy()))
        before, after = _transitions(clips.frames, rows[:_LOOKED_AT])
        shift, agreement = common_shift(before, after)
        entries.append(
            Entry(
                name=names[kind],
                codes=() if kinds is None else tuple(kinds[kind].tolist()),
                count=len(rows),
                share=len(rows) / (count * (length - 1)),
                difference=_difference(before, after),
                shift=shift,
                agreement=agreement,
                examples=_examples(before, after, episodes[rows[:_LOOKED_AT]], examples),
                replay=None if replays is None else replays[place],
                **_real(clips.actions, action_spec, rows),
            )
        )
    grid = None
    if latent.indices is not None and world.tokens == 2 and world.codebook_size is not None:
        size = world.codebook_size
        pairs = latent.indices.flatten(0, 1) @ torch.tensor([size, 1])
        grid = torch.bincount(pairs, minlength=size * size).view(size, size).numpy()
        grid = grid / grid.sum()
    return Atlas(
        entries=tuple(entries),
        transitions=count * (length - 1),
        episodes=int(np.unique(episodes).size),
        actions=int((uses > 0).sum()),
        codebook_size=world.codebook_size,
        tokens=world.tokens,
        grid=grid,
        action_names=() if action_spec is None else tuple(action_spec.names),
    )


def common_shift(before: np.ndarray, after: np.ndarray) -> tuple[tuple[int, int], float]:
    """The most frequent shift (x right, y down) of whole pictures, and the share that shift so.

    Of each pair the shift, up to _REACH cells each way, under which what both show differs least in the
    mean; of equal ones the smallest. before, after: uint8 [n, H, W, 3]; a cell is a pixel, or a block of
    some where pictures have more than _SIDE pixels a side.
    """
    cell = -(-max(before.shape[1:3]) // _SIDE)
    first, second = (fit(x, side=_SIDE).astype(np.float32).mean(-1) for x in (before, after))
    height, width = first.shape[1:]
    ways = range(-_REACH, _REACH + 1)
    tried = [(x, y) for y in ways for x in ways if abs(x) < width // 2 and abs(y) < height // 2]
    tried.sort(key=lambda way: (abs(way[0]) + abs(way[1]), way))
    errors = []
    for x, y in tried:
        was = first[:, max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
        now = second[:, max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
        errors.append(np.abs(now - was).mean(axis=(1, 2)))
    best = np.stack(errors).argmin(axis=0)
    kinds, uses = np.unique(best, return_counts=True)
    x, y = tried[kinds[uses.argmax()]]
    return (x * cell, y * cell), float(uses.max() / len(best))


def _transitions(frames: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames before and after transitions `rows` of clips [M, T, 3, H, W]: [n, H, W, 3] each."""
    clip, step = np.divmod(rows, frames.shape[1] - 1)
    pair = (frames[torch.from_numpy(clip), torch.from_numpy(at)] for at in (step, step + 1))
    before, after = (x.movedim(1, -1).numpy() for x in pair)
    return before, after


def _difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean difference around grey, stretched so that its strongest 1 % are at an end of the scale."""
    mean = (after.astype(np.float64) - before).mean(axis=0)
    scale = max(float(np.quantile(np.abs(mean), 0.99)), 1.0)
    return (127.5 + 127.5 * np.clip(mean / scale, -1, 1)).round().astype(np.uint8)


def _examples(
    before: np.ndarray, after: np.ndarray, episodes: np.ndarray, count: int
) -> np.ndarray:
    """[E, 2, H, W, 3], of different episodes first."""
    first = np.unique(episodes, return_index=True)[1]
    order = [*first, *np.setdiff1d(np.arange(len(before)), first)][:count]
    return np.stack([before[order], after[order]], axis=1)


def _real(actions: Tensor | None, spec: ActionSpec | None, rows: np.ndarray) -> dict[str, tuple]:
    """What was really done in these transitions: fields of an Entry."""
    if actions is None or spec is None:
        return {}
    chosen = actions.flatten(0, 1)[torch.from_numpy(rows)]
    if spec.kind == "continuous":
        values = chosen.double()
        return {
            "mean": tuple(values.mean(0).tolist()),
            "spread": tuple(values.std(0, unbiased=False).tolist()),
        }
    uses = torch.bincount(chosen, minlength=spec.size)
    order = uses.argsort(descending=True, stable=True).tolist()
    names = spec.names or tuple(f"action {i}" for i in range(spec.size))
    return {"real": tuple((names[i], float(uses[i]) / len(rows)) for i in order if uses[i])}


def _replays(
    world: WorldProtocol,
    clips: ClipBatch,
    codes: Tensor,
    steps: int,
    seed: int,
    device: torch.device | str,
) -> np.ndarray:
    """[C, steps + 1, H, W, 3]: each action [C, N, d] held from one start, under one noise."""
    given = to_float(clips.frames[:1, :1], device)
    before = codes.new_zeros(1, 0, *codes.shape[1:]).to(device)
    world = told(world, None if clips.fps is None else clips.fps[:1])
    made = []
    for part in codes.to(device).split(16):
        future = part[None, :, None].expand(-1, -1, steps, -1, -1)
        videos = roll_ways(
            world,
            given,
            before,
            future,
            generator=lambda: noise_of(
                range(1), of=1, seed=seed, stream=RandomStream.ATLAS, device=device
            ),
        )
        made.append(to_uint8(videos[0]))
    return np.concatenate(made)
