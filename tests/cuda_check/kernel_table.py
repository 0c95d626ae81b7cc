"""Which kernels the READMEs of kernels/ and csrc/ show, at which size, and the table itself.

Not here: the formulas (`predict.py`), what was read of the kernels (`compiled.py`).
"""

from __future__ import annotations

from math import ceil
from typing import Any, NamedTuple

from . import predict
from .predict import Row, Work


class Shown(NamedTuple):
    """A line of a README: the kernel's name there, which row of the resource table, at which size."""

    impl: str
    op: str
    name: str
    row: str  # its config (triton), or its kernel behind colaworld::cuda:: (cuda)
    work: Work | None = None


def _attention(
    impl: str,
    *,
    T: int,
    H: int,
    D: int,
    size: int,
    backward: bool,
    pieces: tuple[int, ...],
    warps: int,
    chunks: int = 1,
) -> Work:
    """Temporal attention of 8 clips of 256 places: qkv in, out out; with d out in, dqkv out."""
    places, numbers = 8 * 256, 8 * T * 256 * H * D * size
    read, written = (4, 3) if backward else (3, 1)
    work = {
        "read": read * numbers,
        "written": written * numbers,
        "pieces": pieces,
        "step": D * size,
    }
    if impl == "cuda":  # each warp with a pair of its own
        return Work(**work, passes=places * H // warps, inner=(chunks,), arithmetic=chunks)
    if not backward:
        return Work(**work, blocks=places * H)
    steps = max(1, places * H // 4096)  # PROGRAMS of kernels/st_attention.py
    return Work(**work, passes=places * H, blocks=ceil(places / steps) * H)


_XL = {"T": 16, "H": 16, "D": 72, "size": 2}
_LAM = {"T": 8, "H": 12, "D": 64}
_WIDE = {"T": 32, "H": 12, "D": 128, "size": 2}
_LAM16, _LAM32 = _LAM | {"size": 2}, _LAM | {"size": 4}


def _attentions(
    impl: str,
    name: str,
    row: str,
    size: dict[str, int],
    *pieces: int,
    warps: tuple[int, int] = (4, 4),  # of a block of CUDA, forward and backward
    chunks: int = 1,  # of 16 channels of a row, where the kernel loops over them
) -> list[Shown]:
    return [
        Shown(
            impl,
            "st_attention",
            f"st_attention {way}, {name}",
            row.format(way),
            _attention(
                impl, **size, backward=way == "backward", pieces=pieces, warps=of, chunks=chunks
            ),
        )
        for way, of in zip(("forward", "backward"), warps, strict=True)
    ]


# Tokens, or rows, of STDiT3-XL with 8 clips of 16 frames, and the bytes of all their numbers in bf16.
_TOKENS = 8 * 16 * 256
_BYTES = _TOKENS * 1152 * 2
_QK = {
    "qk_norm_rope forward": Work(
        2 * _BYTES, 2 * _BYTES, blocks=_TOKENS, pieces=(128, 16), step=144
    ),
    "qkv_norm_rope backward": Work(
        5 * _BYTES, 3 * _BYTES, passes=_TOKENS, blocks=2048, pieces=(128, 16), step=144
    ),
}
# x in and out in bf16 or, under autocast, in float32; y and out in bf16; likewise their gradients.
_ADALN_FORWARD = {"passes": _TOKENS, "blocks": _TOKENS // 8, "pieces": (2048, 256)}
_ADALN_BACKWARD = {"passes": _TOKENS, "blocks": 1024, "pieces": (2048, 256)}
_ADALN = {
    ("forward", "bf16"): Work(2 * _BYTES, 2 * _BYTES, **_ADALN_FORWARD),
    ("backward", "bf16"): Work(4 * _BYTES, 2 * _BYTES, **_ADALN_BACKWARD),
    ("forward", "mixed"): Work(3 * _BYTES, 3 * _BYTES, **_ADALN_FORWARD),
    ("backward", "mixed"): Work(6 * _BYTES, 3 * _BYTES, **_ADALN_BACKWARD),
}
# Partial sums of 1024 programs, 8 of them for a frame.
_ADALN_SUM = Work(1024 * 3 * 1152 * 4, 128 * 3 * 1152 * 4, passes=3456, blocks=3456)


def _search(N: int, K: int, d: int, **how: Any) -> Work:
    return Work((N + K) * d * 4, N * (d * 4 + 8), **how)


def _sums(N: int, K: int, d: int, **how: Any) -> Work:
    return Work(N * (d * 4 + 8), K * (d + 1) * 4, **how)


_BATCH, _LARGE = (2000, 32, 32), (1_000_000, 8192, 64)  # N, K, d
_LARGE_BLOCKS = ceil(_LARGE[0] / 128)

SHOWN: tuple[Shown, ...] = (
    *_attentions("triton", "XL, bf16", "st_attention {} 16x72 T<=16 bf16", _XL, 128, 16),
    *_attentions("triton", "LAM, bf16", "st_attention {} 12x64 T<=16 bf16 causal", _LAM16, 128),
    *_attentions("triton", "LAM, float32", "st_attention {} 12x64 T<=16 fp32 causal", _LAM32, 256),
    *_attentions("triton", "D 128, T 32, bf16", "st_attention {} 12x128 T<=32 bf16", _WIDE, 256),
    *(
        Shown("triton", "qk_norm_rope", f"{way}, XL, bf16", f"{way} 16x72 head, no rotation bf16", _QK[way])
        for way in _QK
    ),
    *(
        Shown("triton", "qk_norm_rope", f"{way}, XL with rotation, bf16", f"{way} 16x72 head, interleaved bf16", _QK[way])
        for way in _QK
    ),
    Shown("triton", "qk_norm_rope", "qk_norm_rope forward, Wan, bf16", "qk_norm_rope forward 12x128 across, interleaved bf16"),
    Shown("triton", "qk_norm_rope", "qk_norm_rope backward, Wan, bf16", "qk_norm_rope backward 12x128 across, interleaved bf16"),
    *(
        Shown("triton", "adaln", f"adaln {way}, XL, {dtypes}", f"adaln {way} C=1152 {dtypes} gated", work)
        for (way, dtypes), work in _ADALN.items()
    ),
    Shown("triton", "adaln", "adaln second pass", "adaln sum", _ADALN_SUM),
    Shown("triton", "vector_quantize", "vector_quantize, a batch, float32", "vector_quantize K=32 d=32 fp32 few rows", _search(*_BATCH, passes=63, blocks=63)),
    Shown("triton", "vector_quantize", "vector_quantize, K 8192 d 64, float32", "vector_quantize K=8192 d=64 fp32 many rows", _search(*_LARGE, passes=_LARGE_BLOCKS * 8192 // 64, blocks=_LARGE_BLOCKS)),
    Shown("triton", "vector_quantize", "code_statistics, small table", "code_statistics select K=32 d=32 fp32", _sums(*_BATCH, passes=32 * 8, blocks=32)),
    Shown("triton", "vector_quantize", "code_statistics, pieces of a sort", "code_statistics pieces K=8192 d=64 fp32", Work(_LARGE[0] * (64 * 4 + 8), 12_099 * 64 * 4, passes=_LARGE[0] // 64, blocks=12_099)),
    Shown("triton", "vector_quantize", "code_statistics, entries of a sort", "code_statistics entries K=8192 d=64 fp32", Work(12_099 * 64 * 4, 8192 * 65 * 4, passes=8192, blocks=8192)),
    Shown("triton", "vector_quantize", "update_codebook", "update_codebook K=32 d=32", Work(32 * (2 * 32 + 2) * 4, 32 * (2 * 32 + 1) * 4, passes=1, blocks=1)),
    *_attentions("cuda", "XL, bf16", "st_attention::{}<colaworld::cuda::bf16, 72, 2>", _XL, 144),
    *_attentions("cuda", "XL, T 32, bf16", "st_attention::{}<colaworld::cuda::bf16, 72, 4>", _XL | {"T": 32}, 144, warps=(4, 2)),
    *_attentions("cuda", "LAM, bf16", "st_attention::{}<colaworld::cuda::bf16, 64, 2>", _LAM16, 128),
    Shown("cuda", "st_attention", "st_attention forward, D 128, bf16", "st_attention::forward<colaworld::cuda::bf16, 128, 2>"),
    Shown("cuda", "st_attention", "st_attention backward, D 128, bf16", "st_attention::backward<colaworld::cuda::bf16, 128, 2>"),
    *_attentions("cuda", "D 128, T 32, bf16", "st_attention::{}<colaworld::cuda::bf16, 128, 4>", _WIDE, 256, warps=(2, 1), chunks=8),
    *_attentions("cuda", "LAM, float32", "st_attention_float::{}<16>", _LAM32, *[32] * 8, warps=(1, 1)),
    Shown("cuda", "st_attention", "st_attention, sums of the weights", "sum"),
    Shown("cuda", "vector_quantize", "vector_quantize, a batch, float32", "vector_quantize_kernels::assign<float, 4>", _search(*_BATCH, passes=32, blocks=32, inner=(1, 2), arithmetic=8)),
    Shown("cuda", "vector_quantize", "vector_quantize, K 8192 d 64, float32", "vector_quantize_kernels::assign<float, 8>", _search(*_LARGE, passes=_LARGE_BLOCKS * 8192 // 64, blocks=_LARGE_BLOCKS, inner=(2, 4), arithmetic=8)),
    Shown("cuda", "vector_quantize", "code_statistics, a batch, float32", "code_statistics_kernels::add<float, 1>", _sums(*_BATCH, passes=32 * 2, blocks=32, inner=(1,))),
    Shown("cuda", "vector_quantize", "code_statistics, merge", "code_statistics_kernels::merge<float>"),
)  # fmt: skip
READMES = {"triton": "kernels/README.md", "cuda": "csrc/README.md"}
OPEN = "<!-- resources: written by `python tests/cuda_check --write` -->"
CLOSE = "<!-- end of resources -->"


def markdown(rows: list[Row], impl: str) -> str:
    """The table of a README: registers on each architecture, all else on the one of `predict`.

    Sectors are those of the row, where something measured them, else follow from the shape.
    """
    archs = sorted({row["arch"] for row in rows if row["impl"] == impl})
    heads = (
        "kernel",
        "warps",
        f"registers on sm_{' / '.join(map(str, archs))}",
        "shared",
        "blocks",
        "loop",
        "loads",
        "in flight",
        "sectors",
        "issue us",
        "bytes us",
        "floor us",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for shown in SHOWN:
        if shown.impl == impl:
            found = {row["arch"]: row for row in rows if is_shown(row, shown)}
            if set(found) != set(archs):
                raise ValueError(
                    f"resources: {shown.row!r}: expected a row on each of {archs}, got {sorted(found)}"
                )
            registers = " / ".join(str(found[arch]["registers"]) for arch in archs)
            cells = (shown.name, *_cells(found[predict.ARCH], registers, shown.work))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def is_shown(row: Row, shown: Shown) -> bool:
    name = row["config"] or row["kernel"].removeprefix("colaworld::cuda::")
    return (row["impl"], row["op"], name) == (shown.impl, shown.op, shown.row)


def _cells(row: Row, registers: str, work: Work | None) -> list[str]:
    loads = ", ".join(f"{count} x {bits}" for bits, count in row["loads"].items())
    sectors = row.get("sectors", work.sectors if work else None)
    cells = [
        str(ceil(row["threads"] / 32)),
        registers,
        f"{row['shared'] / 1024:.1f} kB",
        str(predict.blocks_of(row)),
        str(row["loop"]) if row["loop"] else f"{row['instructions']}, no loop",
        loads + (" copied" if row["copies"] else ""),
        f"{predict.bytes_in_flight(row, work) / 1e3:.1f} kB" if work else "",
        f"{sectors:.1f}" if sectors else "",
    ]
    if work is None:
        return [*cells, "", "", ""]
    issue = predict.issue_time(row, work)
    return cells + [f"{t * 1e6:.1f}" for t in (issue, work.bytes_time, max(issue, work.bytes_time))]


def with_table(text: str, table: str) -> str:
    """The text of a README with another table. ValueError where it has no place for one."""
    before, found, rest = text.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not found or not closed:
        raise ValueError(f"resources: a README needs the lines {OPEN!r} and {CLOSE!r}")
    return f"{before}{OPEN}\n{table}\n{CLOSE}{after}"
