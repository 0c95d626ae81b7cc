"""The folder beside a labelled set in which its labels are made, episode by episode.

    .DST.labels/key.json             what is being made: model, data, options
                parts/000012         latent actions (and recorded ones) of an episode, whole
                films/000012.mp4     its film, where one had to be encoded
                new/                 a set that waits for its tables to be moved in place

A killed call leaves it behind, the next goes on with it, and the end deletes it. Not here: what is in
the labels, or the set they end in (labelled_set.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from colaworld.config import leaves
from colaworld.data.errors import DataError
from colaworld.files import FileError, FolderLock, check_seal, read_json, seal, write_atomically

KEY = "key.json"


class Work:
    """Of the set at `out`. `begin` before anything else."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.root = self.out.with_name(f".{self.out.name}.labels")
        self.new = self.root / "new"
        self._lock: FolderLock | None = None

    @property
    def there(self) -> bool:
        """Whether something was begun."""
        return (self.root / KEY).exists()

    def begin(self, key: Mapping[str, Any]) -> None:
        """Take the folder, making it where there is none, and hold it until `close`.

        Of several processes the main one alone does. Raises DataError where another one holds it, or it
        is of other work: then both values are told.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FolderLock(self.root)
        except BlockingIOError:
            raise DataError(
                f"{self.out}: another process labels into it; wait for it, or choose another folder"
            ) from None
        if self.there:
            self._check(json.loads(json.dumps(key)))
        elif any((self.root / name).exists() for name in ("parts", "films", "new")):
            raise DataError(
                f"{self.root / KEY}: missing, so nobody knows what the labels beside it are of; bring it "
                f"back, or delete {self.root} to begin anew"
            )
        else:
            write_atomically(self.root / KEY, json.dumps(seal(key), indent=1))

    def _check(self, key: Mapping[str, Any]) -> None:
        path = self.root / KEY
        try:
            found = read_json(path)
            whole = isinstance(found, dict) and check_seal(path, found)
        except FileError as error:
            raise DataError(f"{error}; delete {self.root} to begin anew") from None
        if not whole:
            raise DataError(f"{path}: damaged; delete {self.root} to begin anew")
        then, now = (dict(leaves(side)) for side in ({k: found[k] for k in key if k in found}, key))
        changed = [
            f"{k}: {then.get(k)!r} then, {now.get(k)!r} now"
            for k in {**then, **now}
            if then.get(k) != now.get(k)
        ]
        if changed:
            raise DataError(
                f"{self.out}: its labelling was begun with something else ({'; '.join(changed)}); call "
                f"again with what it was begun with, or delete {self.root} to begin anew"
            )

    def part(self, episode: int) -> Path:
        return self.root / "parts" / f"{episode:06d}"

    def film(self, episode: int) -> Path:
        return self.root / "films" / f"{episode:06d}.mp4"

    def save(self, episode: int, arrays: Mapping[str, np.ndarray]) -> None:
        """All that is known of an episode, behind its sha256: with it the episode is done."""
        whole = save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
        write_atomically(self.part(episode), sha256(whole).digest() + whole)

    def load(self, episode: int) -> dict[str, np.ndarray]:
        """What was saved. Raises DataError where it is not as it was written."""
        path = self.part(episode)
        content = path.read_bytes()
        known, whole = content[:32], content[32:]
        if sha256(whole).digest() != known:
            raise DataError(f"{path}: damaged; delete it, and run the same again: it is made anew")
        return load(whole)

    def close(self, *, remove: bool = False) -> None:
        """Let it go; `remove`: delete it, the key last, so that what is left is still known."""
        if remove:
            for path in self.root.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != KEY:
                    path.unlink()
            shutil.rmtree(self.root)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
