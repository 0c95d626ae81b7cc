"""Shapes by name: what the recipes need, and a few beyond them with the reason for each.

A benchmark never holds a bare size: it asks this file. Not here: how anything is timed.
Shape legend: B clips, T frames, S tokens per frame, H heads, D channels per head, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if (
    TYPE_CHECKING
):  # a GPU machine may have torch and Triton alone: recipes are loaded when asked for
    from colaworld.runs.config import RunConfig

# Height and width where a recipe leaves them to the data set: Crafter's map of 7 x 9 cells at 4 px,
# which the shipped video model was trained on and `colaworld demo` records.
RECORDED = (28, 36)


@dataclass(frozen=True)
class Shape:
    """Sizes with a name and the reason for being timed."""

    name: str
    sizes: Mapping[str, int]
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)  # keywords of the op, not sizes
    heavy: bool = False  # too long for every run; timed when named


def run_config(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The recipe called `name`, `overrides` put over it. ConfigError on an unknown name."""
    from colaworld.config import from_dict
    from colaworld.recipes import recipe
    from colaworld.runs.config import RunConfig

    config = recipe(name)
    return from_dict(RunConfig, overrides, base=config) if overrides else config


def frame_size(config: RunConfig) -> tuple[int, int]:
    """(height, width) of a frame in pixels."""
    return config.data.height or RECORDED[0], config.data.width or RECORDED[1]


def family(config: RunConfig) -> str:
    """What a recipe's shapes are called: "nano" for nano.cola."""
    return config.recipe.split(".")[0]


