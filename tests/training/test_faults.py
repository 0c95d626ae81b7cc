"""What happens to one process happens to all (fault_ranks.py): nothing is lost but the steps since the
last checkpoint, and nothing is left over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import colaworld
from colaworld.training.checkpoint import latest_checkpoint

SCRIPT = Path(__file__).with_name("fault_ranks.py")
TIMES = ("seconds", "save_stall", "speed", "slowest")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """played(case) -> the case's folder and what each of two processes found in it."""
    out = tmp_path_factory.mktemp("faults")
    home = str(Path(colaworld.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out)],
        env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    def results(case: str) -> tuple[Path, list[dict]]:
        files = [out / case / f"rank{rank}.json" for rank in range(2)]
        assert all(file.exists() for file in files), done.stdout + done.stderr
        return out / case, [json.loads(file.read_text()) for file in files]

    return results


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_disk_that_is_full_for_one_ends_both_and_both_go_on(played):
    out, (main, other) = played("full")
    assert main["said"] == f"process 1: {other['said']}"  # the command lets one of them speak
    assert "step_0_0000006: cannot be written" in other["said"] and "No space" in other["said"]
    for one in (main, other):
        assert one["there"] == ["step_0_0000003"]
        assert one["again"] == {**one["whole"], "said": f"finished: finished {out / 'run'}"}
    last = latest_checkpoint(out / "run" / "checkpoints")
    assert last.path.name == "step_0_0000008" and last.state["progress"]["step"] == 8
    rows, whole = rows_of(out / "run"), rows_of(out / "whole")
    for row in (*rows, *whole):
        for name in TIMES:
            row.pop(name, None)
    assert rows == whole and [row["step"] for row in rows] == list(range(1, 9))


def test_one_codebook_that_collapses_rolls_both_back_and_stops_both(played):
    out, (main, other) = played("alarm")
    assert main == other
    assert (
        main["status"] == "stopped" and "collapsed in phase joint after 1 rollback;" in main["said"]
    )
    rows = rows_of(out / "run")
    assert [(row["round"], row["step"]) for row in rows] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]
    assert main["checkpoint"] == "step_0_0000001_round1"
    # Of what the other sees alone, the entropy would stay above the alarm's floor.
    entropies = [row["codebook"]["entropy_normalised"] for row in rows if row["step"] in (2, 4)]
    assert entropies[0] == pytest.approx(0.862, abs=1e-3) and entropies[1] < 0.75


def test_the_slow_one_is_named(played):
    looks = [row["slowest"] for row in rows_of(played("alarm")[0] / "run") if "slowest" in row]
    assert looks
    for look in looks:
        assert look == {"rank": 1, "host": socket.gethostname(), "seconds": 9.0, "median": 1.0}
