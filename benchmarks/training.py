"""One optimizer step of a recipe: samples and tokens a second, where the time goes, MFU, memory.

The step is the loop's own `backward_pass` and `apply_update`, so that several ways of running it can
take turns; a test holds its losses against the loop's. Left out: health, logs and checkpoints, and
the choice of a phase (the last of the schedule is timed).
"""

from __future__ import annotations

import itertools
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

from colaworld.contracts import ClipBatch
from colaworld.data.loader import ClipLoader
from colaworld.models.world_model import WorldModel
from colaworld.rng import generator_for
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig
from colaworld.training.blocks import blocks, wrap_blocks
from colaworld.training.config import OBJECTIVES
from colaworld.training.guard import LossGuard
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.phases import enter_phase
from colaworld.training.step import apply_update, backward_pass, clip_generator

from . import shapes, timing
from .case import Case, Request, require_compiler
from .models import VARIANTS, Variant, autocast, nonzero, without_warmup

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
    from colaworld import envs
    from colaworld.data.sources.lerobot_writer import LeRobotWriter
    from colaworld.envs import behaviours

    _folders.append(tempfile.TemporaryDirectory(prefix="colaworld-bench-"))
    path, size = Path(_folders[-1].name) / "scene", {"height": height, "width": width}
    scene = envs.make("scene", **size, square=min(6, min(height, width) - 2))
    acting = behaviours.make("sticky-random", scene, repeat=0.5)
    with LeRobotWriter(path, fps=scene.fps, **size, action=scene.action_spec) as writer:
        for number in range(_EPISODES):
            episode = envs.play(scene, acting, seed=0, episode=number, steps=_FRAMES)
            writer.add(episode.frames, episode.actions, task="scene")
        writer.finish()
    return path


def on_data(config: RunConfig, data: Path | None) -> RunConfig:
    """The run on the data set at `data`, or on the recorded one."""
    path = recorded(*shapes.frame_size(config)) if data is None else data
    return replace(config, data=replace(config.data, path=path))


