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


def configuration(
    label: str,
    kernel: Callable,
    blocks: Blocks,
    constants: Mapping[str, object],
    *,
    pointers: Mapping[str, str],
    floats: tuple[str, ...] = (),
) -> Configuration:
    """A Configuration from what is known by name; every other argument is a 32-bit integer.

    `pointers`: argument -> dtype of its numbers; their addresses are multiples of 16 bytes, as those
    of whole tensors are. Integers are taken to be divisible by nothing, the worst case.
    """
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
        else:
            signature[name] = "fp32" if name in floats else "i32"
    divisible = dict.fromkeys(pointers, 16)
    return Configuration(
        kernel, signature, dict(constants), blocks.num_warps, blocks.num_stages, divisible, label
    )


@dataclass(frozen=True)
class Blocks:
    """How one kernel is laid out on the GPU."""

    num_warps: int
    reason: str
    num_stages: int = 1


def pick(table: Mapping[tuple, Blocks], arch: int | None, *key: object) -> Blocks:
    """The row of an architecture, or the one for any (None) where it has none of its own."""
    return table.get((arch, *key)) or table[(None, *key)]


def _temporal(direction: str, TP: int, width: int, size: int) -> Blocks:
    """A matrix instruction has 16 rows, so a warp for each 16 rows of a tile is what fits; a second
    one computes the same products and only shares what surrounds them. Each row is the smallest
    number of warps that does not spill on any architecture; none has been timed on a GPU.
    """
    reason = "a warp for each 16 rows"
    more = 1
    if size >= 4:
        more = 4 if direction == "backward" or width > 64 else 2
        reason = "float32: three products for one, operands twice as wide"
    elif direction == "backward" and width > 64:
        more, reason = 2, "one warp spills 56 bytes at 72 channels"
    elif direction == "backward" and TP == 32:
        more, reason = 2, "one warp for each 16 rows spills 8 bytes at 64 channels"
    elif width > 96:
        more, reason = 2, "one warp needs all 255 registers at 128 channels"
    return Blocks(more * TP // 16, reason)


# st_attention, temporal: (architecture, pass, TP, padded channels, bytes of a number).
ST_ATTENTION: dict[tuple, Blocks] = {
    (None, direction, TP, width, size): _temporal(direction, TP, width, size)
    for direction in ("forward", "backward")
    for TP in (16, 32)
    for width in (16, 32, 48, 64, 80, 96, 128)
    for size in (2, 4, 8)
}

ST_ATTENTION |= {
    (100, "backward", 16, width, 2): Blocks(2, "one warp spills 16 bytes at 64 channels on sm_100")
    for width in (48, 64)
}

# qk_norm_rope: (architecture, pass, numbers of a padded token).
QK_NORM_ROPE: dict[tuple, Blocks] = {
    (None, direction, size): Blocks(
        num_warps=min(16, max(1, size // 512)), reason="16 numbers of every tile in a lane"
    )
    for direction in ("forward", "backward")
    for size in (1 << power for power in range(4, 15))
}


def _row(direction: str, width: int) -> Blocks:
    """As few warps as the registers allow: they wait for each other whenever a row is summed. While a
    row is computed, `num_stages - 1` more are on their way.
    """
    most = 24 if direction == "forward" else 18
    warps = 1
    while warps < 16 and width > most * 32 * warps:
        warps *= 2
    stages = 3 if width <= 2304 else 2 if width <= 4608 else 1
    return Blocks(warps, f"at most {most} numbers of every row in a lane", stages)


# adaln: (architecture, pass, numbers of a padded row: one power of two, or the sum of two).
ADALN: dict[tuple, Blocks] = {
    (None, direction, width): _row(direction, width)
    for direction in ("forward", "backward")
    for width in sorted({1 << high | 1 << low for high in range(14) for low in range(high + 1)})
}


@dataclass(frozen=True, kw_only=True)
class Tile(Blocks):
    """Blocks of a search: how many rows against how many entries at once."""

    BN: int
    BK: int


# vector_quantize: (architecture, rows, channels of a chunk, bytes of a number). The two halves of
# 128 x 32 float32 numbers and more spill in 4 warps; products out of registers, before Hopper, also
# spill in 8 at 128 x 64 against 64 entries.
VECTOR_QUANTIZE: dict[tuple, Tile] = {
    (arch, rows, DB, size): Tile(
        BN=32 if rows == "few" else 128,
        BK=32 if arch is None and DB * size > 128 else 64,
        num_warps=8 if rows == "many" and DB * size > 64 else 4,
        num_stages=2,
        reason="few rows: a program for each multiprocessor; many: an entry is read for 128 rows",
    )
    for arch in (None, 90, 100)
    for rows in ("few", "many")
    for DB in (16, 32, 64)
    for size in (2, 4)
}

# --- measured: written by `python -m benchmarks.gpu apply-tuning`, do not edit ---
# Nothing was faster than what is above, or nothing was measured.
# --- end of measured ---
