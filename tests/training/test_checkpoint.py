"""Checkpoints are whole or absent, strict, and survive full disks and broken files."""

from __future__ import annotations

import errno
import json
import os
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from colaworld.training import checkpoint as cp
from colaworld.training.protocols import CheckpointError


def write(folder, step, *, healthy=True, size=3):
    state = {"progress": {"global_step": step}, "healthy": healthy}
    tensors = {"model": {"w": torch.full((size,), float(step))}, "ema": {}}
    return cp.write_checkpoint(folder / f"step_0_{step:07d}", tensors, state)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    written = write(tmp_path, 4)
    read = cp.latest_checkpoint(tmp_path)
    assert read.path == written.path == tmp_path / "step_0_0000004"
    assert torch.equal(read.tensors("model")["w"], torch.full((3,), 4.0))
    assert read.tensors("ema") == {} and read.tensors("nothing") == {}
    assert read.state["format_version"] == cp.FORMAT_VERSION
    assert names(read.path) == ["ema.safetensors", "model.safetensors", "state.json"]
    assert names(tmp_path) == ["step_0_0000004"]


def test_replacing_one_of_the_same_name(tmp_path):
    write(tmp_path, 4)
    write(tmp_path, 4, size=5)
    assert cp.latest_checkpoint(tmp_path).tensors("model")["w"].shape == (5,)
    assert names(tmp_path) == ["step_0_0000004"]


def break_missing(path):
    (path / "model.safetensors").unlink()


def break_short(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def break_flipped(path):
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def break_state(path):
    (path / "state.json").write_text('{"format_version": 1, "prog')


def break_version(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format_version": 99}))


def break_no_state(path):
    (path / "state.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_missing, "model.safetensors: expected"),
        (break_short, "model.safetensors: expected"),
        (break_flipped, "does not match the recorded sha256"),
        (break_state, "no valid state.json"),
        (break_no_state, "no valid state.json"),
        (break_version, "format_version 99 is not 1"),
    ],
)
def test_a_broken_one_is_named_and_the_one_before_is_used(damage, said, tmp_path, caplog):
    write(tmp_path, 1)
    damage(write(tmp_path, 2).path)
    assert cp.latest_checkpoint(tmp_path).path.name == "step_0_0000001"
    assert said in caplog.text and "step_0_0000002" in caplog.text


def test_latest_healthy_and_pruning(tmp_path):
    for step, healthy in ((1, True), (2, True), (3, False), (10, False), (11, False)):
        write(tmp_path, step, healthy=healthy)
    assert cp.latest_checkpoint(tmp_path).path.name == "step_0_0000011"
    assert cp.latest_checkpoint(tmp_path, healthy=True).path.name == "step_0_0000002"
    cp.prune_checkpoints(tmp_path, keep=2)
    assert names(tmp_path) == ["step_0_0000002", "step_0_0000010", "step_0_0000011"]
    assert cp.latest_checkpoint(tmp_path / "nowhere") is None


def test_a_full_disk_leaves_the_last_good_one(tmp_path):
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a real refusal by the system
    try:
        with pytest.raises(CheckpointError, match=r"step_0_0000002.*needs 4\.0 MB.*make room"):
            write(tmp_path, 2, size=1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step_0_0000001"]
    assert cp.latest_checkpoint(tmp_path).tensors("model")["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_refusals_at_every_stage(call, tmp_path, monkeypatch):
    write(tmp_path, 1)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir" if call == "mkdir" else f"os.{call}", refuse)
    with pytest.raises(CheckpointError, match=r"step_0_0000002.*Read-only file system"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == ["step_0_0000001"]


def test_a_failed_replacement_keeps_the_old_one(tmp_path, monkeypatch):
    write(tmp_path, 1)
    real, calls = os.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr("os.replace", second_fails)
    with pytest.raises(CheckpointError, match="No space left"):
        write(tmp_path, 1, size=9)
    assert names(tmp_path) == ["step_0_0000001"]
    assert cp.latest_checkpoint(tmp_path).tensors("model")["w"].shape == (3,)


def test_a_path_under_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/step_0_0000001: cannot be written"):
        write(tmp_path / "file", 1)


def test_state_that_is_not_json_is_refused(tmp_path):
    for value in (float("nan"), torch.zeros(1)):
        with pytest.raises(CheckpointError, match="not plain JSON"):
            cp.write_checkpoint(tmp_path / "step_0_1", {}, {"progress": {}, "loader": value})
    assert names(tmp_path) == []


def test_sweep_clears_up_after_a_kill(tmp_path):
    write(tmp_path, 1)
    kept = write(tmp_path, 2).path
    kept.rename(tmp_path / ".replaced_step_0_0000002")  # killed between the two renames
    write(tmp_path, 3).path.rename(tmp_path / ".deleted_step_0_0000003")
    (tmp_path / ".writing_step_0_0000004").mkdir()
    cp.sweep(tmp_path)
    assert names(tmp_path) == ["step_0_0000001", "step_0_0000002"]
    assert cp.latest_checkpoint(tmp_path).tensors("model")["w"].tolist() == [2, 2, 2]


def test_loading_is_strict_and_says_what_differs():
    module = nn.Linear(3, 2)
    good = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
    cp.load_strictly(module, good, source="x")
    assert module.weight.sum().item() == 6
    bad = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        cp.load_strictly(module, bad, source="here")
    text = str(caught.value)
    assert "here does not fit Linear" in text
    assert "missing: bias" in text and "left over: extra" in text
    assert "weight (expected torch.float32 [2, 3], got torch.float32 [2, 4])" in text
    with pytest.raises(CheckpointError, match="misshapen: weight"):
        cp.load_strictly(module, {**good, "weight": good["weight"].half()}, source="x")
    assert module.weight.sum().item() == 6  # a refused load changes nothing


def test_a_file_of_weights_is_loaded_whole_or_not_at_all(tmp_path):
    file, more = tmp_path / "model.safetensors", tmp_path / "more.safetensors"
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    save_file(weights, file)
    save_file(weights | {"b.x": torch.zeros(1)}, more)
    module = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match="left over"):
        cp.load_weights(module, more)
    assert module.bias.tolist() != [1, 1]
    cp.load_weights(module, file)
    assert module.bias.tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        cp.load_weights(module, tmp_path / "none.safetensors")


def test_tied_and_sliced_weights_are_written_whole(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    weights = {"a": base, "tied": base, "column": base[:, 1], "transposed": base.t()}
    cp.export_weights(tmp_path / "weights", weights, {"averaged": False})
    read = load_file(tmp_path / "weights" / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(read[name], value)
    assert json.loads((tmp_path / "weights" / "config.json").read_text()) == {"averaged": False}


def test_global_random_state_comes_back():
    saved = cp.rng_tensors(torch.device("cpu"))
    first = torch.rand(3)
    cp.restore_rng(saved, torch.device("cpu"))
    assert torch.equal(torch.rand(3), first)
