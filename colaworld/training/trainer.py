"""The only training loop: phases one after another, for any model and any objective.

It knows nothing of what is learned. It owns the order of things: batches, gradient, guard, update,
health, gate and alarm, average, rows, checkpoints; and it can be killed anywhere and resumed to the
same numbers. Not here: what is minimised (objectives.py) and which phases there are (recipes).

    for phase in phases:                    a step: loss x accumulate -> guard -> clip -> AdamW
        before_phase, then steps  --------->        -> after_step -> average -> health -> row
        until the last step, the gate                -> gate? alarm? checkpoint? stop request?
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from colaworld.contracts import ClipBatch
from colaworld.training import checkpoint as checkpoints
from colaworld.training import parallel
from colaworld.training.blocks import compile_blocks, recompute_blocks
from colaworld.training.checkpoint import Checkpoint
from colaworld.training.config import TrainingConfig
from colaworld.training.contracts import (
    Loader,
    Objective,
    Preview,
    ResumeError,
    RunFolderError,
    UnstableTrainingError,
)
from colaworld.training.ema import WeightAverage
from colaworld.training.gate import CollapseAlarm, WarmupGate
from colaworld.training.guard import LossGuard
from colaworld.training.interrupts import StopRequest
from colaworld.training.lock import FolderLock
from colaworld.training.loggers import ConsoleLogger, JsonlLogger, TensorBoardLogger
from colaworld.training.meters import HealthMeter, Throughput, gradient_norms
from colaworld.training.optimizer import Moments, PhaseOptimizer
from colaworld.training.phases import Phase, check_phases, enter_phase
from colaworld.training.randomness import generator_for
from colaworld.training.resuming import check_same_config, config_sha256

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands. Plain JSON values only."""

    phase: int = 0  # index of the current phase
    step: int = 0  # optimizer steps done in it
    global_step: int = 0  # optimizer steps done in all, those undone by a rollback included
    round: int = 0  # rollbacks so far
    over: str | None = None  # why the current phase is over: "steps" or "gate"
    started: list[str] = field(default_factory=list)  # phases whose before_phase was called
    ended: list[dict[str, Any]] = field(default_factory=list)  # {"phase", "steps", "reason"}
    seconds: float = 0.0  # training time so far, over all sessions


@dataclass(frozen=True)
class TrainResult:
    """How a call of `Trainer.run` ended."""

    status: Literal["finished", "interrupted", "stopped"]
    message: str
    phase: str
    step: int
    global_step: int
    seconds: float
    checkpoint: Path | None
    phases: tuple[Mapping[str, Any], ...] = ()  # ended phases: "phase", "steps", "reason"


