"""`colaworld probe`: one table of a run and a model of others."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

PLUGIN = Path(__file__).parents[1] / "models" / "latent_action" / "plugin_latents.py"


def test_a_run_beside_a_model_of_others(trained, scene, colaworld, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLAWORLD_IMPORT", str(PLUGIN))
    theirs = tmp_path / "theirs.safetensors"
    save_file({"mean.weight": torch.eye(3)}, theirs)
    call = ("probe", trained, theirs, "--data", scene, "--out", tmp_path / "probe.json")
    said = colaworld(*call, "--evaluation.probe-clips", 8, "--evaluation.bootstrap-samples", 20)
    assert said.status == 0, said.err
    rows = [line for line in said.out.splitlines() if line.startswith((str(trained), str(theirs)))]
    assert "1 x 8" in rows[0] and "1 x 3" in rows[1] and "continuous" in rows[1]
    assert "linear probe, accuracy" in said.out and "8 clips of 4 episodes" in said.out
    found = json.loads((tmp_path / "probe.json").read_text())
    assert list(found) == [str(trained), str(theirs)]
    assert found[str(trained)]["clips"] == found[str(theirs)]["clips"]
    assert found[str(trained)]["probe"]["chance"] == found[str(theirs)]["probe"]["chance"]


def test_wrong_calls(trained, scene, colaworld, tmp_path) -> None:
    for arguments, message in (
        ((), "expected at least one run, exported world or model of others"),
        ((trained / "nowhere",), "no data set was named"),
        ((tmp_path / "nowhere", "--data", scene), "nowhere: no such file or folder"),
        ((trained, "--data", scene, "--data.split", "all"), "expected data.split heldout"),
        ((trained, "--data", scene, "--device", "tpu"), "expected cpu, cuda"),
    ):
        said = colaworld("probe", *arguments)
        assert said.status == 2 and message in said.plain, said
