"""The pictures behind the numbers: strips, the grid "same start, every code", the probe's answers.

They travel beside evaluation.json as one .npz of plain arrays (never pickled). Not here: how they
are drawn on a page (`report.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ActionSpec, LatentActions
from colaworld.evaluation.contracts import World, seeded, to_float
from colaworld.evaluation.files import write_atomically
from colaworld.evaluation.generation import roll

_NOISE = 4  # stream of randomness under the evaluation's seed


@dataclass(frozen=True)
class Artefacts:
    """Images are uint8, channels last. S clips, C codes, h given and n predicted frames."""

    history: int
    truth: np.ndarray  # [S, h+n, H, W, 3]
    inferred: np.ndarray  # [S, h+n, H, W, 3] rollout under inferred actions
    random: np.ndarray  # [S, h+n, H, W, 3] rollout under random codes, same noise
    every_code: np.ndarray  # [S', C, n+1, H, W, 3] each code held from one start (frame 0)
    code_names: tuple[str, ...]  # C short names
    code_notes: tuple[str, ...]  # C: the real action seen most under this code, or ""
    probe_kind: str  # "accuracy", "r2" or "" when nothing was probed
    probe_predicted: np.ndarray  # test rows, [M] or [M, A]
    probe_target: np.ndarray
    action_names: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Write as .npz, atomically."""
        import io

        buffer = io.BytesIO()
        values = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        for name in ("code_names", "code_notes", "action_names"):
            values[name] = np.array(getattr(self, name), dtype=np.str_)
        np.savez_compressed(buffer, **values)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Artefacts:
        """Read what `save` wrote. Nothing in the file is executed."""
        with np.load(path, allow_pickle=False) as values:
            missing = [f.name for f in fields(cls) if f.name not in values]
            if missing:
                raise ValueError(f"{path}: not an artefacts file, missing {', '.join(missing)}")
            given = {f.name: values[f.name] for f in fields(cls)}
        given["history"] = int(given["history"])
        given["probe_kind"] = str(given["probe_kind"])
        for name in ("code_names", "code_notes", "action_names"):
            given[name] = tuple(str(v) for v in given[name])
        return cls(**given)


def to_uint8(frames: Tensor) -> np.ndarray:
    """[..., 3, H, W] float in [0, 1] -> [..., H, W, 3] uint8."""
    scaled = (frames.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.movedim(-3, -1).cpu().numpy()


def choose_clips(episodes: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` clip numbers, of different episodes as long as there are any."""
    first = np.unique(episodes, return_index=True)[1]
    rest = np.setdiff1d(np.arange(episodes.size), first)
    return np.concatenate([np.sort(first), rest])[:count]


def choose_codes(
    world: World, actions: LatentActions, *, limit: int
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Which actions to show: (codes [C, N, d], indices [C, N] or None, names).

    With a codebook that fits, every single code when N = 1; else the combinations that occur most
    often. Continuous: latents far from each other, chosen greedily from the one nearest the mean.
    """
    if world.codebook_size is None:
        pool = actions.codes.flatten(0, 1)
        pool = pool[:: max(1, pool.shape[0] // 4096)]
        flat = pool.flatten(1).double()
        chosen = [int((flat - flat.mean(0)).square().sum(1).argmin())]
        distance = (flat - flat[chosen[0]]).square().sum(1)
        while len(chosen) < min(limit, flat.shape[0]):
            chosen.append(int(distance.argmax()))
            distance = torch.minimum(distance, (flat - flat[chosen[-1]]).square().sum(1))
        return pool[chosen], None, tuple(f"latent {i + 1}" for i in range(len(chosen)))
    if world.tokens == 1 and world.codebook_size <= limit:
        indices = torch.arange(world.codebook_size)[:, None]
    else:
        seen, counts = torch.unique(actions.indices.flatten(0, 1), dim=0, return_counts=True)
        indices = seen[counts.argsort(descending=True, stable=True)[:limit]]
        indices = indices[np.lexsort(indices.numpy().T[::-1]).copy()]
    names = tuple("code " + "·".join(str(i) for i in row) for row in indices.tolist())
    return indices, indices, names


def code_notes(
    indices: Tensor | None, latent: LatentActions, actions: Tensor | None, spec: ActionSpec | None
) -> tuple[str, ...]:
    """What really happened under each code [C, N]: "left 83%", "mean +0.20 -0.41", "unused"."""
    if indices is None:
        return ()
    used = latent.indices.flatten(0, 1)
    notes = []
    for row in indices:
        hit = (used == row).all(dim=1)
        if not bool(hit.any()):
            notes.append("unused")
        elif actions is None or spec is None:
            notes.append(f"{float(hit.float().mean()):.0%} of steps")
        elif spec.kind == "discrete":
            counts = torch.bincount(actions.flatten()[hit], minlength=spec.size)
            top = int(counts.argmax())
            name = spec.names[top] if spec.names else f"action {top}"
            notes.append(f"{name} {float(counts[top] / counts.sum()):.0%}")
        else:
            mean = actions.flatten(0, 1)[hit].float().mean(0)[:3]
            notes.append("mean " + " ".join(f"{v:+.2f}" for v in mean.tolist()))
    return tuple(notes)


def roll_every_code(
    world: World,
    frames: Tensor,
    actions: LatentActions,
    chosen: Tensor,
    *,
    history: int,
    steps: int,
    seed: int,
    device: torch.device | str,
    watch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Hold each code for `steps` from each start, with one noise for all codes.

    Args:
        frames: [S, >= h, 3, H, W] uint8 starts; actions: their inferred actions.
        chosen: [C, N] indices, or [C, N, d] codes when continuous.
        watch: called after each code.

    Returns:
        [S, C, steps+1, H, W, 3] uint8; frame 0 is the last history frame.
    """
    if chosen.ndim == 2:
        with torch.no_grad():
            chosen = world.lookup(chosen.to(device))
    given = to_float(frames[:, :history], device)
    before = actions.codes[:, : history - 1].to(device)
    tiles = []
    for code in chosen.to(device):
        future = code.to(before.dtype).expand(given.shape[0], steps, *code.shape)
        generator = seeded(device, seed, _NOISE)
        video = roll(world, given, torch.cat([before, future], dim=1), generator=generator)
        tiles.append(to_uint8(video[:, history - 1 :]))
        watch()
    return np.stack(tiles, axis=1)
