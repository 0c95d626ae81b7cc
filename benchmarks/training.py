"""One optimizer step of a recipe: samples and tokens a second, where the time goes, MFU, memory.

The step is made of the public parts that training's loop is made of, in its order, so that several
ways of running it can take turns; a test holds its losses against the loop's. Left out: guard,
health, logs and checkpoints, and the choice of a phase (the last of the schedule is timed).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from colaworld import envs
from colaworld.contracts import ClipBatch
from colaworld.data.loader import ClipLoader
from colaworld.data.recording import LeRobotWriter
from colaworld.envs import behaviours
from colaworld.recipes.base import RunConfig, build_model
from colaworld.training.objectives import OBJECTIVES
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.phases import enter_phase
from colaworld.training.randomness import generator_for

from . import shapes
from .arms import ARMS, Arm, autocast
from .case import Case, Provider, Wish
from .models import settled

TESTS = ("tests/training/test_objectives.py", "tests/training/test_optimizer.py", "tests/ops")
PARTS = ("data", "tokenizer", "lam", "world_model", "optimizer", "rest")
_EPISODES, _FRAMES = 40, 16  # of the recorded set: more clips than a codebook's start takes
# Largest relative difference of the first loss from the eager one: sums in another order; bfloat16
# arithmetic in another order.
BOUNDS = {"float32": 1e-3, "bfloat16": 1e-1}
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@cache
def recorded(height: int, width: int) -> Path:
    """A small set of the scene in closed form, recorded once per process into a temporary folder."""
    _folders.append(tempfile.TemporaryDirectory(prefix="colaworld-bench-"))
    path = Path(_folders[-1].name) / "scene"
    scene = envs.make("scene", height=height, width=width, square=min(6, min(height, width) - 2))
    acting = behaviours.make("sticky-random", scene, repeat=0.5)
    with LeRobotWriter(
        path, fps=scene.fps, height=height, width=width, action=scene.action_spec
    ) as writer:
        for number in range(_EPISODES):
            episode = envs.play(scene, acting, seed=0, episode=number, steps=_FRAMES)
            writer.add(episode.frames, episode.actions, task="scene")
        writer.finish()
    return path


def on_data(config: RunConfig, data: Path | None) -> RunConfig:
    """The run on the data set at `data`, or on the recorded one."""
    path = recorded(*shapes.frame_size(config)) if data is None else data
    return replace(config, data=replace(config.data, path=path))


class _Marks:
    """Seconds spent in parts of a step. Does nothing until `on`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, False
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time added to `part` and taken off whatever part it runs inside."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            if not self.on:
                return function(*arguments, **keywords)
            before, inside = self.now(), sum(self.seconds.values())
            try:
                return function(*arguments, **keywords)
            finally:
                nested = sum(self.seconds.values()) - inside
                self.seconds[part] += self.now() - before - nested

        return timed


