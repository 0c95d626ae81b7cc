"""Options of `python -m pytest benchmarks`. The same as those of `colaworld bench`."""

from __future__ import annotations


def pytest_addoption(parser) -> None:
    group = parser.getgroup("colaworld benchmarks")
    group.addoption("--recipe", default="nano.cola", help="where shapes and models come from")
    group.addoption("--bench-dtype", default="float32", help="float32, bfloat16 or float64")
    group.addoption("--bench-device", default="cpu", help="cpu or cuda")
    group.addoption("--bench-rounds", default=20, type=int, help="timed calls")