class Clock:
    """Seconds spent in parts of a step; those of its backward passes are shared out. Stands until `on`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, False
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.began: float | None = None  # when the current backward pass began
        self.arrived: float | None = None  # when the gradient left the backbone

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def end_backward(self) -> None:
        """Share a backward pass out: to the backbone, then to what it got codes from."""
        if self.began is None:
            return
        over = self.now()
        left = over if self.arrived is None else self.arrived
        self.seconds["world_model"] += left - self.began
        self.seconds["lam"] += over - left
        self.began = None

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time added to `part` and taken off whatever part it runs inside."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            if not self.on:
                return function(*arguments, **keywords)
            before, inside = self.now(), sum(self.seconds.values())
            made = function(*arguments, **keywords)
            nested = sum(self.seconds.values()) - inside
            self.seconds[part] += self.now() - before - nested
            return made

        return timed


class Step:
    """A model with its phase, ready to step: one model for every way of running it (`use`).

    `batches` and `model` stand in for the loader and the model of the configuration.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        variant: Variant,
        dtype: str,
        device: str,
        batches: Iterator[ClipBatch] | None = None,
        model: WorldModel | None = None,
    ) -> None:
        self.config, self.dtype = config, dtype
        self.device, self.number = torch.device(device), 0
        self.phase, training = config.scheduled()[-1], config.training
        given = {"batch_size": training.batch_size, "seed": training.seed}
        self.batches = batches or ClipLoader(config.data, **given)
        self.model = (model or build_model(config)).to(self.device)
        self.objective = OBJECTIVES[self.phase.objective](self.model, config.objective)
        enter_phase(self.model, self.phase)
        generator = generator_for(self.device, training.seed, self.phase.name, "before")
        with variant.choice():
            self.objective.before_phase(
                lambda: ((found := self.batch()), clip_generator(self.device, 0, batch=found)),
                generator=generator,
            )
        enter_phase(self.model, self.phase)
        self.optimizer = PhaseOptimizer(self.model, self.phase, training)
        self.guard = LossGuard(replace(training, spike_factor=0.0))
        self.clock = Clock(self.device)
        self._watch()
        self.variant: Variant | None = None
        self.use(variant)

    def use(self, variant: Variant) -> None:
        """From now on the model runs in this way, compiled as `training.compile` says: in parts, or
        block by block. Unavailable where it asks for a missing compiler."""
        if variant == self.variant:
            return
        self.variant = variant
        for module in self.model.modules():
            module._compiled_call_impl = None
        for block in blocks(self.model).values():
            block.__dict__.pop("forward", None)
        if variant.compiled:
            require_compiler(str(self.device))
            torch._dynamo.reset()
            choice = "blocks" if self.config.training.compile == "blocks" else "full"
            wrap_blocks(self.model, replace(self.config.training, compile=choice))

    def batch(self) -> ClipBatch:
        return next(self.batches).to(self.device, non_blocking=True)

    def _watch(self) -> None:
        """Put marks around the model's own seams, outside of what is compiled."""
        model, clock, around = self.model, self.clock, self.clock.around
        loss, backbone = around("rest", self.objective.loss), model.backbone.velocity

        def before_backward(batch: ClipBatch, *, generator: torch.Generator) -> Any:
            made = loss(batch, generator=generator)
            clock.began, clock.arrived = (clock.now() if clock.on else None), None
            return made

        def velocity(latents: Tensor, times: Tensor, *, modulation: Any = None, **rest: Any):
            if clock.on and modulation is not None and modulation.requires_grad:
                modulation.register_hook(lambda _: setattr(clock, "arrived", clock.now()))
            return backbone(latents, times, modulation=modulation, **rest)

        self.objective.loss = before_backward
        model.tokenizer.encode = around("tokenizer", model.tokenizer.encode)
        model.quantize = around("lam", model.quantize)
        # The conditioner's time: the backbone's, which runs inside, is taken off.
        model.velocity = around("lam", model.velocity)
        model.backbone.velocity = around("world_model", velocity)

    def __call__(self) -> float:
        """One step. Returns its loss, and so waits for the device, as training's loop does."""
        training, both = self.config.training, (self.objective, self.optimizer)
        self.number += 1
        key = (training.seed, self.phase.name, self.number)
        self.optimizer.zero_grad()
        batches = (self._next() for _ in range(training.accumulate))
        how = {"passes": training.accumulate, "bf16": self.dtype == "bfloat16"}
        with self.variant.choice():
            terms = backward_pass(*both, batches, key=key, **how)
            self.clock.end_backward()
            how = {"number": self.number, "clip_norm": training.clip_norm, "guard": self.guard}
            update = self.clock.around("optimizer", apply_update)(*both, terms, key=key, **how)
        if update.skipped is not None:
            raise ValueError(f"step {self.number} was skipped: {update.skipped}")
        return update.loss

    def _next(self) -> ClipBatch:
        """The next batch; the backward pass of the one before is over."""
        self.clock.end_backward()
        return self.clock.around("data", self.batch)()

    def _loss(self, batch: ClipBatch, generator: torch.Generator) -> Tensor:
        with self.variant.choice(), autocast(str(self.device), self.dtype):
            return self.objective.loss(batch, generator=generator)[0]

    def split(self, steps: int) -> dict[str, float]:
        """Milliseconds of each part of a step, the median over `steps` steps."""
        seconds, found = self.clock.seconds, []
        self.clock.on = True
        for _ in range(steps):
            seconds.update(dict.fromkeys(PARTS, 0.0))
            self()
            found.append(dict(seconds))
        self.clock.on = False
        median = {part: statistics.median(one[part] for one in found) for part in PARTS}
        return {part: round(time * 1e3, 4) for part, time in median.items()}

    def flops(self) -> int:
        """Floating-point operations of a step's products, forward and backward: counted on the
        reference and on one clip, all clips alike."""
        batch = self.batch()
        one = replace(batch, **{n: t[:1] for n, t in vars(batch).items() if t is not None})
        generator = generator_for(self.device, self.config.training.seed, "flops")
        # The counter knows matrix products and SDPA's plain form, not every fused one.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self._loss(one, generator).backward()
        self.optimizer.zero_grad()
        return int(counter.get_total_flops()) * len(batch) * self.config.training.accumulate

    def activations_mb(self) -> float:
        """MB that a forward pass leaves allocated on a GPU, its batch apart."""
        batch, key = self.batch(), (self.config.training.seed, "activations")
        before = torch.cuda.memory_allocated()
        loss = self._loss(batch, generator_for(self.device, *key))  # holds what it needs backward
        held = torch.cuda.memory_allocated() - before
        del loss
        return round(held / 2**20, 1)

    def loss_of(self, batch: ClipBatch) -> float:
        """The loss of one batch and always the same noise; nothing is learnt from it."""
        self.objective.begin_step()
        return self._loss(batch, generator_for(self.device, self.config.training.seed)).item()

    def close(self) -> None:
        getattr(self.batches, "close", lambda: None)()


def cases(request: Request) -> Iterator[Case]:
    config = shapes.run_config(request.recipe, request.overrides)
    for dtype in request.dtypes:
        if dtype != "float64":  # nobody trains in it
            yield _case(config, dtype, request)


def off(what: str, loss: float, expected: float, bound: float) -> str | None:
    """What is wrong with a loss."""
    near = abs(loss - expected) <= bound * abs(expected)
    return None if near else f"its {what} is {loss:.6g}, the reference's {expected:.6g}"


def mfu(request: Request, dtype: str, flops: int, p50: float) -> dict[str, Any]:
    """The share of the peak, and that; nothing where no peak is known."""
    peak = request.peak_tflops or request.measured_tflops.get(dtype)
    if not peak:
        return {}
    return {"peak_tflops": peak, "mfu": timing.short(flops / p50 / 1e9 / peak)}


