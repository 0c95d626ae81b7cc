"""Whole models, forward and backward: the IDM, a pair of backbone blocks, the world model.

Also the ways a whole model is run: what colaworld chooses, the reference ops, and both compiled.

Not here: losses and updates (training.py), sampling (rollout.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from colaworld import ops
from colaworld.models.world_model import WorldModel
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig

from . import shapes
from .case import Case, Request, off, require_compiler
from .ops.definition import Definition, Function, Inputs, Outputs
from .shapes import Shape

# Largest relative error against float64: float32 sums over a few thousand terms in some ten layers
# one after another; bfloat16 has eight bits.
BOUNDS = {"float32": 1e-4, "bfloat16": 1e-1, "float64": 1e-5}


@dataclass(frozen=True)
class Variant:
    """One way to run a model."""

    ops: str | None  # the implementation of every op that is forced; None: colaworld chooses
    compiled: bool

    def choice(self) -> AbstractContextManager[None]:
        """The context in which the model is called."""
        return ops.force(self.ops) if self.ops else nullcontext()


# "eager" and "compile" are the same baselines as in the ops' rows: the reference ops.
VARIANTS = {
    "eager": Variant("reference", False),
    "compile": Variant("reference", True),
    "default": Variant(None, False),
    "default+compile": Variant(None, True),
}


def autocast(device: str, dtype: str) -> torch.autocast:
    """A model's row in bfloat16 is autocast, as training runs it; parameters stay float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


class Pair(nn.Module):
    """One spatial and one temporal block of the backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.spatial, self.temporal = backbone.spatial_blocks[0], backbone.temporal_blocks[0]

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [B, T, S, C], modulation [B, T, 6 C] -> [B, T, S, C]."""
        x, y, gate = self.spatial(x, None, None, modulation)
        x, y, gate = self.temporal(x, y, gate, modulation)
        return x + gate[:, :, None] * y


