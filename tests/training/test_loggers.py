"""Rows that stay valid through kills and full disks; TensorBoard files read back."""

from __future__ import annotations

import errno
import io
import json
import math
import os

import pytest

from colaworld.files import plain
from colaworld.training.loggers import (
    ConsoleLogger,
    JsonlLogger,
    _duration,
    read_rows,
)
from colaworld.training.protocols import RunFolderError


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_valid_json_even_when_not_finite(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl", after=0)
    logger.row({"global_step": 1, "loss": math.nan, "codebook": {"x": [math.inf, 1.0]}})
    text = (tmp_path / "metrics.jsonl").read_text()  # readable before it is closed
    assert "NaN" not in text
    assert json.loads(text) == {"global_step": 1, "loss": None, "codebook": {"x": [None, 1.0]}}
    logger.close()
    assert plain((1, -math.inf, {"a": True})) == [1, None, {"a": True}]


def test_resuming_drops_later_rows_and_the_broken_line(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    good = [{"phase": "p", "step": n, "global_step": n} for n in (1, 2, 3, 4)]
    path.write_text("\n".join(map(json.dumps, good)) + '\n{"phase": "p", "st')
    logger = JsonlLogger(path, after=3)
    logger.row({"phase": "p", "step": 4, "global_step": 4, "again": True})
    logger.sync()
    logger.close()
    assert rows_of(path) == [*good[:3], {"phase": "p", "step": 4, "global_step": 4, "again": True}]
    assert "line 5 dropped" in caplog.text


def test_starting_anew_empties_and_a_loss_is_told(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"global_step": 1}\n')
    JsonlLogger(path, after=0).close()
    assert path.read_text() == ""
    JsonlLogger(path, after=2).close()
    assert "0 rows for 2 steps" in caplog.text


def test_a_row_that_changed_is_named_and_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = JsonlLogger(path, after=0)
    for step in (1, 2, 3, 4):
        logger.row({"global_step": step, "loss": step / 7})
        if step == 3:
            sums = logger.sums()
    logger.close()
    whole = path.read_bytes()
    first, second, third, fourth = whole.splitlines(keepends=True)
    for damaged, said in (
        (whole.replace(b"0.2857", b"0.2856"), "a number in it was changed"),
        (first + second.replace(b"{", b"["), "line 2 is damaged or missing"),
        (first + third + fourth, "line 2 is damaged or missing"),
        (first + second, "line 3 is damaged or missing"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(RunFolderError, match=rf"metrics\.jsonl: its rows up to step 3.*{said}"):
            JsonlLogger(path, after=3, sums=sums)
        assert path.read_bytes() == damaged
    path.write_bytes(first + third)  # of an earlier release, which kept no sums
    with pytest.raises(RunFolderError, match="line 2 is damaged or missing"):
        JsonlLogger(path, after=3)
    path.write_bytes(whole + b'{"half')
    again = JsonlLogger(path, after=3, sums=sums)
    assert path.read_bytes() == first + second + third and again.sums() == sums
    again.close()


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_what_is_no_file_is_refused_and_left(kind, after, tmp_path):
    path = tmp_path / "metrics.jsonl"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "dangling link": lambda p: p.symlink_to("x")}
    make[kind](path)
    before = path.lstat()
    with pytest.raises(
        RunFolderError, match=r"metrics\.jsonl: expected a file, found something else"
    ):
        JsonlLogger(path, after=after)
    assert path.lstat() == before
    if kind == "pipe":  # to open one is to wait for ever
        with pytest.raises(RunFolderError, match="expected a file"):
            list(read_rows(path))


def test_rows_of_an_earlier_release_are_kept_as_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"global_step": 1, "loss": NaN, "grad_norm": {"total": 1e999}}\n')
    JsonlLogger(path, after=1).close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "global_step": 1,
        "loss": None,
        "grad_norm": {"total": None},
    }


def test_a_whole_line_without_an_object_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n[1]\n\n{"a": 2}\n' + "[" * 100_000 + '\n{"a": 3}')
    assert list(read_rows(path)) == [{"a": 1}, {"a": 2}]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/metrics\.jsonl: cannot be written"):
        JsonlLogger(tmp_path / "file" / "metrics.jsonl", after=0)


def test_a_full_disk_is_named():
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    logger = JsonlLogger.__new__(JsonlLogger)
    logger.path, logger._file = "run/metrics.jsonl", Full()
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl.*No space left.*make room|Make room"):
        logger.row({"loss": 1.0})


def test_console_prints_plain_lines(capsys):
    console = ConsoleLogger(total=10)
    row = {"phase": "warmup", "step": 1, "loss": 0.5, "codebook": {"entropy_normalised": 0.25}}
    console.skip_to(4)
    console.row(row, clips_per_second=12.0)
    console.row({**row, "step": 2, "skipped": "the loss is nan"})  # too soon for another line
    console.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0] == "warmup step 1 (5 of 10)  loss 0.5000  entropy 0.25  12 clips/s"
    assert "MFU" not in lines[0] and "data" not in lines[0]


def test_console_tells_of_a_step_that_waits_for_data(capsys):
    console = ConsoleLogger(total=10)
    speed = {"mfu": 0.314, "data_share": 0.25}
    console.row({"phase": "warmup", "step": 1, "loss": 0.5, "speed": speed})
    assert "MFU 31 %  25 % waiting for data" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_that_has_gone_does_not_stop_a_run(terminal, monkeypatch, caplog):
    class Gone(io.StringIO):
        def isatty(self):
            return terminal

        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    console = ConsoleLogger(total=10)
    console._console.file = Gone()
    row = {"phase": "warmup", "step": 1, "loss": 0.5}
    console.row(row)
    console.say("saved")
    console.row(row)
    console.close()
    assert caplog.text.count("nothing more is shown: [Errno 5]") == 1


def test_durations():
    assert (_duration(7), _duration(75), _duration(7500)) == ("7 s", "1 min 15 s", "2 h 5 min")
