"""Inspection counts what is there and names what is wrong."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from colaworld.data.clips import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.inspection import contact_sheet, inspect


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
    assert sheet.shape == (2 * (100 + 4) + 4, 5 * (120 + 4) - 4 + 8, 3)  # five times 20x24
    np.testing.assert_array_equal(sheet[4:104:5, 4:124:5], found.thumbnails[0][0])
    (tmp_path / "films").mkdir()
    with pytest.raises(DataError, match="no video files"):
        inspect(DataConfig(path=tmp_path / "films"))
