"""vector_quantize on the CPU against what one would use without it.

    python -m benchmarks.ops.vector_quantize [--threads N] [--samples N] [--no-write]

Providers: ours; our reference, eager and compiled; cdist + argmin + gather; the package
vector-quantize-pytorch in eval mode (it is left out, and says so, when it is not installed).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gate, shapes, timing
from colaworld import ops

Call = Callable[[], tuple[Tensor, Tensor]]


def draw(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    N, K, d = shape
    generator = torch.Generator().manual_seed(N + K + d)
    return torch.randn(N, d, generator=generator), torch.randn(K, d, generator=generator)


def by_cdist(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    indices = torch.cdist(z, codebook).argmin(1)
    return F.embedding(indices, codebook), indices


def package(codebook: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """The forward of the package with this codebook; None when it is not installed."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        return None
    module = VectorQuantize(dim=codebook.shape[1], codebook_size=codebook.shape[0]).eval()
    module.codebook = codebook

    def call(z: Tensor) -> tuple[Tensor, Tensor]:
        codes, indices, _ = module(z[None])
        return codes[0], indices[0]

    return call


def providers(z: Tensor, codebook: Tensor) -> dict[str, Call]:
    """Forward calls by name, ours first."""

    def forced(name: str, function: Callable = ops.vector_quantize) -> Call:
        def call() -> tuple[Tensor, Tensor]:
            with ops.force(name):
                return function(z, codebook)

        return call

    calls = {
        "cpu": forced("cpu"),
        "reference": forced("reference"),
        "reference, compiled": forced(
            "reference", torch.compile(ops.vector_quantize, fullgraph=True, dynamic=False)
        ),
        "cdist + argmin": lambda: by_cdist(z, codebook),
    }
    theirs = package(codebook)
    if theirs is not None:
        calls["vector-quantize-pytorch"] = lambda: theirs(z)
    return calls


def judge(z: Tensor, codebook: Tensor, indices: Tensor) -> tuple[int, int]:
    """(wrong codes, rows that name another code than float64 does).

    Wrong: further away than the nearest one, in float64, by more than the rounding of a sum of
    d + 1 products in float32. The second number includes ties within that rounding.
    """
    wrong = other = 0
    codebook = codebook.double()
    norms = codebook.square().sum(1)
    for rows, chosen in zip(z.double().split(1024), indices.split(1024), strict=True):
        distance = rows.square().sum(1, keepdim=True) + norms - 2 * rows @ codebook.t()
        nearest = distance.min(1)
        excess = distance.gather(1, chosen[:, None])[:, 0] - nearest.values
        size = rows.square().sum(1) + norms.max()
        wrong += int((excess > (z.shape[1] + 1) * 2.0**-23 * size).sum())
        other += int((chosen != nearest.indices).sum())
    return wrong, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--samples", type=int, default=15, help="samples per provider")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    gate.require_green("tests/ops/test_vector_quantize.py", "tests/csrc")
    torch.set_num_threads(arguments.threads)

    device = f"{timing.device_name()}, {ops.build_info()['chosen_instruction_set']}"
    common = {
        "threads": arguments.threads,
        "device": device,
        "versions": timing.versions("colaworld", "vector-quantize-pytorch"),
        "commit": timing.commit(),
        "date": timing.today(),
    }
    print(f"{device}, {arguments.threads} thread(s), torch {torch.__version__}, {common['commit']}")
    rows = []
    for shape in shapes.VECTOR_QUANTIZE:
        N, K, d = shape
        z, codebook = draw(shape)
        with torch.inference_mode():
            calls = providers(z, codebook)
            results = {name: call()[1] for name, call in calls.items()}
            wrong, other = judge(z, codebook, results["cpu"])
            print(f"\nN={N} K={K} d={d}: {wrong} wrong codes of {N} ({other} ties within rounding)")
            if wrong:
                raise SystemExit("wrong codes, so no times")
            peaks = {name: timing.peak_mb(call) for name, call in calls.items()}
            times = timing.interleaved(calls, samples=arguments.samples)
        moved = (2 * N * d + K * d) * z.element_size() + N * 8
        for name, (p20, p50, p80) in times.items():
            rows.append(
                {
                    "op": "vector_quantize",
                    "impl": name,
                    "shape": list(shape),
                    "dtype": "float32",
                    "mode": "forward",
                    "p20_ms": round(p20, 4),
                    "p50_ms": round(p50, 4),
                    "p80_ms": round(p80, 4),
                    "gb_s": round(moved / p50 / 1e6, 3),
                    "peak_mb": peaks[name],
                    **common,
                }
            )
            ratio = p50 / times["cpu"][1]
            print(
                f"  {name:24s} p50 {p50:10.3f} ms  [{p20:.3f}, {p80:.3f}]  "
                f"peak {peaks[name]} MB  {ratio:7.2f}x our time"
            )
    if not arguments.no_write:
        path = timing.write_rows("vector_quantize_cpu", rows)
        print(f"\nwritten: {path.name} in benchmarks/results")


if __name__ == "__main__":
    main()
