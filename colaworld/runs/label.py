"""Label a data set with the latent actions of a world, or of a model of others: `colaworld label`.

Each process labels its share of the episodes into the work folder beside the set to be; the main one
then writes the set. Whatever kills it, the next call goes on, and what comes out is the same to the
byte, from any number of processes: an episode's batches hold its own rows alone. Not here: an episode
(evaluation/labelling.py), the set (labelled_set.py), the work folder (label_work.py), who labels
(labeller.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colaworld import __version__
from colaworld.config import leaves
from colaworld.data.clips import ClipSet
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.labels import (
    CODE,
    COLUMNS,
    FORMAT,
    PROVENANCE,
    VALID,
    VECTOR,
    check_labels,
    check_ours,
    read_labels,
)
from colaworld.data.latent_cache import LatentKey
from colaworld.data.sources.lerobot_columns import put_in_place
from colaworld.evaluation.labelling import label_episode
from colaworld.files import write_refused
from colaworld.runs.estimates import Estimator
from colaworld.runs.label_work import Work
from colaworld.runs.labelled_set import (
    check_alike,
    check_counted,
    is_v3,
    left_out,
    prepare_episode,
    write_set,
)
from colaworld.runs.labeller import Labeller
from colaworld.runs.provenance import commit

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Raised by `step` where a person or a scheduler asked to stop."""


@dataclass(frozen=True)
class Labelled:
    """What a call did; on the main process of the whole set."""

    out: Path
    finished: bool  # False: it was asked to stop
    done: int  # episodes that are labelled
    asked: int  # episodes that were to be
    before: int = 0  # of `done`, those of earlier calls
    frames: int = 0
    valid: int = 0  # rows that are actions
    used: int | None = None  # entries of the codebook that occur


@dataclass(frozen=True)
class Together:
    """This process among those that label one set; alone by default."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Of each process its value, by rank; a call of all."""


def label_set(
    labeller: Labeller,
    clips: ClipSet,
    out: Path,
    *,
    estimator: Estimator | None = None,
    episodes: int | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    in_place: bool = False,
    overwrite: bool = False,
    link: bool = True,
    together: Together | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    step: Callable[[], None] = lambda: None,
) -> Labelled:
    """Write the set of `clips` with the latent actions of `labeller` to `out`, or go on with that.

    Args:
        clips: at the size, crop and rate that the model was trained on; its split is labelled.
        out: the new set; with `in_place` the set itself.
        estimator: of the same world: estimated real actions stand beside the latent ones.
        episodes: no more than the first so many.
        batch_size, device: see `label_episode`.
        overwrite: replace latent actions that the set has already.
        link: films of the new set are hard links to the old ones where they can be.
        together: the processes that label it.
        progress: told (frames done, frames in all, what) of this process's share.
        step: called often; may raise `Interrupted`, and then what is done is kept.

    Raises:
        DataError: `out` holds something, the set has latent actions, too many episodes are broken,
            what was begun there was begun with something else, or the disk is full; it has a column
            by the name of an estimate that is none.
        ActionMismatch: steps of `clips` are of another rate than the actions to be estimated.
    """
    together = together or Together()
    chosen = [e.index for e in clips.episodes][:episodes]
    if is_v3(clips):
        check_ours(str(clips.config.path), clips.source.info["features"])  # type: ignore[attr-defined]
    if estimator is not None:
        estimator.check_rate(clips, chosen)
    if in_place and not is_v3(clips):
        raise DataError(
            f"{clips.config.path}: columns are added in place to LeRobot sets of layout v3.0 alone, "
            f"this is {clips.source.describe().format}; name a new set with --out"
        )
    check_counted(clips) if is_v3(clips) else check_alike(clips, chosen)
    main = together.rank == 0
    recorded = estimator.against(clips) if main and estimator is not None else None
    placed = (batch_size, torch.device(device), in_place)
    job = _Job(labeller, clips, chosen, *placed, estimator, recorded)
    work = Work(out)
    for line in left_out(clips):
        log.warning("%s: %s", clips.config.path, line)
    try:
        over = together.gather(_settle(job, work, overwrite) if main else None)[0]
        if over is not None:
            return over
        before = sum(work.part(e).exists() for e in chosen)
        together.gather(None)  # all have counted
        mine = [
            e for e in chosen[together.rank :: together.world_size] if not work.part(e).exists()
        ]
        broken, stopped = _label(job, work, mine, progress, step)
        stops = []
        for rank, (lost, stop) in enumerate(together.gather((broken, stopped))):
            stops.append(stop)
            for episode, why in lost if rank != together.rank else ():
                clips.leave_out(episode, why)
        done = [e for e in chosen if work.part(e).exists()]
        if any(stops):
            return Labelled(out, False, len(done), len(chosen), before)
        found = job.write(work, done, before, link) if main else None
        return together.gather(found)[0]
    except OSError as error:
        why, cause = write_refused(work.root, error)
        raise DataError(f"{why}, and run the same again: it goes on from there") from cause
    finally:
        work.close()


