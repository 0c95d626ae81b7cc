"""One optimizer step: `backward_pass` makes gradients, `apply_update` applies or skips them.

    backward_pass   (loss -> backward) x passes -> mean over processes
    apply_update    guard -> clip -> AdamW -> after_step -> average            or skipped

Both work without a Trainer, with the parts they are given. `optimizer_step` is the two as the loop
takes them, with a row for the logs. Not here: which steps there are and what follows from them
(trainer.py), what is minimised (objectives.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from colaworld.contracts import ClipBatch
from colaworld.models.latent_action.quantizers.quantizer import Standardise
from colaworld.rng import ClipGenerator, generator_for
from colaworld.training.distributed import Distributed
from colaworld.training.ema import WeightAverage
from colaworld.training.guard import LossGuard
from colaworld.training.meters import Moment, gradient_norms
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.phase_state import PhaseState, Progress
from colaworld.training.protocols import Objective, UnstableTrainingError
from colaworld.training.sharding import is_sharded, scale_to, total_norm

log = logging.getLogger(__name__)
Key = tuple[int | str, ...]  # what the randomness of a step depends on


def uses_bf16(choice: str, device: torch.device | str) -> bool:
    """Whether forward passes are in bfloat16; `choice` is `TrainingConfig.autocast`."""
    return choice == "bf16" or (choice == "auto" and torch.device(device).type == "cuda")


@dataclass(frozen=True)
class Terms:
    """What the passes of a step gave besides gradients. Nothing has waited for the device yet."""

    scalars: dict[str, Tensor]
    """"loss" and the objective's metrics: float32 scalars, the mean over passes."""
    indices: list[Tensor] = field(default_factory=list)
    """Codes of each pass, int64 [B, ..., N]; empty without a codebook."""
    clips: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Episode and start of the clips of each pass, int64 [B]."""
    ready: Moment | None = None
    """When this process's own part was done, before it waited for others. None: it is alone."""


@dataclass(frozen=True)
class Update:
    """What became of a step's gradients. Without a guard `loss` and `grad_norm` are not read."""

    skipped: str | None
    """Why nothing was applied; None: it was."""
    loss: float | None = None
    grad_norm: float | None = None
    """Of the whole gradient, before clipping."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The objective's, those of `after_step` included."""
    judged: float | None = None
    """`time.perf_counter()` when loss and norm were read: gradients were there."""


def clip_generator(
    device: torch.device,
    *key: int | str,
    batch: ClipBatch,
    number: int = 0,
    passes: int = 1,
    distributed: Distributed | None = None,
) -> ClipGenerator:
    """What draws for the clips of pass `number` (0 is the first) of `passes` that an update has.

    Row i of this process is clip i * processes + rank of the pass: its slot does not depend on how
    the update is cut.
    """
    rank, size = (0, 1) if distributed is None else (distributed.rank, distributed.world_size)
    first, clips = number * len(batch) * size, len(batch) * size
    slots = range(first + rank, first + clips, size)
    return ClipGenerator(device, *key, clips=passes * clips, slots=slots)


def backward_pass(
    objective: Objective,
    optimizer: PhaseOptimizer,
    batches: Iterable[ClipBatch],
    *,
    passes: int,
    key: Key,
    bf16: bool = False,
    distributed: Distributed | None = None,
) -> Terms:
    """Forward, loss and backward of each batch; gradients are added to those there are.

    Args:
        objective: what is minimised.
        optimizer: of the parameters that train.
        batches: on the model's device; each is asked for when the one before is done.
        passes: how many batches a step has: each loss counts 1 / passes.
        key: seeds the randomness, together with each clip's slot in the update.
        bf16: run the forward passes in bfloat16 (autocast).
        distributed: the processes whose gradients are averaged; None is this one alone.

    Raises:
        ValueError: the loss does not depend on what trains.
    """
    objective.begin_step()
    scalars: dict[str, list[Tensor]] = {}
    indices, clips = [], []
    for number, batch in enumerate(batches):
        device = batch.frames.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            own = clip_generator(
                device, *key, batch=batch, number=number, passes=passes, distributed=distributed
            )
            loss, metrics = objective.loss(batch, generator=own)
        if not loss.requires_grad:
            phase = optimizer.phase
            raise ValueError(
                f"phase {phase.name!r}: the loss of objective {phase.objective!r} does not "
                f"depend on what trains ({', '.join(phase.train)})"
            )
        (loss / passes).backward()
        clips.append((batch.episode, batch.start))
        for name, value in {**metrics, "loss": loss}.items():
            if name == "indices":
                if value is not None:
                    indices.append(value.detach())
            else:
                scalar = torch.as_tensor(value, device=device).detach()
                scalars.setdefault(name, []).append(scalar.float().reshape(()))
    ready = None
    if distributed is not None and distributed.world_size > 1:
        ready = Moment(distributed.device)
        distributed.average_gradients(optimizer.parameters.values())
    means = {name: torch.stack(values).mean() for name, values in scalars.items()}
    return Terms(means, indices, clips, ready)


