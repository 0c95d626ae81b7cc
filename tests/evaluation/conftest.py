"""Puts the folder of tests on the path, so that tests here share a scene (`evaluation.scrolling`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
