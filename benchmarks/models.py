"""Whole models, forward and backward: the IDM, a pair of backbone blocks, the world model.

Not here: losses and updates (training.py), sampling (rollout.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig

from . import shapes, timing
from .case import MODES, Call, Case, Provider, Request, require_compiler
from .shapes import Shape
from .variants import VARIANTS, autocast

TESTS = ("tests/models", "tests/ops")
_COPIES = 8  # of the inputs, at most: a model's own activations push them out of the cache
# Largest relative error against float64: float32 sums over a few thousand terms in some ten layers
# one after another; bfloat16 has eight bits.
BOUNDS = {"float32": 1e-4, "bfloat16": 1e-1, "float64": 1e-5}


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
        codes = None
        if hasattr(self.model, "conditioner"):
            codes = self.model.quantize(frames).codes
        return self.model.velocity(latents, times, codes)

    def compile_parts(self) -> None:
        self.model.compile_parts()


def without_warmup(config: RunConfig, *, backbone_weights: str | None = None) -> RunConfig:
    """The recipe with random weights or `backbone_weights`, its codebook in use from the first step."""
    quantizer = replace(config.model.quantizer, unquantized_steps=0)
    return replace(
        config, model=replace(config.model, quantizer=quantizer), backbone_weights=backbone_weights
    )


@torch.no_grad()
def nonzero(model: nn.Module) -> nn.Module:
    """Layers that begin at zero get small numbers, or most gradients would be zero."""
    generator = None
    for parameter in model.parameters():
        generator = generator or torch.Generator(parameter.device).manual_seed(0)
        if not parameter.any():
            parameter.normal_(0, 0.02, generator=generator)
    return model


def build(what: str, config: RunConfig, frames: Tensor) -> nn.Module:
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


def draw(what: str, config: RunConfig, shape: Shape, seed: int) -> tuple[Tensor, ...]:
    """The arguments of the model called `what`, on the CPU in float32."""
    g = torch.Generator().manual_seed(seed)
    B, T, S = (shape.sizes[n] for n in "BTS")
    if what == "stdit3_pair":
        width = config.model.backbone.width
        x = torch.randn(B, T, S, width, generator=g)
        return x, 0.1 * torch.randn(B, T, 6 * width, generator=g)
    height, width = shape.sizes["height"], shape.sizes["width"]
    frames = torch.rand(B, T, 3, height, width, generator=g)
    if what == "idm":
        return (frames,)
    side, channels = config.model.tokenizer.spatial_stride, config.model.backbone.in_channels
    latents = torch.randn(B, channels, T, height // side, width // side, generator=g)
    return frames, latents, torch.rand(B, T, generator=g)


def cases(request: Request) -> Iterator[Case]:
    config = shapes.run_config(request.recipe, request.overrides)
    for what, shape in shapes.models(config).items():
        for dtype in request.dtypes:
            for mode in MODES:
                yield case_of(what, config, shape, dtype, mode, request.device)


def case_of(what: str, config: RunConfig, shape: Shape, dtype: str, mode: str, device: str) -> Case:
    wide = torch.float64 if dtype == "float64" else torch.float32
    backward = mode == "fwd_bwd"

    @cache
    def sets() -> list[tuple[Tensor, ...]]:
        first = draw(what, config, shape, 0)
        many = min(timing.copies(sum(t.nbytes for t in first), device), _COPIES)
        drawn = [first, *(draw(what, config, shape, i) for i in range(1, many))]
        return [tuple(t.to(device, wide) for t in one) for one in drawn]

    @cache
    def original() -> nn.Module:
        return build(what, config, draw(what, config, shape, 0)[0])

    @cache
    def model(name: str) -> nn.Module:
        made = copy.deepcopy(original()).to(device, wide)
        made.requires_grad_(backward)
        if VARIANTS[name].compiled:
            require_compiler(device)
            if isinstance(made, Whole):
                made.compile_parts()
            else:
                made.compile(fullgraph=True, dynamic=False)
        return made

    def results(made: nn.Module, name: str, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        with VARIANTS[name].choice(), torch.set_grad_enabled(backward), autocast(device, dtype):
            out = made(*inputs)
        return _named(made, out, backward)

    @cache
    def truth() -> dict[str, Tensor]:
        exact = copy.deepcopy(original()).to(device).double().requires_grad_(backward)
        with VARIANTS["eager"].choice(), torch.set_grad_enabled(backward):
            out = exact(*(t.double() for t in sets()[0]))
        return _named(exact, out, backward)

    def verify(name: str) -> str | None:
        return differs(results(model(name), name, sets()[0]), truth(), BOUNDS[dtype])

    def flops() -> int:
        made = copy.deepcopy(original()).to(device, wide).requires_grad_(backward)
        with FlopCounterMode(display=False) as counter:
            results(made, "eager", sets()[0])
        return int(counter.get_total_flops())

    def provider(name: str) -> Provider:
        def calls() -> Sequence[Call]:
            made = model(name)
            return [lambda inputs=inputs: results(made, name, inputs) for inputs in sets()]

        return calls

    B, T, S = (shape.sizes[n] for n in "BTS")
    return Case(
        suite="models",
        op=what,
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode=mode,
        providers={name: provider(name) for name in VARIANTS},
        tests=TESTS,
        verify=verify,
        flops=flops,
        counts={"clips": B, "tokens": B * T * S},
        rotated_mb=lambda: sum(t.nbytes for one in sets() for t in one) / 2**20,
    )


def _named(made: nn.Module, out: Tensor, backward: bool) -> dict[str, Tensor]:
    """The output and, with `backward`, the gradient of every parameter as "d <name>"."""
    found = {"out": out.detach()}
    if backward:
        weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype)
        named = dict(made.named_parameters())
        gradients = torch.autograd.grad(
            out, list(named.values()), weights.view_as(out), allow_unused=True
        )
        pairs = zip(named, gradients, strict=True)
        found |= {f"d {name}": g for name, g in pairs if g is not None}
    return found


def differs(found: dict[str, Tensor], exact: dict[str, Tensor], bound: float) -> str | None:
    """What is missing or wrong. Outputs by their own size; gradients by the size of all of them
    together, since one that is nearly zero by itself says nothing."""
    missing = set(exact) - set(found)
    if missing:
        return f"no {', '.join(sorted(missing))}"
    scale = sum(t.double().square().sum().item() for n, t in exact.items() if n != "out") ** 0.5
    for name, value in exact.items():
        gap = (found[name].double() - value.double()).norm().item()
        size = value.double().norm().item() if name == "out" else scale
        if not gap <= bound * size:
            return f"{name} is off by {gap / (size or 1):.2e}, expected at most {bound:.2e}"
    return None
