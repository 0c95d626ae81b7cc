"""A pytest plugin that runs `tests/kernels/checks_*.py` on kernels from their PTX.

    PYTHONPATH=tests python -m pytest -p ptx.plugin --ptx-arch 80 tests/kernels/checks_adaln.py

The checks see what they see on a GPU, with bfloat16 for float64, but on CPU tensors. A check that leaves
a report behind fails. What asks torch for a GPU is skipped: it is about torch, not about kernels.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator

import pytest

# torch looks at its own modes there, and would meet ours.
_OF_TORCH = ("compile", "opcheck")


def pytest_addoption(parser) -> None:
    parser.addoption("--ptx-arch", type=int, default=90, help="80 or 90")


def pytest_configure(config) -> None:
    assert "colaworld" not in sys.modules, "the ops were imported before the plugin"
    os.environ.pop("TRITON_INTERPRET", None)
    import triton  # noqa: F401  reads the variable: a compiler, not an interpreter

    os.environ["TRITON_INTERPRET"] = "1"
    from colaworld.ops import _triton  # which defines the ops for CPU tensors, too

    del os.environ["TRITON_INTERPRET"]
    _triton.INTERPRETED_DTYPES = _triton.DTYPES
    from ptx.triton_driver import on_ptx

    config.ptx_context = on_ptx(config.getoption("--ptx-arch"), unwritten=False)
    config.ptx = config.ptx_context.__enter__()


def pytest_unconfigure(config) -> None:
    if hasattr(config, "ptx_context"):
        config.ptx_context.__exit__(None, None, None)


def pytest_collection_modifyitems(config, items) -> None:
    for item in items:
        item.module.DEVICE = "cpu"
        source = inspect.getsource(item.function)
        marks = {str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif")}
        if "torch.cuda." in source or "needs a GPU" in marks:
            item.add_marker(pytest.mark.skip(reason="asks torch for a GPU"))


@pytest.fixture(autouse=True)
def no_report(request) -> Iterator[None]:
    session = request.config.ptx
    session.reports.found.clear()
    yield from _tracked(request, session)
    assert not session.reports, str(session.reports)


def _tracked(request, session) -> Iterator[None]:
    """With memory that nobody has written marked as such."""
    from ptx.fresh import Fresh

    if any(word in request.node.name for word in _OF_TORCH):
        yield
    else:
        with Fresh() as session.fresh:
            yield
        session.fresh = None
