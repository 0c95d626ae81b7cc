"""`colaworld record`: the seed fixes the frames, and a wrong wish costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from colaworld.cli import record
from colaworld.config import ConfigError
from colaworld.data.sources import open_source


def _record(path, *more: str) -> int:
    wish = ["scene", "--out", str(path), "--episodes", "3", "--steps", "12", "--size", "24"]
    return record.run([*wish, *more])


def _frames(path) -> np.ndarray:
    source = open_source(path)
    return np.concatenate([source.read(e.index, range(e.frames)) for e in source.episodes])


def test_recording_twice_gives_the_same_set(tmp_path, capsys) -> None:
    assert _record(tmp_path / "a", "--seed", "3") == 0
    said = capsys.readouterr().out
    assert "3 episodes, 36 frames of 24x24 px" in said and "dB PSNR" in said
    assert _record(tmp_path / "b", "--seed", "3", "--workers", "2") == 0
    assert _record(tmp_path / "c", "--seed", "4") == 0
    np.testing.assert_array_equal(_frames(tmp_path / "a"), _frames(tmp_path / "b"))
    assert not np.array_equal(_frames(tmp_path / "a"), _frames(tmp_path / "c"))
    made = json.loads((tmp_path / "a/meta/colaworld.json").read_text())
    assert (made["environment"], made["behaviour"], made["seed"]) == ("scene", "sticky-random", 3)
    assert made["action_names"] == ["noop", "left", "right", "up", "down"]


def test_one_factor_is_varied_and_said(tmp_path) -> None:
    assert _record(tmp_path / "plain") == _record(tmp_path / "other", "--vary", "texture") == 0
    plain = json.loads((tmp_path / "plain/meta/colaworld.json").read_text())
    other = json.loads((tmp_path / "other/meta/colaworld.json").read_text())
    assert plain["variation"] is None
    said = {"factor": "texture", "value": "stripes of 4 px on the floor"}
    assert other == {**plain, "variation": said, "decoded_psnr_db": other["decoded_psnr_db"]}
    assert not np.array_equal(_frames(tmp_path / "plain"), _frames(tmp_path / "other"))


@pytest.mark.parametrize("wished", ["yuv420p", "yuv444p"])
def test_the_pixel_format_is_the_one_asked_for(tmp_path, wished) -> None:
    assert _record(tmp_path / "a", "--encoding.pixel-format", wished) == 0
    info = json.loads((tmp_path / "a/meta/info.json").read_text())
    camera = next(feature for feature in info["features"].values() if feature["dtype"] == "video")
    assert camera["info"]["video.pix_fmt"] == wished
    made = json.loads((tmp_path / "a/meta/colaworld.json").read_text())
    assert made["encoding"]["pixel_format"] == wished
    (film,) = (tmp_path / "a").rglob("*.mp4")
    with av.open(str(film)) as video:
        assert video.streams.video[0].codec_context.pix_fmt == wished


def test_an_existing_folder_is_refused(tmp_path, capsys) -> None:
    assert _record(tmp_path / "a") == 0
    before = _frames(tmp_path / "a")
    assert _record(tmp_path / "a", "--seed", "9") == 2
    assert "--overwrite" in capsys.readouterr().err
    np.testing.assert_array_equal(_frames(tmp_path / "a"), before)
    assert _record(tmp_path / "a", "--seed", "9", "--overwrite") == 0
    assert not np.array_equal(_frames(tmp_path / "a"), before)


def test_wrong_wishes_leave_nothing(tmp_path, capsys) -> None:
    assert _record(tmp_path / "a", "--behaviour", "scripted") == 2
    assert "no scripted behaviour for 'scene'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--episodes: expected >= 1, got 0"):
        _record(tmp_path / "a", "--episodes", "0")
    assert _record(tmp_path / "a", "--actions", "fly") == 2
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch) -> None:
    played = record.envs.play

    def interrupted(*args, episode: int, **options):
        if episode == 2:
            raise KeyboardInterrupt
        return played(*args, episode=episode, **options)

    monkeypatch.setattr(record.envs, "play", interrupted)
    assert _record(tmp_path / "a") == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_clean_up_as_ctrl_c_does(tmp_path, monkeypatch, number) -> None:
    played = record.envs.play

    def stopped(*args, episode: int, **options):
        if episode == 2:
            assert (tmp_path / ".a.partial").is_dir()
            os.kill(os.getpid(), number)
        return played(*args, episode=episode, **options)

    monkeypatch.setattr(record.envs, "play", stopped)
    before = signal.getsignal(number)
    assert _record(tmp_path / "a") == 128 + number
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, number) -> None:
    wish = ["scene", "--out", str(tmp_path / "a"), "--episodes", "1000000", "--steps", "40"]
    command = [sys.executable, "-m", "colaworld", "record", *wish, "--workers", "2"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / ".a.partial" / "videos"
    while not folder.exists() and parent.poll() is None:  # both workers have played by then
        time.sleep(0.05)
    os.kill(parent.pid, number)
    # The workers hold the pipes too: the end of both means that all have ended.
    said = parent.communicate(timeout=60)[1].decode()
    if number == signal.SIGTERM:
        assert parent.returncode == 128 + number and "nothing was left behind" in said
        assert list(tmp_path.iterdir()) == []
    else:
        assert parent.returncode == -number
        assert _record(tmp_path / "a") == 0  # and clears what was left
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["crafter", "pusht"])
def test_a_missing_simulator_names_its_extra(tmp_path, monkeypatch, capsys, name) -> None:
    package = {"crafter": "crafter", "pusht": "gym_pusht"}[name]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert record.run([name, "--out", str(tmp_path / "a")]) == 2
    assert f"colaworld[{name}]" in capsys.readouterr().err
