"""colaworld demo: what it reuses and what it refuses; the whole of it, at two steps a phase."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from colaworld.cli import demo
from colaworld.cli.main import main
from colaworld.config import to_yaml
from colaworld.recipes import recipe


def test_a_folder_with_another_recipe_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(recipe("nano.two_stage")))
    assert main(["demo", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds a run of nano.two_stage, asked for nano.cola" in said
    assert not (tmp_path / "data").exists()
    assert main(["demo", "--out", str(tmp_path), "--long"]) == 2
    assert "asked for nano.cola_long" in capsys.readouterr().err


def test_long_is_a_recipe(tmp_path, capsys) -> None:
    assert main(["demo", "--out", str(tmp_path), "--long", "--recipe", "nano.cola"]) == 2
    assert "give either --long or --recipe" in capsys.readouterr().err


def test_each_verb_is_called_once_and_what_is_there_is_reused(
    tmp_path, monkeypatch, capsys
) -> None:
    called = []
    steps = {"record": "data/meta/info.json", "train": "weights/model.safetensors"}

    def verb(name):
        def run(argv):
            called.append((name, argv))
            if name in steps:
                (tmp_path / steps[name]).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / steps[name]).write_text("{}")
            return 0

        return run

    for name in ("record", "train", "evaluate"):
        monkeypatch.setattr(getattr(demo, name), "run", verb(name))
    assert main(["demo", "--out", str(tmp_path), "--episodes", "3", "--max-steps", "5"]) == 0
    assert [name for name, _ in called] == ["record", "train", "evaluate"]
    record, train = " ".join(called[0][1]), " ".join(called[1][1])
    assert "--episodes 3" in record
    assert "nano.cola" in train and f"--data {tmp_path / 'data'}" in train
    assert "--training.max-steps 5" in train
    called.clear()
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert [name for name, _ in called] == ["evaluate"]  # its result is not there yet
    assert "reusing the trained world" in capsys.readouterr().out


def test_a_look_of_two_steps_is_not_taken_for_the_whole(tmp_path, monkeypatch, capsys) -> None:
    config = recipe("nano.cola")
    look = replace(config, training=replace(config.training, max_steps=2))
    (tmp_path / "config.yaml").write_text(to_yaml(look))
    for name in ("data/meta/info.json", "weights/model.safetensors", "checkpoints/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    called = []
    monkeypatch.setattr(demo.train, "run", lambda argv: called.append(argv) or 0)
    monkeypatch.setattr(demo.evaluate, "run", lambda argv: 0)
    assert main(["demo", "--out", str(tmp_path), "--max-steps", "2"]) == 0 and not called
    assert main(["demo", "--out", str(tmp_path)]) == 2 and not called
    assert "holds a run with --max-steps 2, asked for None" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_demo(tmp_path, capsys) -> None:
    pytest.importorskip("crafter", reason="the demo records Crafter (extra `crafter`)")
    arguments = ["demo", "--out", str(tmp_path), "--episodes", "10", "--max-steps", "2"]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["probe"]["kind"] == "accuracy"
    assert set(result["delta_psnr"]) >= {"random", "shuffled", "constant"}
    assert "<svg" in (tmp_path / "report.html").read_text()
    phases = [json.loads(line)["phase"] for line in (tmp_path / "metrics.jsonl").open()]
    assert phases == ["warmup"] * 2 + ["joint"] * 2
    capsys.readouterr()
    assert main(arguments) == 0
    assert "reusing" in capsys.readouterr().out
