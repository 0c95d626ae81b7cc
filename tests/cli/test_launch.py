"""Several processes through the command: who speaks, what is refused, how all end together. Most are
forked by launched.py with torchrun's variables; the slow ones are torchrun's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

import colaworld as package
from colaworld.cli.launch import Processes
from colaworld.cli.main import main
from colaworld.config import ConfigError
from colaworld.training.checkpoint import latest_checkpoint

SCRIPT = Path(__file__).with_name("launched.py")
ALL = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def environment() -> dict[str, str]:
    home = str(Path(package.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def call(scene, tiny) -> list[str]:
    """nano.cola in two steps a phase, two clips each."""
    at = tiny.index("--training.max-steps")
    rest = [*tiny[:at], *tiny[at + 2 :], "--training.max-steps", "2"]
    return ["train", "nano.cola", "--data", str(scene), *rest, "--training.checkpoint-every", "1"]


@pytest.fixture
def launched(tmp_path):
    """launched([fault, *arguments], ...) -> of each: exit statuses and what each process printed."""

    def run(*plays: list) -> list[tuple[list[int], list[str]]]:
        folders = [tmp_path / f"said{number}" for number in range(len(plays))]
        asked = [
            (str(folder), fault, [str(a) for a in arguments])
            for folder, (fault, *arguments) in zip(folders, plays, strict=True)
        ]
        done = subprocess.run(
            [sys.executable, str(SCRIPT), json.dumps(asked)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said = [[(f / f"{rank}.txt").read_text() for rank in range(2)] for f in folders]
        return list(zip(json.loads(done.stdout), said, strict=True))

    return run


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(out: Path) -> list[dict]:
    """Rows without what differs between equal runs."""
    times = ("seconds", "save_stall", "speed", "slowest")
    return [{k: v for k, v in row.items() if k not in times} for row in rows_of(out)]


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR, MASTER_PORT not set"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 tasks that know nothing of each other"),
        ({**ALL, "RANK": "2"}, "RANK: expected less than WORLD_SIZE (2), got 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a number from torchrun, got 'two'"),
    ],
)
def test_processes_that_cannot_work_together_are_refused(variables, says, monkeypatch, capsys):
    with pytest.raises(ConfigError) as refused:
        Processes(variables)
    assert says in str(refused.value)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "nano.cola", "--data", "absent"]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and said.out == ""


@pytest.mark.parametrize("port", ["taken", "abc"])
def test_a_place_where_they_cannot_meet_is_told(port, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1]) if port == "taken" else port
        for name, value in {**ALL, "RANK": "0", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        assert main(["train", "nano.cola", "--data", "absent"]) == 2
    said = capsys.readouterr().err
    assert f"the 2 processes cannot meet at 127.0.0.1, port {port} (MASTER_ADDR," in said


def test_a_process_alone_is_left_alone():
    alone = Processes({"SLURM_STEP_NUM_TASKS": "1"})
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)
    assert alone.device("cuda:1") == "cuda:1"
    assert not alone.resumes(Path("out"))
    alone.begins(Path("out"))
    alone.join("cpu", timeout=1)
    alone.leave()
    torchrun = Processes({**ALL, "RANK": "0", "WORLD_SIZE": "1"})  # --nproc-per-node 1: no group
    assert torchrun.world_size == 1 and torchrun.command()[-1] == "colaworld"


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(Processes, "_meet", lambda self: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    third = Processes(
        {**ALL, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"} | {"LOCAL_WORLD_SIZE": "2"}
    )
    assert third.device("cuda") == "cuda:1" and third.device("cpu") == "cpu"
    assert third.command() == ["torchrun", "--nnodes=2", "--nproc-per-node=2", "-m", "colaworld"]
    with pytest.raises(ValueError, match="--device cuda:0: 4 processes take a GPU each"):
        third.device("cuda:0")
    with pytest.raises(ValueError, match=r"4 processes on .*, which has 2 GPUs: torchrun --nproc"):
        Processes({**ALL, "WORLD_SIZE": "4"}).device("cuda")


# -- together --------------------------------------------------------------------------------


def test_two_processes_train_and_one_speaks(launched, call, tmp_path):
    """And an error of one ends both, with its message alone."""
    out, odd = tmp_path / "run", tmp_path / "odd"
    good, broken, refused, late, other = launched(
        ["none", *call, "--out", out],
        ["data", *call, "--out", tmp_path / "broken"],
        ["none", *call, "--out", odd, "--training.batch-size", 3],
        ["late", *call, "--out", odd, "--training.batch-size", 3],
        ["other", *call, "--out", odd],
    )
    status, said = good
    assert status == [0, 0], said
    assert "cpu, 1 threads, 2 processes" in said[0] and f"finished {out}" in said[0]
    assert said[1] == ""
    assert [row["global_step"] for row in rows_of(out)] == [1, 2, 3, 4]

    status, said = broken
    assert status == [2, 2]
    assert said[1] == "[rank 1] colaworld train: clip 7@3 cannot be decoded\n"
    assert "clip 7@3" not in said[0] and "Traceback" not in said[0]

    for status, said in (refused, late):
        assert status == [2, 2] and said[1] == "" and not odd.exists()
        assert "training.batch_size: expected a multiple of the 2 processes" in said[0]
        assert said[0].count("\n") == 1

    status, said = other
    assert status == [2, 2] and said[0] == "" and not odd.exists()
    assert "[rank 1] colaworld train: training.seed: expected 0 as on rank 0, got 5;" in said[1]


def test_processes_tell_where_they_differ(monkeypatch):
    monkeypatch.setattr(Processes, "_meet", lambda self: None)
    main, other = (Processes({**ALL, "RANK": rank}) for rank in "01")
    main._own = other._own = HashStore()
    for here in (main, other):
        here.agree({"seed": 0, "box": (1, 2)})
    main.agree({"clips": 7})
    with pytest.raises(ConfigError, match=r"clips: expected 7 as on rank 0, got 8; start all"):
        other.agree({"clips": 8})


@pytest.mark.slow
def test_a_process_that_is_gone_is_named(launched, call, tmp_path):
    ((status, said),) = launched(["kill", *call, "--out", tmp_path / "run"])
    assert status == [1, -signal.SIGKILL]
    assert "colaworld train: rank 1 (" in said[0] and "has ended or does not answer" in said[0]
    assert "Traceback" not in said[0]


@pytest.mark.slow
def test_a_signal_to_one_saves_all_and_all_resume(launched, call, tmp_path):
    out = tmp_path / "run"
    again = ["none", *call, "--out", out, "--resume"]
    (status, said), (resumed, _) = launched(["stop", *call, "--out", out], again)
    assert status == resumed == [0, 0]
    assert said[0].count("SIGTERM: saved warmup step") == 1 and said[1] == ""
    assert "torchrun --nproc-per-node=2 -m colaworld train nano.cola" in said[0]
    assert [row["global_step"] for row in rows_of(out)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_disk_that_hangs_for_one_is_named_and_all_go_on(launched, longer, tmp_path):
    """Nothing is lost but the steps since the last checkpoint."""
    out = tmp_path / "run"
    again = ["none", *longer, "--out", out, "--data.timeout", 1, "--resume"]
    (status, said), (resumed, after) = launched(["hang", *again[1:-1]], again)
    assert status == [2, 2]
    assert said[1].startswith("[rank 1] colaworld train: ") and said[1].count("\n") == 1
    assert ".mp4" in said[1] and "still not read after" in said[1]
    assert "still not read" not in said[0] and "Traceback" not in said[0]
    assert resumed == [0, 0], after
    assert [row["global_step"] for row in rows_of(out)] == list(range(1, 61))


# -- torchrun itself -------------------------------------------------------------------------


def torchrun(call: list[str], *agent: str) -> subprocess.Popen:
    """In a session of its own, with two workers."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *agent]
    return subprocess.Popen(
        [*command, "-m", "colaworld", *call],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def workers(agent: subprocess.Popen) -> list[int]:
    folders = Path("/proc").glob("[0-9]*/stat")
    found = []
    for file in folders:
        try:
            pid, parent = int(file.parent.name), int(file.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == agent.pid:
            found.append(pid)
    return sorted(found)


def wait_for_rows(out: Path, count: int, agent: subprocess.Popen) -> None:
    file, end = out / "metrics.jsonl", time.monotonic() + 120
    while not file.is_file() or file.read_text().count("\n") < count:
        if agent.poll() is not None or time.monotonic() > end:
            pids = workers(agent)
            for pid in (agent.pid, *pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pytest.fail(agent.communicate()[0])
        time.sleep(0.02)


def finished(agent: subprocess.Popen, pids: list[int]) -> str:
    said = agent.communicate(timeout=180)[0]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    return said


@pytest.fixture(scope="module")
def longer(call) -> list[str]:
    at = call.index("--training.max-steps")
    call = [*call[: at + 1], "30", *call[at + 2 :]]
    return [*call, "--training.checkpoint-every", "5"]


@pytest.mark.slow
@pytest.mark.parametrize("standalone", [True, False])
def test_a_killed_worker_is_started_again_and_goes_on(longer, launched, tmp_path, standalone):
    """To the rows of a run that nobody disturbed."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    more = ["--standalone"] if standalone else ["--master-port", str(free_port())]
    agent = torchrun([*longer, "--out", str(out)], *more, "--max-restarts=2")
    wait_for_rows(out, 12, agent)
    pids = workers(agent)
    os.kill(pids[1], signal.SIGKILL)
    said = finished(agent, pids)
    assert agent.returncode == 0, said
    assert "restart 1: goes on with" in said and said.count("resumed from") == 1
    assert [row["global_step"] for row in rows_of(out)] == list(range(1, 61))
    if standalone:
        ((status, _),) = launched(["none", *longer, "--out", whole])
        assert status == [0, 0] and untimed(out) == untimed(whole)
    # What was there before the launch is not touched by its restarts.
    agent = torchrun([*longer, "--out", str(out)], *more, "--max-restarts=1")
    said = finished(agent, [])
    assert agent.returncode == 1 and said.count("already holds a run; add --resume") == 2


@pytest.mark.slow
def test_a_signal_to_torchrun_saves(longer, tmp_path):
    out = tmp_path / "run"
    agent = torchrun([*longer, "--out", str(out)], "--standalone")
    wait_for_rows(out, 7, agent)
    pids = workers(agent)
    agent.terminate()
    os.kill(pids[0], signal.SIGTERM)  # a scheduler may tell everyone, torchrun as well
    said = finished(agent, pids)
    steps = len(rows_of(out))
    assert f"SIGTERM: saved warmup step {steps} in {out}" in said
    assert latest_checkpoint(out / "checkpoints").state["progress"]["global_step"] == steps
