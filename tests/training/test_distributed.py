"""Alone, `Distributed` changes nothing. Two processes (two_ranks.py) decide, learn, save and stop as
one: each fault here once made them hang, differ or write twice."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import colaworld
from colaworld.training import distributed
from colaworld.training.checkpoint import latest_checkpoint
from colaworld.training.distributed import Distributed

SCRIPT = Path(__file__).with_name("two_ranks.py")
CASES = ("values", "step", "codebook", "skip", "interrupt", "sharded")


@pytest.fixture(scope="module")
def script():
    """two_ranks.py as a module, for what one process does."""
    spec = importlib.util.spec_from_file_location("colaworld_tests_two_ranks", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def play(out: Path, cases: tuple[str, ...]):
    """results(case) -> the case's folder and what each of two processes found in it."""
    home = str(Path(colaworld.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), *cases],
        env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )

    def results(case: str) -> tuple[Path, list[dict]]:
        files = [out / case / f"rank{rank}.json" for rank in range(2)]
        assert all(file.exists() for file in files), done.stdout + done.stderr
        return out / case, [json.loads(file.read_text()) for file in files]

    return results


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return play(tmp_path_factory.mktemp("two"), CASES)


def close(left, right) -> None:
    """Nested lists of numbers equal but for the order of sums."""
    torch.testing.assert_close(torch.tensor(left), torch.tensor(right), rtol=1e-5, atol=1e-7)


def rows_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
        for name in ("save_stall", "slowest"):
            row.pop(name, None)
        del row["speed"]
    return rows


def test_alone_it_does_nothing():
    alone, value, model = Distributed(), torch.tensor([1.0, 2.0]), nn.Linear(2, 2)
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)
    assert alone.group is None and alone.mesh is None
    assert alone.shard(model) is model
    assert alone.mean(value) is value and alone.gather_rows(value) is value
    assert alone.on_each(lambda: 3) == 3 and alone.beside(60.0).on_main(lambda: 4) == 4
    assert (alone.agree(True), alone.agree(False)) == (True, False)
    assert alone.gather("x") == ["x"] and alone.on_main(lambda: 3) == 3
    model(value).sum().backward()
    before = model.weight.grad.clone()
    alone.average_gradients(model.parameters())
    assert torch.equal(model.weight.grad, before)
    alone.barrier()


def test_two_processes(played):
    _, found = played("values")
    assert [f["ranks"] for f in found] == [[0, 2, True, 2], [1, 2, False, 2]]
    for one in found:
        assert one["agreed"] == [True, False]
        assert one["mean"] == [0.5, 1.0]
        assert one["halves"] == [2.0, 2.0]  # another dtype: a message of its own
        assert one["turned"] == [[0.5, 3.5], [1.5, 4.5], [2.5, 5.5]]
        assert one["rows"] == [[0, 0], [1, 10]]
        assert one["waits"] == 77
        assert one["started"] == found[0]["started"]
        assert one["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert one["gradient"] == [[1.5, 15.0]]
        assert one["on_main"] == "by 0" and one["said"] == "refused by 0"
        assert one["odd"] == "Odd: the disk is 7"
        assert "the codebook is sharded" in one["refused"]
        assert one["state"] == {  # rows by their number in the whole table
            "table": [[1, 2], [0, 0], [5, 6], [7, 8], [0, 0]],
            "columns": [[0, 0], [3, 4], [5, 6], [7, 8], [9, 10]],
        }


def test_a_step_of_two_halves_is_a_step_of_the_whole(script, played):
    alone = script.train_by_hand(None, seed=0, rows=slice(0, 6))
    for one in played("step")[1]:
        close(one["updates"], alone["updates"])
        for kind in ("gradients", "model"):
            assert one[kind].keys() == alone[kind].keys()
            for name, value in one[kind].items():
                close(value, alone[kind][name])


def test_a_codebook_learns_from_the_latents_of_both(script, played):
    _, found = played("codebook")
    assert found[0] == found[1]
    for name, one in found[0].items():
        kind, changes = script.CODEBOOKS[name]
        alone = script.learn(kind, None, slice(0, 24), **changes)
        assert one["moved"] == alone["moved"] and one["reseeded"] == alone["reseeded"]
        if "re-seeded" not in name:
            for key, value in one["state"].items():
                close(value, alone["state"][key])
            continue
        # The same codes are dead; which latents replace them is drawn, from those of both.
        assert one["reseeded"] > 1
        close(one["state"]["use"], alone["state"]["use"])
        table = torch.tensor(one["state"]["codebook"])
        fresh = [(torch.tensor(one["last"]) == row).all(1).nonzero().tolist() for row in table]
        taken = [places[0][0] for places in fresh if places]
        assert len(taken) == one["reseeded"]
        assert min(taken) < 12 <= max(taken)


def test_a_loss_that_is_no_number_on_one_skips_on_both(played):
    out, found = played("skip")
    assert [one["status"] for one in found] == ["finished", "finished"]
    assert found[0]["model"] == found[1]["model"]
    rows = rows_of(out / "run")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if "skipped" in row] == [3]
    assert len(rows[2]["skipped_clips"]) == 24  # those of both: nobody knows whose it was
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] != 3)
    lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    looks = {row["step"]: row["slowest"] for row in written if "slowest" in row}
    assert list(looks) == [4, 7]  # the first step is left out
    # Latents are standardised together, within each pass: only data are read without waiting.
    assert all(row["speed"]["own"] == row["speed"]["data"] for row in written)
    for look in looks.values():
        assert look.keys() == {"rank", "host", "seconds", "median"}
        assert look["rank"] in (0, 1) and look["seconds"] >= look["median"] > 0


