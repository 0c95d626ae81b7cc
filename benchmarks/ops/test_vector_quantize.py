"""The providers of benchmarks/ops/vector_quantize.py under pytest-benchmark.

python -m pytest benchmarks/ops --benchmark-group-by=param:shape
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import shapes
from benchmarks.ops import vector_quantize
from colaworld import ops

pytestmark = pytest.mark.skipif(
    ops.build_info() is None, reason=f"no compiled ops: {ops.why_not_compiled()}"
)


@pytest.mark.parametrize("shape", shapes.VECTOR_QUANTIZE, ids=str)
@pytest.mark.parametrize("name", ["cpu", "reference", "cdist + argmin"])
def test_forward(benchmark, name: str, shape: tuple[int, int, int]) -> None:
    torch.set_num_threads(1)
    z, codebook = vector_quantize.draw(shape)
    with torch.inference_mode():
        _, indices = benchmark.pedantic(
            vector_quantize.providers(z, codebook)[name], rounds=5, warmup_rounds=1
        )
    assert vector_quantize.judge(z, codebook, indices)[0] == 0
