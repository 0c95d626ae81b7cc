"""On a GPU nothing may pass by skipping: with FAIL_WITHOUT_CUDA=1 a skip in this folder is a failure.

The tests ask for what is written (an implementation that an op does not have is no parameter of its
test), so that a skip means that something is missing: the library, triton. Too small a card is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    strict = os.environ.get("FAIL_WITHOUT_CUDA", "0") not in ("", "0")
    if strict and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if "of free GPU memory" in str(reason):
            return report
        report.outcome = "failed"
        report.longrepr = f"FAIL_WITHOUT_CUDA is set, and {item.name} was skipped: {reason}"
    return report
