"""Block sizes of the Triton kernels: one plain table for each op, each row with its reason.

Nothing is tuned while a program runs: every rank and every run takes the same kernels, and a CUDA
graph can be captured at the first call. A row that a measurement chose names that measurement.
Not here: the kernels (the file of their op), and the choice between Triton and something else
(`colaworld.ops`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

ARCHITECTURES = (80, 90, 100)  # A100, H100 and H200, B200: what the resource table is made for


@dataclass(frozen=True)
class Configuration:
    """One kernel as it is shipped: all that is needed to compile it without running it."""

    kernel: Callable  # the @triton.jit function
    signature: Mapping[
        str, str
    ]  # argument -> "*bf16", "i32", "fp32", ...; "constexpr" for constants
    constants: Mapping[str, object]  # argument -> value, those marked "constexpr"
    num_warps: int
    num_stages: int
    # argument -> a power of two that divides its value, as the launcher would find at run time
    divisible: Mapping[str, int] = field(default_factory=dict)
    label: str = ""  # how the row is called in a table of resources
