"""Where numbers come from."""

from __future__ import annotations

import re
import subprocess

import pytest
import torch

from colaworld.runs import provenance


def test_where_the_numbers_come_from(run) -> None:
    folder, _, trainer = run
    told = provenance.environment(folder)
    assert told["wall_seconds"] == pytest.approx(trainer.progress.seconds)
    assert told["versions"]["torch"] == torch.__version__ and told["threads"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", told["date"])
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", told["commit"])


def test_the_commit_is_unknown_without_git(monkeypatch) -> None:
    def absent(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert provenance.commit() == "unknown"
