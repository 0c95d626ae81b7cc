"""Does a run fit on a card? Its memory by phase, and what to switch on where it does not.

A phase's real training step is traced on tensors without storage (training/memory.py), so that the
answer for a billion parameters takes seconds and no memory. Not here: presets (presets.py), or the
table a person reads (cli/plan_memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from colaworld.config import ConfigError
from colaworld.contracts import ClipBatch
from colaworld.models.adapters import AdapterConfig
from colaworld.models.layers.attention import KeepsOnGPU
from colaworld.models.tokenizers import build_tokenizer
from colaworld.models.tokenizers.tokenizer import latent_frames
from colaworld.models.world_model import WorldModel
from colaworld.ops.flops import FlopCount
from colaworld.runs.config import RunConfig
from colaworld.runs.sizes import check_frames, check_heads
from colaworld.training.blocks import recompute_blocks
from colaworld.training.config import OBJECTIVES, ObjectiveConfig
from colaworld.training.memory import Kind, MemoryCount, trace_step
from colaworld.training.phases import Phase, check_phases
from colaworld.training.step import uses_bf16

GIB = 2**30
_GRANULARITY = 512  # bytes; what CUDA's allocator rounds up to

# What a card called N GB has for tensors, of N GiB. Cards differ: with error correction on GDDR6
# the driver shows 45.0 of "48" (L40S) and 22.5 of "24" (A10), of "80" 79.2 (A100).
_SHOWN = 0.94
_CONTEXT = 1 * GIB  # CUDA context, cuBLAS and cuDNN workspaces, compiled kernels
_SPLIT = 0.05  # of what is left: blocks the allocator holds and cannot use


def gib(size: float) -> str:
    """A number of bytes for people: "1.50 GiB", or "12.0 MiB" where it is little."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes of one phase at the moment of its step when they are most."""

    phase: str
    """Its name."""
    parameters: int
    """Of all parts, trained and frozen, with buffers; the tokenizer's too."""
    gradients: int
    """Those that exist at that moment."""
    optimizer: int
    """AdamW's two moments."""
    average: int
    """The averaged weights."""
    activations: int
    """All else: what autograd keeps, casts of weights, the batch."""
    tokenizer: int
    """Alone: its weights and what encoding a batch takes at most. Not a part of the sum."""
    flops: int = 0
    """Of a pass, not bytes: operations of its products of matrices, forward and backward, encoding and
    recomputing included."""

    @property
    def total(self) -> int:
        """The peak: the sum of the kinds."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Advice:
    """A change, and the largest phase of the run with it."""

    flags: str
    """What to add to the command."""
    cost: str
    """What it costs."""
    total: int
    """Bytes."""
    config: RunConfig
    """The run with it."""


def usable(gigabytes: float) -> int:
    """Bytes for tensors on a card that is sold as so many GB. See the constants for what is off."""
    return math.floor((gigabytes * GIB * _SHOWN - _CONTEXT) * (1 - _SPLIT))


def plan_memory(
    config: RunConfig,
    *,
    phases: tuple[str, ...] | None = None,
    device: str = "cuda",
) -> tuple[PhaseMemory, ...]:
    """The memory of each phase of a run (or of those named), without allocating it.

    Args:
        config: the run; nothing of its data or weights is read unless the size of frames is not set.
        phases: names of phases; None for the run's schedule.
        device: "cuda" counts what a GPU would hold: bf16 under `auto`, rounded up blocks, queries
            and keys that its spatial attention keeps. "cpu" counts what a CPU would.

    Raises:
        ConfigError: sizes that do not fit each other, or frames whose size nobody said.
    """
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device: expected 'cuda' or 'cpu', got {device!r}")
    names = config.schedule if phases is None else phases
    return tuple(_phase_memory(config, config.phases[name], device) for name in names)


def _phase_memory(config: RunConfig, phase: Phase, device: str) -> PhaseMemory:
    height, width = _frame_size(config)
    parts, training = config.parts(), config.training
    check_heads(config.model, parts)
    frames = config.data.frames_per_clip
    check_frames(config.model, parts, height=height, width=width, frames=frames)
    granularity = _GRANULARITY if device == "cuda" else 1
    with (
        FakeTensorMode(),
        FlopCount() as flops,
        MemoryCount(granularity=granularity) as count,
    ):
        model = built(config)
        if device == "cuda":
            _keep_what_gpus_keep(model)
        objective = OBJECTIVES[phase.objective](model, _uncropped(config.objective))
        # Alone: the phase that an alarm goes back to is another one.
        check_phases([replace(phase, alarm=None)], model, [phase.objective])
        if training.recompute == "blocks":
            recompute_blocks(model)
        clips = training.batch_size
        number = torch.zeros(clips, dtype=torch.int64)
        shape = (clips, frames, 3, height, width)
        actions = _actions(model, clips, frames) if objective.uses_actions else None
        batch = ClipBatch(
            torch.empty(shape, dtype=torch.uint8), episode=number, start=number, actions=actions
        )
        tokenizer = _count_encoding(model.tokenizer, count)
        bf16 = uses_bf16(training.autocast, device)
        trace_step(count, model, objective, phase, training, batch, autocast=bf16)
        at: dict[Kind, int] = count.at_peak
        return PhaseMemory(
            phase.name,
            at["parameters"],
            at["gradients"],
            at["optimizer"],
            at["average"],
            at["activations"],
            tokenizer(),
            flops.total,
        )


def _uncropped(config: ObjectiveConfig) -> ObjectiveConfig:
    """Without crops, whose sizes are values; they take neither memory nor products worth counting."""
    return replace(config, augment=False, idm_view="same")


def _actions(model: WorldModel, clips: int, frames: int) -> Tensor | None:
    """Recorded actions as an adapter takes them; None: there is none, and nobody knows their shape."""
    adapter = getattr(model, "adapter", None)
    sizes = getattr(adapter, "config", None)
    if not isinstance(sizes, AdapterConfig):
        return None
    if sizes.discrete:
        return torch.zeros(clips, frames - 1, dtype=torch.int64)
    return torch.zeros(clips, frames - 1, sizes.size)


def _frame_size(config: RunConfig) -> tuple[int, int]:
    data = config.data
    if data.height is not None and data.width is not None:
        return data.height, data.width
    one = next(iter(data.sets().values()))  # all of a mixture are alike
    if one.path is None:
        raise ConfigError(
            f"data.height, data.width: {config.recipe} takes its frames as they were recorded; add "
            "--data PATH, or a size: --data.height 64 --data.width 64"
        )
    from colaworld.data.clips import ClipSet

    clips = ClipSet(one)
    return clips.height, clips.width


def built(config: RunConfig) -> WorldModel:
    """The run's model with weights that are only shapes.

    A quantizer that looks at values (which codes are dead, how old it is) would stop the trace; its
    statistics are tables of codebook size and are left out.
    """
    sizes = replace(config.model, quantizer=config.model.quantizer.traceable())
    with unset_fake_temporarily(), torch.device("meta"):
        tokenizer = build_tokenizer(
            config.model.tokenizer
        )  # on the meta device it reads no weights
        if config.latents is not None:
            tokenizer = _Cached(tokenizer)
        model = WorldModel(sizes, parts=config.parts(), tokenizer=tokenizer)
    _on_cpu(model)
    if hasattr(model, "quantizer"):
        model.quantizer.observe = _not_observed  # type: ignore[method-assign]
    return model


def _on_cpu(model: nn.Module) -> None:
    """Parameters and buffers of the meta device become fake ones of the CPU, tied ones tied.

    Built there and not as fakes at once, since a module of fakes cannot be cast (`module.to`).
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one too: its id must not be used again
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, old.requires_grad)
                    made[id(old)] = old, new
                held[name] = made[id(old)][1]


