"""Pictures: files with something on them, bars as long as their times."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from colaworld.cli.bench import suite

pytest.importorskip("matplotlib", reason="pictures need the extra bench")
plots = suite("plots")


@pytest.fixture
def rows(row):
    def ceiling(op, **more):
        return row(suite="machine", op=op, impl="torch", shape="roof", **more)

    cost = {"bytes": 4_000_000, "flops": 10_000_000}
    return [
        ceiling("copy", gb_s=10.0),
        ceiling("matmul", tflops=0.05),
        row(impl="eager", p50=4.0, **cost),
        row(impl="cpu", p50=1.0, **cost),
    ]


def test_files_are_written_and_not_empty(rows, tmp_path) -> None:
    files = plots.write(tmp_path / "plots", rows)
    assert [f.name for f in files] == ["adaln-fwd-float32.png", "roofline-float32.png"]
    for file in files:
        colours = np.unique(np.asarray(Image.open(file)).reshape(-1, 4), axis=0)
        assert len(colours) > 5, file.name


def test_a_bar_is_as_long_as_its_time_and_says_how_much_faster(rows) -> None:
    (axes,) = plots.bars("adaln", rows[2:]).axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, 1.0]
    assert [text.get_text() for text in axes.texts] == ["1.00 x eager", "4.00 x eager"]


def test_the_roof_bends_where_speed_meets_peak(rows) -> None:
    (axes,) = plots.roofline(rows, "float32").axes
    eager, cpu, roof = axes.lines
    # 10 GB/s and 50 GFLOP/s meet at 5 operations a byte; both points lie at 2.5.
    assert list(eager.get_xdata()) == list(cpu.get_xdata()) == [2.5]
    assert list(eager.get_ydata()) == [2.5] and list(cpu.get_ydata()) == [10.0]
    (x0, x1, x2), (y0, y1, y2) = roof.get_data()
    assert (x1, y1, y2) == (5.0, 50.0, 50.0) and y0 == pytest.approx(10 * x0) and x0 < 2.5 < x1 < x2
    assert plots.roofline(rows[2:], "float32") is None


def test_a_folder_that_cannot_be_made(rows, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--plot .*cannot be written"):
        plots.write(tmp_path / "file" / "plots", rows)