class Whole(nn.Module):
    """Frames to latent actions to the backbone's velocity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, latents: Tensor, times: Tensor) -> Tensor:
        acts = hasattr(self.model, "conditioner")
        codes = self.model.quantize(frames).codes if acts else None
        return self.model.velocity(latents, times, codes)


def without_warmup(config: RunConfig, *, backbone_weights: str | None = None) -> RunConfig:
    """The recipe with random weights or `backbone_weights`, its codebook in use from the first step."""
    quantizer = replace(config.model.quantizer, unquantized_steps=0)
    model = replace(config.model, quantizer=quantizer)
    return replace(config, model=model, backbone_weights=backbone_weights)


@torch.no_grad()
def nonzero(model: nn.Module) -> nn.Module:
    """Layers that begin at zero get small numbers, or most gradients would be zero."""
    generator = None
    for parameter in model.parameters():
        generator = generator or torch.Generator(parameter.device).manual_seed(0)
        if not parameter.any():
            parameter.normal_(0, 0.02, generator=generator)
    return model


def build(what: str, config: RunConfig, frames: Tensor | None) -> nn.Module:
    """The model called `what`, in evaluation mode, on the CPU in float32."""
    model = nonzero(build_model(without_warmup(config))).eval()
    if what == "idm":
        return model.idm
    if what == "stdit3_pair":
        return Pair(model.backbone)
    if hasattr(model, "quantizer"):
        with torch.no_grad():
            latents = model.idm(frames).flatten(0, 1)
        model.quantizer.start(latents, generator=torch.Generator().manual_seed(0))
    return Whole(model)


def world_model(config: RunConfig, device: str) -> WorldModel:
    """The whole world model on a device, with a codebook that has started."""
    height, width = shapes.frame_size(config)
    g = torch.Generator().manual_seed(0)
    frames = torch.rand(2, config.data.frames_per_clip, 3, height, width, generator=g)
    model: WorldModel = build("world_model", config, frames).model
    return model.to(device)


def draw(what: str, config: RunConfig, shape: Shape, g: torch.Generator) -> Inputs:
    """The arguments of the model called `what`, in float32; the same numbers on every device."""
    g, device = torch.Generator().manual_seed(g.initial_seed()), g.device
    B, T, S = shape.of("BTS")
    drawn, backbone = {}, config.model.backbone
    if what == "stdit3_pair":
        drawn["x"] = torch.randn(B, T, S, backbone.width, generator=g)
        drawn["modulation"] = 0.1 * torch.randn(B, T, 6 * backbone.width, generator=g)
    else:
        height, width = shape.sizes["height"], shape.sizes["width"]
        drawn["frames"] = torch.rand(B, T, 3, height, width, generator=g)
    if what == "world_model":
        side = config.model.tokenizer.spatial_stride
        size = (B, backbone.in_channels, T, height // side, width // side)
        drawn["latents"] = torch.randn(size, generator=g)
        drawn["times"] = torch.rand(B, T, generator=g)
    return {name: value.to(device) for name, value in drawn.items()}


def listed(config: RunConfig) -> dict[str, Shape]:
    """By model: idm, stdit3_pair, world_model. B, T, height, width, and S tokens per frame."""
    height, width = shapes.frame_size(config)
    name, size = shapes.family(config), shapes.clips(config)
    frame, why = {"height": height, "width": width}, "a training batch"
    found = {}
    if "idm" in config.parts():
        found["idm"] = Shape(f"{name}.idm", shapes.idm_clips(config) | frame, why)
    found["stdit3_pair"] = Shape(f"{name}.pair", size, "a spatial and a temporal block")
    return found | {"world_model": Shape(f"{name}.world", size | frame, why)}


class Way:
    """A model in one way of running it, as a function of its inputs; `weights` receive gradients."""

    def __init__(self, model: nn.Module, name: str, number: torch.dtype, device: str, dtype: str):
        self.model, self.variant = copy.deepcopy(model).to(device, number), VARIANTS[name]
        self.cast, self.weights = (device, dtype), dict(self.model.named_parameters())
        if self.variant.compiled:
            require_compiler(device)
            if isinstance(self.model, Whole):
                self.model.model.compile_parts()
            else:
                self.model.compile(fullgraph=True, dynamic=False)

    def __call__(self, inputs: Inputs) -> Outputs:
        with self.variant.choice(), autocast(*self.cast):
            return {"out": self.model(*inputs.values())}


@dataclass(frozen=True)
class Model(Definition):
    """A model like an op: its ways of running in the place of implementations."""

    made: Callable[[], nn.Module] = nn.Identity

    def number(self, dtype: str) -> torch.dtype:
        return torch.float64 if dtype == "float64" else torch.float32

    def reference(self, shape: Shape, number: torch.dtype, device: str) -> Function:
        return Way(self.made(), "eager", number, device, "float32")

    def functions(self, shape: Shape, dtype: str, mode: str, device: str, lead: Any) -> Any:
        how = (self.number(dtype), device, dtype)

        def way(name: str) -> Way:
            made = Way(self.made(), name, *how)
            made.model.requires_grad_(mode == "fwd_bwd")
            return made

        return {name: cache(partial(way, name)) for name in VARIANTS}

    def judge(self, found: Outputs, exact: Outputs, plain: Any, dtype: str) -> str | None:
        return differs(found, exact, BOUNDS[dtype])


def cases(request: Request) -> Iterator[Case]:
    config = shapes.run_config(request.recipe, request.overrides)
    for what, shape in listed(config).items():
        B, T, S = shape.of("BTS")
        counts = {"clips": B, "tokens": B * T * S}
        for case in definition(what, config, shape).cases([shape], request):
            count = partial(flops, case)
            yield replace(case, suite="models", flops=count, counts=counts, graph=False)


def definition(what: str, config: RunConfig, shape: Shape) -> Model:
    drawn = partial(draw, what, config)

    @cache
    def made() -> nn.Module:
        return build(what, config, drawn(shape, torch.Generator().manual_seed(0)).get("frames"))

    return Model(
        what, drawn, lambda inputs: {}, "", shape, lambda *_: (None, None), calls=(), made=made,
        most_copies=8, tests=("tests/models", "tests/ops"),
    )  # fmt: skip


def flops(case: Case) -> int:
    """Of the matrix products of one call."""
    with FlopCounterMode(display=False) as counter:
        case.providers["eager"]()[0]()
    return int(counter.get_total_flops())


def differs(found: Outputs, exact: Outputs, bound: float) -> str | None:
    """What is missing or wrong. Outputs by their own size; gradients by the size of all of them
    together, since one that is nearly zero by itself says nothing."""
    missing = set(exact) - set(found)
    if missing:
        return f"no {', '.join(sorted(missing))}"
    scale = sum(t.double().square().sum().item() for n, t in exact.items() if n != "out") ** 0.5
    for name, value in exact.items():
        size = None if name == "out" else scale
        if fault := off(name, found[name], value, bound, size):
            return fault
    return None
