"""The loader: clips a second, from a fresh start and from its cache, against what a step needs.

The suite has two parts more: formats (sources.py) and decoders (decode.py). Not here: what a clip is
(colaworld/data), recording (training.py makes the small set).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from colaworld.data.loader import ClipLoader
from colaworld.runs.config import RunConfig

from . import decode, shapes, sources, timing
from .case import Call, Case, Request
from .models import VARIANTS, without_warmup
from .shapes import Shape
from .training import Step, on_data

_NEED_STEPS = 5  # samples of a step that what it needs is measured over


def cases(request: Request) -> Iterator[Case]:
    config = shapes.run_config(request.recipe, request.overrides)
    needs = cache(lambda: step_clips_s(config, request))
    height, width = shapes.frame_size(config)
    B, T = config.training.batch_size, config.data.frames_per_clip
    sizes = {"B": B, "T": T, "height": height, "width": width}
    for name, why in (("first", "open, decode, cut"), ("steady", "decoded frames are cached")):
        shape = Shape(f"{shapes.family(config)}.{name}", sizes, why)
        yield _case(config, shape, request, needs)
    yield from sources.cases(request)
    yield from decode.cases(request)


def step_clips_s(config: RunConfig, request: Request) -> float:
    """Clips a second that a training step takes in, on a batch that is already there."""
    run = on_data(without_warmup(config, backbone_weights=config.backbone_weights), request.data)
    step = Step(run, variant=VARIANTS["default"], dtype="float32", device=request.device)
    with closing(step):
        batch = step.batch()
        step.batch = lambda: batch  # type: ignore[method-assign]
        times = timing.interleaved({"step": [step]}, samples=_NEED_STEPS, device=request.device)
    return len(batch) * config.training.accumulate / times["step"][1] * 1e3


def _case(config: RunConfig, shape: Shape, request: Request, needs: Any) -> Case:
    loaders: dict[str, ClipLoader] = {}

    def loader(workers: int) -> ClipLoader:
        data = replace(on_data(config, request.data).data, workers=workers)
        return ClipLoader(data, batch_size=shape.sizes["B"], seed=config.training.seed)

    def first(workers: int) -> None:
        with closing(loader(workers)) as fresh:
            next(fresh)

    def provider(name: str) -> Sequence[Call]:
        if shape.name.endswith(".first"):
            return [lambda: first(counts[name])]
        made = loaders[name] = loader(counts[name])
        for _ in range(-(-len(made) // shape.sizes["B"])):  # once round: all cached
            next(made)
        return [lambda: next(made)]

    def verify(name: str) -> str | None:
        """The batches must not depend on the number of threads."""
        with closing(loader(0)) as one, closing(loader(counts[name])) as other:
            same = all(torch.equal(next(one).frames, next(other).frames) for _ in range(2))
        return None if same else "its clips are not those of a loader without threads"

    def details(name: str, p50: float) -> dict[str, Any]:
        wanted = needs()
        found = shape.sizes["B"] / p50 * 1e3
        return {"step_clips_s": timing.short(wanted), "headroom": timing.short(found / wanted)}

    counts = {f"threads:{n}": n for n in dict.fromkeys((0, max(1, config.data.workers)))}
    more = {
        "counts": {"clips": shape.sizes["B"]},
        "tests": ("tests/data/test_loader.py",),
        "ours": True,
    }
    more |= {"verify": verify, "details": details}
    more["close"] = lambda: [made.close() for made in loaders.values()]
    return Case.of("data", "loader", shape, "uint8/fwd", counts, provider, **more)
