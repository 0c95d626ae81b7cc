"""The toy run (toy_run.py) as a fixture, and a reference run that nothing disturbs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).with_name("toy_run.py")


@pytest.fixture(scope="session")
def toy():
    name = "colaworld_tests_toy_run"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPT)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def read_run():
    """Everything two equal runs must have in common: rows (but times) and bytes of weights."""

    def read(out: Path) -> SimpleNamespace:
        lines = (out / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            assert row.pop("seconds") > 0
            row.pop("save_stall", None)
            del row["speed"]
        last = sorted((out / "checkpoints").glob("step_*"))[-1]
        files = {file.name: file.read_bytes() for file in last.glob("*.safetensors")}
        state = json.loads((last / "state.json").read_text())
        del state["progress"]["seconds"], state["progress"]["save_stall"]
        del state["rows"], state["sha256"]  # hashes of what holds times
        weights = out / "weights" / "model.safetensors"
        return SimpleNamespace(
            rows=rows,
            last=last.name,
            files=files,
            state=state,
            weights=weights.read_bytes() if weights.exists() else None,
        )

    return read


@pytest.fixture(scope="session")
def reference(toy, read_run, tmp_path_factory):
    """The toy run, never interrupted."""
    out = tmp_path_factory.mktemp("reference")
    result = toy.trainer(out).run()
    assert result.status == "finished"
    return read_run(out)
