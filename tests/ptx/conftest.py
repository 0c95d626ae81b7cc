"""Puts the interpreter (the package `ptx`, this folder) within reach of the tests beside it.

The tests' own folder is no package: another distribution calls one `tests`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
