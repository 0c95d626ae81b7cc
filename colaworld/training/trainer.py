"""The only training loop: phases one after another, for any model and any objective.

It knows nothing of what is learned. It owns the order of things: phases, steps, health, gate and
alarm, rows, checkpoints; and it can be killed anywhere and resumed to the same numbers. Not here:
what is minimised (objectives.py), which phases there are (recipes), one step (step.py), what lives
as long as a phase (phase_state.py), the folder on disk (run_folder.py).

    for phase in phases:                    a step: loss x accumulate -> guard -> clip -> AdamW
        before_phase, then steps  --------->        -> after_step -> average -> health -> row
        until the last step, the gate                -> gate? alarm? checkpoint? stop request?
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colaworld.contracts import ClipBatch
from colaworld.rng import ClipGenerator, generator_for, seed_for
from colaworld.training import checkpoint as checkpoints
from colaworld.training.blocks import wrap_blocks
from colaworld.training.checkpoint import Checkpoint
from colaworld.training.config import TrainingConfig
from colaworld.training.distributed import Distributed
from colaworld.training.guard import LossGuard
from colaworld.training.interrupts import StopRequest
from colaworld.training.meters import Pace, Work, memory_gib
from colaworld.training.optimizer import Moments, moments_of
from colaworld.training.phase_state import PhaseState, Progress, TrainResult
from colaworld.training.phases import Phase, check_phases, enter_phase
from colaworld.training.protocols import ClipSupply, Control, Loader, Objective, Preview, Probe
from colaworld.training.run_folder import RunFolder
from colaworld.training.same_run import config_sha256
from colaworld.training.sharding import give_up, is_sharded
from colaworld.training.step import clip_generator, optimizer_step, uses_bf16
from colaworld.training.weights import init_parts, load_strictly

log = logging.getLogger(__name__)


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
        control: () -> paired losses of held-out clips, measured every `control_every` steps of a phase
            that trains the conditioner.
        probe: () -> how well held-out codes tell recorded actions, as often, in phases that train a part of
            the latent action model.
        preview: (step, phase name) -> uint8 frames [n, T, H, W, 3] to show every `sample_every`.
        resume: continue what is in `out` (from the start if there is no checkpoint yet).
        device: where to train.
        resume_command: what a person would type to resume; shown when interrupted.
        distributed: the processes that train together; default: those of torch.distributed, if it
            is initialised. Each has a Trainer of its own and a loader with its share of the clips.
        before: by the name of a phase, what is called before its first step, on every process.
        work: how much a clip is, for rows that tell speed in tokens and as a share of the peak.

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
        control: Control | None = None,
        probe: Probe | None = None,
        resume: bool = False,
        device: torch.device | str = "cpu",
        resume_command: str = "",
        distributed: Distributed | None = None,
        work: Work | None = None,
        before: Mapping[str, Callable[[nn.Module], None]] | None = None,
    ) -> None:
        check_phases(phases, model, list(objectives))
        self.device = torch.device(device)
        self.distributed = distributed or Distributed(self.device)
        bf16 = uses_bf16(training.autocast, self.device)
        self.model = self.distributed.shard(model, training, bf16=bf16)
        self.objectives = objectives
        self.phases = tuple(phase.capped(training.max_steps) for phase in phases)
        self.loader = loader
        self.out = Path(out)
        self.training = training
        self.config_yaml = config_yaml
        self.preview, self.control, self.probe = preview, control, probe
        self.resume = resume
        self.resume_command = resume_command
        self.work = work or Work()
        self.before = before or {}
        self.progress = Progress()
        self._moments: Moments = {}  # what the next optimizer begins with, by parameter name
        self._restored: Checkpoint | None = None  # what the current phase continues from
        self._reseeds = False  # whether the phase that begins starts the codebook anew
        self._guard = LossGuard(training)  # of the latest phase
        self._stall = 0.0  # seconds that saving took since the latest row
        self._pace = Pace(self.distributed, training.log_every)
        self._folder = RunFolder(self.out, self.distributed)

    # -- the run ---------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train until all phases are done, a phase diverged, the alarm stops the run, or a signal
        asks for it.

        Raises:
            RunFolderError: the folder holds another run, or cannot be written (CheckpointError).
            UnstableTrainingError: too many updates were skipped.
        """
        try:
            self._open_folder()
            if (why := self._failed()) is not None:
                return self._stopped(why)
            if self._advance():
                where = f"the run in {self.out} is finished; nothing to resume"
                if not self._folder.exported():
                    self._export()
                log.info(where)
                return self._result("finished", where)
            self._folder.retract()
            self._folder.skip_to(self._steps_behind())
            wrap_blocks(self.model, self.training)
            together = self.distributed
            with StopRequest(together.world_size, says=together.is_main) as request:
                while True:
                    ending = self._run_phase(request)
                    if ending is not None:
                        return ending
                    if self._advance():
                        break
            self._export()
            return self._result("finished", f"finished {self.out}")
        except KeyboardInterrupt:
            self._folder.ended("interrupted", "by a second signal", self.progress.global_step)
            self._folder.abandon()
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self._folder.ended("failed", why, self.progress.global_step)
            raise
        finally:
            self._folder.close()

    def _open_folder(self) -> None:
        folder = self._folder = RunFolder(self.out, self.distributed)
        with folder.usable():
            latest = folder.take(self.config_yaml, resume=self.resume)
            if latest is not None:
                self.distributed.on_each(functools.partial(self._restore, latest))
            folder.write_config(self.config_yaml)
        total = sum(phase.steps for phase in self.phases)
        folder.open_logs(self.training, after=self.progress.global_step, total=total)

    def _name_ended(self) -> None:
        """Say which phases stay as short as they were, though they may be longer now."""
        ended = {entry["phase"]: entry for entry in self.progress.ended}
        for phase in self.phases[: self.progress.phase]:
            steps, reason = ended[phase.name]["steps"], ended[phase.name]["reason"]
            if reason == "steps" and steps < phase.steps:
                log.warning("phase %s is over after %d steps and stays so", phase.name, steps)

    def _steps_behind(self) -> int:
        done = sum(phase.steps for phase in self.phases[: self.progress.phase])
        return done + self.progress.step

    def _failed(self) -> str | None:
        """Why the current phase, if it is over, is no success."""
        progress, phase = self.progress, self.phases[self.progress.phase]
        if progress.over is None or (progress.over == "steps" and progress.step < phase.steps):
            return None
        cut = phase.steps == self.training.max_steps  # a look at the machinery, not a run
        if progress.collapsed and phase.gate and phase.gate.missed == "stop" and not cut:
            at = f"phases.{phase.name}"
            return (
                f"phase {phase.name} ended by its steps with a collapsed codebook: "
                f"{progress.collapsed}. Begin anew with the quantizer's stabilisers on "
                "(--model.quantizer.normalise first), or with more clips a step (--training.batch-size; in the study "
                "`conditions` 32 kept what 8 lost). This run can train longer "
                f"(--{at}.steps and --resume), go on with a codebook that starts anew "
                f"(--{at}.gate.missed reseed and --resume) or as it is (go_on), which cured nothing in "
                "the study `remedies` (docs/study.md). No weights are exported"
            )
        last = phase is self.phases[-1]
        why = self._guard.diverged(progress.step, last=last)
        on = f", or train on with --phases.{phase.name}.steps and --resume"
        return why and (
            f"phase {phase.name} diverged: {why}. Lower its learning rate in a new run"
            f"{on if progress.over == 'steps' else ''}; no weights are exported"
        )

    def _advance(self) -> bool:
        """Go to the next phase if this one is over. True when it was the last."""
        progress = self.progress
        phase = self.phases[progress.phase]
        if progress.over != "gate" and progress.step < phase.steps:
            if progress.over:  # its end was moved out, by more steps or a larger max_steps
                progress.over = progress.collapsed = None
                progress.ended.pop()
            return False
        missed = phase.gate.missed if progress.collapsed and phase.gate else None
        if progress.collapsed:
            log.warning(
                "phase %s ends with a collapsed codebook: %s", phase.name, progress.collapsed
            )
        if progress.phase + 1 == len(self.phases):
            return True
        if missed == "reseed":
            self._reseed()
        progress.phase += 1
        progress.step, progress.over, progress.collapsed = 0, None, None
        self._restored = None
        return False

    def _reseed(self) -> None:
        """Let the next phase start the codebook anew, from its latents."""
        quantizer: Any = self.model.quantizer
        quantizer.restart()
        self._reseeds = True
        self._moments = {k: v for k, v in self._moments.items() if not k.startswith("quantizer.")}

    def _result(self, status: Any, message: str) -> TrainResult:
        progress = self.progress
        return TrainResult(
            status,
            message,
            self.phases[progress.phase].name,
            progress.step,
            progress.global_step,
            progress.seconds,
            self._folder.saved,
            tuple(progress.ended),
        )

    # -- one phase -------------------------------------------------------------------------

    def _run_phase(self, request: StopRequest) -> TrainResult | None:
        """Run the current phase. None when it is over (or rolled back), else how the run ends."""
        progress, training = self.progress, self.training
        phase = self.phases[progress.phase]
        objective = self.objectives[phase.objective]
        limit = phase.steps
        enter_phase(self.model, phase)
        first = phase.name not in progress.started  # it is not where a rollback came by
        if first:
            if phase.init_from is not None:
                begin = functools.partial(init_parts, self.model, phase.init_from)
                parts = self.distributed.on_each(begin)
                log.info("%s: %s from %s", phase.name, ", ".join(parts), phase.init_from)
            if phase.name in self.before:
                self.before[phase.name](self.model)
        if first or self._reseeds:
            generator = generator_for(self.device, training.seed, phase.name, "before")
            objective.before_phase(self._supply(phase), generator=generator)
            enter_phase(self.model, phase)
            self._reseeds = False
        if first:
            progress.started.append(phase.name)
        state = self._begin(phase, objective)
        while progress.step < limit and progress.over is None:
            began = time.perf_counter()
            row, clips = self._step(state)
            row["seconds"] = time.perf_counter() - began
            row |= self._looks(phase)
            alarm = state.check_health(progress, row, last=progress.step >= limit)
            if progress.over is None and progress.step >= limit:
                progress.over = "steps"
            progress.seconds += time.perf_counter() - began
            self._tell_speed(row, clips)
            if "own" in row["speed"]:
                slowest = self._pace.update(row["speed"]["own"])
                row |= {"slowest": slowest} if slowest else {}
            if self._stall:
                row["save_stall"], self._stall = self._stall, 0.0
            self._folder.row(row, clips, state)
            # Every process asks, and asks once: all stop behind the same step.
            stopping = self.distributed.agree(
                request.requested is not None or self._folder.failed()
            )
            if stopping:
                self._folder.wait()
            if alarm == "rollback":
                return self._roll_back(state)
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
                or stopping
                or progress.step % training.checkpoint_every == 0
            ):
                self._save(state)
            if alarm == "stop":
                return self._stopped(f"the codebook collapsed in phase {phase.name}")
            if (why := self._failed()) is not None:
                return self._stopped(why)
            if stopping:
                signals = self.distributed.gather(request.requested)
                return self._interrupted(next(filter(None, signals)), phase)
            self._show_preview(phase)
        self._moments = state.optimizer.moments()
        self._folder.skip_to(self._steps_behind() + limit - progress.step)
        return None

    def _looks(self, phase: Phase) -> dict[str, dict[str, float]]:
        """`control` and `probe`, where they are due: the same numbers on every process."""
        every, step = self.training.control_every, self.progress.step
        if not every or (step % every and step not in (1, phase.steps)):
            return {}
        due = {}
        if self.control is not None and "conditioner" in phase.train:
            due["control"] = self.control
        if self.probe is not None and {"idm", "quantizer", "conditioner"} & {*phase.train}:
            due["probe"] = self.probe
        looks = {}
        for name, look in due.items():
            found = look()
            give_up(self.model)
            enter_phase(self.model, phase)
            means = self.distributed.mean(torch.tensor(list(found.values()), device=self.device))
            looks[name] = dict(zip(found, means.tolist(), strict=True))
        return looks

    def _tell_speed(self, row: dict[str, Any], clips: int) -> None:
        seconds, speed = row["seconds"], row["speed"]
        devices = self.distributed.world_size
        speed["data_share"] = speed["data"] / seconds
        speed |= self.work.speed(row["phase"], clips, seconds, devices)
        speed["memory_gib"] = memory_gib(self.device)

    def _begin(self, phase: Phase, objective: Objective) -> PhaseState:
        """Everything that lives as long as the phase, fresh or as the checkpoint had it."""
        make = functools.partial(
            PhaseState,
            self.model,
            phase,
            objective,
            self.training,
            moments=self._moments,
            restored=self._restored,
            skips=self._guard.in_a_row,
        )
        state = self.distributed.on_each(make)
        self._guard = state.guard
        self._moments = {}  # the optimizer has copies; these would take their memory twice
        self._restored = None
        return state

    def _step(self, state: PhaseState) -> tuple[dict[str, Any], int]:
        return optimizer_step(state, self.progress, self._next_batch, self.device, self.distributed)

    def _next_batch(self) -> ClipBatch:
        try:
            return next(self.loader).to(self.device, non_blocking=True)
        except StopIteration:
            raise ValueError(
                "the loader has no more batches; training needs an endless one that starts over"
            ) from None

    def _supply(self, phase: Phase) -> ClipSupply:
        """Training batches before a phase's first step, each with what draws for its clips."""
        count = itertools.count()

        def supply() -> tuple[ClipBatch, ClipGenerator]:
            batch, key = self._next_batch(), (self.training.seed, phase.name, "before", next(count))
            return batch, clip_generator(
                self.device, *key, batch=batch, distributed=self.distributed
            )

        return supply

    def _roll_back(self, state: PhaseState) -> TrainResult | None:
        """Weights of the last healthy checkpoint, and on from the re-warm phase's first step."""
        phase = state.phase
        assert phase.alarm is not None
        if self.progress.round >= phase.alarm.max_rollbacks:
            self._save(state)
            rounds = self.progress.round
            return self._stopped(
                f"the codebook collapsed in phase {phase.name} after {rounds} "
                f"rollback{'' if rounds == 1 else 's'}"
            )
        healthy = self._folder.healthy()
        if healthy is None:
            self._save(state)
            return self._stopped(
                f"the codebook collapsed in phase {phase.name} and there is no healthy checkpoint "
                "to go back to"
            )
        self.distributed.on_each(functools.partial(self._load_weights, healthy))
        progress = self.progress
        names = [p.name for p in self.phases]
        progress.round += 1
        progress.started = list(healthy.state["progress"]["started"])
        progress.phase = names.index(phase.alarm.rewarm_phase)
        progress.step, progress.over, progress.collapsed = 0, None, None
        self._moments, self._restored = {}, None
        self._guard = LossGuard(self.training)
        log.warning(
            "rolled back to %s; %s begins again", healthy.path.name, phase.alarm.rewarm_phase
        )
        self._folder.skip_to(self._steps_behind())
        return None

    # -- saving and restoring --------------------------------------------------------------

    def _save(self, state: PhaseState) -> None:
        began = time.perf_counter()
        progress, distributed = self.progress, self.distributed
        name = f"step_{progress.phase}_{progress.step:07d}"
        if progress.round:
            name += f"_round{progress.round}"
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": state.moments(),
            "rng": {
                _of_rank(rank, name): value
                for rank, own in enumerate(distributed.gather(checkpoints.rng_tensors(self.device)))
                for name, value in own.items()
            },
        }
        if state.average is not None:
            tensors["ema"] = state.average.weights()
        loaders = distributed.gather(dict(self.loader.state_dict()))
        values = {
            "progress": dataclasses.asdict(progress),
            "phase_name": state.phase.name,
            "healthy": state.healthy(self.phases),
            "seed": self.training.seed,
            **state.state_dict(),
            "loader": dict(self.loader.merge_states(loaders)),
            "config_sha256": config_sha256(self.config_yaml),
            "config": self.config_yaml,
        }
        self._folder.save(
            name,
            tensors,
            values,
            keep=self.training.keep_checkpoints,
            background=self.training.async_checkpoint,
        )
        self._stall = time.perf_counter() - began
        progress.save_stall += self._stall

    def _restore(self, checkpoint: Checkpoint) -> None:
        with checkpoint.restoring():
            self._take_over(checkpoint)
        self._restored = checkpoint
        log.info("resumed from %s", checkpoint.path)

    def _load_weights(self, checkpoint: Checkpoint) -> None:
        weights = checkpoint.tensors("model", self.model.state_dict().get)
        load_strictly(self.model, weights, source=str(checkpoint.path))

    def _take_over(self, checkpoint: Checkpoint) -> None:
        state, distributed = checkpoint.state, self.distributed
        loader = state["loader"]
        if isinstance(loader, list):  # of an earlier version: one of each process
            loader = self.loader.merge_states(loader)
        self._load_weights(checkpoint)
        self.progress = Progress(**state["progress"])
        _ = self.phases[self.progress.phase]  # IndexError, which is told, where there is none
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self._moments = moments_of(
            checkpoint.tensors("optimizer", lambda key: parameters.get(key.rpartition("/")[0])),
            parameters,
            source=f"{checkpoint.path}/optimizer.safetensors",
        )
        rng, rank = checkpoint.tensors("rng"), distributed.rank
        own = {kind: rng.get(_of_rank(rank, kind)) for kind in ("cpu", "cuda")}
        if rank and own["cpu"] is None:  # fewer processes wrote it
            key = self.training.seed, "process", rank, self.progress.global_step
            torch.manual_seed(seed_for(*key))
        else:
            checkpoints.restore_rng({k: v for k, v in own.items() if v is not None}, self.device)
        self.loader.load_state_dict(loader)
        self._guard.load_state_dict(state["guard"])
        self._name_ended()

    def _export(self) -> None:
        phase = self.phases[self.progress.phase].name
        self._folder.export(phase, self.progress, self.config_yaml)

    # -- showing ---------------------------------------------------------------------------

    def _stopped(self, why: str) -> TrainResult:
        self._folder.wait()
        self._folder.ended("stopped", why, self.progress.global_step)
        message = f"stopped: {why}; the run is saved in {self.out}"
        log.error(message)
        return self._result("stopped", message)

    def _interrupted(self, signal: str, phase: Phase) -> TrainResult:
        self._folder.wait()
        self._folder.ended("interrupted", signal, self.progress.global_step)
        message = f"{signal}: saved {phase.name} step {self.progress.step} in {self.out}."
        if self.resume_command:
            message += f" Resume with:\n  {self.resume_command}"
        self._folder.say(message)
        return self._result("interrupted", message)

    def _show_preview(self, phase: Phase) -> None:
        every = self.training.sample_every
        if not every or self.preview is None or not self._folder.shows_videos:
            return
        if self.progress.step % every:
            return
        # On every process, since a sharded model runs on all or on none.
        # Its blocks are gathered in bfloat16 there, so that passes need autocast as in training.
        half = uses_bf16(self.training.autocast, self.device) and any(
            is_sharded(p) for p in self.model.parameters()
        )
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half),
        ):
            frames = self.preview(self.progress.step, phase.name)
        self._folder.video(f"rollout/{phase.name}", frames, self.progress.global_step)
        give_up(self.model)
        enter_phase(self.model, phase)


def _of_rank(rank: int, name: str) -> str:
    """What the state `name` of a process is called in a file that all share."""
    return f"rank{rank}/{name}" if rank else name
