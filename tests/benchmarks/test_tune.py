"""The choice of block sizes, with a clock and a compiler that stand in for a GPU's."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from benchmarks import rows as store
from benchmarks import timing
from benchmarks.case import Case, Failed, Skipped
from benchmarks.gpu import cases, stages, tune

pytest.importorskip("triton", reason="the kernels' files need triton; extra dev has it")

dry = stages.beside_tests("stand_ins")
command = import_module("benchmarks.gpu.__main__")
tuning = import_module("colaworld.kernels.tuning")
ROW = ("ST_ATTENTION", (90, "forward", 16, 80, 2))
SHIPPED = tuning.pick(tuning.ST_ATTENTION, *ROW[1])
CASE = Case(
    suite="ops", op="st_attention", shape="any", sizes={"B": 1}, dtype="bfloat16", mode="fwd",
    providers={},
)  # fmt: skip


def blocks(warps: int) -> tuning.Blocks:
    return tuning.Blocks(num_warps=warps, reason="a test")


def of_row(monkeypatch, tmp_path, times, *, wrong=(), raises=(), spills=0) -> list:
    """What comes of candidates of 1, 2, 4 and 8 warps, some of which give wrong or no results."""

    def call():
        now = tuning.pick(tuning.ST_ATTENTION, *ROW[1])
        if now.num_warps in raises:
            raise RuntimeError("out of resources: shared memory")
        return {"out": torch.full((4,), 2.0 if now.num_warps in wrong else 1.0)}

    def timed(replays, **_):
        assert set(replays) == set(times), "who is timed"
        return {name: (0.99 * t, t, 1.01 * t) for name, t in times.items()}

    monkeypatch.setattr(tune, "candidates", lambda shipped: [blocks(w) for w in (2, 4, 8)])
    options = cases.Options(out=tmp_path, dry=True)
    with dry.stand_ins(timing):
        return list(
            tune.of_row(CASE, call, *ROW, SHIPPED, options, spilled=lambda *_: spills, timed=timed)
        )


def test_the_fastest_that_is_right_is_chosen_and_the_table_stays(monkeypatch, tmp_path) -> None:
    before = dict(tuning.ST_ATTENTION)
    times = {"shipped": 2.0, "num_warps=2 num_stages=1": 1.0}
    found = of_row(monkeypatch, tmp_path, times, wrong=(4,), raises=(8,))
    assert before == tuning.ST_ATTENTION
    (wrong,) = [one for one in found if isinstance(one, Failed)]
    assert "num_warps=4" in wrong.label and "out is off by" in wrong.reason
    (skipped,) = [one for one in found if isinstance(one, Skipped)]
    assert "out of resources" in skipped.reason
    rows = {one["impl"]: one for one in found if isinstance(one, dict)}
    assert rows["num_warps=2 num_stages=1"]["chosen"] and not rows["shipped"]["chosen"]
    assert rows["shipped"]["key"] == list(ROW[1]) and rows["shipped"]["kind"] == "Blocks"


def test_a_candidate_that_spills_is_not_timed(monkeypatch, tmp_path) -> None:
    found = of_row(monkeypatch, tmp_path, {"shipped": 2.0}, spills=3)
    assert {one.reason for one in found if isinstance(one, Skipped)} == {"it spills 3 registers"}
    assert [one["impl"] for one in found if isinstance(one, dict)] == ["shipped"]


@pytest.mark.parametrize(
    ("shipped", "other", "best"),
    [
        ((1.0, 1.0, 1.0), (0.9, 0.9, 0.9), "other"),
        ((1.0, 1.0, 1.0), (0.98, 0.98, 0.98), "shipped"),  # less than what counts as a gain
        ((0.8, 1.0, 1.2), (0.7, 0.9, 1.1), "shipped"),  # within noise
        ((1.0, 1.0, 1.0), (1.1, 1.1, 1.1), "shipped"),
    ],
)
def test_a_winner_is_clear(shipped, other, best) -> None:
    assert tune.winner({"shipped": shipped, "other": other}) == best


def test_results_that_differ_are_told() -> None:
    one = torch.ones(8)
    assert tune.differs({"x": one}, {"x": one}) is None
    assert "y is off" in tune.differs({"x": one, "y": one * 2}, {"x": one, "y": one})
    assert "off by nan" in tune.differs({"x": one * torch.nan}, {"x": one})
    indices = torch.arange(8)
    assert tune.differs({"i": indices}, {"i": indices}) is None
    assert "12.5% of the indices" in tune.differs({"i": indices.clamp(max=6)}, {"i": indices})


def test_candidates_change_one_number_at_a_time() -> None:
    shipped = tuning.Tile(num_warps=4, num_stages=2, BN=32, BK=64, reason="a test")
    made = tune.candidates(shipped)
    for one in made:
        changed = [n for n in vars(one) if vars(one)[n] != vars(shipped)[n]]
        assert len(changed) == 1, changed
    assert {one.num_warps for one in made} == {1, 2, 4, 8, 16}
    assert [one.num_warps for one in tune.candidates(blocks(2))] == [1, 4, 8]


def test_the_rows_that_an_op_asks_for_are_seen() -> None:
    with tune.asked() as seen:
        tuning.pick(tuning.ST_ATTENTION, *ROW[1])
        tuning.pick(tuning.ADALN, None, "forward", 2048)
    assert list(seen) == [ROW, ("ADALN", (None, "forward", 2048))] and seen[ROW] is SHIPPED
    with tune.tried(*ROW, blocks(8)):
        assert tuning.pick(tuning.ST_ATTENTION, *ROW[1]).num_warps == 8
    assert tuning.pick(tuning.ST_ATTENTION, *ROW[1]) is SHIPPED


# --- home into kernels/tuning.py -------------------------------------------------------------------


def kept(row, table: str, key: tuple, impl: str, p50: float, chosen: bool, numbers: str) -> dict:
    return row(
        op="tune", impl=impl, shape=f"{table} {key}", p50=p50, table=table, key=list(key),
        chosen=chosen, blocks=numbers, measured_on="a label", device="a card",
        kind="Tile" if "BN" in numbers else "Blocks",
    )  # fmt: skip


@pytest.fixture
def measured(row) -> list[dict]:
    tile = (90, "few", 32, 4)
    many = "num_warps=8 num_stages=2 BN=16 BK=32"
    return [
        kept(row, "VECTOR_QUANTIZE", tile, "shipped", 0.02, False, "num_warps=4"),
        kept(row, "VECTOR_QUANTIZE", tile, "x", 0.01, True, many),
        kept(row, *ROW, "shipped", 0.2, False, "num_warps=1 num_stages=1"),
        kept(row, *ROW, "y", 0.1, True, "num_warps=2 num_stages=1"),
        kept(row, "ADALN", (90, "forward", 2048), "shipped", 0.1, True, "num_warps=4 num_stages=1"),
    ]


def test_the_section_is_python_that_sets_the_rows_and_depends_on_no_order(measured) -> None:
    made = tune.section(measured)
    assert made == tune.section(measured[::-1])
    names = {
        "ST_ATTENTION": {}, "VECTOR_QUANTIZE": {}, "Blocks": tuning.Blocks, "Tile": tuning.Tile
    }  # fmt: skip
    exec(made, names)
    assert names["ST_ATTENTION"] == {
        ROW[1]: tuning.Blocks(2, "measured: 100 us, 200 before", num_stages=1)
    }
    tile = names["VECTOR_QUANTIZE"][90, "few", 32, 4]
    assert (tile.BN, tile.BK, tile.num_warps, tile.num_stages) == (16, 32, 8, 2)
    assert "# a label; a card, torch 2" in made and "ADALN" not in made
    assert max(map(len, made.splitlines())) <= 100


def test_the_archive_of_a_run_is_written_into_the_table(
    measured, tmp_path, capsys, monkeypatch
) -> None:
    for one in measured:
        store.add(tmp_path / "work", one)
    archive = store.pack(tmp_path / "work", tmp_path / "gpu.tar.gz")
    table = tmp_path / "kernels" / "tuning.py"
    table.parent.mkdir()
    table.write_text(f"import math\n{tune.OPEN}\nold\n{tune.CLOSE}\nafter = 1\n")
    monkeypatch.setattr("benchmarks.gate.repository", lambda: tmp_path)
    assert command.main(["apply-tuning", str(archive)]) == 0
    text = table.read_text()
    assert 'ST_ATTENTION[90, "forward", 16, 80, 2] = Blocks(' in text and "old" not in text
    assert text.startswith("import math\n") and text.endswith("after = 1\n")
    assert "tuning.py: 2 rows of 3 are new" in capsys.readouterr().out
    assert command.main(["apply-tuning", str(tmp_path / "none.tar.gz")]) == 2
    with pytest.raises(ValueError, match="expected rows of the stage tune"):
        tune.apply(tmp_path / "nothing")


def test_the_section_of_the_checkout_can_be_written_again(measured) -> None:
    text = (command.ROOT / "kernels" / "tuning.py").read_text()
    once = tune.rewrite(text, tune.section(measured))
    assert once.count(tune.OPEN) == once.count(tune.CLOSE) == 1
    assert tune.rewrite(once, tune.section([])).count("Nothing was faster") == 1
    with pytest.raises(ValueError, match="expected a section"):
        tune.rewrite("nothing here", "")
