"""What the stages time: cases of the suites, at the sizes that goals and baselines are about.

Not here: running them (stages.py), sizes (beside each op).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import machine, ops, rows, run, shapes
from ..case import Case, Request

# (op, shape, dtype), the most important first.
_TEMPORAL = ("st_attention", "stdit3-xl.b8.temporal", "bfloat16")
_SPATIAL = ("st_attention", "stdit3-xl.b8.spatial", "bfloat16")
_AUTOCAST, _BLOCK = (("adaln", f"stdit3-xl.b8.{n}", "bfloat16") for n in ("autocast", "block"))
_PACKED = ("qkv_norm_rope", "stdit3-xl.b8.spatial", "bfloat16")
_APART = ("qk_norm_rope", "wan-1.3b", "bfloat16")
_STEP = ("codebook_step", "lam.codes", "float32")
_LAM, _GOAL, _LARGE = (
    ("vector_quantize", f"{n}.codes", "float32") for n in ("lam", "goal", "bounded")
)
_COUNTED, _MANY = (("code_statistics", f"{n}.codes", "float32") for n in ("lam", "bounded"))
GOALS = (_TEMPORAL, _AUTOCAST, _STEP, _PACKED, _LARGE, _LAM, _COUNTED)
BASELINES = (*GOALS[:4], _SPATIAL, _LAM, _GOAL, _APART, _BLOCK, _MANY)
ATTENTION = [("attention", s.name, "bfloat16") for s in ops.DEFINITIONS["attention"].named]
# Block sizes: what a video model spends most of its time in first.
TUNED = (_TEMPORAL, _AUTOCAST, _PACKED, _LAM, _BLOCK, _GOAL, _APART, _LARGE)
Listed = Iterator[tuple[Case, tuple[str, ...]]]  # cases, and which implementations (none: all)


@dataclass(frozen=True)
class Options:
    """Options of a stage."""

    out: Path
    seconds: float = 60.0
    samples: int = 20
    dry: bool = False
    workers: int = 1
    began: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def left(self) -> float:
        """Seconds that remain."""
        return self.seconds - (time.monotonic() - self.began)

    def late(self, needed: float) -> str | None:
        """Why nothing that takes so many seconds is begun; a dry run is never late."""
        left = self.left()
        return f"{max(left, 0):.0f} s are left" if left < needed and not self.dry else None

    def request(self, *dtypes: str, **more: Any) -> Request:
        return Request(dtypes=dtypes, device=self.device, samples=self.samples, **more)


def cases_of(chosen: Iterable[tuple[str, str, str]], options: Options) -> Iterator[Case]:
    """The cases of (op, shape, dtype), forward and backward."""
    for op, name, dtype in chosen:
        shape = ops.DEFINITIONS[op].shape(name)
        if options.dry:
            dtype, shape = "float32", small(shape)
        for case in ops.DEFINITIONS[op].cases([shape], options.request(dtype)):
            if isinstance(case, Case):
                yield case
            else:
                rows.note(options.out, "skipped", case.label, case.reason)


def listed(
    chosen: Iterable[tuple[str, str, str]], impls: tuple[str, ...] = ()
) -> Callable[[Options], Listed]:
    """The cases of `chosen` for a stage; on the CPU ours has another name."""

    def cases(options: Options) -> Listed:
        wanted = (*impls, "cpu") if impls and options.dry else impls
        return ((case, wanted) for case in cases_of(chosen, options))

    return cases


def small(shape: shapes.Shape) -> shapes.Shape:
    """The same shape in sizes that a CPU is done with at once."""
    most = dict(B=1, T=3, S=2, H=1, D=8, C=16, L=4, N=20, K=6, n=4, d=8)
    sizes = {name: min(size, most[name]) for name, size in shape.sizes.items()}
    few = {"sections": (2, 1, 1)} if "sections" in shape.options else {}
    return replace(shape, sizes=sizes, options={**shape.options, **few})


def joint(pairs: int) -> Callable[[Options], Listed]:
    """A joint step at the paper's size, one way of running it after the other."""

    def cases(options: Options) -> Listed:
        from .. import training  # recipes: more packages than the ops need

        dtype, config = "float32" if options.dry else "bfloat16", joint_config(pairs, options.dry)
        product = machine.ceilings(options.device, "bfloat16")[1]
        (row,) = run.measure(product, options.request()).rows
        request = options.request(dtype, measured_tflops={dtype: row["tflops"]})
        return ((case, ()) for case in training.joint(config, request, dtype))

    return cases


def joint_config(pairs: int, dry: bool) -> Any:
    from colaworld.config import from_dict

    from .. import training

    config, narrow = training.xl(pairs), {"depth": 1, "width": 16, "heads": 2}
    acting = {"conditioner": {"depth": 1, "heads": 2}, "quantizer": {"codebook_size": 4}}
    tiny = {
        "data": {"frames_per_clip": 3, "height": 32, "width": 32},
        "model": {"backbone": narrow, "idm": narrow | {"dim": 4}, **acting},
        "objective": {"history": (1, 2)},
        "training": {"batch_size": 2},
    }
    return from_dict(type(config), tiny, base=config) if dry else config


def ceilings(options: Options) -> Listed:
    """What the machine reaches."""
    sizes = {"copied": 1 << 12, "side": 8} if options.dry else {}
    for dtype in ("bfloat16", "float32"):
        yield from ((case, ()) for case in machine.ceilings(options.device, dtype, **sizes))
    yield from ((case, ()) for case in machine.launches(options.device))


# By stage. Goals: ours and the eager reference; baselines: everybody.
STAGES: dict[str, Callable[[Options], Listed]] = {
    "ceilings": ceilings,
    "goals": listed(GOALS, ("eager", "cuda", "triton", "default")),
    "rivals": listed(BASELINES),
    "attention": listed(ATTENTION),
    "step8": joint(8),
    "step28": joint(28),
}
