"""Puts the interpreter (the package `ptx`) and the stand-in within reach of the checks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
