"""Loads the compiled ops, once, and says why when there are none.

A library that was never built is normal: the references run, and `reason()` tells why. A library
that is there and does not load is an error that lists the likely causes.
Not here: registrations (beside each op) and the choice of an implementation (`_dispatch.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch

VARIABLE = "COLAWORLD_NO_EXTENSION"
LIBRARY = "COLAWORLD_NATIVE_LIBRARY"  # another build of the library: one with sanitizers


class BrokenExtensionError(ImportError):
    """The compiled library is there but does not load; the message lists the likely causes."""


def _load() -> str | None:
    """Load the library; a reason when there is none to load."""
    if os.environ.get(VARIABLE, "0").lower() not in ("", "0", "false", "no", "off"):
        return f"the extension is switched off ({VARIABLE} is set)"
    spec = importlib.util.find_spec("colaworld._native")
    path = os.environ.get(LIBRARY) or (spec.origin if spec else None)
    if path is None:
        return (
            "the extension is not built; with a C++ compiler, torch, scikit-build-core, pybind11 "
            "and ninja at hand: pip install --no-build-isolation -e ."
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise BrokenExtensionError(
            f"colaworld's compiled ops are at {path} but do not load: {error}\n"
            "Likely causes:\n"
            f"  - this torch ({torch.__version__}) is older than 2.11, or was replaced by one whose "
            "C++ library differs: rebuild with pip install --no-build-isolation -e .\n"
            "  - the file was built on another system (a newer libstdc++ or glibc, another "
            "processor): rebuild it here\n"
            "  - the build was interrupted: delete the build/ folder and rebuild\n"
            f"To run on the references meanwhile: {VARIABLE}=1"
        ) from error
    return None


_REASON: str | None = _load()
AVAILABLE: bool = _REASON is None


def reason() -> str | None:
    """Why the compiled ops are absent; None when they are loaded."""
    return _REASON


def build_info() -> dict[str, Any] | None:
    """What was compiled, from `colaworld._C`; None when the extension is absent.

    Keys: version, compiler, compiled_instruction_sets, chosen_instruction_set, cuda,
    cuda_architectures, cuda_note, torch_built_against.
    """
    if not AVAILABLE:
        return None
    return importlib.import_module("colaworld._C").build_info()
