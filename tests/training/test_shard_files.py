"""Sharded checkpoints (shard_ranks.py writes them): the same bits in any number of processes, and each
fault of one process is known to all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import colaworld
from colaworld.training import checkpoint, shard_files
from colaworld.training.protocols import CheckpointError

SCRIPT = Path(__file__).with_name("shard_ranks.py")
FOLDER = Path("save") / "step_0_0000001"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder that all cases wrote into."""
    out = tmp_path_factory.mktemp("shards")
    home = str(Path(colaworld.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out)],
        env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = ("save", "load2", "load4", "faults", "one", "two", "four", "again")
    there = [case for case in cases if (out / case / "rank0.json").exists()]
    assert there == list(cases), done.stdout + done.stderr
    return out


def found(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]


def test_each_process_writes_its_part_once(out):
    files = sorted(str(p.relative_to(out / FOLDER)) for p in (out / FOLDER).rglob("*.*"))
    ranks = ["model/rank_0000.safetensors", "model/rank_0001.safetensors"]
    assert files == [*ranks, "rng.safetensors", "state.json"]
    assert sorted(checkpoint.read_checkpoint(out / FOLDER).state["files"]) == files[:3]
    shapes = [{k: list(v.shape) for k, v in load_file(out / FOLDER / r).items()} for r in ranks]
    assert shapes[0] == {  # the odd row, and what is not sharded
        **{"rows": [3, 3], "columns": [2, 4], "few": [1, 4], "half": [3], "flags": [2]},
        **{"longer": [5, 1, 1], "step": [], "count": [2]},
    }
    assert shapes[1] == {
        **{"rows": [2, 3], "columns": [2, 3], "half": [3], "flags": [1], "longer": [4, 1, 1]}
    }
    first, second = found(out / "save")
    assert (first["files"], first["copies"]) == (["model/rank_0000"], [["copies"]])
    assert (second["files"], second["copies"]) == (["model/rank_0001"], [[]])


def test_one_process_reads_them_whole(out):
    alone = checkpoint.latest_checkpoint(out / "alone").tensors("model")
    read = checkpoint.latest_checkpoint(out / "save").tensors("model")
    assert read.keys() == alone.keys()
    for name, value in alone.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_reads_its_parts(out, count):
    results = found(out / f"load{count}")
    assert len(results) == count
    for one in results:
        for way in (str(FOLDER), "alone/step_0_0000001", "dcp"):  # dcp: torch's own reader
            assert len(one[way]) == 8 and all(one[way].values()), way


def test_parts_that_several_hold_are_written_by_the_first(out):
    results = found(out / "load4")
    assert all(one["replicated"] for one in results)
    assert [one["parts"][f"model/rank_000{rank}"] for rank, one in enumerate(results)] == [
        *([[3, 3]], [[2, 3]], [], [])
    ]


def test_a_write_that_fails_on_one_process_fails_on_all(out):
    main, other = found(out / "faults")
    assert main["refused"].startswith("CheckpointError: process 1: ")
    for one in (main, other):
        assert "step_0_0000002: cannot be written" in one["refused"]
        assert "No space left" in one["refused"]
        assert one["left"] == "step_0_0000001" and one["there"] == ["step_0_0000001"]


def test_a_damaged_shard_is_named_and_all_take_the_one_before(out):
    main, other = found(out / "faults")
    for one in (main, other):
        assert one["taken"] == [None, *["step_0_0000003"] * 3]
        assert all(one["weights"].values())
    assert other["warned"] == []  # one process speaks
    flipped, short, missing = main["warned"]
    shard = "step_0_0000004/model/rank_0001.safetensors"
    assert f"{shard}: its content does not match" in flipped and "process 1: " in flipped
    assert re.search(rf"{shard}: expected \d+ bytes, found \d+$", short)
    assert re.search(rf"{shard}: expected \d+ bytes, found None$", missing)


def test_an_error_of_one_process_is_raised_by_all(out):
    main, other = found(out / "faults")
    assert main["each"] == "RunFolderError: process 1: 'its state'"
    assert other["each"] == "KeyError('its state')"


PIECES = ["backbone.0.bias", "backbone.0.weight"]


def test_a_run_in_pieces_resumes_to_the_same_bits(out):
    for each in found(out / "two"):
        assert each["whole"]["sharded"] == each["second"]["sharded"] == PIECES
        assert each["second"]["model"] == each["whole"]["model"] != each["first"]["model"]
    weights = [load_file(out / run / "weights/model.safetensors") for run in ("whole", "of_two")]
    assert weights[0].keys() == found(out / "two")[0]["whole"]["model"].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    last = checkpoint.latest_checkpoint(out / "of_two" / "checkpoints")
    for name, value in last.tensors("ema").items():
        assert torch.equal(value, weights[0][name]), name
    moments = last.tensors("optimizer")
    for name, shape in (("backbone.0.weight", (12, 4)), ("idm.weight", (4, 12))):
        assert moments[f"{name}/exp_avg"].shape == shape and moments[f"{name}/step"].item() == 8
    held = {str(file).split("/")[0] for file in last.state["files"]}
    assert held == {"model", "ema", "optimizer", "rng.safetensors"}


def test_a_run_goes_on_in_another_number_of_processes(out):
    """With the weights that it ended with: two in pieces to four, one that is whole to two."""
    (trained,), (four, *_), (two, _) = (found(out / case) for case in ("one", "four", "two"))
    for here, before in ((four["of_two"], two["second"]), (two["of_one"], trained["run"])):
        assert here["said"].startswith("finished") and "nothing to resume" in here["said"]
        assert here["sharded"] == PIECES
        assert here["model"] == before["model"]
    assert trained["run"]["sharded"] == four["copies"]["sharded"] == []
    assert four["copies"]["model"] == two["second"]["model"]


def test_killed_while_it_writes_its_part_a_run_resumes_to_the_same_bits(out):
    assert not list((out / "dies").glob("rank1.json"))
    for each, whole in zip(found(out / "again"), found(out / "two"), strict=True):
        assert [name for name in each["there"] if name[0] != "."] == ["step_0_0000003"]
        assert each["said"].startswith("finished")
        assert each["model"] == whole["whole"]["model"]
    left = sorted(path.name for path in (out / "killed" / "checkpoints").iterdir())
    assert left == ["step_0_0000006", "step_0_0000008"]


def test_a_part_that_is_not_there_is_missed(out, tmp_path):
    """Where state.json does not list it either."""
    shutil.copytree(out / FOLDER, tmp_path / "run")
    state = checkpoint.read_checkpoint(tmp_path / "run").state
    del state["files"]["model/rank_0001.safetensors"]
    with pytest.raises(
        CheckpointError, match="model: cannot be read: columns is not there in full"
    ):
        checkpoint.Checkpoint(tmp_path / "run", state).tensors("model")


def test_a_part_that_is_there_twice_is_not_another(tmp_path):
    """Though both are as large."""
    header = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [0], "shape": [6]}})}
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(ValueError, match="w is not there in full"):
        shard_files.read([tmp_path / "a.safetensors"] * 2, lambda name: None)


def test_a_file_without_places_is_one_whole_part(tmp_path):
    save_file({"w": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    assert shard_files.read([tmp_path / "a.safetensors"], lambda name: None)["w"].shape == (2, 3)
