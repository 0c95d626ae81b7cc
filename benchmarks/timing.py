"""How a call is timed: in turns with its rivals, on inputs that take turns too.

Providers take turns sample by sample, so that noise of the machine falls on all of them alike. On a
GPU the clock is the device's, and what can be captured is replayed from a CUDA graph, so that Python
is not what is timed. Not here: what is called (case.py), what becomes of the times (rows.py).
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

Times = tuple[float, float, float]  # ms per call: 20th, 50th and 80th percentile
SAMPLE_SECONDS = 2e-3  # a sample repeats a short call until it lasts this long
CACHE_FACTOR = 2  # copies of the inputs together are this many times the last-level cache
_MOST_COPIES = 128  # of tiny inputs; drawing more takes longer than timing them
_USUAL_CACHE = 32 << 20  # bytes, where the system does not tell


def on_gpu(device: str) -> bool:
    """Whether CUDA events, graphs and memory counters are used. (A dry run says yes on the CPU.)"""
    return torch.device(device).type == "cuda"


def last_level_cache(device: str) -> int:
    """Bytes of the largest cache that a call may find its inputs in."""
    if on_gpu(device):
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    told = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = (path.read_text().strip() for path in told)  # "32K", "2M"
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(s.rstrip("KM")) * units.get(s[-1:], 1) for s in sizes), default=_USUAL_CACHE)


def copies(size: int, device: str) -> int:
    """How many sets of inputs of `size` bytes take turns, so that a call finds none in a cache."""
    wanted = math.ceil(CACHE_FACTOR * last_level_cache(device) / max(1, size))
    return min(max(1, wanted), _MOST_COPIES)


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """One CUDA graph of all `calls`, as a function that replays it.

    Raises RuntimeError where something in them cannot be captured: it waits for the device, say.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm on another stream, as capturing asks for
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _seconds(turns: Iterator[Callable[[], object]], repeats: int, device: str) -> float:
    """Seconds of the next `repeats` calls, by the device's own clock where it has one."""
    calls = list(itertools.islice(turns, repeats))
    if not on_gpu(device):
        start = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for call in calls:
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def interleaved(
    providers: Mapping[str, Sequence[Callable[[], object]]],
    *,
    samples: int,
    device: str = "cpu",
    batch: Mapping[str, int] | None = None,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, Times]:
    """Milliseconds of one call of each provider, over `samples` samples.

    `batch`: how many calls one call of a provider stands for (replays of a graph); 1 if not named.
    `failed`: told of a provider that raises, which then has no times; without it, the error is raised.
    """
    turns = {name: itertools.cycle(calls) for name, calls in providers.items()}
    repeats, times = {}, {name: [] for name in turns}
    for sample in range(-1, samples):
        for name in list(turns):
            try:
                if sample < 0:
                    _seconds(turns[name], 1, device)  # warm: compilation, caches, pages
                    once = max(_seconds(turns[name], 1, device), 1e-7)
                    repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / once))
                    continue
                seconds = _seconds(turns[name], repeats[name], device)
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del turns[name], times[name]
            else:
                calls = repeats[name] * (batch or {}).get(name, 1)
                times[name].append(seconds * 1e3 / calls)
    return {name: percentiles(values) for name, values in times.items()}


def percentiles(values: Sequence[float]) -> Times:
    """The 20th, 50th and 80th."""
    return tuple(np.percentile(values, (20, 50, 80)).tolist())


def short(value: float) -> float:
    """Four significant digits: what a time is good for."""
    return float(f"{value:.4g}") if math.isfinite(value) else value


def peak_mb(call: Callable[[], object], device: str = "cpu") -> float | None:
    """MB that one call adds to the memory at its peak.

    On a CPU that of the process, as Linux counts it: None elsewhere, and 0 for a call that finds
    room in pages already held.
    """
    if on_gpu(device):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return round(max(0, _status("VmHWM") - before) / 1024, 1)


def kernels(call: Callable[[], object], device: str = "cpu") -> list[str] | None:
    """Names of the kernels that one call starts on a GPU, fills of memory among them; None on a CPU."""
    if not on_gpu(device):
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return kernel_names((event.name, event.device_type.name) for event in seen.events())


def kernel_names(events) -> list[str]:
    """Of (name, device type) as a profiler tells them: what ran on the GPU and copied nothing."""
    return [name for name, kind in events if kind == "CUDA" and not name.startswith("Memcpy")]


def _status(field: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])
