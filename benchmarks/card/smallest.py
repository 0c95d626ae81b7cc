"""One small call of every kernel, forward and backward: what compute-sanitizer runs.

    compute-sanitizer --error-exitcode 1 python -m colaworld.benchmarks.card.smallest

Sizes with a remainder everywhere (odd lengths, a last block that is not full), which is where a kernel
would reach outside of its memory. Not here: whether results are right (tests/gpu).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import torch

from colaworld import ops
from colaworld.models.layers.rope import rope_tables

DTYPES = (torch.bfloat16, torch.float32)


def calls(device: str) -> Iterator[tuple[str, str, torch.Tensor, Callable[[], object]]]:
    """(name, op, leading tensor, call)."""

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    for dtype in DTYPES:
        for T, H, D in ((5, 3, 72), (16, 2, 64), (17, 1, 96), (32, 1, 128)):
            qkv, weight = draw(2, T, 3, 3, H, D, dtype=dtype), draw(D)
            rope = rope_tables(T, D, device=torch.device(device))
            yield (
                f"st_attention T{T} {H}x{D} {dtype}",
                "st_attention",
                qkv,
                lambda qkv=qkv, weight=weight, rope=rope: ops.st_attention(
                    qkv, axis="temporal", causal=True, q_weight=weight, k_weight=weight, rope=rope
                ),
            )
        q, weight = draw(2, 5, 3, 72, dtype=dtype), draw(72)
        rope = rope_tables(5, 72, device=torch.device(device))
        yield (
            f"qk_norm_rope {dtype}",
            "qk_norm_rope",
            q,
            lambda q=q, weight=weight, rope=rope: ops.qk_norm_rope(
                q, q, q_weight=weight, k_weight=weight, rope=rope
            ),
        )
        x, table = draw(2, 3, 7, 1152, dtype=dtype), draw(2, 3, 1152)
        yield (
            f"adaln {dtype}",
            "adaln",
            x,
            lambda x=x, table=table: ops.adaln(x, x, gate=table, shift=table, scale=table),
        )
        z, codebook = draw(67, 32, dtype=dtype), draw(33, 32, dtype=dtype)
        yield (
            f"vector_quantize {dtype}",
            "vector_quantize",
            z,
            lambda z=z, codebook=codebook: ops.vector_quantize(z, codebook)[0],
        )
        yield (
            f"code_statistics {dtype}",
            "code_statistics",
            z,
            lambda z=z: _statistics(z.detach()),
        )


def _statistics(z: torch.Tensor) -> torch.Tensor:
    K, d = 33, z.shape[1]
    packed = ops.code_statistics(z, torch.arange(len(z), device=z.device) % K, K)
    codebook, count, total = (packed.new_ones(shape) for shape in ((K, d), (K,), (K, d)))
    ops.update_codebook(codebook, count, total, packed, decay=0.9)
    return codebook


def once(call: Callable[[], object]) -> None:
    """Forward and, where something wants a gradient, backward."""
    made = call()
    for out in made if isinstance(made, tuple) else (made,):
        if isinstance(out, torch.Tensor) and out.requires_grad:
            out.float().square().sum().backward(retain_graph=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args(argv)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch sees no CUDA device; nothing was run")
        return 2
    began, late = time.monotonic(), 0
    for name, op, lead, call in calls(given.device):
        for verdict in ops.explain(op, lead, axis="temporal" if op == "st_attention" else None):
            can = verdict.would_run or "comes first" in verdict.reason
            if verdict.name == "reference" or not can:
                continue
            if time.monotonic() - began > given.seconds:
                late += 1
                continue
            with ops.force(verdict.name):
                once(call)
            if given.device.startswith("cuda"):
                torch.cuda.synchronize()
            print(f"ran {verdict.name} {name}", flush=True)
    if late:
        print(f"not run: {late} calls, {given.seconds:.0f} s are over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