class Trainer:
    """Runs phases on a model.

    Args:
        model: its direct children are the parts that phases train.
        objectives: by the key that phases name.
        phases: in order.
        loader: endless batches, with a JSON state.
        out: run folder: config.yaml, metrics.jsonl, checkpoints/, tensorboard/, weights/.
        training: everything else about the loop.
        config_yaml: the whole resolved configuration, saved and compared when resuming.
        preview: (step, phase name) -> uint8 frames [n, T, H, W, 3] to show every `sample_every`.
        resume: continue what is in `out` (from the start if there is no checkpoint yet).
        device: where to train.
        resume_command: what a person would type to resume; shown when interrupted.

    Raises:
        ConfigError: the phases do not fit the model or the objectives.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Mapping[str, Objective],
        phases: Sequence[Phase],
        loader: Loader,
        out: Path,
        training: TrainingConfig,
        config_yaml: str,
        preview: Preview | None = None,
        resume: bool = False,
        device: torch.device | str = "cpu",
        resume_command: str = "",
    ) -> None:
        check_phases(phases, model, list(objectives))
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.objectives = objectives
        self.phases = tuple(phases)
        self.loader = loader
        self.out = Path(out)
        self.training = training
        self.config_yaml = config_yaml
        self.preview = preview
        self.resume = resume
        self.resume_command = resume_command
        self.progress = Progress()
        self._moments: Moments = {}  # what the next optimizer begins with, by parameter name
        self._restored: Checkpoint | None = None  # what the current phase continues from
        self._saved: Path | None = None
        self._throughput = Throughput()

    # -- the run ---------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train until all phases are done, the alarm stops the run, or a signal asks for it.

        Raises:
            RunFolderError: the folder holds another run, or cannot be written (CheckpointError).
            UnstableTrainingError: too many updates were skipped.
        """
        try:
            self._open_folder()
            if self._advance():
                where = f"the run in {self.out} is finished; nothing to resume"
                if not (self.out / "weights" / "model.safetensors").exists():
                    self._export()
                log.info(where)
                return self._result("finished", where)
            assert self._console is not None
            self._console.skip_to(self._steps_behind())
            self._wrap_blocks()
            with StopRequest() as request:
                while True:
                    ending = self._run_phase(request)
                    if ending is not None:
                        return ending
                    if self._advance():
                        break
            self._export()
            return self._result("finished", f"finished {self.out}")
        finally:
            self._close()

    def _open_folder(self) -> None:
        folder = self.out / "checkpoints"
        self._console: ConsoleLogger | None = None
        self._tensorboard: TensorBoardLogger | None = None
        self._jsonl: JsonlLogger | None = None
        self._lock: FolderLock | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if parallel.rank() == 0:
                self._lock = FolderLock(self.out)
            checkpoints.sweep(folder)
            latest = checkpoints.latest_checkpoint(folder)
            if latest is not None and not self.resume:
                raise ResumeError(
                    f"{self.out} already holds a run (its last checkpoint is {latest.path.name}); "
                    "resume it, or train into a new folder"
                )
            if latest is not None:
                check_same_config(latest.state["config"], self.config_yaml, where=str(latest.path))
                self._restore(latest)
            elif self.resume:
                log.info("%s has no checkpoint yet; training starts from the beginning", self.out)
            temporary = self.out / ".config.yaml"
            temporary.write_text(self.config_yaml)
            temporary.replace(self.out / "config.yaml")
        except OSError as error:
            raise RunFolderError(
                f"{self.out}: cannot be used as a run folder: {error}. Choose another --out or "
                "make this one writable"
            ) from error
        done = self.progress.global_step
        self._jsonl = JsonlLogger(self.out / "metrics.jsonl", after=done)
        if self.training.tensorboard:
            try:
                self._tensorboard = TensorBoardLogger(
                    self.out / "tensorboard", after=done, every=self.training.log_every
                )
            except ImportError as error:
                log.warning("no TensorBoard logs: %s", error)
        self._console = ConsoleLogger(total=sum(self._limit(phase) for phase in self.phases))

    def _close(self) -> None:
        for opened in (self._jsonl, self._tensorboard, self._console, self._lock):
            if opened is not None:
                opened.close()

    def _limit(self, phase: Phase) -> int:
        cap = self.training.max_steps
        return phase.steps if cap is None else min(phase.steps, cap)

    def _steps_behind(self) -> int:
        done = sum(self._limit(phase) for phase in self.phases[: self.progress.phase])
        return done + self.progress.step

    def _advance(self) -> bool:
        """Go to the next phase if this one is over. True when it was the last."""
        progress = self.progress
        phase = self.phases[progress.phase]
        if progress.over != "gate" and progress.step < self._limit(phase):
            if progress.over:  # its end was moved out, by a larger max_steps
                progress.over = None
                progress.ended.pop()
            return False
        if progress.phase + 1 == len(self.phases):
            return True
        progress.phase += 1
        progress.step, progress.over = 0, None
        self._restored = None
        return False

    def _result(self, status: Any, message: str) -> TrainResult:
        progress = self.progress
        return TrainResult(
            status,
            message,
            self.phases[progress.phase].name,
            progress.step,
            progress.global_step,
            progress.seconds,
            self._saved,
            tuple(progress.ended),
        )

    # -- one phase -------------------------------------------------------------------------

    def _run_phase(self, request: StopRequest) -> TrainResult | None:
        """Run the current phase. None when it is over (or rolled back), else how the run ends."""
        progress, training = self.progress, self.training
        phase = self.phases[progress.phase]
        objective = self.objectives[phase.objective]
        limit = self._limit(phase)
        enter_phase(self.model, phase)
        if phase.name not in progress.started:
            generator = generator_for(self.device, training.seed, phase.name, "before")
            objective.before_phase(self._next_batch, generator=generator)
            enter_phase(self.model, phase)
            progress.started.append(phase.name)
        self._begin(phase, objective)
        while progress.step < limit and progress.over is None:
            began = time.perf_counter()
            row, clips = self._step(phase, objective)
            alarm = self._check_health(phase, row, last=progress.step >= limit)
            if progress.over is None and progress.step >= limit:
                progress.over = "steps"
            row["seconds"] = time.perf_counter() - began
            progress.seconds += row["seconds"]
            self._write(row, clips)
            if alarm == "rollback":
                return self._roll_back(phase)
            if progress.over:
                progress.ended.append(
                    {"phase": phase.name, "steps": progress.step, "reason": progress.over}
                )
                log.info(
                    "phase %s is over after %d steps (%s)", phase.name, progress.step, progress.over
                )
            if (
                progress.over
                or alarm == "stop"
                or request.requested
                or progress.step % training.checkpoint_every == 0
            ):
                self._save(phase)
            if alarm == "stop":
                return self._stopped(f"the codebook collapsed in phase {phase.name}")
            if request.requested:
                return self._interrupted(request.requested, phase)
            self._show_preview(phase)
        self._moments = self._optimizer.moments()
        assert self._console is not None
        self._console.skip_to(self._steps_behind() + limit - progress.step)
        return None

    def _begin(self, phase: Phase, objective: Objective) -> None:
        """Everything that lives as long as the phase, fresh or as the checkpoint had it."""
        training = self.training
        self._optimizer = PhaseOptimizer(self.model, phase, training, moments=self._moments)
        self._moments = {}  # the optimizer has copies; these would take their memory twice
        self._guard = LossGuard(training)
        self._gate = WarmupGate(phase.gate) if phase.gate else None
        self._alarm = CollapseAlarm(phase.alarm) if phase.alarm else None
        self._health: HealthMeter | None = None
        if objective.codebook_size is not None and objective.tokens is not None:
            self._health = HealthMeter(
                objective.codebook_size, objective.tokens, training.health_window
            )
        self._average: WeightAverage | None = None
        if training.ema_decay:
            self._average = WeightAverage(self.model, training.ema_decay)
        if self._restored is None:
            return
        state = self._restored.state
        self._guard.load_state_dict(state["guard"])
        for part, name in ((self._gate, "gate"), (self._alarm, "alarm"), (self._health, "health")):
            if part is not None and state[name] is not None:
                part.load_state_dict(state[name])
        if self._average is not None:
            self._average.load(self._restored.tensors("ema"), state["ema_updates"])
        self._restored = None

    def _next_batch(self) -> ClipBatch:
        try:
            return next(self.loader).to(self.device, non_blocking=True)
        except StopIteration:
            raise ValueError(
                "the loader has no more batches; training needs an endless one that starts over"
            ) from None

    def _autocast(self) -> torch.autocast:
        choice = self.training.autocast
        on = choice == "bf16" or (choice == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def _step(self, phase: Phase, objective: Objective) -> tuple[dict[str, Any], int]:
        """One optimizer step, applied or skipped. Returns its row and how many clips it saw."""
        progress, training = self.progress, self.training
        number = progress.step + 1
        key: tuple[int | str, ...] = (training.seed, phase.name, number)
        if progress.round or parallel.rank():  # another stream after a rollback, and per process
            key = (*key, f"round {progress.round} rank {parallel.rank()}")
        self._optimizer.zero_grad()
        objective.begin_step()
        scalars: dict[str, list[Tensor]] = {}
        indices, batches = [], []
        for micro in range(training.accumulate):
            batch = self._next_batch()
            batches.append(batch)
            with self._autocast():
                loss, metrics = objective.loss(
                    batch, generator=generator_for(self.device, *key, micro)
                )
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
                    scalar = torch.as_tensor(value, device=self.device).detach()
                    scalars.setdefault(name, []).append(scalar.float().reshape(()))
        health_due = number == 1 or number % training.health_every == 0
        norms = gradient_norms(self._optimizer) if health_due else {}
        gradients = self._optimizer.gradients()
        norm = torch.nn.utils.get_total_norm(gradients).to(self.device)
        names = list(scalars)
        values = torch.stack(
            [torch.stack(scalars[name]).mean() for name in names] + [norm.float().reshape(())]
        ).tolist()  # the one place where the step waits for the device
        means, total = dict(zip(names, values[:-1], strict=True)), values[-1]
        mean_loss = means.pop("loss")
        reason = self._guard.judge(mean_loss, total)
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
                    list(self._optimizer.parameters.values()), training.clip_norm, norm
                )
            self._optimizer.step(number)
            more, moved = objective.after_step(generator=generator_for(self.device, *key, "after"))
            means.update(more)
            for parameter, rows in moved:
                self._optimizer.forget(parameter, rows)
            if self._average is not None:
                self._average.update(self.model)
            if self._health is not None:
                for codes in indices:
                    self._health.update(codes)
        else:
            self._skip(row, reason, batches)
        row["grad_norm"] = {**norms, "total": total}
        row["metrics"] = means
        progress.step += 1
        progress.global_step += 1
        return row, sum(len(batch) for batch in batches)

    def _skip(self, row: dict[str, Any], reason: str, batches: Sequence[ClipBatch]) -> None:
        self._optimizer.zero_grad()
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
        if self._guard.exhausted:
            raise UnstableTrainingError(
                f"{where}. {self._guard.in_a_row} updates were skipped in a row, "
                f"{self._guard.skipped} in this phase. Look at these clips, or lower the learning "
                "rate; the last checkpoint is from before"
            )
        log.warning("update skipped at %s", where)

    # -- health, gate, alarm ---------------------------------------------------------------

    def _check_health(self, phase: Phase, row: dict[str, Any], *, last: bool) -> str | None:
        """Measure health when due, open the gate, raise the alarm. Returns the alarm's action."""
        if self._health is None:
            return None
        step = self.progress.step
        if not (step == 1 or last or step % self.training.health_every == 0):
            row["codebook"] = self._health.latest
            return None
        row["codebook"] = self._health.measure()
        if not self._health.full or row["codebook"] is None:
            return None
        entropy = row["codebook"]["entropy_normalised"]
        if self._gate is not None and self._gate.update(step, entropy):
            self.progress.over = "gate"
        action = self._alarm.update(entropy) if self._alarm is not None else None
        if action is not None:
            log.warning(
                "%s step %d: the codebook is collapsing (normalised entropy %.3f, under %.3f for "
                "%d checks): %s",
                phase.name,
                step,
                entropy,
                phase.alarm.floor,
                phase.alarm.checks,
                action,
            )
        return None if action == "warn" else action

    def _healthy(self, phase: Phase) -> bool:
        """Whether a rollback may go back to now: no codebook, or entropy above the alarm floor."""
        if self._health is None or self._health.latest is None:
            return True
        floors = [p.alarm.floor for p in self.phases if p.alarm]
        floor = phase.alarm.floor if phase.alarm else max(floors, default=0.0)
        return self._health.latest["entropy_normalised"] >= floor

    def _roll_back(self, phase: Phase) -> TrainResult | None:
        """Weights of the last healthy checkpoint, and on from the re-warm phase's first step."""
        assert phase.alarm is not None
        if self.progress.round >= phase.alarm.max_rollbacks:
            self._save(phase)
            return self._stopped(
                f"the codebook collapsed in phase {phase.name} after "
                f"{self.progress.round} rollbacks"
            )
        healthy = checkpoints.latest_checkpoint(self.out / "checkpoints", healthy=True)
        if healthy is None:
            self._save(phase)
            return self._stopped(
                f"the codebook collapsed in phase {phase.name} and there is no healthy checkpoint "
                "to go back to"
            )
        weights = healthy.tensors("model")
        checkpoints.load_strictly(self.model, weights, source=str(healthy.path))
        progress = self.progress
        names = [p.name for p in self.phases]
        progress.round += 1
        progress.started = list(healthy.state["progress"]["started"])
        progress.phase = names.index(phase.alarm.rewarm_phase)
        progress.step, progress.over = 0, None
        self._moments, self._restored = {}, None
        log.warning(
            "rolled back to %s; %s begins again", healthy.path.name, phase.alarm.rewarm_phase
        )
        assert self._console is not None
        self._console.skip_to(self._steps_behind())
        return None

    # -- saving and restoring --------------------------------------------------------------

    def _save(self, phase: Phase) -> None:
        progress = self.progress
        if self._jsonl is not None:
            self._jsonl.sync()
        if parallel.rank():
            return
        name = f"step_{progress.phase}_{progress.step:07d}"
        if progress.round:
            name += f"_round{progress.round}"
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": {
                f"{parameter}/{kind}": value
                for parameter, state in self._optimizer.moments().items()
                for kind, value in state.items()
            },
            "rng": checkpoints.rng_tensors(self.device),
        }
        if self._average is not None:
            tensors["ema"] = self._average.weights(self.model)
        state = {
            "progress": dataclasses.asdict(progress),
            "phase_name": phase.name,
            "healthy": self._healthy(phase),
            "seed": self.training.seed,
            "guard": self._guard.state_dict(),
            "gate": self._gate.state_dict() if self._gate else None,
            "alarm": self._alarm.state_dict() if self._alarm else None,
            "health": self._health.state_dict() if self._health else None,
            "ema_updates": self._average.updates if self._average else 0,
            "loader": dict(self.loader.state_dict()),
            "config_sha256": config_sha256(self.config_yaml),
            "config": self.config_yaml,
        }
        folder = self.out / "checkpoints"
        self._saved = checkpoints.write_checkpoint(folder / name, tensors, state).path
        checkpoints.prune_checkpoints(folder, self.training.keep_checkpoints)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        checkpoints.load_strictly(
            self.model, checkpoint.tensors("model"), source=str(checkpoint.path)
        )
        self.progress = Progress(**state["progress"])
        self._moments = {}
        for key, value in checkpoint.tensors("optimizer").items():
            parameter, kind = key.rsplit("/", 1)
            self._moments.setdefault(parameter, {})[kind] = value
        checkpoints.restore_rng(checkpoint.tensors("rng"), self.device)
        self.loader.load_state_dict(state["loader"])
        self._restored, self._saved = checkpoint, checkpoint.path
        log.info("resumed from %s", checkpoint.path)

    def _export(self) -> None:
        """weights/: what the last checkpoint holds, averaged where an average is kept."""
        latest = checkpoints.latest_checkpoint(self.out / "checkpoints")
        assert latest is not None
        averaged = latest.tensors("ema")
        progress = self.progress
        checkpoints.export_weights(
            self.out / "weights",
            averaged or latest.tensors("model"),
            {
                "format_version": checkpoints.FORMAT_VERSION,
                "phase": self.phases[progress.phase].name,
                "global_step": progress.global_step,
                "averaged": bool(averaged),
                "config": yaml.safe_load(self.config_yaml) or {},
            },
        )

    def _stopped(self, why: str) -> TrainResult:
        message = f"stopped: {why}; the run is saved in {self.out}"
        log.error(message)
        return self._result("stopped", message)

    def _interrupted(self, signal: str, phase: Phase) -> TrainResult:
        message = f"{signal}: saved {phase.name} step {self.progress.step} in {self.out}."
        if self.resume_command:
            message += f" Resume with:\n  {self.resume_command}"
        assert self._console is not None
        self._console.say(message)
        return self._result("interrupted", message)

    # -- showing ---------------------------------------------------------------------------

    def _write(self, row: dict[str, Any], clips: int) -> None:
        self._throughput.update(row["seconds"], clips)
        if parallel.rank():
            return
        assert self._jsonl is not None and self._console is not None
        if row.get("codebook") is None:
            row.pop("codebook", None)
        self._jsonl.row(row)
        self._console.row(row, clips_per_second=self._throughput.clips_per_second)
        if self._tensorboard is not None:
            self._tensorboard.row(row)
            if self._health is not None and row["step"] % self.training.health_every == 0:
                self._tensorboard.codes(self._health.counts(), row["global_step"])

    def _show_preview(self, phase: Phase) -> None:
        every = self.training.sample_every
        if not every or self.preview is None or self._tensorboard is None:
            return
        if self.progress.step % every:
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            frames = self.preview(self.progress.step, phase.name)
        self._tensorboard.video(f"rollout/{phase.name}", frames, self.progress.global_step)
        enter_phase(self.model, phase)

    def _wrap_blocks(self) -> None:
        """Compile and recompute in place, so that names in checkpoints do not change.

        For "full" a model says by `compile_parts()` what is worth compiling; without one every part
        is, which torch refuses for a part that is a bare layer of its own (a Linear, say).
        """
        if self.training.compile == "blocks":
            compile_blocks(self.model)
        if self.training.recompute == "blocks":
            recompute_blocks(self.model)
        if self.training.compile != "full":
            return
        if hasattr(self.model, "compile_parts"):
            self.model.compile_parts()
            return
        for child in self.model.children():
            child.compile(fullgraph=True)
