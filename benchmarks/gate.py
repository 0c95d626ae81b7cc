"""No time without proof: runs the tests of an op before it is timed.

In an installed package there is no tests folder; then the verification of the cases (results against
a reference, which runs in any case) is what stands before a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_passed: dict[tuple[str, ...], str] = {}  # this process has seen these pass


class GateError(ValueError):
    """Tests failed, or results are wrong; the message shows which. No time is printed."""


def repository() -> Path | None:
    """The checkout these files stand in; None where they were installed."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "tests").is_dir() else None


def require_passing(tests: tuple[str, ...]) -> str:
    """Run `tests` (paths from the repository's top) once per process; says what was proved.

    Raises GateError with pytest's output when one fails.
    """
    root = repository()
    if root is None or not tests:
        return "no tests folder here: every result is compared with its suite's reference before it is timed"
    if tests not in _passed:
        _passed[tests] = _run(root, tests)
    return _passed[tests]


def _run(root: Path, tests: tuple[str, ...]) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "COLAWORLD_OPS"}
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode != 0:
        shown = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise GateError(f"the tests fail, so no times ({' '.join(tests)}):\n{shown}")
    return f"{' '.join(tests)}: {lines[-1]}"