def test_a_signal_to_one_stops_both_and_both_resume(played):
    out, found = played("interrupt")
    for one in found:
        assert (one["first"]["status"], one["first"]["step"]) == ("interrupted", 5)
        assert one["first"]["checkpoint"] == "step_0_0000005"
        assert one["there"] == ["step_0_0000003", "step_0_0000005"]
        assert one["second"]["status"] == "finished"
        assert one["second"]["model"] == one["whole"]["model"]  # dropout of each went on, too
        assert "already holds a run" in one["again"]
        assert "SIGTERM" in one["first"]["message"]
    assert found[0]["second"]["model"] == found[1]["second"]["model"]
    assert rows_of(out / "run") == rows_of(out / "whole")
    assert [row["step"] for row in rows_of(out / "run")] == list(range(1, 9))
    names = ("checkpoints", "config.yaml", "metrics.jsonl", "weights")
    assert sorted(p.name for p in (out / "run").iterdir()) == sorted(names)
    last = latest_checkpoint(out / "run" / "checkpoints")
    assert last.state["loader"] == {"0": 17, "1": 17}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights" / "model.safetensors")


def check_same_run(folder: Path, right: Path, tolerance: float) -> None:
    """Rows and averaged weights of two runs of `generate`."""
    rows, reference = rows_of(folder), rows_of(right)
    assert [row["phase"] for row in rows] == 2 * ["warmup"] + 3 * ["joint"]
    for row, one in zip(rows, reference, strict=True):
        assert row["grad_norm"].keys() == one["grad_norm"].keys()
        assert row["loss"] == pytest.approx(one["loss"], rel=tolerance)
        if tolerance < 1e-3:
            total = one["grad_norm"]["total"]
            assert row["grad_norm"]["total"] == pytest.approx(total, rel=tolerance)
    # Adam moves by a whole rate also where a gradient is zero but for rounding.
    found, weights = weights_of(folder), weights_of(right)
    far = [
        (found[name].float() - value.float()).abs().flatten() > 50 * tolerance
        for name, value in weights.items()
    ]
    assert found.keys() == weights.keys() and torch.cat(far).float().mean() < 0.01


def test_in_pieces_it_is_the_same_training(script, played, tmp_path):
    """Warm-up with a frozen generator, then joint training, a preview in each phase. Saved in pieces
    after joint step 2; on from there replicated and alone."""
    out, found = played("sharded")
    alone = script.generate(tmp_path / "alone")
    for one in found:
        assert one["first"]["status"] == one["again"]["status"] == "finished"
        assert one["first"]["sharded"] == one["first"]["of"] == 59 and not one["again"]["sharded"]
        assert one["first"]["held"] < 0.55 * one["first"]["whole"]
        torch.testing.assert_close(one["first"]["shown"], alone["shown"], rtol=1e-3, atol=0)
        assert "got full: the video model is in pieces" in one["refused"]
    assert script.generate(out / "alone", resume=True)["status"] == "finished"
    for case in ("again", "alone"):
        check_same_run(out / case, tmp_path / "alone", 2e-5)


@pytest.mark.slow
def test_however_pieces_are_kept_gathered_and_compiled(script, tmp_path):
    script.generate(tmp_path / "alone")
    out, found = play(tmp_path / "two", ("pieces",))("pieces")
    assert found[0] == found[1]
    for case, tolerance in {
        "no": 2e-5,
        "replicas": 2e-5,
        "kept": 2e-5,
        "compiled": 2e-5,
        "half": 3e-2,
    }.items():
        assert found[0][case]["sharded"] == (0 if case == "no" else 59)
        check_same_run(out / case, tmp_path / "alone", tolerance)


def test_gradients_are_summed_in_few_messages(monkeypatch):
    monkeypatch.setattr(distributed, "_BUCKET", 40)
    sizes = [3, 4, 20, 2, 2]  # floats of 4 bytes; one tensor is larger than a message
    gradients = [torch.zeros(n) for n in sizes] + [torch.zeros(1, dtype=torch.float64)]
    buckets = [[g.numel() for g in bucket] for bucket in distributed._buckets(gradients)]
    assert buckets == [[3, 4], [20], [2, 2], [1]]
