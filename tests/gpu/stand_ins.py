"""Stand-ins for a GPU, so that every line of the host runs on the CPU: `python -m benchmarks.gpu ...
--dry-run`, and the tests.

Streams do nothing, events read the host's clock, a graph repeats the operations it saw, and
torch.compile generates no code. Times and memory mean nothing then.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_compile = torch.compile


class Stream:
    """A stream on which everything happens at once."""

    def wait_stream(self, other: Stream) -> None:
        pass


class Event:
    """A moment of the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.moment = 0.0

    def record(self) -> None:
        self.moment = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        return max(later.moment - self.moment, 1e-6) * 1e3


class Graph:
    """Operations in their order, and the tensors that they wrote to."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, ...]] = []

    @torch.no_grad()
    def replay(self) -> None:
        for function, arguments, keywords, written in self.operations:
            made = function(*arguments, **keywords)
            for old, new in zip(tree_leaves(written), tree_leaves(made), strict=True):
                # Triton's interpreter reshapes storages of its own on the way; those are passed over.
                if isinstance(old, torch.Tensor) and old.shape == new.shape:
                    old.copy_(new)


class _Recorded(TorchDispatchMode):
    active = False
    supports_higher_order_operators = True

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __enter__(self) -> _Recorded:
        _Recorded.active = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _Recorded.active = False
        super().__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        self.graph.operations.append((function, arguments, keywords or {}, made))
        return made


class Profile:
    """A profiler that saw one kernel."""

    def __init__(self, activities: Any = None) -> None:
        self.kind = SimpleNamespace(name="CUDA")

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def events(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="a kernel", device_type=self.kind)]


def compile_without_code(function: Any = None, *, backend: Any = None, **keywords: Any) -> Any:
    """torch.compile up to the code generator; plain while operations are recorded, as it would be."""
    compiled = _compile(function, backend="aot_eager", **keywords)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return (function if _Recorded.active else compiled)(*arguments, **options)

    return call


@contextlib.contextmanager
def stand_ins(timing: ModuleType) -> Iterator[None]:
    """Within the block calls on the CPU are treated as calls on a GPU, by `benchmarks.timing` too."""
    functions: dict[str, Any] = {
        "Stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": _Recorded,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "mem_get_info": lambda: (0, 0),
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(L2_cache_size=1 << 10),
        "set_sync_debug_mode": lambda _: None,
        "_sleep": lambda _: None,
    }
    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch, "compile", compile_without_code))
        stack.enter_context(mock.patch.object(torch.profiler, "profile", Profile))
        stack.enter_context(mock.patch.object(timing, "on_gpu", lambda device: True))
        yield