def _not_observed(*_: object, **__: object) -> None:
    """In place of `Quantizer.observe`."""


class _Cached(nn.Module):
    """A tokenizer whose latents are read from a cache: it is there, but encodes nothing."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        for name in ("channels", "temporal_stride", "spatial_stride"):
            setattr(self, name, getattr(tokenizer, name))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] -> empty latents [B, C, T', h, w]."""
        B, T, _, H, W = frames.shape
        length, stride = latent_frames(T, self.temporal_stride), self.spatial_stride
        return frames.new_empty(B, self.channels, length, H // stride, W // stride)


def _count_encoding(tokenizer: nn.Module, count: MemoryCount) -> Callable[[], int]:
    """Watch `tokenizer.encode`; the result tells bytes of weights and of encoding, at most."""
    most, encode = [0], tokenizer.encode

    def counted(frames: Tensor) -> Tensor:
        latents, above = count.above(lambda: encode(frames))
        most[0] = max(most[0], above)
        return latents

    tokenizer.encode = counted  # type: ignore[assignment]
    weights = [*tokenizer.parameters(), *tokenizer.buffers()]
    return lambda: most[0] + sum(t.untyped_storage().nbytes() for t in weights)


class _Keep(torch.autograd.Function):
    """Identity that keeps a tensor until its gradient has passed."""

    @staticmethod
    def forward(ctx, x: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _keep_what_gpus_keep(model: nn.Module) -> None:
    """Layers that say so keep more on a GPU than the CPU's kernels, which are traced."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            return output
        kept = module.kept_on_gpu(output)  # type: ignore[operator]
        return output if kept is None else _Keep.apply(output, kept)

    for module in model.modules():
        if isinstance(module, KeepsOnGPU):
            module.register_forward_hook(hook)


# -- what to switch on ------------------------------------------------------------------------

_FEW_CLIPS = 4  # a pass with fewer leaves much of a card idle, so recomputing comes before it


def advise(config: RunConfig, limit: int) -> Iterator[Advice]:
    """Changes in order of what they cost, each on top of those before, until the run fits.

    Each is tried on the phase that needs most. The clips of an update stay as many. Nothing is
    given where the run fits as it is; the `total` of the last says whether it does with all.
    """
    now = max(plan_memory(config), key=lambda memory: memory.total)
    total = now.total
    while total > limit:
        step = _next_change(config)
        if step is None:
            return
        flags, cost, config = step
        before, total = total, plan_memory(config, phases=(now.phase,))[0].total
        if total < before:
            yield Advice(flags, cost, total, config)


def _next_change(config: RunConfig) -> tuple[str, str, RunConfig] | None:
    """The cheapest change that is left: flags, cost, the run with it."""
    training, tokenizer = config.training, config.model.tokenizer

    def trained(**changes: object) -> RunConfig:
        return replace(config, training=replace(training, **changes))  # type: ignore[arg-type]

    if training.autocast == "none":
        return "--training.autocast bf16", "bf16 products", trained(autocast="bf16")
    if getattr(tokenizer, "dtype", "bfloat16") == "float32":
        half = replace(config.model, tokenizer=replace(tokenizer, dtype="bfloat16"))  # type: ignore[call-arg, type-var]
        flag = "--model.tokenizer.dtype bfloat16"
        return flag, "latents in bf16 steps", replace(config, model=half)
    if training.batch_size > _FEW_CLIPS:
        return _halved(config)
    if training.recompute == "none":
        flag = "--training.recompute blocks"
        return flag, "a third more work", trained(recompute="blocks")
    if training.batch_size > 1:
        return _halved(config)
    if tokenizer.kind != "pixels" and config.latents is None:
        whole = replace(config.objective, augment=False)
        flags = "--latents DIR --objective.no-augment"
        cached = replace(config, latents="DIR", objective=whole)
        return flags, "disk; no random crops", cached
    if training.ema_decay:
        return "--training.ema-decay 0", "no averaged weights", trained(ema_decay=0.0)
    return None


def _halved(config: RunConfig) -> tuple[str, str, RunConfig]:
    """Half the clips in a pass (or the next fewer that divide them), more passes."""
    training = config.training
    clips = training.batch_size * training.accumulate
    fewer = next(n for n in range(training.batch_size // 2, 0, -1) if clips % n == 0)
    smaller = replace(training, batch_size=fewer, accumulate=clips // fewer)
    flags = f"--training.batch-size {fewer} --training.accumulate {clips // fewer}"
    return flags, "smaller products", replace(config, training=smaller)
