"""One optimizer step of a phase, applied or skipped: forward, backward, guard, clipping, update.

    loss x accumulate -> guard -> clip -> AdamW -> after_step -> average        or skipped

Not here: which steps there are and what follows from them (trainer.py), what is minimised
(objectives.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from colaworld.contracts import ClipBatch
from colaworld.training import parallel
from colaworld.training.contracts import UnstableTrainingError
from colaworld.training.guard import LossGuard
from colaworld.training.meters import gradient_norms
from colaworld.training.phase_state import PhaseState
from colaworld.training.progress import Progress
from colaworld.training.randomness import generator_for

log = logging.getLogger(__name__)


def autocast(choice: str, device: torch.device) -> torch.autocast:
    """The arithmetic of the forward pass; `choice` is `TrainingConfig.autocast`."""
    on = choice == "bf16" or (choice == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)


def optimizer_step(
    state: PhaseState,
    progress: Progress,
    next_batch: Callable[[], ClipBatch],
    device: torch.device,
) -> tuple[dict[str, Any], int]:
    """One more step of the phase, counted in `progress` whether applied or skipped.

    Args:
        state: the phase's parts; the optimizer, guard, average and meter move.
        progress: where the run stands; `step` and `global_step` grow by one.
        next_batch: the next training batch, on `device`.
        device: of the model.

    Returns:
        Its row, and how many clips it saw.

    Raises:
        ValueError: the loss does not depend on what trains.
        UnstableTrainingError: too many updates were skipped.
    """
    phase, objective, training = state.phase, state.objective, state.training
    number = progress.step + 1
    key: tuple[int | str, ...] = (training.seed, phase.name, number)
    if progress.round or parallel.rank():  # another stream after a rollback, and per process
        key = (*key, f"round {progress.round} rank {parallel.rank()}")
    state.optimizer.zero_grad()
    objective.begin_step()
    scalars: dict[str, list[Tensor]] = {}
    indices, batches = [], []
    for micro in range(training.accumulate):
        batch = next_batch()
        batches.append(batch)
        with autocast(training.autocast, device):
            loss, metrics = objective.loss(batch, generator=generator_for(device, *key, micro))
        if not loss.requires_grad:
            raise ValueError(
                f"phase {phase.name!r}: the loss of objective {phase.objective!r} does not "
                f"depend on what trains ({', '.join(phase.train)})"
            )
        (loss / training.accumulate).backward()
        for name, value in {**metrics, "loss": loss}.items():
            if name == "indices":
                if value is not None:
                    indices.append(value.detach())
            else:
                scalar = torch.as_tensor(value, device=device).detach()
                scalars.setdefault(name, []).append(scalar.float().reshape(()))
    health_due = number == 1 or number % training.health_every == 0
    norms = gradient_norms(state.optimizer) if health_due else {}
    gradients = state.optimizer.gradients()
    norm = torch.nn.utils.get_total_norm(gradients).to(device)
    names = list(scalars)
    values = torch.stack(
        [torch.stack(scalars[name]).mean() for name in names] + [norm.float().reshape(())]
    ).tolist()  # the one place where the step waits for the device
    means, total = dict(zip(names, values[:-1], strict=True)), values[-1]
    mean_loss = means.pop("loss")
    reason = state.guard.judge(mean_loss, total)
    row: dict[str, Any] = {
        "phase": phase.name,
        "step": number,
        "global_step": progress.global_step + 1,
        "round": progress.round,
        "loss": mean_loss,
        "lr": phase.learning_rate * phase.ramp(number),
    }
    if reason is None:
        if training.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                list(state.optimizer.parameters.values()), training.clip_norm, norm
            )
        state.optimizer.step(number)
        more, moved = objective.after_step(generator=generator_for(device, *key, "after"))
        means.update(more)
        for parameter, rows in moved:
            state.optimizer.forget(parameter, rows)
        if state.average is not None:
            state.average.update(state.model)
        if state.health is not None:
            for codes in indices:
                state.health.update(codes)
    else:
        state.optimizer.zero_grad()
        _skip(row, reason, batches, state.guard)
    row["grad_norm"] = {**norms, "total": total}
    row["metrics"] = means
    progress.step += 1
    progress.global_step += 1
    return row, sum(len(batch) for batch in batches)


def _skip(row: dict[str, Any], reason: str, batches: Sequence[ClipBatch], guard: LossGuard) -> None:
    """Write into the row why and on which clips; give up where the guard does."""
    clips = [
        f"{episode}@{start}"
        for batch in batches
        for episode, start in zip(batch.episode.tolist(), batch.start.tolist(), strict=True)
    ]
    where = f"{row['phase']} step {row['step']}: {reason}; clips (episode@start) " + ", ".join(
        clips
    )
    row["skipped"] = reason
    row["skipped_clips"] = clips
    if guard.exhausted:
        raise UnstableTrainingError(
            f"{where}. {guard.in_a_row} updates were skipped in a row, "
            f"{guard.skipped} in this phase. Look at these clips, or lower the learning "
            "rate; the last checkpoint is from before"
        )
    log.warning("update skipped at %s", where)
