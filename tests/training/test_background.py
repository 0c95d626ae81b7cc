"""Checkpoints are written while training goes on, from copies, and nothing that fails is lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time

import pytest
import torch

from colaworld.files import FolderLock
from colaworld.training import checkpoint
from colaworld.training.background import Background, copied
from colaworld.training.loggers import read_rows
from colaworld.training.protocols import CheckpointError
from colaworld.training.run_folder import RunFolder

STEP_4 = "step_0_0000004"


@pytest.fixture
def held(monkeypatch):
    """Files of tensors are written once the event is set, or after ten seconds."""
    event, real = threading.Event(), checkpoint.save_file

    def save_file(tensors, file, **more):
        event.wait(10)
        real(tensors, file, **more)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    yield event
    event.set()


def test_copies_stay_as_they_are():
    base = torch.arange(6.0).view(2, 3)
    files = {"a": {"w": base, "column": base[:, 1]}, "b": {"same": base, "none": torch.zeros(0)}}
    copies = copied(files)
    base += 1
    assert copies["a"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copies["a"]["column"].tolist() == [1, 4]
    assert copies["b"]["same"] is copies["a"]["w"]  # what is in two files takes its memory once
    assert copies["b"]["none"].shape == (0,)


def test_copies_from_a_gpu_lie_in_pinned_memory(cuda):
    value = torch.arange(1_000_000.0, device=cuda)
    wanted = value.cpu()
    copies = copied({"a": {"w": value, "first": value[:3]}})
    value += 1
    assert all(copy.is_pinned() for copy in copies["a"].values())
    assert torch.equal(copies["a"]["w"], wanted) and copies["a"]["first"].tolist() == [0, 1, 2]


def test_what_fails_is_raised_by_who_waits_once():
    writer = Background()
    assert writer.wait() is None
    writer.start(lambda: 3)
    assert writer.wait() == 3 and not writer.failed()
    writer.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    assert not writer.failed() and writer.wait() is None


def test_steps_go_on_while_a_checkpoint_is_written(toy, tmp_path, held, reference, read_run):
    seen = []

    def hook(batch, loss):
        seen.append((tmp_path / "checkpoints" / STEP_4).exists())
        if len(seen) == 14:  # two passes a step: step 7
            held.set()
        return loss

    assert toy.trainer(tmp_path, hook=hook).run().status == "finished"
    assert seen[8:14] == [False] * 6  # of steps 5 to 7
    run = read_run(tmp_path)
    assert (run.rows, run.files, run.weights) == (
        reference.rows,
        reference.files,
        reference.weights,
    )


@pytest.mark.parametrize("background", [True, False])
def test_rows_say_how_long_a_step_waited(toy, tmp_path, background):
    training = dataclasses.replace(toy.TRAINING, async_checkpoint=background, max_steps=6)
    toy.trainer(tmp_path, training=training, phases=toy.PHASES[:1]).run()
    rows = list(read_rows(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in rows if "save_stall" in row] == [5]
    state = checkpoint.latest_checkpoint(tmp_path / "checkpoints").state
    assert state["progress"]["save_stall"] == rows[4]["save_stall"] > 0


def test_a_failed_write_ends_the_run_before_the_next_one(toy, tmp_path, monkeypatch):
    steps = []

    def hook(batch, loss):
        steps.append(batch)
        if len(steps) == 11:  # step 6, behind the checkpoint of step 4
            end = time.monotonic() + 10
            while not run._folder.failed() and time.monotonic() < end:
                time.sleep(0.01)
        return loss

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    run = toy.trainer(tmp_path, hook=hook)
    with pytest.raises(CheckpointError, match=f"{STEP_4}: cannot be written.*No space left"):
        run.run()
    assert len(steps) <= 12  # not at step 8, which is the next to be saved
    assert list((tmp_path / "checkpoints").iterdir()) == []
    FolderLock(tmp_path).close()


@pytest.mark.parametrize("how", ["signal", "error"])
def test_a_run_that_ends_waits_for_its_checkpoint(how, toy, tmp_path, held):
    def hook(batch, loss):
        if batch.episode[0] == 10:  # step 5
            threading.Timer(0.2, held.set).start()
            if how == "error":
                raise RuntimeError("ours")
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    run = toy.trainer(tmp_path, hook=hook)
    if how == "error":
        with pytest.raises(RuntimeError, match="ours"):
            run.run()
    else:
        assert run.run().checkpoint.name == "step_0_0000005"
    assert checkpoint.latest_checkpoint(tmp_path / "checkpoints").path.name == (
        STEP_4 if how == "error" else "step_0_0000005"
    )
    FolderLock(tmp_path).close()


def test_a_second_interrupt_waits_for_nothing_and_holds_the_folder(toy, tmp_path, held):
    def hook(batch, loss):
        if batch.episode[0] == 10:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        toy.trainer(tmp_path, hook=hook).run()
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path)
    held.set()
    for _ in range(200):
        try:
            FolderLock(tmp_path).close()
            break
        except BlockingIOError:
            time.sleep(0.05)
    FolderLock(tmp_path).close()


def test_who_reads_checkpoints_waits_for_the_one_being_written(toy, tmp_path, held):
    folder = RunFolder(tmp_path)
    folder.take("", resume=False)
    folder.write_config("a: 1")
    folder.open_logs(toy.TRAINING, after=0, total=1)
    folder._jsonl.row({"global_step": 1})
    state = {"progress": {"global_step": 1}, "healthy": True}
    weights = {"w": torch.zeros(3)}
    folder.save("step_0_0000001", {"model": weights}, state, keep=2, background=True)
    weights["w"] += 1
    threading.Timer(0.2, held.set).start()
    assert folder.healthy().tensors("model")["w"].tolist() == [0, 0, 0]
    assert folder.saved.name == "step_0_0000001"
    folder.close()
