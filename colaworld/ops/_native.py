"""Loads the compiled ops, once, and says why when there are none.

A library that was never built is normal: the references run, and `reason()` tells why. A library
that is there and does not load is an error that lists the likely causes. What was built is asked of
the library itself, so that any file of it will do, wherever it stands.
Not here: registrations (beside each op) and the choice of an implementation (`_dispatch.py`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import os
from typing import Any

import torch

VARIABLE = "COLAWORLD_NO_EXTENSION"
LIBRARY = "COLAWORLD_NATIVE_LIBRARY"  # another file of the library: sanitized, or carried


class BrokenExtensionError(ImportError):
    """The compiled library is there but does not load; the message lists the likely causes."""


def _facts_of(path: str) -> Any:
    """The function of `csrc/facts.cpp` in the library at `path`."""
    facts = ctypes.CDLL(path).colaworld_facts
    facts.restype = ctypes.c_char_p
    return facts


def _load() -> tuple[str | None, str | None]:
    """Load the library: its path, or the reason why there is none to load."""
    if os.environ.get(VARIABLE, "0").lower() not in ("", "0", "false", "no", "off"):
        return None, f"the extension is switched off ({VARIABLE} is set)"
    spec = importlib.util.find_spec("colaworld._native")
    found = os.environ.get(LIBRARY) or (spec.origin if spec else None)
    if found is None:
        return None, (
            "the extension is not built; with a C++ compiler, torch, scikit-build-core and ninja at "
            "hand: pip install --no-build-isolation -e ."
        )
    path = os.path.realpath(found)
    try:
        torch.ops.load_library(path)
        _facts_of(path)
    except (OSError, AttributeError) as error:
        raise BrokenExtensionError(
            f"colaworld's compiled ops are at {path} but do not load: {error}\n"
            "Likely causes:\n"
            f"  - this torch ({torch.__version__}) is older than 2.11, or was replaced by one whose "
            "C++ library differs: rebuild with pip install --no-build-isolation -e .\n"
            "  - the file is of another version of colaworld: rebuild it\n"
            "  - the file was built on another system (a newer libstdc++ or glibc, another "
            "processor): rebuild it here\n"
            "  - the build was interrupted: delete the build/ folder and rebuild\n"
            f"To run on the references meanwhile: {VARIABLE}=1"
        ) from error
    return path, None


PATH, _REASON = _load()  # of the library that is loaded; why there is none
AVAILABLE: bool = PATH is not None


def reason() -> str | None:
    """Why the compiled ops are absent; None when they are loaded."""
    return _REASON


@functools.cache
def build_info() -> dict[str, Any] | None:
    """What was compiled, in the library's own words; None when the extension is absent.

    Keys: version, compiler, compiled_instruction_sets, chosen_instruction_set, cuda,
    cuda_architectures, cuda_note, cuda_stream (whether torch's current stream was found: there is
    none where torch was built without CUDA), torch_built_against.

    Raises ValueError when COLAWORLD_CPU_ISA names what cannot run here.
    """
    if PATH is None:
        return None
    info = json.loads(_facts_of(PATH)())
    if "error" in info:
        raise ValueError(info["error"])
    return info


def cuda_kernels(*, ask_driver: bool) -> list[Any]:
    """The compiled CUDA kernels as the ops launch them, from `colaworld._C`; empty without any.

    Each has name, threads (of a block) and dynamic_shared (bytes of a block). With `ask_driver` also
    what the driver says on the current device, else None: registers and local (bytes of stack and
    spills) of a thread, static_shared (bytes of a block), blocks (that a multiprocessor holds).

    Raises ImportError where `colaworld._C` was not built, RuntimeError where the driver has no answer.
    """
    if PATH is None:
        return []
    if importlib.util.find_spec("colaworld._C") is None:
        raise ImportError(
            "colaworld._C is not built, which lists the CUDA kernels: with the headers of Python and "
            "pybind11 at hand: pip install --no-build-isolation -e ."
        )
    return importlib.import_module("colaworld._C").cuda_kernels(PATH, ask_driver=ask_driver)
