"""`colaworld data inspect`: what it prints, and its exit status."""

from __future__ import annotations

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
    assert "no such folder" in capsys.readouterr().err


def test_other_verbs(capsys) -> None:
    assert data.run(["compress"]) == 2 and "inspect" in capsys.readouterr().err
    assert data.run(["--help"]) == 0 and data.run([]) == 2
