"""Result files: written so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any


class FileError(ValueError):
    """A file that cannot be read; the message names it."""


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write beside `path`, flush to disk, rename over it. The folder is made when missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def printable(text: object, *, keep: str = "") -> str:
    """For messages: control characters, and bytes of a name that are no UTF-8, spelled out."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def plain(value: Any) -> Any:
    """Numbers as JSON knows them: NaN and infinity, which JSON has not, become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON, atomically; non-finite numbers as null."""
    write_atomically(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, *, made_by: str = "") -> Any:
    """Read JSON. Raises FileError, which names the file, where it is missing or not JSON.

    made_by: what writes such a file, for the message where it is missing.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        hint = f"; {made_by} writes it" if made_by else ""
        raise FileError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except json.JSONDecodeError as error:
        raise FileError(f"{path}: not valid JSON: {error}") from None