def _case(config: RunConfig, dtype: str, request: Request) -> Case:
    B, accumulate = config.training.batch_size, config.training.accumulate
    sizes = shapes.clips(config) | {"accumulate": accumulate}
    steps: dict[str, Step] = {}
    first: dict[str, float] = {}

    def step(name: str) -> Step:
        if name not in steps:
            weights = config.backbone_weights
            run = on_data(without_warmup(config, backbone_weights=weights), request.data)
            steps[name] = Step(run, variant=VARIANTS[name], dtype=dtype, device=request.device)
            first[name] = steps[name]()
        return steps[name]

    def verify(name: str) -> str | None:
        step("eager"), step(name)
        return off("first loss", first[name], first["eager"], BOUNDS[dtype])

    flops = cache(lambda: step("eager").flops())
    B *= accumulate
    # The phase that most of a run's time goes to.
    shape = shapes.Shape(f"{config.recipe}.{config.scheduled()[-1].name}", sizes, "the last phase")
    details = lambda name, p50: {  # noqa: E731
        "split_ms": steps[name].split(min(request.samples, 10)),
        **mfu(request, dtype, flops(), p50),
    }
    more = {"counts": {"samples": B, "tokens": B * sizes["T"] * sizes["S"]}, "details": details}
    more |= {"verify": verify, "flops": flops, "tests": TESTS}
    more["close"] = lambda: [made.close() for made in steps.values()]
    ways = (VARIANTS, lambda name: [step(name)])
    return Case.of("training", "step", shape, f"{dtype}/fwd_bwd", *ways, **more)


# --- a joint step at the paper's size, its latents given ------------------------------------------

# The largest relative difference of a loss from the reference's: 56 blocks in bfloat16.
LOSS_BOUND = 2e-2
ORDER = ("default+compile", "compile", "default", "eager")


class GivenLatents(torch.nn.Module):
    """In the place of a tokenizer whose latents come with the batch, as from a latent cache."""

    channels, temporal_stride, spatial_stride = 4, 1, 8

    def encode(self, frames: Tensor) -> Tensor:
        raise NotImplementedError("the latents come with the batch")


def xl(pairs: int) -> RunConfig:
    """The recipe opensora.cola with `pairs` pairs of blocks: 8 clips of 16 latent frames a step."""
    settings: dict[str, Any] = {
        "backbone_weights": None,
        "data": {"frames_per_clip": 16},
        "model": {"backbone": {"depth": pairs}, "quantizer": {"data_start": False}},
        "objective": {"augment": False},
        "training": {"batch_size": 8, "accumulate": 1, "compile": "blocks"},
    }
    return shapes.run_config("opensora.cola", settings)


def clip_batch(config: RunConfig, device: str) -> ClipBatch:
    """Random clips with random latents, drawn on the device."""
    g = torch.Generator(device).manual_seed(1)
    B, T = config.training.batch_size, config.data.frames_per_clip
    H, W, side = config.data.height, config.data.width, GivenLatents.spatial_stride
    frames = torch.randint(0, 256, (B, T, 3, H, W), generator=g, device=device, dtype=torch.uint8)
    sizes = (B, GivenLatents.channels, T, H // side, W // side)
    latents = torch.randn(sizes, generator=g, device=device)
    number = torch.arange(B, device=device)
    return ClipBatch(frames, episode=number, start=number, latents=latents)


def joint(config: RunConfig, request: Request, dtype: str = "bfloat16") -> Iterator[Case]:
    """A case for each way of running one model, so that a row is there as soon as it is timed.

    Every way answers to the loss of the reference with the same weights, batch and noise.
    """

    @cache
    def made() -> tuple[Step, ClipBatch, int]:
        with torch.device(request.device):  # a billion numbers are drawn where they stay
            model = WorldModel(config.model, parts=config.parts(), tokenizer=GivenLatents())
            batch = clip_batch(config, request.device)
        step = Step(
            config,
            variant=VARIANTS["eager"],
            dtype=dtype,
            device=request.device,
            batches=itertools.repeat(batch),
            model=nonzero(model),
        )
        return step, batch, step.flops()

    def used(name: str) -> Step:
        made()[0].use(VARIANTS[name])
        return made()[0]

    def verify(name: str) -> str | None:
        step, batch = used("eager"), made()[1]
        with torch.no_grad():
            expected = step.loss_of(batch)
        return off("loss", used(name).loss_of(batch), expected, LOSS_BOUND)

    def details(name: str, p50: float) -> dict[str, Any]:
        found = mfu(request, dtype, made()[2], p50)
        if timing.on_gpu(request.device):
            found["activation_mb"] = made()[0].activations_mb()
        return found

    B, T = config.training.batch_size, config.data.frames_per_clip
    pairs = config.model.backbone.depth
    sizes = {"B": B, "T": T, "pairs": pairs}
    shape = shapes.Shape(f"xl{pairs}.b{B}.joint", sizes, "a step at the paper's size")
    how = {"verify": verify, "counts": {"samples": B}, "details": details}
    how["flops"] = lambda: made()[2]
    for name in ORDER:
        ways = ([name], lambda name: [used(name)])
        yield Case.of("training", "step", shape, f"{dtype}/fwd_bwd", *ways, **how)
