"""Folders of arbitrary videos, whole and faulty: they train, or one line says what to do."""

from __future__ import annotations

import json
import logging
import os
import shutil

import pytest


@pytest.fixture
def films(tmp_path, film):
    """Six mp4s of one size, in folders of folders."""
    for number in range(6):
        film(tmp_path / "films" / f"day {number % 2}" / f"{number}.mp4", seed=number)
    return tmp_path / "films"


def test_a_folder_of_videos_trains_and_reports(films, tiny, quick, tmp_path, colaworld) -> None:
    """Without actions the probe is left out, with its reason, and the report is written."""
    out = tmp_path / "run"
    said = colaworld("train", "nano.cola", "--data", films, "--out", out, *tiny)
    assert said.status == 0
    assert "(video files)" in said.out and "5 episodes, 85 clips" in said.out
    said = colaworld("evaluate", out, *quick, "--evaluation.clips", 2)
    assert said.status == 0 and "the data set has no real actions" in said.out
    result = json.loads((out / "evaluation.json").read_text())
    assert result["probe"] is None
    assert result["probe_skipped"] == "the data set has no real actions"
    assert result["codebook"]["perplexity"] >= 1 and result["action"] is None
    assert "no real actions" in (out / "report.html").read_text()


def test_sizes_that_differ(films, film, tiny, tmp_path, colaworld) -> None:
    film(films / "wide.mp4", height=40, width=48)
    call = ["train", "nano.cola", "--data", films, "--out", tmp_path / "run", *tiny]
    said = colaworld(*call)
    assert said.status == 2
    assert "frames of 2 sizes: 32x32 (day " in said.err and "40x48 (wide.mp4)" in said.err
    assert "--data.height" in said.err and "--data.width" in said.err
    said = colaworld(*call, "--data.height", 24, "--data.width", 36)
    assert said.status == 0 and "24x36 px" in said.out


def test_a_truncated_video_is_named_and_skipped_up_to_a_share(
    films, tiny, tmp_path, colaworld, caplog
) -> None:
    whole = (films / "day 0" / "0.mp4").read_bytes()
    (films / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    os.symlink(tmp_path, films / "linked")
    call = ["train", "nano.cola", "--data", films, "--out", tmp_path / "run", *tiny]
    with caplog.at_level(logging.WARNING):
        said = colaworld(*call)
    assert said.status == 2 and "cut.mp4" not in caplog.text  # once is enough
    assert "1 of 7 files or episodes are broken" in said.err and "cut.mp4" in said.err
    assert "max_broken_share = 0.05" in said.err
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        said = colaworld(*call, "--data.max-broken-share", 0.2)
    assert said.status == 0 and "1 broken" in said.out
    assert f"skipped: {films / 'cut.mp4'}" in caplog.text
    assert sum("linked folders are not followed" in line for line in caplog.messages) == 1


def test_an_empty_folder(tiny, tmp_path, colaworld) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no video")
    said = colaworld("train", "nano.cola", "--data", tmp_path / "empty", *tiny)
    assert said.status == 2 and "empty: no video files in it (looked for " in said.err


def test_clips_longer_than_the_videos(films, film, tiny, quick, tmp_path, colaworld) -> None:
    """Short ones are left out and counted; none long enough is an error with the numbers."""
    film(films / "short.mp4", frames=6)
    call = ["train", "nano.cola", "--data", films, *tiny, "--out", tmp_path / "run"]
    said = colaworld(*call, "--data.frames-per-clip", 21)
    assert said.status == 2
    assert "has 20 frames, a clip of 21 frames with stride 1 needs 21" in said.err
    said = colaworld(*call, "--data.frames-per-clip", 7)
    assert said.status == 0 and "1 too short" in said.out


def test_evaluation_of_short_episodes_predicts_fewer_frames(
    film, tiny, quick, tmp_path, colaworld
) -> None:
    """Horizon None is as long as the episodes allow; one that is asked must fit."""
    films = tmp_path / "films"
    for number in range(30):
        film(films / f"{number}.mp4", frames=6, seed=number)
    out = tmp_path / "run"
    assert colaworld("train", "nano.cola", "--data", films, "--out", out, *tiny).status == 0
    at = quick.index("--evaluation.horizon")
    freely = [*quick[:at], *quick[at + 2 :]]
    assert colaworld("evaluate", out, *freely, "--evaluation.horizon", None).status == 0
    result = json.loads((out / "evaluation.json").read_text())
    assert len(result["rollout"]["psnr_by_horizon"]) == result["counts"]["horizon"] == 5
    said = colaworld("evaluate", out, *freely, "--evaluation.horizon", 6)
    assert said.status == 2
    assert "evaluation.history 1 + evaluation.horizon 6 frames were asked" in said.err


def test_a_single_video_trains_but_holds_nothing_out(film, tiny, tmp_path, colaworld) -> None:
    video, out = film(tmp_path / "one.mp4"), tmp_path / "run"
    assert colaworld("train", "nano.cola", "--data", video, "--out", out, *tiny).status == 0
    said = colaworld("evaluate", out)
    assert said.status == 2 and "nothing is held out (1 episodes" in said.err


def test_a_missing_action_column_matters_to_the_probe_alone(
    scene, trained, quick, tiny, tmp_path, colaworld
) -> None:
    column = ["--data.action-column", "motor"]
    run = shutil.copytree(trained, tmp_path / "run")
    assert colaworld("evaluate", run, *quick, *column).status == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert result["probe"] is None and "no real actions" in result["probe_skipped"]
    call = ["train", "nano.cola", "--data", scene, "--out", tmp_path / "other", *tiny]
    assert colaworld(*call, *column).status == 0
