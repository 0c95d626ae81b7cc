"""`colaworld evaluate`: the files it writes, the keys others read, runs side by side."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colaworld.cli import evaluate
from colaworld.config import ConfigError, to_yaml
from colaworld.data.config import DataConfig, MixtureSource
from colaworld.metrics.lpips import LPIPS
from colaworld.recipes import recipe
from colaworld.runs.config import RunConfig, read_config
from colaworld.runs.evaluation import evaluate_run


@pytest.fixture
def run(trained, tmp_path):
    """A finished run that a test may write into."""
    return shutil.copytree(trained, tmp_path / "run")


def test_the_keys_others_read(run, quick, colaworld, caplog) -> None:
    caplog.set_level("INFO")
    said = colaworld("evaluate", "--evaluation.seed", 1, run, *quick)
    assert said.status == 0
    for line in ("delta-PSNR over random codes", "linear probe, accuracy", f"report: {run}"):
        assert line in said.out
    result = json.loads((run / "evaluation.json").read_text())
    for name in ("random", "shuffled", "constant", "none"):
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
    assert "nan" not in said.out.lower().replace("nano", "")
    assert "<title>nano.cola on scene, 32 × 32 pixels</title>" in page
    assert f"<code>colaworld evaluate --evaluation.seed 1 {run} " in page
    assert f"<code>colaworld train nano.cola --config {run}/config.yaml --out NEW</code>" in page
    # 4 clips x 5 ways x 2 steps, 4 clips x 4 single steps, and a grid of 2 codes x 2 steps
    assert "60 frames to generate" in caplog.text
    lines = [line.split(",")[0] for line in said.out.splitlines() if line.startswith("evaluating")]
    assert lines[:2] == ["evaluating: inferred actions", "evaluating: rollouts"]


def test_lpips_by_the_users_files_and_the_papers_columns(run, quick, colaworld, tmp_path) -> None:
    network = LPIPS("alex")  # untrained: other weights than the published ones
    trunk = {f"features.{key}": value for key, value in network.features.state_dict().items()}
    heads = {key: value.abs() for key, value in network.heads.state_dict().items()}
    (tmp_path / "weights").mkdir()
    torch.save(trunk, tmp_path / "weights/alexnet.pth")
    torch.save(heads, tmp_path / "weights/alex.pth")
    said = colaworld("evaluate", run, "--evaluation.lpips", tmp_path / "weights", *quick)
    assert said.status == 0
    result = json.loads((run / "evaluation.json").read_text())
    found = result["lpips"]
    assert found["name"] == "LPIPS (alex, other weights)" and found["mean"] > 0
    lines = [line.split() for line in said.out.splitlines()]
    assert ["step", "PSNR,", "dB", "SSIM", "LPIPS", "(alex,", "other", "weights)"] in lines
    assert [
        "as",
        "the",
        "paper's",
        "table",
        "PSNR",
        "SSIM",
        "x100",
        "LPIPS",
        "x100",
        "FVD",
    ] in lines
    psnr, ssim = (result["paper_row"][key] for key in ("psnr", "ssim_x100"))
    assert ["nano.cola", f"{psnr:.2f}", f"{ssim:.2f}", "-", "-"] in lines
    assert ["FVD", "-", "no", "weights", "given", "(--evaluation.fvd)"] in lines
    before = (run / "evaluation.json").read_bytes()
    said = colaworld("evaluate", run, "--evaluation.fvd", tmp_path / "i3d.pt", *quick)
    assert said.status == 2 and "evaluation.fvd: expected a file of weights" in said.err
    assert (run / "evaluation.json").read_bytes() == before


def test_the_same_call_gives_the_same_numbers(run, quick, colaworld) -> None:
    assert colaworld("evaluate", run, *quick).status == 0
    first = (run / "evaluation.json").read_bytes()
    assert colaworld("evaluate", run, *quick).status == 0
    assert (run / "evaluation.json").read_bytes() == first


def test_an_unfinished_run_is_evaluated_from_its_last_checkpoint(run, quick, colaworld) -> None:
    assert colaworld("evaluate", run, *quick).status == 0
    finished = json.loads((run / "evaluation.json").read_text())
    shutil.rmtree(run / "weights")
    assert colaworld("evaluate", run, *quick).status == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert finished.pop("run")["weights"] == "weights"
    assert found.pop("run")["weights"].startswith("step_")
    assert found == finished
    shutil.rmtree(run / "checkpoints")
    said = colaworld("evaluate", run, *quick)
    assert said.status == 2 and "neither weights nor a complete checkpoint" in said.err


def test_other_data(run, film, quick, tmp_path, colaworld) -> None:
    for number in range(20):
        film(tmp_path / "films" / f"{number}.mp4", height=24, width=28, seed=number)
    out = tmp_path / "found"
    said = colaworld("evaluate", run, *quick, f"--data={tmp_path / 'films'}", "--out", out)
    assert said.status == 0
    counts = json.loads((out / "evaluation.json").read_text())["counts"]
    assert (counts["height"], counts["width"]) == (24, 28)
    film(tmp_path / "odd" / "a.mp4", height=38)
    film(tmp_path / "odd" / "b.mp4", height=38)
    said = colaworld("evaluate", run, *quick, "--data", tmp_path / "odd", "--out", out)
    assert said.status == 2 and "38x32 px" in said.err and "--data.height 40" in said.err


def test_the_evaluation_of_the_own_data_is_not_replaced_by_one_of_others(
    run, quick, tmp_path, colaworld
) -> None:
    other, out = tmp_path / "other", tmp_path / "on-other"
    recorded = ("record", "scene", "--out", other, "--episodes", 20, "--steps", 6, "--seed", 9)
    assert colaworld(*recorded).status == 0
    assert colaworld("evaluate", run, *quick).status == 0
    kept = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    elsewhere = ["evaluate", run, *quick, "--data", other]
    for more in ([], ["--out", run], ["--watch"]):
        said = colaworld(*elsewhere, *more)
        assert said.status == 2 and f"--data {other}: no data of the run, which has" in said.err
        assert "--out DIR" in said.err and f"--also NAME={other}" in said.err
    for more, told in (
        (["--watch", "--out", out], "--watch writes into the run's folder"),
        (["--out", other], "other: holds data"),
        (["--out", shutil.copytree(run, tmp_path / "second")], "second: holds a run"),
    ):
        said = colaworld(*elsewhere, *more)
        assert said.status == 2 and told in said.err and not out.exists()
    said = colaworld(*elsewhere, "--out", out)
    assert said.status == 0 and f"report: {out / 'report.html'}" in said.out
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == kept
    names = {"evaluation.json", "evaluation.npz", "report.html"}
    assert {path.name for path in out.iterdir()} == names
    found = json.loads((out / "evaluation.json").read_text())
    assert found["data"] == {"name": "other"} and found["run"]["recipe"] == "nano.cola"
    said = colaworld(*elsewhere, "--out", tmp_path / "again", "--compare", out, run)
    assert said.status == 0 and "nano.cola (on-other)" in said.out
    assert "nano.cola (run): not compared: data set scene, not other" in said.out


def test_data_that_was_moved_are_the_runs_own_by_their_name(tmp_path) -> None:
    def stored(**more) -> RunConfig:
        return RunConfig(data=DataConfig(**more))

    here = tmp_path / "here" / "robot"
    here.mkdir(parents=True)
    assert evaluate._is_own(here, stored(path=tmp_path / "there" / "robot"))
    assert evaluate._is_own(here, stored(path=here.parent / "." / "robot"))
    assert not evaluate._is_own(here, stored(path=tmp_path / "there" / "robots"))
    (tmp_path / "there" / "robot").mkdir(parents=True)
    assert not evaluate._is_own(here, stored(path=tmp_path / "there" / "robot"))
    both = {"a": MixtureSource(path=tmp_path / "there" / "robot"), "b": MixtureSource(path=here)}
    assert evaluate._is_own(here, stored(mixture=both))
    assert not evaluate._is_own(tmp_path, stored(mixture=both))


def test_actions_between_frames_of_a_stride(run, quick, tmp_path, colaworld, caplog) -> None:
    """Numbers are measured all together; classes cannot be merged and are left out, which is said."""
    for env in ("point-mass", "scene"):
        recorded = ("record", env, "--out", tmp_path / env, "--episodes", 12, "--steps", 40)
        assert colaworld(*recorded).status == 0
        data = (f"--data={tmp_path / env}", "--data.stride", 3, "--data.holdout", 0.5)
        out = ("--out", tmp_path / "found")
        said = colaworld("evaluate", run, *quick, *data, *out, "--evaluation.probe-clips", 40)
        assert said.status == 0, said.err
        found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
        if env == "point-mass":
            assert found["action"]["size"] == 3 * 2 and found["probe"] is not None
        else:
            assert found["action"] is None and found["probe"] is None
            assert "recorded actions are left out" in caplog.text and "use stride 1" in caplog.text


def test_episodes_that_were_trained_on_are_not_called_held_out(
    run, quick, colaworld, caplog
) -> None:
    said = colaworld("evaluate", run, *quick, "--data.holdout", 0.5)
    assert said.status == 2 and "data.holdout: the run held out 0." in said.err
    same = os.path.relpath(read_config(run).data.path)  # the run has its absolute path
    said = colaworld("evaluate", run, *quick, "--data", same, "--data.holdout", 0.5)
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
    assert "difference to nano.cola (run)  +0.00 [+0.00, +0.00]" in said.out
    assert colaworld("evaluate", other, *quick, "--evaluation.clips", 3).status == 0
    said = colaworld("evaluate", run, *quick, "--compare", other)
    assert said.status == 0
    assert "nano.cola (other): not compared: 3 clips, not 4" in said.out
    assert "difference" not in said.out
    page = (run / "report.html").read_text()
    assert "evaluated alike" not in page.replace("not evaluated alike", "")


def test_a_comparison_with_nonsense_names_file_and_key(run, quick, tmp_path, colaworld) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    for text, says in (
        ('{"counts": null}', "counts: expected an object, got null"),
        ("[]", "the whole: expected an object, got []"),
        ('{"counts": ', "not valid JSON"),
    ):
        (other / "evaluation.json").write_text(text)
        said = colaworld("evaluate", run, *quick, "--compare", other)
        assert said.status == 2 and f"other/evaluation.json: {says}" in said.err
        assert "Traceback" not in said.err and not (run / "evaluation.json").exists()


def test_a_page_that_cannot_be_written_leaves_no_older_one(
    run, quick, colaworld, monkeypatch
) -> None:
    assert colaworld("evaluate", run, *quick).status == 0

    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("colaworld.evaluation.report.page.write_report", broken)
    assert colaworld("evaluate", run, *quick, "--evaluation.seed", 5).status == 1
    assert json.loads((run / "evaluation.json").read_text())["config"]["seed"] == 5
    assert not (run / "report.html").exists()


def test_no_run_hides_another_of_the_same_name(tmp_path) -> None:
    results = {}
    for name, recipe_name in (
        ("a/run", "nano.cola"),
        ("b/run", "nano.cola"),
        ("c", "nano.two_stage"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(to_yaml(recipe(recipe_name)))
        results[tmp_path / name] = {"of": name}
    assert evaluate._named(results) == {
        f"nano.cola ({tmp_path}/a/run)": {"of": "a/run"},
        f"nano.cola ({tmp_path}/b/run)": {"of": "b/run"},
        "nano.two_stage": {"of": "c"},
    }


@pytest.mark.parametrize("out", [None, Path("found")])
def test_what_is_compared_with_is_not_written_over(tmp_path, monkeypatch, out) -> None:
    """The page would show the evaluation of before as the new one."""
    monkeypatch.chdir(tmp_path)
    compared = tmp_path / (out or "run")
    asked = evaluate.EvaluateOptions(run=Path("run"), out=out, compare=(compared,))
    with pytest.raises(ConfigError, match=rf"--compare {compared}: .* written there"):
        evaluate._out(asked, RunConfig())
    other = replace(asked, compare=(tmp_path / "other",))
    assert evaluate._out(other, RunConfig()) == (out or Path("run"))


def test_wrong_calls(run, tmp_path, colaworld) -> None:
    said = colaworld("evaluate")
    assert said.status == 2 and "missing: RUN" in said.err
    said = colaworld("evaluate", tmp_path / "absent")
    assert said.status == 2 and "absent is not a run folder: it has no config.yaml" in said.err
    said = colaworld("evaluate", run, "--evaluation.clps", 3)
    assert said.status == 2 and "did you mean --evaluation.clips?" in said.err
    said = colaworld("evaluate", run, "--watch", "--poll", 0)
    assert said.status == 2 and "--poll: expected >= 0.1, got 0.0" in said.plain
    (run / "weights" / "model.safetensors").write_bytes(b"broken")
    said = colaworld("evaluate", run)
    assert said.status == 2 and "model.safetensors: its content does not match" in said.err


def test_other_data_sets_beside_the_first(run, quick, colaworld, tmp_path) -> None:
    other = tmp_path / "other"
    recorded = colaworld("record", "scene", "--out", other, "--episodes", 3, "--steps", 5)
    assert recorded.status == 0
    said = colaworld("evaluate", run, *quick, "--also", f"unseen={other}")
    assert said.status == 0
    first, found = (
        json.loads((run / name).read_text())
        for name in ("evaluation.json", "evaluation-unseen.json")
    )
    assert found["counts"]["episodes"] == 3  # all of them: none was trained on
    assert found["clips"]["rolled"] != first["clips"]["rolled"]
    assert found["run"] == first["run"]  # the same weights
    assert found["run"]["recipe"] == "nano.cola" and "model.safetensors" in str(found["run"])
    header = next(line for line in said.out.splitlines() if line.split()[-1:] == ["unseen"])
    assert header.split() == [first["data"]["name"], "unseen"]
    page = (run / "report.html").read_text()
    assert "On other data" in page and '<th scope="col">unseen</th>' in page
    for wrong, told in (
        ("unseen", "expected NAME=PATH, got 'unseen'"),
        ("a/b=here", "expected NAME=PATH"),
        (f"x={tmp_path / 'absent'}", "absent: no such folder or file"),
    ):
        said = colaworld("evaluate", run, *quick, "--also", wrong)
        assert said.status == 2 and told in said.plain
    own = read_config(run).data.path
    elsewhere = ("--data", other, "--out", tmp_path / "found")
    said = colaworld("evaluate", run, *quick, *elsewhere, "--also", f"own={own}")
    assert said.status == 2 and "the run was trained on this set" in said.plain
    with pytest.raises(ConfigError, match="was trained on this set, so not all"):
        evaluate_run(run, unseen=True)


def test_watched_checkpoints_become_curves(run, quick, colaworld) -> None:
    said = colaworld("evaluate", run, *quick, "--watch")
    assert said.status == 0
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert [row["checkpoint"] for row in rows] == names and len(rows) > 1
    assert f"{len(rows)} new rows" in said.out
    assert not (run / "evaluation.json").exists()
    assert colaworld("evaluate", run, *quick).status == 0
    assert "Control while it trained" in (run / "report.html").read_text()
    said = colaworld("evaluate", run, *quick, "--watch", "--evaluation.seed", 9)
    assert said.status == 2 and "evaluation.seed 0, asked for 9" in said.plain
