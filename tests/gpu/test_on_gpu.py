"""The checks of `checks.py` under pytest; they need a CUDA device."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("gpu_checks", Path(__file__).with_name("checks.py"))
checks = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)
LIST = checks.checks()


def test_every_check_has_a_name_of_its_own() -> None:
    assert len({check.label for check in LIST}) == len(LIST)
    assert {check.group for check in LIST} == {"quick", "compile", "large"}


@pytest.mark.parametrize("check", LIST, ids=lambda check: check.label)
def test_on_the_gpu(cuda, check) -> None:
    try:
        check.run(cuda)
    except checks.Missing as reason:
        pytest.skip(str(reason))
