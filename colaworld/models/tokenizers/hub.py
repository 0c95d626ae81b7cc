"""Where a tokenizer's published files are: a folder here, else a name on the Hugging Face hub.

Not here: reading weights (backbones/weights.py, diffusers).
"""

from __future__ import annotations

from pathlib import Path


def local_folder(path: str, *, patterns: list[str]) -> Path:
    """A folder or file on this machine; a name on the Hugging Face hub is downloaded (once).

    `path` is a hub name only if nothing of that name is here and it looks like OWNER/NAME; of the
    repository, only files that match `patterns` are fetched.
    Raises ValueError that says what to do where neither is to be had.
    """
    here = Path(path).expanduser()
    if here.exists():
        return here
    if len(here.parts) != 2 or path.startswith((".", "/", "~")):
        raise ValueError(
            f"{path}: no such file or folder; give the folder that holds the weights, or the name "
            "OWNER/NAME of a repository on the Hugging Face hub"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{path} is not a folder here, and names on the Hugging Face hub need the package "
            "huggingface_hub: pip install colaworld[vae]"
        ) from error
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # offline, not found, not allowed
        raise ValueError(
            f"{path} is neither a folder here nor could it be fetched from the Hugging Face hub: "
            f"{error}. Without a network, download it elsewhere and give the local folder"
        ) from error
