"""The pictures behind the numbers: strips, the grid "same start, every code", the probe's answers.

They travel beside evaluation.json as one .npz of plain arrays (never pickled). Not here: how they
are drawn on a page (`report`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ActionSpec, LatentActions, WorldProtocol, to_float
from colaworld.evaluation.measures.measure import Measure, Setting
from colaworld.evaluation.rollouts import Batch, noise_of, roll_ways, told
from colaworld.evaluation.settings import RandomStream
from colaworld.files import write_atomically

RARE = 0.005  # share of the steps that would be shown as 0 %


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
        buffer = io.BytesIO()
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            kind = np.str_ if isinstance(value, tuple) else None
            values[name] = np.asarray(value, dtype=kind)
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
        given |= {"history": int(given["history"]), "probe_kind": str(given["probe_kind"])}
        for name in ("code_names", "code_notes", "action_names"):
            given[name] = tuple(given[name].tolist())
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


class Strips(Measure):
    """Keeps the truth and two rollouts of a few clips. It measures nothing."""

    variants = ("inferred", "random")

    def __init__(self, setting: Setting, clips: np.ndarray) -> None:
        super().__init__(setting)
        self.clips = clips  # [S] numbers
        self._videos: dict[int, dict[str, np.ndarray]] = {}

    def update(self, batch: Batch) -> None:
        length = batch.history + batch.truth.shape[1]
        for clip in self.clips:
            row = clip - batch.first
            if 0 <= row < len(batch.frames):
                truth = batch.frames[row, :length].movedim(1, -1).numpy()
                rolled = {name: to_uint8(batch.rollouts[name][row]) for name in self.variants}
                self._videos[clip] = {"truth": truth, **rolled}

    def shown(self) -> dict[str, Any]:
        names = ("truth", *self.variants)
        return {n: np.stack([self._videos[clip][n] for clip in self.clips]) for n in names}


class EveryCode:
    """The grid "same start, every code": which codes it shows, under which names.

    With a codebook that fits, every single code when N = 1; else the combinations that occur most
    often, of those that have a share of at least RARE. Continuous: latents far from each other, chosen
    greedily from the one nearest the mean.
    """

    def __init__(self, world: WorldProtocol, actions: LatentActions, *, limit: int) -> None:
        self.world = world
        self.indices: Tensor | None = None  # [C, N]
        if world.codebook_size is None:
            self.codes = far_apart(actions.codes.flatten(0, 1), limit)  # [C, N, d]
            self.names = tuple(f"latent {i + 1}" for i in range(len(self.codes)))
            return
        if world.tokens == 1 and world.codebook_size <= limit:
            self.indices = torch.arange(world.codebook_size)[:, None]
        else:
            assert actions.indices is not None
            seen, counts = torch.unique(actions.indices.flatten(0, 1), dim=0, return_counts=True)
            order = counts.argsort(descending=True, stable=True)
            common = max(2, int((counts / counts.sum() >= RARE).sum()))
            often = seen[order[: min(limit, common)]]
            self.indices = often[np.lexsort(often.numpy().T[::-1]).copy()]
        rows = self.indices.tolist()
        self.names = tuple("code " + "·".join(str(i) for i in row) for row in rows)

    def notes(
        self, latent: LatentActions, actions: Tensor | None, spec: ActionSpec | None
    ) -> tuple[str, ...]:
        """What really happened under each code: "left 83%", "mean +0.20 -0.41", "unused"."""
        if self.indices is None:
            return ("",) * len(self.names)
        assert latent.indices is not None
        used = latent.indices.flatten(0, 1)
        notes = []
        for row in self.indices:
            hit = (used == row).all(dim=1)
            if not bool(hit.any()):
                notes.append("unused")
            elif actions is None or spec is None:
                share = float(hit.float().mean())
                notes.append(f"{share:.0%} of steps" if share >= RARE else "under 1% of steps")
            elif spec.kind == "discrete":
                counts = torch.bincount(actions.flatten()[hit], minlength=spec.size)
                top = int(counts.argmax())
                name = spec.names[top] if spec.names else f"action {top}"
                notes.append(f"{name} {float(counts[top] / counts.sum()):.0%}")
            else:
                mean = actions.flatten(0, 1)[hit].float().mean(0)[:3]
                notes.append("mean " + " ".join(f"{v:+.2f}" for v in mean.tolist()))
        return tuple(notes)

    def roll(
        self,
        given: Tensor,
        before: Tensor,
        *,
        fps: Tensor | None = None,
        steps: int,
        seed: int,
        device: torch.device | str,
        at_once: int = 1,
        watch: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Hold each code for `steps` from each start, with one noise for all codes.

        Args:
            given: [S, h, 3, H, W] uint8 starts; before: [S, h-1, N, d] codes between their frames.
            fps: [S], the frame rate of each start's clip.
            at_once: codes rolled out together from each start.
            watch: called after each `at_once` codes.

        Returns:
            [S, C, steps+1, H, W, 3] uint8; frame 0 is the last given frame.
        """
        if self.indices is not None:
            with torch.no_grad():
                self.codes = self.world.lookup(self.indices.to(device))
        given, before = to_float(given, device), before.to(device)
        world, tiles, stream = told(self.world, fps), [], RandomStream.GRID_NOISE
        starts = range(len(given))
        for codes in self.codes.to(device, before.dtype).split(at_once):
            future = codes[None, :, None].expand(len(given), -1, steps, -1, -1)
            videos = roll_ways(
                world,
                given,
                before,
                future,
                generator=lambda: noise_of(
                    starts, of=len(starts), seed=seed, stream=stream, device=device
                ),
            )
            tiles.append(to_uint8(videos))
            watch()
        return np.concatenate(tiles, axis=1)


def far_apart(pool: Tensor, limit: int) -> Tensor:
    """Up to `limit` latents out of [M, N, d], each far from those before it."""
    pool = pool[:: max(1, pool.shape[0] // 4096)]
    flat = pool.flatten(1).double()
    chosen = [int((flat - flat.mean(0)).square().sum(1).argmin())]
    distance = (flat - flat[chosen[0]]).square().sum(1)
    while len(chosen) < min(limit, flat.shape[0]):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (flat - flat[chosen[-1]]).square().sum(1))
    return pool[chosen]
