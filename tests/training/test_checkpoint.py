"""Checkpoints are whole or absent, strict, and survive full disks and broken files."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from colaworld.files import FileError, seal
from colaworld.training import checkpoint as cp
from colaworld.training import weights as weights_file
from colaworld.training.protocols import CheckpointError, UnstableTrainingError


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


def change(path, **fields):
    """The state of an earlier release, which has no hash, with other values."""
    state = json.loads((path / "state.json").read_text())
    state.pop("sha256", None)
    whole = {"guard": {}, "gate": None, "alarm": None, "health": None, "ema_updates": 0}
    whole |= {"loader": {}, "config": ""}
    progress = {"phase": 0, "step": 2, "round": 0, "over": None, "started": [], "ended": []}
    state["progress"] = {**progress, "seconds": 1.5, **state["progress"]}
    changed = {k: v for k, v in {**whole, **state, **fields}.items() if v != "gone"}
    (path / "state.json").write_text(json.dumps(changed))


PROGRESS = {"phase": 0, "step": 2, "global_step": 2, "round": 0, "over": None}
PROGRESS |= {"started": [], "ended": [], "seconds": 1.5}


@pytest.mark.parametrize(
    "fields",
    [
        *({"progress": value} for value in ({}, [], None, "x", 3)),
        *({"progress": {**PROGRESS, "global_step": value}} for value in (None, "2", -1, 2.0, True)),
        *({"progress": {**PROGRESS, name: "7"}} for name in ("phase", "step", "round", "seconds")),
        {"progress": {k: v for k, v in PROGRESS.items() if k != "step"}},
        *({name: "gone"} for name in ("guard", "gate", "loader", "config", "ema_updates")),
        *({"guard": value} for value in (None, [], 1)),
        *({"gate": 5}, {"alarm": []}, {"health": "x"}, {"loader": None}, {"config": {}}),
        *({"files": value} for value in (None, [], {"model.safetensors": 3}, {"a": {"bytes": 1}})),
        {"files": {"../step_0_0000001/state.json": {"bytes": 1, "sha256": ""}}},
        *({"format_version": value} for value in (None, "1", 2, [])),
    ],
)
def test_crafted_fields_are_no_checkpoint_and_the_one_before_is_used(fields, tmp_path, caplog):
    write(tmp_path, 1)
    newest = write(tmp_path, 2).path
    change(newest)
    assert cp.latest_checkpoint(tmp_path).path.name == "step_0_0000002"
    assert "from before state.json had a sum" in caplog.text
    change(newest, **fields)
    assert cp.latest_checkpoint(tmp_path).path.name == "step_0_0000001"
    assert "ignored as a checkpoint" in caplog.text and "step_0_0000002" in caplog.text


CONFIG = yaml.safe_dump({"schedule": ["a", "b"], "phases": {"a": {"steps": 3}, "b": {"steps": 5}}})


@pytest.mark.parametrize(
    "fields",
    [
        {"global_step": 10**30},
        {"global_step": 1e30},
        {"global_step": 10**5},  # more than the rows have bytes
        {"global_step": -1},
        {"step": 9},  # of 8 in all
        {"step": 6},  # of 5
        {"phase": 2},  # of 0 and 1
        {"phase": 10**30},
        {"round": 10**30},
        {"seconds": -1.0},
        {"seconds": 10**400},
        {"ended": [3]},
        {"ended": [{"phase": "a", "steps": -3, "reason": "steps"}]},
        {"ended": [{"phase": "a", "steps": 9, "reason": "steps"}]},
        {"rows": {"bytes": "9", "sha256": ""}},
        {"rows": {"bytes": 900}},
        {"rows": []},
        {"ema_updates": 9},
    ],
)
def test_counts_that_cannot_be_are_no_checkpoint_although_they_are_sealed(fields, tmp_path, caplog):
    write(tmp_path, 1)
    newest = write(tmp_path, 8).path
    change(newest, phase_name="b", config=CONFIG, rows={"bytes": 900, "sha256": "0"})
    state = json.loads((newest / "state.json").read_text())
    ended = [{"phase": "a", "steps": 3, "reason": "steps"}]
    state["progress"] |= {"phase": 1, "step": 5, "global_step": 8, "ended": ended}
    (newest / "state.json").write_text(json.dumps(seal(state)))
    assert cp.latest_checkpoint(tmp_path).path.name == "step_0_0000008"
    for name, value in fields.items():
        (state["progress"] if name in state["progress"] else state)[name] = value
    (newest / "state.json").write_text(json.dumps(seal(state)))
    assert cp.latest_checkpoint(tmp_path).path.name == "step_0_0000001"
    assert f"state.json: {next(iter(fields))}" in caplog.text.replace("progress: ", "")
    with pytest.raises(CheckpointError):
        cp.read_checkpoint(newest, hashes=True)


def test_any_bit_of_the_state_that_flips_is_seen(tmp_path):
    """The same checkpoint, or the one before it: never another state, never another error."""
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    file, draw = newest.path / "state.json", random.Random(0)
    whole = file.read_bytes()
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        found = cp.latest_checkpoint(tmp_path)
        assert found.path != newest.path or found.state == newest.state


def test_a_checkpoint_that_is_a_link_is_read_and_replaced(tmp_path):
    write(tmp_path / "other", 2).path.rename(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step_0_0000002").symlink_to(tmp_path / "elsewhere")
    assert cp.latest_checkpoint(tmp_path / "run").state["progress"]["global_step"] == 2
    write(tmp_path / "run", 2, size=7)
    assert not (tmp_path / "run" / "step_0_0000002").is_symlink()
    assert cp.latest_checkpoint(tmp_path / "run").tensors("model")["w"].shape == (7,)
    assert names(tmp_path / "run") == ["step_0_0000002"]
    assert (tmp_path / "elsewhere" / "state.json").is_file()  # what it led to is not ours


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    bad = {"bias": torch.ones(2), "weight": torch.tensor([[1.0, math.nan, 0], [0, 0, 0]])}
    with pytest.raises(UnstableTrainingError, match="weight holds values that are not finite"):
        weights_file.export_weights(tmp_path / "weights", bad, {})
    assert not list(tmp_path.iterdir())
    save_file(bad, tmp_path / "model.safetensors")
    module = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: weight holds values"):
        weights_file.load_weights(module, tmp_path / "model.safetensors")
    parts = nn.ModuleDict({"a": module})
    save_file({f"a.{name}": value for name, value in bad.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a\.weight holds values"):
        weights_file.init_parts(parts, str(tmp_path / "model.safetensors"))


def test_finished_weights_that_changed_are_refused(tmp_path):
    module = nn.Linear(3, 2)
    about = {"format_version": 1, "global_step": 3, "config": {}}
    weights_file.export_weights(tmp_path / "weights", module.state_dict(), about)
    file = tmp_path / "weights" / "model.safetensors"
    assert file.stat().st_mode & 0o044
    weights_file.load_weights(module, file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for call in (
        lambda: weights_file.load_weights(module, file),
        lambda: weights_file.init_parts(nn.ModuleDict({"weight": module}), str(tmp_path)),
    ):
        with pytest.raises(FileError, match=r"model\.safetensors: its content does not match"):
            call()


def test_a_pipe_in_place_of_weights_is_refused(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected a safetensors file, found something else"):
        weights_file.load_weights(nn.Linear(3, 2), tmp_path / "model.safetensors")


def test_latest_healthy_and_pruning(tmp_path):
    for step, healthy in ((1, True), (2, True), (3, False), (10, False), (11, False)):
        write(tmp_path, step, healthy=healthy)
    assert cp.latest_checkpoint(tmp_path).path.name == "step_0_0000011"
    assert cp.latest_checkpoint(tmp_path, healthy=True).path.name == "step_0_0000002"
    cp.prune_checkpoints(tmp_path, keep=2)
    assert names(tmp_path) == ["step_0_0000002", "step_0_0000010", "step_0_0000011"]
    assert cp.latest_checkpoint(tmp_path / "nowhere") is None


def test_a_limit_on_files_leaves_the_last_good_one(tmp_path):
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a real refusal by the system
    try:
        with pytest.raises(
            CheckpointError, match=r"step_0_0000002.*needs 4\.0 MB.*too large; raise the limit"
        ) as e:
            write(tmp_path, 2, size=1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(e.value.__cause__, OSError)  # the command line exits with 1
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
    os.mkfifo(tmp_path / ".deleted_step_0_0000005")  # whatever is there, to open it is to wait
    (tmp_path / ".deleted_step_0_0000006").write_text("")
    cp.sweep(tmp_path)
    assert names(tmp_path) == ["step_0_0000001", "step_0_0000002"]
    assert cp.latest_checkpoint(tmp_path).tensors("model")["w"].tolist() == [2, 2, 2]


def test_loading_is_strict_and_says_what_differs():
    module = nn.Linear(3, 2)
    good = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
    weights_file.load_strictly(module, good, source="x")
    assert module.weight.sum().item() == 6
    bad = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        weights_file.load_strictly(module, bad, source="here")
    text = str(caught.value)
    assert "here does not fit Linear" in text
    assert "missing: bias" in text and "left over: extra" in text
    assert "weight (expected torch.float32 [2, 3], got torch.float32 [2, 4])" in text
    with pytest.raises(CheckpointError, match="misshapen: weight"):
        weights_file.load_strictly(module, {**good, "weight": good["weight"].half()}, source="x")
    assert module.weight.sum().item() == 6  # a refused load changes nothing


def test_a_file_of_weights_is_loaded_whole_or_not_at_all(tmp_path):
    file, more = tmp_path / "model.safetensors", tmp_path / "more.safetensors"
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    save_file(weights, file)
    save_file(weights | {"b.x": torch.zeros(1)}, more)
    module = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match="left over"):
        weights_file.load_weights(module, more)
    assert module.bias.tolist() != [1, 1]
    weights_file.load_weights(module, file)
    assert module.bias.tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        weights_file.load_weights(module, tmp_path / "none.safetensors")


def test_tied_and_sliced_weights_are_written_whole(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    weights = {"a": base, "tied": base, "column": base[:, 1], "transposed": base.t()}
    weights_file.export_weights(tmp_path / "weights", weights, {"averaged": False})
    read = load_file(tmp_path / "weights" / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(read[name], value)
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["averaged"] is False


def test_global_random_state_comes_back():
    saved = cp.rng_tensors(torch.device("cpu"))
    first = torch.rand(3)
    cp.restore_rng(saved, torch.device("cpu"))
    assert torch.equal(torch.rand(3), first)
