"""Shapes by name: what the recipes need, and a few beyond them with the reason for each.

A benchmark never holds a bare size: it asks this file. Not here: how anything is timed.
Shape legend: B clips, T frames, S tokens per frame, H heads, D channels per head, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colaworld.config import from_dict
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.latent_action.idm import IDMConfig
from colaworld.recipes import recipe
from colaworld.recipes.base import RunConfig

# Height and width where a recipe leaves them to the data set: Crafter's map of 7 x 9 cells at 4 px,
# which the shipped generator was trained on and `colaworld demo` records.
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
_XL = STDiT3Config.xl2()
_XL_CLIPS = {"B": 1, "T": 16, "S": 256}
_XL_HEADS = {"H": _XL.heads, "D": _XL.width // _XL.heads}
# The same in a training batch of eight clips, for a GPU: hundreds of megabytes a tensor.
_XL_BATCH = _XL_CLIPS | {"B": 8}
_SPATIAL = {"axis": "spatial", "causal": False, "norm": True, "rope": False}
_TEMPORAL = {"axis": "temporal", "causal": True, "norm": True, "rope": True}


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
        shapes += [
            Shape(f"{name}.idm.spatial", sizes, "the IDM, each frame", _SPATIAL),
            Shape(f"{name}.idm.temporal", sizes, "the IDM, over time", _TEMPORAL),
        ]
    if "conditioner" in config.parts():
        count = model.conditioner.heads
        acting = {"S": 1, "H": count, "D": model.backbone.width // count}
        options = _TEMPORAL | {"norm": False}
        shapes.append(
            Shape(f"{name}.actions", clips(config) | acting, "the action sequence", options)
        )
    shapes += [
        Shape("goal.temporal", {"B": 4, "T": 8, "S": 64, "H": 4, "D": 32}, "a goal", _TEMPORAL),
        Shape("goal.spatial", {"B": 4, "T": 8, "S": 256, "H": 3, "D": 32}, "a goal", _SPATIAL),
        Shape("stdit3-xl.temporal", _XL_CLIPS | _XL_HEADS, "head dimension 72", _TEMPORAL),
        Shape("stdit3-xl.spatial", _XL_CLIPS | _XL_HEADS, "head dimension 72", _SPATIAL),
        Shape(
            "stdit3-xl.b8.temporal", _XL_BATCH | _XL_HEADS, "memory-bound", _TEMPORAL, heavy=True
        ),
        Shape("stdit3-xl.b8.spatial", _XL_BATCH | _XL_HEADS, "compute-bound", _SPATIAL, heavy=True),
    ]
    return shapes


def adaln(config: RunConfig) -> list[Shape]:
    """B, T, S, C."""
    name, model = family(config), config.model
    size = clips(config) | {"C": model.backbone.width}
    shapes = [Shape(f"{name}.block", size, "a block of the generator")]
    if "idm" in config.parts():
        inner = idm_clips(config) | {"C": model.idm.width}
        shapes.append(Shape(f"{name}.idm.block", inner, "a block of the IDM"))
    return [
        *shapes,
        Shape("goal.block", {"B": 4, "T": 8, "S": 64, "C": 128}, "a goal"),
        Shape("stdit3-xl.block", _XL_CLIPS | {"C": _XL.width}, "memory-bound"),
        Shape("stdit3-xl.b8.block", _XL_BATCH | {"C": _XL.width}, "memory-bound", heavy=True),
    ]


def qk_norm_rope(config: RunConfig) -> list[Shape]:
    """B sequences, L tokens, H, D; options norm, rope, rotation, sections."""
    name, model = family(config), config.model
    size = clips(config)
    heads = {"H": model.backbone.heads, "D": model.backbone.width // model.backbone.heads}
    plain = {"norm": "head", "rope": False, "rotation": "interleaved", "sections": None}
    return [
        Shape(
            f"{name}.spatial",
            {"B": size["B"] * size["T"], "L": size["S"], **heads},
            "prologue of spatial attention",
            plain,
        ),
        Shape(
            "stdit3-xl.spatial",
            {"B": _XL_CLIPS["B"] * _XL_CLIPS["T"], "L": _XL_CLIPS["S"], **_XL_HEADS},
            "head dimension 72, with rotation",
            plain | {"rope": True},
        ),
        Shape(
            "stdit3-xl.b8.spatial",
            {"B": _XL_BATCH["B"] * _XL_BATCH["T"], "L": _XL_BATCH["S"], **_XL_HEADS},
            "memory-bound",
            plain | {"rope": True},
            heavy=True,
        ),
        Shape(
            # Wan2.1 1.3B: 12 heads of 128, a norm over all 1536 channels, and positions in time,
            # height and width that take 44, 42 and 42 channels of a head: 22, 21 and 21 pairs.
            "wan-1.3b",
            {"B": 4, "L": 1024, "H": 12, "D": 128},
            "norm across heads, positions in three axes",
            plain | {"norm": "across", "rope": True, "sections": (22, 21, 21)},
        ),
        Shape(
            "rotate-half",
            {"B": 4, "L": 1024, "H": 12, "D": 128},
            "the other pairing of rotated channels",
            plain | {"norm": "none", "rope": True, "rotation": "half"},
        ),
    ]


def vector_quantize(config: RunConfig) -> list[Shape]:
    """N rows, K entries, d width."""
    size, model = clips(config), config.model
    rows = size["B"] * (size["T"] - 1) * model.idm.tokens
    entries = model.quantizer.codebook_size
    if model.quantizer.kind == "fsq":
        entries = math.prod(model.quantizer.levels)
    paper = IDMConfig.paper()
    return [
        Shape(
            f"{family(config)}.codes",
            {"N": rows, "K": entries, "d": model.idm.dim},
            "one training step: calls, not arithmetic",
        ),
        Shape("lam.codes", {"N": 2000, "K": 32, "d": paper.dim}, "launch-bound on a GPU"),
        Shape("paper.codes", {"N": 4096, "K": 32, "d": paper.dim}, "few entries, many rows"),
        Shape("goal.codes", {"N": 65536, "K": 1024, "d": 32}, "a goal: an image tokenizer's size"),
        Shape(
            "bounded.codes",
            {"N": 1_000_000, "K": 8192, "d": 8},
            "an N x K matrix would be 34 GB",
            heavy=True,
        ),
    ]


# What is counted and summed are the rows of the search.
code_statistics = vector_quantize


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
    return Shape(
        f"{config.recipe}.{last}", sizes, "the phase that a run spends most of its time in"
    )


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
    return [
        Shape(
            f"{family(config)}.slides", size | {"W": config.model.window}, "as trained", {}, True
        ),
        Shape(f"{family(config)}.fits", size | {"W": 12}, "the window holds it all", {}, True),
    ]


# --- what a GPU is asked for (card/) ---------------------------------------------------------------


def card_attention() -> list[Shape]:
    """N sequences of n tokens, H heads of D channels: attention without norm and rotation."""
    xl = _XL_BATCH["B"] * _XL_BATCH["S"] * _XL_BATCH["T"]

    def of(n: int, why: str, **heads: int) -> Shape:
        sizes = {"N": heads.pop("N", xl // n), "n": n, **(heads or _XL_HEADS)}
        return Shape(f"{sizes['N']}x{n}x{sizes['D']}", sizes, why)

    return [
        of(16, "STDiT3-XL over time: 16 rows where a kernel's tile has 64 or 128"),
        of(256, "STDiT3-XL within a frame of 256 px"),
        of(1024, "STDiT3-XL within a frame of 512 px"),
        of(1280, "Wan 2.1 1.3B: all tokens of a short clip", N=16, H=12, D=128),
    ]


def card_ops(*, quick: bool) -> list[tuple[str, str, str]]:
    """(op, shape, dtype) that a goal on a GPU is about, the most important first."""
    found = [
        ("st_attention", "stdit3-xl.b8.temporal", "bfloat16"),
        ("adaln", "stdit3-xl.b8.block", "bfloat16"),
        ("vector_quantize", "lam.codes", "float32"),
        ("code_statistics", "lam.codes", "float32"),
        ("qk_norm_rope", "stdit3-xl.b8.spatial", "bfloat16"),
    ]
    if not quick:
        found += [
            ("vector_quantize", "bounded.codes", "float32"),
            ("code_statistics", "bounded.codes", "float32"),
            ("st_attention", "stdit3-xl.b8.spatial", "bfloat16"),
            ("qk_norm_rope", "wan-1.3b", "bfloat16"),
            ("vector_quantize", "goal.codes", "float32"),
        ]
    return found


def card_models() -> list[tuple[str, Shape, RunConfig]]:
    """(model, shape, recipe that builds it) at the paper's sizes."""
    pair = {"model": {"backbone": {"depth": 1, "width": _XL.width, "heads": _XL.heads}}}
    paper = {name: getattr(IDMConfig.paper(), name) for name in vars(IDMConfig.paper())}
    idm = {"data": {"height": 224, "width": 224}, "model": {"idm": paper}}
    clips = {"B": 8, "T": 8, "S": 256, "height": 224, "width": 224}
    return [
        (
            "stdit3_pair",
            Shape("stdit3-xl.b8.pair", _XL_BATCH, "a spatial and a temporal block"),
            run_config("nano.cola", pair),
        ),
        ("idm", Shape("paper.idm", clips, "224 px in patches of 14"), run_config("nano.cola", idm)),
    ]
