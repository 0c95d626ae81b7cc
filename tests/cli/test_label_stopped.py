"""`colaworld label`, stopped: by a signal, a kill or a full disk; it goes on to the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import colaworld as package
from colaworld.models.latent_action.identity import latent_action_hash
from colaworld.runs import label as runs_label
from colaworld.runs import label_work
from colaworld.runs.load import load_world

DEATHS, LAUNCHED = (Path(__file__).with_name(name) for name in ("label_deaths.py", "launched.py"))
FEW = ("--episodes", "5")  # of the scene's 40: what is labelled is not the question


def digest(root: Path) -> dict[str, str]:
    """Every file of a set and its content."""
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The episodes that were labelled, and a moment to step in: `counted.at = (number, call)`."""

    class Episodes(list):
        at: tuple = (0, None)

        def clear(self) -> None:
            super().clear()
            self.at = (0, None)

    done, label = Episodes(), runs_label.label_episode

    def counting(clips, episode, *given, **more):
        done.append(episode)
        if len(done) == done.at[0]:
            done.at[1]()
        return label(clips, episode, *given, **more)

    monkeypatch.setattr(runs_label, "label_episode", counting)
    return done


def test_a_signal_keeps_what_is_done(trained, scene, tmp_path, colaworld, counted) -> None:
    out = tmp_path / "out"
    call = ("label", trained, "--data", scene, "--out", out, *FEW)
    counted.at = 3, lambda: os.kill(os.getpid(), signal.SIGTERM)
    said = colaworld(*call)
    assert said.status == 130 and "stopped: 2 of 5 episodes are done" in said.out
    assert f"label {trained} --data {scene} --out {out}" in said.out
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.labels"] and counted == [0, 1, 2]
    counted.clear()
    said = colaworld(*call)
    assert said.status == 0 and "(2 of them before)" in said.out and counted == [2, 3, 4]
    whole = tmp_path / "whole"
    assert colaworld(*call[:4], "--out", whole, *FEW).status == 0
    assert digest(out) == digest(whole)


def test_work_that_was_begun_otherwise_is_refused(
    trained, other, scene, few, tmp_path, colaworld, counted
) -> None:
    out = tmp_path / "out"
    counted.at = 2, lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert colaworld("label", trained, "--data", few, "--out", out, *FEW).status == 130
    hashes = [latent_action_hash(load_world(run)[0].model) for run in (trained, other)]
    for run, data, more, told in (
        (other, few, FEW, f"model: '{hashes[0]}' then, '{hashes[1]}' now"),
        (trained, few, (*FEW, "--batch-size", 7), "batch_size: 32 then, 7 now"),
        (trained, few, (*FEW, "--data.stride", 2), "frames.stride: 1 then, 2 now"),
        (trained, few, ("--episodes", 4), "episodes: 5 then, 4 now"),
        (trained, few, (*FEW, "--split", "train"), "data.split: 'all' then, 'train' now"),
        (trained, tmp_path / "changed", FEW, "data.bytes: "),
    ):
        if data.name == "changed":
            shutil.copytree(few, data)
            with next(data.rglob("*.mp4")).open("ab") as file:
                file.write(bytes(8))
        said = colaworld("label", run, "--data", data, "--out", out, *more)
        assert said.status == 2 and told in said.err, said.err
    counted.clear()
    assert colaworld("label", trained, "--data", few, "--out", out, *FEW).status == 0
    assert counted == [1, 2, 3, 4]


def test_work_that_was_damaged_or_is_of_nobody_is_refused(
    trained, few, tmp_path, colaworld, counted
) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.labels"
    call = ("label", trained, "--data", few, "--out", out, *FEW)
    counted.at = 3, lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert colaworld(*call).status == 130
    part, key = work / "parts/000000", (work / "key.json").read_bytes()
    whole = part.read_bytes()
    for content in (whole[:-9], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        part.write_bytes(content)
        said = colaworld(*call)
        assert said.status == 2 and f"{part}: damaged; delete it" in said.err and not out.exists()
    (work / "key.json").unlink()
    said = colaworld(*call)
    assert said.status == 2 and "key.json: missing, so nobody knows" in said.err
    (work / "key.json").write_bytes(key)
    part.unlink()
    assert colaworld(*call).status == 0 and out.exists()


def test_a_full_disk_leaves_nothing_half_written(
    trained, scene, tmp_path, colaworld, monkeypatch
) -> None:
    out, write, left = tmp_path / "out", label_work.write_atomically, [3]

    def full(path, content):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(label_work, "write_atomically", full)
    call = ("label", trained, "--data", scene, "--out", out, *FEW)
    said = colaworld(*call)
    assert said.status == 1 and "make room" in said.err and not out.exists()
    assert colaworld(*call).status == 0


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_anywhere_it_comes_to_the_same_bytes(trained, scene, film, tmp_path, count) -> None:
    """Each call does less than the one before it, so a moment may not come, and then it ends well."""
    films = tmp_path / "clips"
    for number in range(3):
        film(films / f"{number}.avi", frames=8, seed=number)  # to be encoded
    draw, plays = random.Random(count), {}
    for way, data in (("columns", scene), ("films", films), ("in_place", None)):
        calls = []
        for name in ("whole", "out"):
            out = tmp_path / way / name
            if data is None:
                shutil.copytree(scene, out)
            target = (
                ["--data", out, "--in-place"] if data is None else ["--data", data, "--out", out]
            )
            calls.append([str(a) for a in ("label", trained, *target, *FEW)])
        plays[way] = [[draw.random() for _ in range(count)], *calls]
    home = str(Path(package.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, DEATHS, json.dumps(list(plays.values()))],
        env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    told = re.search(r"^DEATHS (.*)$", done.stdout, re.MULTILINE)
    for way, ends in zip(plays, json.loads(told[1]), strict=True):
        assert ends[0] == 0 and "killed" in ends and set(ends) <= {0, 2, "killed"}, (way, ends)
        whole, out = (tmp_path / way / name for name in ("whole", "out"))
        assert 2 not in ends[: ends.index(0, 1)], (way, ends)  # it exists, once all was done
        assert digest(out) == digest(whole), way
        assert sorted(p.name for p in out.parent.iterdir()) == ["out", "whole"]


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(trained, scene, film, tmp_path, colaworld) -> None:
    films = tmp_path / "films"
    for number in range(3):
        film(films / f"{number}.avi", frames=8, seed=number)
    plays = []
    for name, data in (("a", scene), ("b", films)):
        call = ["label", trained, "--data", data, *FEW, "--device", "cpu", "--out"]
        assert colaworld(*call, tmp_path / f"{name}1").status == 0
        said = str(tmp_path / f"said_{name}")
        plays.append([said, "none", [str(a) for a in [*call, tmp_path / f"{name}2"]]])
    home = str(Path(package.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, LAUNCHED, json.dumps(plays)],
        env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = [[(Path(p[0]) / f"{rank}.txt").read_text() for rank in range(2)] for p in plays]
    assert json.loads(done.stdout) == [[0, 0], [0, 0]], (said, done.stderr)
    for name in "ab":
        assert digest(tmp_path / f"{name}1") == digest(tmp_path / f"{name}2")
