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