def _settle(job: _Job, work: Work, overwrite: bool) -> Labelled | None:
    """Take the work folder. What there is to return where nothing is left to be done."""
    was = work.there
    if not was:
        if job.in_place and not overwrite and (said := job.labelled(work.out)):
            return said
        _refuse(job, work.out, overwrite)
    work.begin(job.key())
    if was:
        if job.in_place and work.new.exists():
            put_in_place(work.new, work.out, COLUMNS)
        elif not (said := job.labelled(work.out)):
            _refuse(job, work.out, overwrite)
            return None
        said = job.labelled(work.out)
        work.close(remove=True)
        return said
    return None


def _refuse(job: _Job, out: Path, overwrite: bool) -> None:
    """DataError where `out` holds something, or the set has latent actions that are to stay."""
    path = job.path
    if not job.in_place:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(
                f"{out}: exists and is not empty; choose another folder (--overwrite is of columns)"
            )
        if path.resolve() in (out, *out.parents) or out in path.resolve().parents:
            raise DataError(f"{out}: is within {path}, or around it; choose a folder beside it")
    features = job.clips.source.info["features"] if is_v3(job.clips) else {}  # type: ignore[attr-defined]
    if overwrite or not any(name in features for name in COLUMNS):
        return
    how = "--overwrite replaces them"
    try:
        said = check_labels(path, job.hash)
    except DataError as error:
        raise DataError(f"{error}; {how}") from None
    then, now = (dict(leaves(key)) for key in (said["key"], job.key()))
    changed = [f"{k}: {then.get(k)!r} then, {v!r} now" for k, v in now.items() if then.get(k) != v]
    raise DataError(
        f"{path}: has latent actions of this model already ({'; '.join(changed) or 'the same'}); {how}"
    )


def _label(
    job: _Job,
    work: Work,
    episodes: Sequence[int],
    progress: Callable[[int, int, str], None] | None,
    step: Callable[[], None],
) -> tuple[list[tuple[int, str]], bool]:
    """Label episodes. Those that are broken, with the reason, and whether it was asked to stop."""
    source, broken = job.clips.source, []
    total = sum(source.episodes[e].frames for e in episodes)
    done = 0
    for episode in episodes:
        info = source.episodes[episode]

        def tell(frame: int, done: int = done, name: str = info.name) -> None:
            step()
            if progress is not None:
                progress(done + frame, total, name)

        try:
            work.save(episode, job.part(work, episode, tell))
        except BrokenFileError as error:
            broken.append((episode, str(error)))
            job.clips.leave_out(episode, str(error))
        except Interrupted:
            return broken, True
        done += info.frames
    if progress is not None and episodes:
        progress(total, total, "frames")
    return broken, False