class Step:
    """A model with its phase, ready to step. Each call is one optimizer step."""

    def __init__(self, config: RunConfig, *, arm: Arm, dtype: str, device: str) -> None:
        self.config, self.arm, self.dtype = config, arm, dtype
        self.device, self.number = torch.device(device), 0
        self.phase, training = config.scheduled()[-1], config.training
        self.loader = ClipLoader(config.data, batch_size=training.batch_size, seed=training.seed)
        self.model = build_model(config).to(self.device)
        self.objective = OBJECTIVES[self.phase.objective](self.model, config.objective)
        enter_phase(self.model, self.phase)
        generator = generator_for(self.device, training.seed, self.phase.name, "before")
        with arm.choice():
            self.objective.before_phase(self.batch, generator=generator)
        enter_phase(self.model, self.phase)
        self.optimizer = PhaseOptimizer(self.model, self.phase, training)
        self.marks = _Marks(self.device)
        self._arrived: float | None = None  # when the gradient left the generator
        self._watch()
        arm.prepare(self.model.compile_parts, device)

    def batch(self) -> ClipBatch:
        return next(self.loader).to(self.device, non_blocking=True)

    def _watch(self) -> None:
        """Put marks around the model's own seams, outside of what is compiled."""
        model, around = self.model, self.marks.around
        generator = model.backbone.velocity

        def velocity(latents: Tensor, times: Tensor, *, modulation: Any = None, **rest: Any):
            if self.marks.on and modulation is not None and modulation.requires_grad:
                modulation.register_hook(self._leaves_generator)
            return generator(latents, times, modulation=modulation, **rest)

        model.tokenizer.encode = around("tokenizer", model.tokenizer.encode)
        model.quantize = around("lam", model.quantize)
        model.velocity = around(
            "lam", model.velocity
        )  # the conditioner; the generator is taken off
        model.backbone.velocity = around("world_model", velocity)

    def _leaves_generator(self, _: Tensor) -> None:
        self._arrived = self.marks.now()

    def __call__(self) -> float:
        """One step. Returns its loss, and so waits for the device, as training's loop does."""
        marks, training, seconds = self.marks, self.config.training, self.marks.seconds
        self.number += 1
        key = (training.seed, self.phase.name, self.number)
        self.objective.begin_step()
        self.optimizer.zero_grad()
        losses = []
        for micro in range(training.accumulate):
            batch = marks.around("data", self.batch)()
            loss = marks.around("rest", self._loss)(batch, generator_for(self.device, *key, micro))
            began, self._arrived = (marks.now() if marks.on else 0.0), None
            (loss / training.accumulate).backward()
            if marks.on:
                over = marks.now()
                left = over if self._arrived is None else self._arrived
                seconds["world_model"] += left - began
                seconds["lam"] += over - left
            losses.append(loss.detach())
        marks.around("optimizer", self._update)(generator_for(self.device, *key, "after"))
        return torch.stack(losses).mean().item()

    def _loss(self, batch: ClipBatch, generator: torch.Generator) -> Tensor:
        with self.arm.choice(), autocast(str(self.device), self.dtype):
            return self.objective.loss(batch, generator=generator)[0]

    def _update(self, generator: torch.Generator) -> None:
        clip, gradients = self.config.training.clip_norm, self.optimizer.gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        if clip:
            parameters = list(self.optimizer.parameters.values())
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        self.optimizer.step(self.number)
        with self.arm.choice():
            self.objective.after_step(generator=generator)

    def split(self, steps: int) -> dict[str, float]:
        """Milliseconds of each part of a step, the median over `steps` steps."""
        found: dict[str, list[float]] = {part: [] for part in PARTS}
        self.marks.on = True
        try:
            for _ in range(steps):
                self.marks.seconds.update(dict.fromkeys(PARTS, 0.0))
                self()
                for part in PARTS:
                    found[part].append(self.marks.seconds[part] * 1e3)
        finally:
            self.marks.on = False
        return {part: round(statistics.median(times), 4) for part, times in found.items()}

    def flops(self) -> int:
        """Floating-point operations of a step's products, forward and backward."""
        # The counter knows matrix products and SDPA's plain form, not every fused one.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self()
        return int(counter.get_total_flops())

    def close(self) -> None:
        self.loader.close()


def cases(wish: Wish) -> Iterator[Case]:
    config = shapes.run_config(wish.recipe, wish.overrides)
    for dtype in wish.dtypes:
        if dtype != "float64":  # nobody trains in it
            yield _case(config, dtype, wish)


def _case(config: RunConfig, dtype: str, wish: Wish) -> Case:
    shape = shapes.step(config)
    steps: dict[str, Step] = {}
    first: dict[str, float] = {}

    def step(name: str) -> Step:
        if name not in steps:
            run = on_data(settled(config, generator=config.generator), wish.data)
            steps[name] = Step(run, arm=ARMS[name], dtype=dtype, device=wish.device)
            first[name] = steps[name]()
        return steps[name]

    def judge(name: str) -> str | None:
        step("eager"), step(name)
        loss, expected = first[name], first["eager"]
        if abs(loss - expected) <= BOUNDS[dtype] * abs(expected):
            return None
        return f"its first loss is {loss:.6g}, the reference's {expected:.6g}"

    @cache
    def flops() -> int:
        return step("eager").flops()

    def details(name: str, p50: float) -> dict[str, Any]:
        found: dict[str, Any] = {"split_ms": steps[name].split(min(wish.samples, 10))}
        peak = wish.peak_tflops or wish.measured_tflops.get(dtype)
        if peak:
            found |= {"peak_tflops": peak, "mfu": float(f"{flops() / p50 / 1e9 / peak:.4g}")}
        return found

    def provider(name: str) -> Provider:
        return lambda: [step(name)]

    def close() -> None:
        for made in steps.values():
            made.close()

    B = shape.sizes["B"] * shape.sizes["accumulate"]
    tokens = B * shape.sizes["T"] * shape.sizes["S"]
    return Case(
        suite="training",
        op="step",
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode="fwd_bwd",
        providers={name: provider(name) for name in ARMS},
        tests=TESTS,
        judge=judge,
        flops=flops,
        counts={"samples": B, "tokens": tokens},
        details=details,
        close=close,
    )
