"""Rows: files that are refused, and the comparison, by hand."""

from __future__ import annotations

import json

import pytest

from colaworld.cli.bench import suite

rows = suite("rows")


def test_compare_by_hand(row) -> None:
    old = [
        row(impl="cpu", p20=9, p50=10, p80=11),
        row(impl="eager", p20=9, p50=10, p80=11),
        row(impl="compile", p20=9, p50=10, p80=11),
        row(impl="cuda"),
    ]
    new = [
        row(impl="cpu", p20=4, p50=5, p80=8.9),  # ends below where the old one begins
        row(impl="eager", p20=4, p50=5, p80=9),  # touches it
        row(impl="compile", p20=11.1, p50=20, p80=30),
        row(impl="triton"),
    ]
    found = rows.compare(new, old)
    assert [(c.row["impl"], c.ratio, c.verdict) for c in found.changes] == [
        ("cpu", 0.5, "faster"),
        ("eager", 0.5, "noise"),
        ("compile", 2.0, "slower"),
    ]
    assert [r["impl"] for r in found.added] == ["triton"]
    assert [r["impl"] for r in found.gone] == ["cuda"]
    assert found.devices == ("here",)


@pytest.mark.parametrize(
    "field",
    [{"sizes": {"B": 2}}, {"threads": 2}, {"mode": "fwd_bwd"}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_other_measurements_are_not_compared(row, field) -> None:
    assert rows.compare([row(**field)], [row()]).changes == ()


def test_other_devices_are_told(row) -> None:
    assert rows.compare([row()], [row(device="there")]).devices == ("here", "there")


def test_files_come_back(row, tmp_path) -> None:
    file = tmp_path / "rows.json"
    written = [row(), row(impl="eager", p50=2.5)]
    rows.write(file, written)
    assert rows.read(file) == written
    assert len(file.read_text().splitlines()) == 4  # a row a line
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_foreign_files_are_refused(row, tmp_path) -> None:
    file = tmp_path / "rows.json"
    without = {k: v for k, v in row().items() if k not in ("sizes", "commit")}
    for text, message in [
        ("{", "cannot be read as rows"),
        ('{"a": 1}', "expected a list of rows"),
        ("[1]", "expected a list of rows"),
        (json.dumps([row(), without]), "row 2 has no sizes, commit"),
        (json.dumps([row(p50=-1.0)]), "row 1: expected times above 0"),
        (json.dumps([row(sizes=[1, 2])]), "row 1: expected sizes by name"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            rows.read(file)
    with pytest.raises(ValueError, match="no such file"):
        rows.read(tmp_path / "other.json")


def test_a_file_that_cannot_be_written_is_told_and_not_made(tmp_path) -> None:
    rows.check_writable(tmp_path / "new" / "rows.json")
    assert not (tmp_path / "new" / "rows.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        rows.check_writable(tmp_path / "file" / "rows.json")


def test_what_is_committed_reads() -> None:
    folder = suite("gate").repository() / "benchmarks" / "results"
    others = ("resources", "gpu_goals")
    files = [
        f
        for f in folder.glob("*.json")
        if f.stem not in others and not f.stem.startswith(("study_", "plans_"))
    ]
    assert files
    for file in files:
        assert rows.read(file)
