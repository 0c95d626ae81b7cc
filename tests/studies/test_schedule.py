"""Jobs over processes that only pretend: what fails, what is killed, what another process holds."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from colaworld.files import FileError, FolderLock
from colaworld.studies.job import Job
from colaworld.studies.schedule import Scheduler, _hold

# Makes the file that a job waits for, does what its name says, and writes down that it began.
PROGRAM = """
import os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
with (out.parent / "began").open("a") as file:
    print(out.name, file=file)
if "together" in out.name:
    (out.parent / f"{out.name}.gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    while len(list(out.parent.glob("*.gpu"))) < 3:
        time.sleep(0.02)
if "killed" in out.name:
    os.kill(os.getpid(), signal.SIGKILL)
if "slow" in out.name:
    time.sleep(60)
if "fails" in out.name:
    sys.exit("something is wrong")
out.mkdir(exist_ok=True)
(out / "done").touch()
"""


def job(home: Path, name: str, needs: tuple[str, ...] = ()) -> Job:
    return Job(home / name, name, None, ("record",), "done", needs)


def scheduler(home: Path, waiting: list[Job], said: list[str], **more) -> Scheduler:
    program = home / "program.py"
    program.write_text(PROGRAM)
    call = {"jobs": 1, "say": said.append, "program": (sys.executable, "-S", str(program))}
    return Scheduler(waiting, **(call | more))


def began(home: Path) -> list[str]:
    return (home / "began").read_text().split()


def test_who_fails_is_tried_again_behind_the_others_and_named(tmp_path) -> None:
    said: list[str] = []
    jobs = [job(tmp_path, n) for n in ("fails", "killed", "fine")]
    jobs.append(job(tmp_path, "after", needs=("fails",)))
    outcome = scheduler(tmp_path, jobs, said).run()
    assert began(tmp_path) == ["fails", "killed", "fine", "fails", "killed"]
    assert outcome.done == ["fine"] and not outcome.left
    assert outcome.failed == {
        "fails": "something is wrong",
        "killed": "ended by SIGKILL",
        "after": "needs fails, which failed",
    }


@pytest.mark.parametrize(("gpus", "seen"), [(("4", "7"), "447"), ((), ["all"] * 3)])
def test_several_gpus_are_shared_out_among_the_processes(gpus, seen, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jobs = [job(tmp_path, f"together-{i}") for i in range(3)]
    outcome = scheduler(tmp_path, jobs, [], jobs=3, gpus=gpus).run()
    assert len(outcome.done) == 3
    assert sorted(file.read_text() for file in tmp_path.glob("*.gpu")) == list(seen)


def test_a_row_does_not_outlive_what_is_made_anew(tmp_path) -> None:
    """As when a plan was deleted, to be made another way."""
    again, whole = job(tmp_path, "again"), job(tmp_path, "whole")
    row = {"study": "s", "arm": "a", "data": "d", "seed": 0, "reference": "a", "status": "finished"}
    row |= {"why": "", "steps": 1, "numbers": {}, "entropy": [], "collapsed_at": None, "clips": {}}
    row |= {"beside": {}, "recipe": "r", "clips_trained": 1, "seconds": 1.0, "flops": None}
    for one in (again, whole):
        one.note(row=row)
    whole.base.mkdir()
    (whole.base / "done").touch()
    scheduler(tmp_path, [again, whole], []).run()
    assert began(tmp_path) == ["again"]
    assert "row" not in again.state() and whole.state()["row"] == row


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path) -> None:
    """As that of a run whose study was killed, and which still saves."""
    held, free = job(tmp_path, "held"), job(tmp_path, "free")
    held.base.mkdir()
    lock = FolderLock(held.base)
    said: list[str] = []

    def let_go() -> None:
        until = time.monotonic() + 30
        while "free" not in " ".join(said) and time.monotonic() < until:
            time.sleep(0.01)
        lock.close()

    helper = threading.Thread(target=let_go)
    helper.start()
    outcome = scheduler(tmp_path, [held, free], said).run()
    helper.join()
    assert outcome.done == ["free", "held"] and not outcome.failed
    assert sum("another process works in" in line for line in said) == 1


def test_two_studies_never_make_the_same_at_once(tmp_path) -> None:
    """Who comes second waits while the first one's command runs, also when nobody watches it, and finds it done."""
    shared = job(tmp_path, "shared")
    program = tmp_path / "holds.py"
    program.write_text("import sys; print('holding', flush=True); sys.stdin.read()")
    with shared.log.open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        other = subprocess.Popen(
            [sys.executable, "-S", str(program)], stdin=subprocess.PIPE, stdout=log
        )
    said: list[str] = []

    def ends() -> None:
        until = time.monotonic() + 30
        while "another process works" not in " ".join(said) and time.monotonic() < until:
            time.sleep(0.01)
        shared.base.mkdir()
        (shared.base / "done").touch()
        other.communicate()

    helper = threading.Thread(target=ends)
    helper.start()
    outcome = scheduler(tmp_path, [shared], said).run()
    helper.join()
    assert outcome.done == ["shared"] and not (tmp_path / "began").exists()
    assert "another process works in" in said[0]
    # While a command runs, its study holds it as well, and lets it go at the end.
    second, held = job(tmp_path, "second"), []

    def look(line: str) -> None:
        if line.endswith("record"):
            held.append(_hold(second.log) is None)

    assert scheduler(tmp_path, [second], said, say=look).run().done == ["second"]
    assert held == [True]
    free = _hold(second.log)
    assert free is not None
    free.close()


def test_what_cannot_be_started_is_a_failure_like_any_other(tmp_path) -> None:
    said: list[str] = []
    jobs = [job(tmp_path, "one"), job(tmp_path, "two")]
    outcome = scheduler(tmp_path, jobs, said, program=(str(tmp_path / "absent"),)).run()
    assert set(outcome.failed) == {"one", "two"}
    assert all("absent" in why for why in outcome.failed.values())


def test_a_disk_that_is_full_ends_the_study_and_its_processes(tmp_path, monkeypatch) -> None:
    """Nothing can be noted then; handlers of signals are those of before."""
    begun: list[str] = []

    def say(line: str) -> None:
        begun.append(line)
        if len(begun) == 2:
            monkeypatch.setattr(os, "fsync", full)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = signal.getsignal(signal.SIGTERM)
    jobs = [job(tmp_path, "slow"), job(tmp_path, "fails")]
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    with pytest.raises(FileError, match=r"fails\.json: cannot be written: .*make room"):
        scheduler(tmp_path, jobs, begun, jobs=2, say=say).run()
    assert [process.poll() for process in started] == [-signal.SIGTERM, 1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_row_that_cannot_be_kept_is_not_counted_as_done(tmp_path) -> None:
    class Broken(Job):
        def finish(self):
            return {
                "status": "finished",
                "steps": 1,
                "seconds": 1.0,
                "numbers": {},
                "collapsed_at": None,
            }

    def keep(name, row) -> None:
        raise FileError("rows.json: cannot be written")

    said: list[str] = []
    one = Broken(tmp_path / "one", "one", None, ("record",), "done")
    outcome = scheduler(tmp_path, [one], said, done=keep).run()
    assert outcome.failed == {"one": "rows.json: cannot be written"} and not outcome.done
