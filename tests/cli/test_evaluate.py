"""`colaworld evaluate`: the files it writes, the keys others read, runs side by side."""

from __future__ import annotations

import json
import math
import shutil

import pytest


@pytest.fixture
def run(trained, tmp_path):
    """A finished run that a test may write into."""
    return shutil.copytree(trained, tmp_path / "run")


def test_the_keys_others_read(run, quick, colaworld) -> None:
    said = colaworld("evaluate", "--evaluation.seed", 1, run, *quick)
    assert said.status == 0
    for line in ("delta-PSNR over random codes", "linear probe, accuracy", f"report: {run}"):
        assert line in said.out
    result = json.loads((run / "evaluation.json").read_text())
    for name in ("random", "shuffled", "constant"):
        interval = [result["delta_psnr"][name][key] for key in ("low", "mean", "high")]
        assert interval == sorted(interval) and all(map(math.isfinite, interval))
    health = result["codebook"]
    for name in ("utilisation", "max_usage", "entropy_normalised"):
        assert 0 <= health[name] <= 1
    assert 1 <= health["perplexity"] <= 8
    probe = result["probe"]
    assert probe["kind"] == "accuracy" and set(probe["score"]) == {"mean", "low", "high"}
    assert 0 <= probe["score"]["mean"] <= 1
    assert probe["baseline"] == max(probe["chance"], probe["pixel_difference"])
    assert len(result["rollout"]["psnr_by_horizon"]) == 2
    assert result["config"]["seed"] == 1 and result["counts"]["clips"] == 4
    page = (run / "report.html").read_text()
    assert "nano.cola" in page and 'src="http' not in page and 'href="http' not in page
    assert "nan" not in said.out.lower()


def test_the_same_call_gives_the_same_numbers(run, quick, colaworld) -> None:
    assert colaworld("evaluate", run, *quick).status == 0
    first = (run / "evaluation.json").read_bytes()
    assert colaworld("evaluate", run, *quick).status == 0
    assert (run / "evaluation.json").read_bytes() == first


def test_an_unfinished_run_is_evaluated_from_its_last_checkpoint(run, quick, colaworld) -> None:
    assert colaworld("evaluate", run, *quick).status == 0
    finished = (run / "evaluation.json").read_bytes()
    shutil.rmtree(run / "weights")
    assert colaworld("evaluate", run, *quick).status == 0
    assert (run / "evaluation.json").read_bytes() == finished
    shutil.rmtree(run / "checkpoints")
    said = colaworld("evaluate", run, *quick)
    assert said.status == 2 and "neither weights nor a complete checkpoint" in said.err


def test_other_data(run, film, quick, tmp_path, colaworld) -> None:
    for number in range(20):
        film(tmp_path / "films" / f"{number}.mp4", height=24, width=28, seed=number)
    said = colaworld("evaluate", run, *quick, f"--data={tmp_path / 'films'}")
    assert said.status == 0
    counts = json.loads((run / "evaluation.json").read_text())["counts"]
    assert (counts["height"], counts["width"]) == (24, 28)
    film(tmp_path / "odd" / "a.mp4", height=38)
    film(tmp_path / "odd" / "b.mp4", height=38)
    said = colaworld("evaluate", run, *quick, "--data", tmp_path / "odd")
    assert said.status == 2 and "38x32 px" in said.err and "--data.height 40" in said.err


def test_episodes_that_were_trained_on_are_not_called_held_out(
    run, quick, colaworld, caplog
) -> None:
    said = colaworld("evaluate", run, *quick, "--data.holdout", 0.5)
    assert said.status == 2 and "data.holdout: the run held out 0." in said.err
    said = colaworld("evaluate", run, *quick, "--data.split", "all")
    assert said.status == 2 and "data.split: evaluation is on held-out episodes" in said.err
    assert not (run / "evaluation.json").exists()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("split: train", "split: all"))
    assert colaworld("evaluate", run, *quick).status == 0
    assert "were trained on" in caplog.text


def test_the_length_of_clips_is_not_asked_for_by_a_name_that_is_ignored(
    run, quick, colaworld
) -> None:
    said = colaworld("evaluate", run, *quick, "--data.frames-per-clip", 7)
    assert said.status == 2 and "evaluation.history + evaluation.horizon" in said.err


def test_runs_of_one_recipe_stand_side_by_side(run, quick, tmp_path, colaworld) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    said = colaworld("evaluate", run, *quick, "--compare", other)
    assert said.status == 2 and "other/evaluation.json: cannot be read" in said.err
    assert colaworld("evaluate", other, *quick).status == 0
    said = colaworld("evaluate", run, *quick, "--compare", other)
    assert said.status == 0
    assert "nano.cola (run)" in said.out and "nano.cola (other)" in said.out
    assert "nano.cola (other)" in (run / "report.html").read_text()


def test_wrong_calls(run, tmp_path, colaworld) -> None:
    assert "required" in colaworld("evaluate").plain and colaworld("evaluate").status == 2
    said = colaworld("evaluate", tmp_path / "absent")
    assert said.status == 2 and "absent is not a run folder: it has no config.yaml" in said.err
    said = colaworld("evaluate", run, "--evaluation.clps", 3)
    assert said.status == 2 and "--evaluation.clips INT" in said.plain
    (run / "weights" / "model.safetensors").write_bytes(b"broken")
    said = colaworld("evaluate", run)
    assert said.status == 2 and "cannot be read as safetensors" in said.err
