"""No time without proof: runs the tests of an op before it is timed."""

from __future__ import annotations

import subprocess
import sys


def require_green(*tests: str) -> None:
    """Run `tests` (paths for pytest); end the program when one fails, before any time is printed."""
    print(f"gate: {' '.join(tests)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode != 0:
        print(done.stdout + done.stderr)
        raise SystemExit("gate: red, so no times")
    print(f"gate: {lines[-1]}")
