"""`colaworld data inspect`: what it prints, and its exit status."""

from __future__ import annotations

import os
from pathlib import Path

from colaworld.cli import data, record


def _recorded(path):
    record.run(["scene", "--out", str(path), "--episodes", "2", "--steps", "12"])
    return path


def test_inspect_prints_the_set_and_writes_the_sheet(tmp_path, capsys) -> None:
    path = _recorded(tmp_path / "set")
    sheet = tmp_path / "sheet.png"
    capsys.readouterr()
    assert data.run(["inspect", str(path), "--sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    for part in ("lerobot", "24 (0.0 min)", "32x32 px", "column 'action'", "noop", "scene cuts"):
        assert part in said
    assert sheet.read_bytes()[:4] == b"\x89PNG"


def test_the_shares_of_a_mixture_are_shown(tmp_path, capsys, film) -> None:
    film(tmp_path / "a/1.mp4")
    film(tmp_path / "a/2.mp4")
    film(tmp_path / "b/1.mp4")
    film(tmp_path / "b/2.mp4")
    mixture = tmp_path / "mix.yaml"
    mixture.write_text("mixture:\n  a: {path: a, weight: 3}\n  b: {path: b}\n")
    assert data.run(["inspect", str(mixture)]) == 0
    said = capsys.readouterr().out
    assert "a: 75.0% of the clips" in said and "b: 25.0% of the clips" in said
    assert said.count("data set") == 2
    assert data.run(["inspect", str(mixture), "--sheet", "x.png"]) == 2
    assert "--sheet: of one data set" in capsys.readouterr().err
    mixture.write_text("mixture: {a: {path: c}}")
    assert data.run(["inspect", str(mixture)]) == 2
    assert f"data.mixture.a: {tmp_path}/c: no such folder" in capsys.readouterr().err


def test_faults_change_the_exit_status(tmp_path, capsys) -> None:
    path = _recorded(tmp_path / "set")
    video = next(path.rglob("*.mp4"))
    (tmp_path / "films").mkdir()
    (tmp_path / "films/good.mp4").write_bytes(video.read_bytes())
    (tmp_path / "films/bad.mp4").write_bytes(video.read_bytes()[:200])
    sheet = ["--sheet", str(tmp_path / "sheet.png")]
    assert data.run(["inspect", str(tmp_path / "films"), *sheet]) == 1
    said = capsys.readouterr().out
    assert "bad.mp4" in said.replace("\n", "") and "no action column" in said
    assert data.run(["inspect", str(tmp_path / "absent"), *sheet]) == 2
    assert capsys.readouterr().err.endswith("absent: no such folder or file\n")


def test_other_verbs(capsys) -> None:
    assert data.run(["compress"]) == 2 and "inspect" in capsys.readouterr().err
    assert data.run(["--help"]) == 0 and data.run([]) == 2


def test_without_being_asked_it_writes_nothing(tmp_path, capsys, monkeypatch) -> None:
    path = _recorded(tmp_path / "set")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert data.run(["inspect", str(path)]) == 0
    assert list(Path().iterdir()) == [] and "--sheet FILE.png" in capsys.readouterr().out


def test_warnings_are_no_faults_and_names_are_spelled_out(tmp_path, capsys, film) -> None:
    film(tmp_path / "films/[red]a\x1b[31m.mp4")
    os.symlink(tmp_path, tmp_path / "films/linked")
    assert data.run(["inspect", str(tmp_path / "films")]) == 0
    said = capsys.readouterr().out
    assert f"warning: linked folders are not followed: {tmp_path}/films/linked" in said
    (tmp_path / "films/bad\x1b[31m.mp4").write_text("no film")
    assert data.run(["inspect", str(tmp_path / "films")]) == 1
    said = capsys.readouterr().out
    assert "bad\\x1b[31m.mp4: cannot be opened as a video" in said and "\x1b" not in said
