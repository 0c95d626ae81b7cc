"""colaworld: latent action models trained through a video diffusion transformer.

Importing the package loads no room; each is imported by name (`colaworld.ops`, ...). Here by name:
`from_pretrained`, which loads published video models and exported worlds (`runs/pretrained.py`).
The folders `kernels/` and `benchmarks/` of a checkout are `colaworld.kernels` and `colaworld.benchmarks`:
an installation puts them there, and without one this file does.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("colaworld")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

_CHECKOUT = Path(__file__).resolve().parents[1]
if (_CHECKOUT / "kernels" / "tuning.py").is_file():
    __path__.append(str(_CHECKOUT))  # the last place to look, behind what is installed

_LAZY = {"from_pretrained": "colaworld.runs.pretrained"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'colaworld' has no attribute {name!r}")