@dataclass(frozen=True)
class _Job:
    """What is labelled, by what."""

    labeller: Labeller
    clips: ClipSet
    episodes: Sequence[int]
    batch_size: int
    device: torch.device
    in_place: bool
    estimator: Estimator | None
    recorded: Mapping[str, Any] | None
    """On the main process: see `Estimator.against`."""

    @property
    def hash(self) -> str:
        return self.labeller.hash

    @property
    def path(self) -> Path:
        return Path(str(self.clips.config.path))

    @property
    def fps(self) -> float:
        """Of a set that is made anew: that of the first episode, whether it can be read or not."""
        return self.clips.source.episodes[self.episodes[0]].fps

    def key(self) -> dict[str, Any]:
        """Whatever the labels depend on."""
        data = LatentKey.of(self.clips, tokenizer=self.hash, per_clip=False)
        return {
            "model": self.hash,
            "data": dict(data.data),
            "frames": {
                **data.transform,
                "scene_cut_threshold": self.clips.config.scene_cut_threshold,
            },
            "episodes": len(self.episodes),
            "batch_size": self.batch_size,
            "device": self.device.type,
            "real": None
            if self.estimator is None
            else {"contract": self.estimator.contract.hash, "head": self.estimator.hash},
            "colaworld": __version__,
        }

    def labelled(self, out: Path) -> Labelled | None:
        """What a set says of itself that has just these labels; None: it has not."""
        if not (out / PROVENANCE).is_file():
            return None
        said = read_labels(out)
        if said["key"] != json.loads(json.dumps(self.key())):
            return None
        done = said["episodes"]["labelled"]
        counts = {name: said["counts"][name] for name in ("frames", "valid", "used")}
        return Labelled(out, True, done, len(self.episodes), done, **counts)

    def part(self, work: Work, episode: int, tell: Callable[[int], None]) -> dict[str, np.ndarray]:
        """All that the set needs of an episode."""
        model = self.labeller.model
        found = label_episode(
            self.clips,
            episode,
            self.labeller.infer,
            window=model.window,
            size=(model.tokens, model.dim, self.labeller.discrete),
            batch_size=self.batch_size,
            device=self.device,
            step=tell,
        )
        made = {VECTOR: found.vectors, VALID: found.valid}
        if found.codes is not None:
            made[CODE] = found.codes
        if self.estimator is not None:
            made |= self.estimator.columns(found.vectors, found.valid, device=self.device)
        if not is_v3(self.clips):
            last = self.clips.source.episodes[episode].frames
            made |= prepare_episode(
                self.clips, episode, work, fps=self.fps, step=lambda frame: tell(last)
            )
        return made

    def write(self, work: Work, done: Sequence[int], before: int, link: bool) -> Labelled:
        """The set, of the parts; then the work folder goes."""
        if not done:
            raise DataError(f"{self.path}: none of its {len(self.episodes)} episodes could be read")
        counts, columns = self._count(work, done), [c for c in COLUMNS if c in work.load(done[0])]
        names, about = ({}, {}) if self.estimator is None else self.estimator.features()
        write_set(
            self.clips,
            done,
            work,
            codebook_size=self.labeller.model.codebook_size,
            names=names,
            about=about,
            provenance=self._provenance(len(done), counts, columns),
            fps=self.fps,
            in_place=self.in_place,
            link=link,
        )
        work.close(remove=True)
        return Labelled(work.out, True, len(done), len(self.episodes), before, **counts)

    def _count(self, work: Work, done: Sequence[int]) -> dict[str, Any]:
        frames = valid = 0
        used: set[int] = set()
        for episode in done:
            part = work.load(episode)
            frames, valid = frames + len(part[VALID]), valid + int(part[VALID].sum())
            if CODE in part:
                used |= set(np.unique(part[CODE][part[VALID]]).tolist())
        counts = {"frames": frames, "valid": valid}
        return {**counts, "used": len(used) if self.labeller.discrete else None}

    def _provenance(
        self, done: int, counts: Mapping[str, Any], columns: Sequence[str]
    ) -> dict[str, Any]:
        """meta/latent_actions.json. No time and no place, so that equal labels are equal files."""
        config, root = self.clips.config, f"{self.path}/"
        strides = sorted({self.clips.stride(e) for e in self.episodes})
        resampled = any(self.clips.resampled(e) for e in self.episodes)
        ahead = f"frame t + {' or '.join(map(str, strides))}"
        if resampled:
            ahead = f"the frame shown 1/{config.fps:g} s later"
        real = (
            {}
            if self.estimator is None
            else {"real_actions": self.estimator.provenance(self.recorded)}
        )
        return {
            "format": FORMAT,
            "columns": list(columns),
            "alignment": f"row t leads from frame t to {ahead}",
            "model": self.labeller.said(),
            **real,
            "key": self.key(),
            "episodes": {
                "in_set": len(self.clips.source.episodes),
                "asked": len(self.episodes),
                "labelled": done,
                "split": config.split,
            },
            "counts": dict(counts),
            "left_out": list(left_out(self.clips)),
            "broken": sorted(b.reason.replace(root, "") for b in self.clips.broken.values()),
            "colaworld": __version__,
            "commit": commit(),
        }
