"""Whose latent actions a set has: read, and held against a model."""

from __future__ import annotations

import json

import pytest

from colaworld.data.errors import DataError
from colaworld.data.labels import FORMAT, PROVENANCE, check_labels, read_labels
from colaworld.files import seal

SAID = {"format": FORMAT, "model": {"hash": "a" * 64, "recipe": "nano.cola"}}


def _set(path, said):
    (path / "meta").mkdir(parents=True)
    (path / PROVENANCE).write_text(json.dumps(said))
    return path


def test_labels_of_another_model_are_refused_with_both_hashes(tmp_path) -> None:
    path = _set(tmp_path / "set", seal(SAID))
    assert read_labels(path)["model"]["recipe"] == "nano.cola"
    assert check_labels(path, "a" * 64) == read_labels(path)
    with pytest.raises(DataError, match=f"expected hash {'b' * 64}, got {'a' * 64}"):
        check_labels(path, "b" * 64)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (seal(SAID) | {"model": {"hash": "b" * 64}}, "do not match the recorded sha256"),
        (SAID, "replaced or changed"),
        (seal({"format": FORMAT}), "replaced or changed"),
        ([1], "replaced or changed"),
        (seal(SAID | {"format": FORMAT + 1}), f"this release reads {FORMAT}"),
    ],
)
def test_what_was_changed_is_refused(tmp_path, said, why) -> None:
    with pytest.raises(DataError, match=why):
        read_labels(_set(tmp_path / "set", said))


def test_a_set_without_labels_says_what_writes_them(tmp_path) -> None:
    with pytest.raises(DataError, match="colaworld label writes it"):
        read_labels(tmp_path)
