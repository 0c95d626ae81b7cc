"""A set declared as 100 000 episodes opens within bounded memory (large_set.py makes and opens it)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import colaworld

SCRIPT = Path(__file__).with_name("large_set.py")


@pytest.mark.slow
def test_a_hundred_thousand_episodes_fit_into_a_gigabyte(tmp_path) -> None:
    home = str(Path(colaworld.__file__).parent.parent)
    for call in (["write", str(tmp_path), "100000"], ["open", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *call],
            env={**os.environ, "PYTHONPATH": home},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["episodes"] == 90_000 and found["clips"] == 630_000  # a tenth is held out
    assert found["grown"] < 400e6 and found["peak"] < 1e9
