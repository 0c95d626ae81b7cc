"""Pictures: files with something on them, numbers where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from colaworld.cli.bench import suite

plots = suite("plots")


@pytest.fixture
def rows(row):
    def roof(op, **more):
        return row(suite="machine", op=op, impl="torch", shape="roof", **more)

    cost = {"bytes": 4_000_000, "flops": 10_000_000}
    return [
        roof("copy", gb_s=10.0),
        roof("matmul", tflops=0.05),
        row(impl="eager", p50=4.0, **cost),
        row(impl="cpu", p50=1.0, **cost),
        row(
            suite="training", op="step", impl="default", p50=9.0, split_ms={"data": 1.0, "lam": 8.0}
        ),
    ]


def test_files_are_written_and_not_empty(rows, tmp_path) -> None:
    files = plots.write(tmp_path / "plots", rows)
    names = {f.name for f in files}
    assert {"adaln-fwd-float32.png", "step-split.png", "roofline-float32.png"} <= names
    for file in files:
        if file.suffix == ".png":
            colours = np.unique(np.asarray(Image.open(file)).reshape(-1, 3), axis=0)
            assert len(colours) > 5, file.name
    page = files[-1].read_text()
    assert files[-1].name == "index.html" and page.count("<svg") == len(files) - 1
    assert (
        "4.00 x eager" in page
        and "commit abc" in page
        and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    )


def test_a_bar_is_as_long_as_its_time(rows) -> None:
    drawing = plots.bars("adaln", rows[2:4])
    eager, cpu = (m[3] for m in drawing.marks if m[0] == "rectangle")
    assert eager == pytest.approx(4 * cpu)


def test_the_roof_bends_where_speed_meets_peak(rows) -> None:
    drawing = plots.roofline(rows, "float32")
    # 10 GB/s and 50 GFLOP/s meet at 5 operations a byte; both points lie at 2.5.
    roof = next(m[1] for m in drawing.marks if m[0] == "line" and m[3] == 2)
    dots = [m for m in drawing.marks if m[0] == "dot"][:2]
    assert dots[0][1] == dots[1][1] and dots[0][2] > dots[1][2]  # the slower one is lower
    (x0, y0), (x1, y1), _ = roof
    share = (dots[0][1] - x0) / (x1 - x0)
    on_roof = y0 + share * (y1 - y0)  # 25 GFLOP/s; cpu reaches 10, below it
    assert dots[1][2] > on_roof
    assert plots.roofline(rows[2:], "float32") is None


def test_a_folder_that_cannot_be_made(rows, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--plot .*cannot be written"):
        plots.write(tmp_path / "file" / "plots", rows)
