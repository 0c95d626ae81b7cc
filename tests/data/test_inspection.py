"""Inspection counts what is there and names what is wrong."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from colaworld.data import video_reader
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.inspection import contact_sheet, inspect, warnings_of
from colaworld.data.sources import open_source


def test_a_recording(tmp_path, scene_set) -> None:
    found = inspect(DataConfig(path=scene_set(tmp_path / "set", [30, 12, 21])), columns=4)
    assert (found.episodes, found.frames, found.lengths) == (3, 63, (12, 21, 30))
    assert found.seconds == pytest.approx(6.3) and dict(found.sizes) == {(20, 24): 3}
    assert found.broken == [] and found.constant == [] and found.cuts == []
    (actions,) = found.actions
    assert actions.spec.names[1] == "left" and sum(actions.count) == 63
    assert [row.shape for row in found.thumbnails] == [(4, 20, 24, 3)] * 3


def test_cuts_across_blocks_and_thumbnails_at_even_times(tmp_path, film, number_of) -> None:
    dark, light = 0b0000000011, 0b1111110011
    film(tmp_path / "a.mp4", [dark] * 256 + [light] * 300)
    found = inspect(DataConfig(path=tmp_path), columns=3)
    assert found.cuts == [("a.mp4", 256)]
    assert [number_of(f) for f in found.thumbnails[0]] == [dark, light, light]
    film(tmp_path / "a.mp4", range(600))
    found = inspect(DataConfig(path=tmp_path), columns=4)
    assert [number_of(f) for f in found.thumbnails[0]] == [0, 199, 399, 599]


def test_faults_are_named(tmp_path, film, scene_set) -> None:
    film(tmp_path / "films/good.mp4", range(9))
    film(tmp_path / "films/black.mp4", [0] * 9)
    (tmp_path / "films/bad.mp4").write_bytes(b"no film")
    found = inspect(DataConfig(path=tmp_path / "films"))
    assert [b.path.name for b in found.broken] == ["bad.mp4"] and found.actions == []
    assert len(found.constant) == 1 and "black.mp4" in found.constant[0]
    path = scene_set(tmp_path / "set", [9, 9])
    file = path / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).slice(0, 12), file)
    (problem,) = inspect(DataConfig(path=path)).action_problems
    assert "file-000.parquet" in problem and "'action'" in problem


def test_the_sheet_shows_small_frames_large(tmp_path, scene_set, film) -> None:
    found = inspect(DataConfig(path=scene_set(tmp_path / "set", [9, 9])), columns=5)
    sheet = np.asarray(Image.open(contact_sheet(found, tmp_path / "out/sheet.png")))
    line = 14 + 100 + 4  # the name, five times 20x24, a gap
    assert sheet.shape == (2 * line + 4, 5 * (120 + 4) - 4 + 8, 3)
    np.testing.assert_array_equal(sheet[18:118:5, 4:124:5], found.thumbnails[0][0])
    names = sheet[4:18], sheet[4 + line : 18 + line]
    assert all(name.min() < 100 for name in names) and not np.array_equal(*names)
    (tmp_path / "films").mkdir()
    with pytest.raises(DataError, match="no video files"):
        inspect(DataConfig(path=tmp_path / "films"))


@pytest.mark.parametrize("place", [30, 59])
def test_the_middle_and_the_end_are_read_alone_too(tmp_path, film, monkeypatch, place) -> None:
    film(tmp_path / "a.mp4", range(60))
    assert inspect(DataConfig(path=tmp_path)).broken == []
    read = video_reader.read_frames

    def late(video, indices):
        return read(video, [i - (i == place) for i in indices])

    monkeypatch.setattr(video_reader, "read_frames", late)
    (broken,) = inspect(DataConfig(path=tmp_path)).broken
    assert broken.reason.endswith(f"a.mp4: frame {place} is another one when it is read alone")


def test_unequal_steps_in_time_are_warned_of_unless_a_rate_is_set(tmp_path, film) -> None:
    def warnings(**options) -> list[str]:
        return warnings_of(open_source(tmp_path), DataConfig(path=tmp_path, **options))

    film(tmp_path / "a.mp4", range(40), fps=20)
    film(tmp_path / "b.mp4", range(40), fps=20)
    assert warnings() == []
    film(tmp_path / "b.mp4", range(40), fps=10)
    film(tmp_path / "c.mkv", range(10), times=[0, 5, 10, 50, 55, 60, 100, 150, 200, 205])
    uneven, rates = warnings()
    assert "1 of 3 videos have an uneven frame rate (first: c.mkv)" in uneven
    assert "frame rates differ: 4.39 (1), 10 (1), 20 (1): " in rates and "--data.fps" in rates
    assert inspect(DataConfig(path=tmp_path)).warnings == [uneven, rates]
    assert warnings(fps=4.0) == []