def clips(config: RunConfig) -> dict[str, int]:
    """B, T and S of a training step's tokens in the generator."""
    height, width = frame_size(config)
    side = config.model.tokenizer.spatial_stride
    _, rows, columns = config.model.backbone.patch
    tokens = (height // (side * rows)) * (width // (side * columns))
    return {"B": config.training.batch_size, "T": config.data.frames_per_clip, "S": tokens}


def idm_clips(config: RunConfig) -> dict[str, int]:
    """B, T and S of a training step's tokens in the inverse dynamics model."""
    height, width = frame_size(config)
    patch = config.model.idm.patch
    return clips(config) | {"S": (height // patch) * (width // patch)}


# STDiT3-XL/2 at the size its kernels are planned for: 16 latent frames of 256 x 256 px, whose
# latents of 32 x 32 make 16 x 16 tokens.
_XL_CLIPS = {"B": 1, "T": 16, "S": 256}
_XL_WIDTH, _XL_HEADS = 1152, {"H": 16, "D": 72}
_LAM_DIM = 32  # of a latent action in the paper
# The same in a training batch of eight clips, for a GPU: hundreds of megabytes a tensor.
_XL_BATCH = _XL_CLIPS | {"B": 8}
_ROPE = {"rope": True}
_SPATIAL = {"axis": "spatial", "causal": False, "norm": True, "rope": False}
_TEMPORAL = {"axis": "temporal", "causal": True, "norm": True, "rope": True}


def _sequences(n: int, why: str, N: int = 0, **heads: int) -> Shape:
    """N sequences of n tokens; by itself as many as make a training batch of STDiT3-XL."""
    N = N or math.prod(_XL_BATCH.values()) // n
    sizes = {"N": N, "n": n, **(heads or _XL_HEADS)}
    return Shape(f"{N}x{n}x{sizes['D']}", sizes, why)


# By op, whatever the recipe.
FIXED: dict[str, tuple[Shape, ...]] = {
    "st_attention": (
        Shape("goal.temporal", {"B": 4, "T": 8, "S": 64, "H": 4, "D": 32}, "a goal", _TEMPORAL),
        Shape("goal.spatial", {"B": 4, "T": 8, "S": 256, "H": 3, "D": 32}, "a goal", _SPATIAL),
        Shape("stdit3-xl.temporal", _XL_CLIPS | _XL_HEADS, "head dimension 72", _TEMPORAL),
        Shape("stdit3-xl.spatial", _XL_CLIPS | _XL_HEADS, "head dimension 72", _SPATIAL),
        Shape("stdit3-xl.b8.temporal", _XL_BATCH | _XL_HEADS, "memory-bound", _TEMPORAL, True),
        Shape("stdit3-xl.b8.spatial", _XL_BATCH | _XL_HEADS, "compute-bound", _SPATIAL, True),
    ),
    "adaln": (
        Shape("goal.block", {"B": 4, "T": 8, "S": 64, "C": 128}, "a goal"),
        Shape("stdit3-xl.block", _XL_CLIPS | {"C": _XL_WIDTH}, "memory-bound"),
        Shape("stdit3-xl.b8.block", _XL_BATCH | {"C": _XL_WIDTH}, "memory-bound", heavy=True),
        Shape(
            "stdit3-xl.b8.autocast",
            _XL_BATCH | {"C": _XL_WIDTH},
            "as training in bfloat16 calls it: x and modulation in float32, y in bfloat16",
            {"autocast": True},
            heavy=True,
        ),
    ),
    "qkv_norm_rope": (
        Shape("stdit3-xl.spatial", {"B": 16, "L": 256, **_XL_HEADS}, "with rotation", _ROPE),
        Shape(
            "stdit3-xl.b8.spatial", {"B": 128, "L": 256, **_XL_HEADS}, "memory-bound", _ROPE, True
        ),
    ),
    "qk_norm_rope": (
        Shape(
            # Wan2.1 1.3B: 12 heads of 128, a norm over all 1536 channels, and positions in time,
            # height and width that take 44, 42 and 42 channels of a head: 22, 21 and 21 pairs.
            "wan-1.3b",
            {"B": 4, "L": 1024, "H": 12, "D": 128},
            "norm across heads, positions in three axes",
            {"sections": (22, 21, 21)},
        ),
    ),
    "vector_quantize": (
        Shape("lam.codes", {"N": 2000, "K": 32, "d": _LAM_DIM}, "launch-bound on a GPU"),
        Shape("paper.codes", {"N": 4096, "K": 32, "d": _LAM_DIM}, "few entries, many rows"),
        Shape("goal.codes", {"N": 65536, "K": 1024, "d": 32}, "a goal: an image tokenizer's size"),
        Shape(
            "bounded.codes",
            {"N": 1_000_000, "K": 8192, "d": 8},
            "an N x K matrix would be 34 GB",
            heavy=True,
        ),
    ),
    # Attention alone, without norm and rotation (`python -m benchmarks.gpu rest`).
    "attention": (
        _sequences(16, "STDiT3-XL over time: 16 rows where a kernel's tile has 64 or 128"),
        _sequences(256, "STDiT3-XL within a frame of 256 px"),
        _sequences(1024, "STDiT3-XL within a frame of 512 px"),
        _sequences(1280, "Wan 2.1 1.3B: all tokens of a short clip", N=16, H=12, D=128),
    ),
}


def fixed(op: str, name: str) -> Shape:
    """The shape of `op` called `name`. KeyError where there is none."""
    op = {"code_statistics": "vector_quantize", "codebook_step": "vector_quantize"}.get(op, op)
    return {shape.name: shape for shape in FIXED[op]}[name]


def st_attention(config: RunConfig) -> list[Shape]:
    """B, T, S, H, D; options axis, causal, norm, rope."""
    name, model = family(config), config.model
    heads = {"H": model.backbone.heads, "D": model.backbone.width // model.backbone.heads}
    temporal = _TEMPORAL | {"causal": model.backbone.causal}
    shapes = [
        Shape(f"{name}.spatial", clips(config) | heads, "the generator, each frame", _SPATIAL),
        Shape(f"{name}.temporal", clips(config) | heads, "the generator, over time", temporal),
    ]
    if "idm" in config.parts():
        inner = {"H": model.idm.heads, "D": model.idm.width // model.idm.heads}
        sizes = idm_clips(config) | inner
        shapes.append(Shape(f"{name}.idm.spatial", sizes, "the IDM, each frame", _SPATIAL))
        shapes.append(Shape(f"{name}.idm.temporal", sizes, "the IDM, over time", _TEMPORAL))
    if "conditioner" in config.parts():
        count = model.conditioner.heads
        acting = {"S": 1, "H": count, "D": model.backbone.width // count}
        options = _TEMPORAL | {"norm": False}
        shapes.append(
            Shape(f"{name}.actions", clips(config) | acting, "the action sequence", options)
        )
    return shapes + list(FIXED["st_attention"])


def adaln(config: RunConfig) -> list[Shape]:
    """B, T, S, C."""
    name, model = family(config), config.model
    size = clips(config) | {"C": model.backbone.width}
    shapes = [Shape(f"{name}.block", size, "a block of the video model")]
    if "idm" in config.parts():
        inner = idm_clips(config) | {"C": model.idm.width}
        shapes.append(Shape(f"{name}.idm.block", inner, "a block of the IDM"))
    return [*shapes, *FIXED["adaln"]]


def qkv_norm_rope(config: RunConfig) -> list[Shape]:
    """B sequences, L tokens, H, D; option rope."""
    name, model = family(config), config.model
    size = clips(config)
    heads = {"H": model.backbone.heads, "D": model.backbone.width // model.backbone.heads}
    sizes = {"B": size["B"] * size["T"], "L": size["S"], **heads}
    return [
        Shape(f"{name}.spatial", sizes, "ahead of a library's attention", {"rope": False}),
        *FIXED["qkv_norm_rope"],
    ]


def qk_norm_rope(_: RunConfig) -> list[Shape]:
    """B clips, L tokens, H, D; option sections."""
    return list(FIXED["qk_norm_rope"])


def vector_quantize(config: RunConfig) -> list[Shape]:
    """N rows, K entries, d width."""
    size, model = clips(config), config.model
    rows = size["B"] * (size["T"] - 1) * model.idm.tokens
    entries = getattr(model.quantizer, "codebook_size", 0)
    if not entries:  # no table to search
        return list(FIXED["vector_quantize"])
    sizes = {"N": rows, "K": entries, "d": model.idm.dim}
    own = Shape(f"{family(config)}.codes", sizes, "one training step: calls, not arithmetic")
    return [own, *FIXED["vector_quantize"]]


# What is counted and summed are the rows of the search.
code_statistics = vector_quantize


def codebook_step(config: RunConfig) -> list[Shape]:
    """Those that a moving average serves: K up to some dozen."""
    return [shape for shape in vector_quantize(config) if shape.sizes["N"] <= 2000]


def models(config: RunConfig) -> dict[str, Shape]:
    """By model: idm, stdit3_pair, world_model. B, T, height, width, and S tokens per frame."""
    height, width = frame_size(config)
    name, frame = family(config), {"height": height, "width": width}
    found = {}
    if "idm" in config.parts():
        found["idm"] = Shape(f"{name}.idm", idm_clips(config) | frame, "a training batch")
    found["stdit3_pair"] = Shape(f"{name}.pair", clips(config), "a spatial and a temporal block")
    found["world_model"] = Shape(f"{name}.world", clips(config) | frame, "a training batch")
    return found


def step(config: RunConfig) -> Shape:
    """One optimizer step of the recipe's last phase."""
    last = config.scheduled()[-1].name
    sizes = clips(config) | {"accumulate": config.training.accumulate}
    return Shape(f"{config.recipe}.{last}", sizes, "the phase that most of a run's time goes to")


def loader(config: RunConfig) -> list[Shape]:
    """Batches from the first one on, and from a cache that holds the set."""
    height, width = frame_size(config)
    sizes = clips(config) | {"height": height, "width": width}
    del sizes["S"]
    return [
        Shape(f"{family(config)}.first", sizes, "a fresh loader's first batch: open, decode, cut"),
        Shape(f"{family(config)}.steady", sizes, "decoded frames are cached"),
    ]


PLANNING_STEPS, PAPER_STEPS = 3, 10  # denoising steps in the paper: when planning, and otherwise


def rollout(config: RunConfig) -> list[Shape]:
    """By denoising steps and batch; T frames are generated after one given frame."""
    frames = config.evaluation.horizon
    return [
        Shape(
            f"{family(config)}.steps{count}.batch{batch}",
            {"B": batch, "T": frames, "steps": count},
            "frames a second, alone and in a batch",
        )
        for count in sorted({PLANNING_STEPS, config.sampler.steps, PAPER_STEPS})
        for batch in sorted({1, config.training.batch_size})
    ]


def next_frame(config: RunConfig) -> list[Shape]:
    """One more frame behind h frames of a video, in a window of W latent frames."""
    window = 16  # the latent frames that STDiT3's kernels are planned for
    return [
        Shape(
            f"{family(config)}.behind{held}",
            {"B": 1, "h": held, "W": window, "steps": PLANNING_STEPS},
            "the window has slid" if held >= window else "the window fills up",
        )
        for held in (2, 4, 8, window - 1, window)
    ]


def candidates(config: RunConfig) -> list[Shape]:
    """n ways on from one history of h frames, T frames each; as in VP2: 2 given, horizon 10."""
    size = {"B": 1, "n": 64, "h": 2, "T": 10, "steps": PLANNING_STEPS}
    windows = {
        "slides": (config.model.window, "as trained"),
        "fits": (12, "the window holds it all"),
    }
    return [
        Shape(f"{family(config)}.{name}", size | {"W": window}, why, heavy=True)
        for name, (window, why) in windows.items()
    ]
