"""Where published files are: on this machine, else under a name on the Hugging Face hub.

Not here: reading weights (backbones/weights.py, diffusers).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME
WEIGHTS = ("*.json", "*.safetensors")  # never a pickle
# Also of a pipeline, whose video model is one of several folders.
PIPELINE = (*WEIGHTS, "transformer/*.json", "transformer/*.safetensors")


def local_folder(
    path: str,
    *,
    patterns: tuple[str, ...] = WEIGHTS,
    revision: str | None = None,
    what: str = "",  # the setting that names it, for errors
) -> Path:
    """A folder or file on this machine; a name on the Hugging Face hub is downloaded (once).

    `path` is a hub name only if nothing of that name is here and it looks like OWNER/NAME; of the
    repository, only files that match `patterns` are fetched.
    Raises ValueError that says what to do where neither is to be had.
    """
    named = f"{what}: {path}" if what else path
    here = Path(path).expanduser()
    if path and here.exists():
        return here
    if not HUB_NAME.fullmatch(path) or path.startswith("."):
        raise ValueError(
            f"{named}: no such file or folder; give the folder that holds the weights, or the name "
            "OWNER/NAME of a repository on the Hugging Face hub"
        )
    hub = hub_package(f"{named} is not a folder here, and names on the Hugging Face hub need")
    try:
        return Path(hub.snapshot_download(path, allow_patterns=list(patterns), revision=revision))
    except (OSError, ValueError) as error:  # offline, not found, not allowed
        raise ValueError(
            f"{named} is neither a folder here nor could it be fetched from the Hugging Face hub: "
            f"{error}. Without a network, download it elsewhere and give the local folder"
        ) from error


def hub_package(why: str) -> Any:
    """The module huggingface_hub; the ImportError opens with `why` and names the extra."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{why} the package huggingface_hub: pip install colaworld[hub]"
        ) from error
    return huggingface_hub
