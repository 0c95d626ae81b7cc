"""Inside a process that trains: rows tell what it handed to collectives and how much memory it took.

    COLAWORLD_IMPORT=benchmarks/counting.py torchrun ... -m colaworld train ...

    traffic    of the second update of each phase: bytes by kind, whole tensors, which colaworld/runs/scale.py
               works out. That update is slower: every op passes Python
    memory     bytes of the process above what it took before there was a model, at most so far

Not here: who starts processes and reads their rows (scale.py).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import colaworld.cli.train  # noqa: F401
from colaworld.training import trainer

COUNTED = 2  # the update of a phase whose traffic is counted: the first opens and compiles things
# Of an op of torch.distributed: the kind, and which of its arguments is the whole tensor.
_KINDS = {
    "c10d::allreduce_": ("all_reduce", "tensors"),
    "c10d::allreduce_coalesced_": ("all_reduce", "tensors"),
    "c10d::_allgather_base_": ("all_gather", "output_tensor"),
    "c10d::allgather_": ("all_gather", "output_tensors"),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", "outputs"),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", "input_tensor"),
    "c10d::reduce_scatter_": ("reduce_scatter", "input_tensors"),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs"),
}


class Counting(TorchDispatchMode):
    """Bytes of whole tensors by kind of collective, while it stands; `other` is all but the three."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter(all_reduce=0, all_gather=0, reduce_scatter=0, other=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            kind, whole = _KINDS.get(func._schema.name, ("other", None))
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.bytes[kind] += size(given[whole] if whole else given.values())
        return func(*args, **(kwargs or {}))


def size(value: Any) -> int:
    """Bytes of the tensors in nested lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    is_many = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    return sum(map(size, value)) if is_many else 0


def _status(field: str) -> int:
    """Bytes, as Linux tells them of this process; 0 elsewhere."""
    with contextlib.suppress(OSError, IndexError):
        told = Path("/proc/self/status").read_text().partition(f"{field}:")[2]
        return int(told.split()[0]) * 1024
    return 0


_base = _status("VmRSS")
_step = trainer.optimizer_step


def counted_step(state: Any, progress: Any, next_batch: Any, device: Any, processes: Any) -> Any:
    """`optimizer_step`, its row with `memory` and, once a phase, `traffic`."""
    given = (state, progress, next_batch, device, processes)
    if progress.step == 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the most so far begins anew
    if progress.step + 1 == COUNTED:
        with Counting() as counting:
            row, clips = _step(*given)
        row["traffic"] = dict(counting.bytes)
    else:
        row, clips = _step(*given)
    gpu = device.type == "cuda"
    row["memory"] = torch.cuda.max_memory_allocated(device) if gpu else _status("VmHWM") - _base
    return row, clips


trainer.optimizer_step = counted_step
