"""Makes this folder a package for its tests, as `python tests/cuda_check` does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
