"""colaworld: latent action models trained through a video diffusion transformer.

Importing the package loads no room; each is imported by name (`colaworld.ops`, ...).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("colaworld")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"
