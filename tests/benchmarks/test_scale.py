"""`colaworld bench scale`: bytes that two processes hand to collectives are those of the formulas."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from colaworld.cli.bench import suite
from colaworld.config import from_dict, to_yaml
from colaworld.recipes import recipe
from colaworld.runs.config import RunConfig
from colaworld.runs.scale import count, traffic

runs, scale, training = (suite(name) for name in ("run", "scale", "training"))
LAUNCHED = Path(__file__).parents[1] / "cli" / "launched.py"
STEPS = {"accumulate": 2, "max_steps": 2, "health_every": 1, "health_window": 8}


@pytest.fixture
def config(tiny):
    """config(shard) -> warm-up and joint training of a tiny model, two passes an update."""

    def make(shard: str, **more) -> RunConfig:
        made = from_dict(RunConfig, tiny, base=recipe("nano.cola"))
        parallel = replace(made.training.parallel, shard=shard)
        loop = replace(made.training, parallel=parallel, **STEPS, **more)
        data = replace(made.data, path=training.recorded(16, 16))
        return replace(made, data=data, training=loop)

    return make


def expected(config: RunConfig) -> dict[str, dict[str, int]]:
    counts, bf16 = count(config, kind="cpu"), config.training.autocast == "bf16"
    return {
        phase.name: asdict(traffic(config, phase, counts, processes=2, bf16=bf16))
        for phase in config.scheduled()
    }


@pytest.mark.slow
def test_two_processes_hand_over_what_the_formula_says(config, tmp_path) -> None:
    """Replicated and in pieces, the video model frozen and in training."""
    ways = {"no": {}, "blocks": {"autocast": "bf16"}}
    plays, plans = [], {}
    for shard, more in ways.items():
        made = config(shard, **more)
        plans[shard] = expected(made)
        (tmp_path / f"{shard}.yaml").write_text(to_yaml(made))
        call = ["train", "nano.cola", "--config", str(tmp_path / f"{shard}.yaml")]
        call += ["--out", str(tmp_path / shard), "--device", "cpu"]
        plays.append((str(tmp_path / f"said-{shard}"), "none", call))
    home = str(Path(__file__).parents[2])
    counting = Path(scale.__file__).with_name("counting.py")
    environment = {**os.environ, "PYTHONPATH": home, "COLAWORLD_IMPORT": str(counting)}
    done = subprocess.run(
        [sys.executable, str(LAUNCHED), json.dumps(plays)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = [file.read_text() for file in tmp_path.glob("said-*/*.txt")]
    assert done.returncode == 0 and json.loads(done.stdout) == [[0, 0], [0, 0]], said
    for shard, plan in plans.items():
        rows = map(json.loads, (tmp_path / shard / "metrics.jsonl").read_text().splitlines())
        counted = {row["phase"]: row for row in rows if "traffic" in row}
        assert list(counted) == ["warmup", "joint"]
        for phase, row in counted.items():
            assert scale.off(row["traffic"], plan[phase]) is None
            assert row["memory"] > 0


@pytest.fixture
def replayed(monkeypatch):
    """Rows in the place of runs: replayed(traffic, loss of several processes)."""

    def use(traffic: dict[str, int], loss: float) -> None:
        def finish(config, processes, out, device):
            several = processes > 1
            row = {"loss": loss if several else 1.0, "seconds": 0.5 * processes, "memory": 10**6}
            rows = [dict(row) for _ in range(config.training.max_steps)]
            if len(rows) > 1:
                nothing = {"all_reduce": 0, "all_gather": 0, "reduce_scatter": 0, "other": 0}
                rows[1]["traffic"] = nothing | (traffic if several else {})
            return rows

        monkeypatch.setattr(scale, "finish", finish)

    return use


def test_other_traffic_or_another_loss_is_no_row(replayed, tiny_request) -> None:
    config = suite("shapes").run_config("nano.cola", tiny_request.overrides)
    made = scale.Runs(config, "float32", tiny_request)
    update, *_ = made.cases(2, heavy=False)
    plan = made.plan(2, "replicated")[0]
    only = {"impls": ["replicated"]}

    def measured(traffic: dict[str, int], loss: float):
        replayed(traffic, loss)
        made.run.cache_clear()
        return runs.measure(update, tiny_request, **only)

    (row,) = measured({**plan, "other": 3}, 1.0).rows
    assert (row["traffic_ratio"], row["efficiency"], row["p50_ms"]) == (1, 0.5, 1000)
    assert row["rates"] == {"clips_s": 4} and row["threads"] == 1 and row["peak_mb"] is None
    assert row["memory_ratio"] > 0 and row["sizes"]["processes"] == 2
    (failed,) = measured({**plan, "all_reduce": int(1.03 * plan["all_reduce"])}, 1.0).failed
    assert "update/nano.cola.joint.x2" in failed.label and "all_reduce takes" in failed.reason
    (failed,) = measured(plan, 1.01).failed
    assert "its first loss is 1.01, the reference's 1" in failed.reason


@pytest.mark.slow
def test_the_suite(tiny_request, passing) -> None:
    """Two processes by torchrun; none is there afterwards."""
    found = runs.run(["scale"], tiny_request, only=["x1", "x2"])
    seen = {(row["op"], row["impl"]) for row in found.rows[2:]}
    assert {("update", way) for way in ("alone", "replicated", "sharded")} <= seen
    assert {("save", f"sharded:{how}") for how in ("sync", "async")} <= seen
    assert ("restart", "replicated") in seen and not found.failed and not found.skipped
    for row in found.rows[2:]:
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        if row["op"] == "update" and row["impl"] != "alone":
            assert 0.98 < row["traffic_ratio"] < 1.02
    assert not children()


@pytest.mark.slow
def test_a_run_ends_with_its_block(config, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt), scale.started(config("no"), 2, tmp_path / "a", "cpu"):
        raise KeyboardInterrupt
    assert not children()
    wrong = replace(config("no"), backbone_weights="nowhere")
    with pytest.raises(RuntimeError, match=r"ended with \d: .*nowhere"):
        scale.finish(wrong, 1, tmp_path / "b", "cpu")


def children() -> list[Path]:
    """Processes that a run of this suite has left."""
    mark = f"COLAWORLD_IMPORT={Path(scale.__file__).with_name('counting.py')}".encode()
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in file.read_bytes():
                found.append(file)
    return found