def apply_update(
    objective: Objective,
    optimizer: PhaseOptimizer,
    terms: Terms,
    *,
    number: int,
    key: Key,
    clip_norm: float = 0.0,
    guard: LossGuard | None = None,
    average: WeightAverage | None = None,
    distributed: Distributed | None = None,
) -> Update:
    """Clip the gradients and step, or skip: parameters, `after_step`, averaged weights.

    All processes decide alike, since the guard judges means over them.

    Args:
        objective: whose `after_step` follows an update that was applied.
        optimizer: holds the gradients; a skipped update clears them.
        terms: of `backward_pass`.
        number: of the update within its phase (1 is the first): its learning rate.
        key: seeds the randomness of `after_step`.
        clip_norm: largest norm of the whole gradient; 0 turns clipping off.
        guard: judges loss and gradient norm. None applies every update and reads no number.
        average: of the weights, to be moved along.
        distributed: the processes that train together; None is this one alone.
    """
    device = terms.scalars["loss"].device  # pieces may lie on the CPU (parallel.offload)
    norm = total_norm(optimizer.gradients()).to(device)
    loss = total = judged = None
    metrics: dict[str, float] = {}
    if guard is not None:
        numbers = torch.stack([*terms.scalars.values(), norm.float().reshape(())])
        if distributed is not None:
            numbers = distributed.mean(numbers)
        *means, total = numbers.tolist()  # the one place where a step waits for the device
        judged = time.perf_counter()
        metrics = dict(zip(terms.scalars, means, strict=True))
        loss = metrics.pop("loss")
        reason = guard.judge(loss, total)
        if reason is not None:
            optimizer.zero_grad()
            return Update(reason, loss, total, metrics, judged)
    if clip_norm:
        scale_to(optimizer.gradients(), clip_norm, norm)
    optimizer.step(number)
    more, moved = objective.after_step(generator=generator_for(device, *key, "after"))
    for parameter, rows in moved:
        optimizer.forget(parameter, rows)
    if average is not None:
        average.update()
    return Update(None, loss, total, {**metrics, **more}, judged)


def optimizer_step(
    state: PhaseState,
    progress: Progress,
    next_batch: Callable[[], ClipBatch],
    device: torch.device,
    distributed: Distributed,
) -> tuple[dict[str, Any], int]:
    """One more step of the phase, counted in `progress` whether applied or skipped.

    Args:
        state: the phase's parts; the optimizer, guard, average and meter move.
        progress: where the run stands; `step` and `global_step` grow by one.
        next_batch: the next training batch, on `device`.
        device: of the model.
        distributed: the processes that train together.

    Returns:
        Its row, and how many clips all processes saw.

    Raises:
        ValueError: the loss does not depend on what trains.
        UnstableTrainingError: too many updates were skipped.
    """
    phase, training = state.phase, state.training
    number = progress.step + 1
    key: Key = (training.seed, phase.name, number)
    if progress.round:  # another stream after a rollback
        key = (*key, f"round {progress.round}")
    began, waited, start = time.perf_counter(), 0.0, Moment(device)

    def next_timed() -> ClipBatch:
        nonlocal waited
        asked = time.perf_counter()
        batch = next_batch()
        waited += time.perf_counter() - asked
        return batch

    state.optimizer.zero_grad()
    terms = backward_pass(
        state.objective,
        state.optimizer,
        (next_timed() for _ in range(training.accumulate)),
        passes=training.accumulate,
        key=key,
        bf16=uses_bf16(training.autocast, device),
        distributed=distributed,
    )
    health_due = number == 1 or number % training.health_every == 0
    norms = gradient_norms(state.optimizer) if health_due else {}
    update = apply_update(
        state.objective,
        state.optimizer,
        terms,
        number=number,
        key=key,
        clip_norm=training.clip_norm,
        guard=state.guard,
        average=state.average,
        distributed=distributed,
    )
    row: dict[str, Any] = {
        "phase": phase.name,
        "step": number,
        "global_step": progress.global_step + 1,
        "round": progress.round,
        "loss": update.loss,
        "lr": phase.learning_rate * phase.lr_factor(number),
    }
    if update.skipped is not None:
        _skip(row, update.skipped, distributed.gather(_names(terms.clips)), state.guard)
    elif state.health is not None:
        for codes in terms.indices:
            whole = distributed.gather_rows(codes)
            state.health.update(whole.reshape(-1, whole.shape[-1]))
    row["grad_norm"] = {**norms, "total": update.grad_norm}
    row["metrics"] = update.metrics
    assert update.judged is not None  # there is a guard
    row["speed"] = {
        "data": waited,
        "passes": update.judged - began - waited,
        "update": time.perf_counter() - update.judged,
    }
    if terms.ready is not None:
        # Blocks that are gathered and latents that are standardised together make processes wait within
        # their passes; data they read alone.
        joined = any(is_sharded(p) for p in state.model.parameters()) or any(
            isinstance(m, Standardise) and m.training for m in state.model.modules()
        )
        row["speed"]["own"] = waited if joined else terms.ready.since(start)
    progress.step += 1
    progress.global_step += 1
    return row, distributed.world_size * sum(len(episode) for episode, _ in terms.clips)


def _names(clips: list[tuple[Tensor, Tensor]]) -> list[str]:
    """What clips are called in logs: episode@start."""
    return [
        f"{episode}@{start}"
        for episodes, starts in clips
        for episode, start in zip(episodes.tolist(), starts.tolist(), strict=True)
    ]


def _skip(row: dict[str, Any], reason: str, clips: list[list[str]], guard: LossGuard) -> None:
    """Write into the row why and on which clips; give up where the guard does."""
    row["skipped"] = reason
    row["skipped_clips"] = named = [name for names in clips for name in names]
    where = f"{row['phase']} step {row['step']}: {reason}; clips (episode@start) " + ", ".join(
        named
    )
    if guard.exhausted:
        raise UnstableTrainingError(
            f"{where}. {guard.in_a_row} updates were skipped in a row, "
            f"{guard.skipped} in this phase. Look at these clips, or lower the learning "
            "rate; the last checkpoint is from before"
        )
    log.warning("update skipped at %s", where)
