"""The choice of block sizes, with a clock and a compiler that stand in for a GPU's."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from benchmarks import gate
from benchmarks.card import places, stage, tune
from benchmarks.card.places import Place
from benchmarks.case import Skipped

pytest.importorskip("triton", reason="the kernels' files need triton; extra dev has it")

tuning = import_module("colaworld.kernels.tuning")
KEY = ("forward", 16, 80, 2)
CPU = stage.Asked(device="cpu", samples=1)


def place(*candidates, wrong: tuple[int, ...] = (), raises: tuple[int, ...] = ()) -> Place:
    """A place whose call gives what its block sizes say: wrong or no results for some warps."""

    def prepare(device: str):
        def call():
            now = tuning.pick(tuning.ST_ATTENTION, 90, *KEY)
            if now.num_warps in raises:
                raise RuntimeError("out of resources: shared memory")
            return [torch.full((4,), 2.0 if now.num_warps in wrong else 1.0)]

        return call

    return Place("ST_ATTENTION", KEY, "a label", candidates, prepare)


def rows_of(place: Place, times: dict[str, float], spills: int = 0) -> list:
    def timed(calls):
        assert set(calls) == set(times), "who is timed"
        return {name: (0.99 * t, t, 1.01 * t) for name, t in times.items()}

    found = tune.rows(place, 90, CPU, timed=timed, spills=lambda place, before: spills)
    return list(found)


def blocks(warps: int) -> tuning.Blocks:
    return tuning.Blocks(num_warps=warps, reason="a test")


def test_the_fastest_that_is_right_is_chosen_and_the_table_stays() -> None:
    before = dict(tuning.ST_ATTENTION)
    found = rows_of(
        place(blocks(1), blocks(2), blocks(4), blocks(8), wrong=(4,), raises=(8,)),
        {"shipped": 2.0, "num_warps=2 num_stages=1": 1.0},
    )  # the shipped row has one warp: it is no candidate of its own
    assert before == tuning.ST_ATTENTION
    wrong = [one for one in found if isinstance(one, stage.Wrong)]
    assert [w.label for w in wrong] == ["a label/num_warps=4 num_stages=1"]
    assert "output 0 is off by" in wrong[0].reason
    (skipped,) = [one for one in found if isinstance(one, Skipped)]
    assert "out of resources" in skipped.reason
    rows = {one["impl"]: one for one in found if isinstance(one, dict)}
    assert rows["num_warps=2 num_stages=1"]["chosen"] and not rows["shipped"]["chosen"]


def test_a_candidate_that_spills_is_not_timed() -> None:
    found = rows_of(place(blocks(2)), {"shipped": 2.0}, spills=3)
    assert [one.reason for one in found if isinstance(one, Skipped)] == ["it spills 3 registers"]
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
    assert tune.differs([one, None], [one, None]) is None
    assert "output 1 is off" in tune.differs([one, one * 2], [one, one])
    assert "off by nan" in tune.differs([one * torch.nan], [one])
    indices = torch.arange(8)
    assert tune.differs([indices], [indices]) is None
    assert "12.5% of the indices" in tune.differs([indices.clamp(max=6)], [indices])


def row(table: str, key: tuple, impl: str, p50: float, chosen: bool, numbers: str) -> dict:
    return {
        "table": table, "arch": 90, "key": list(key), "impl": impl, "p50_ms": p50,
        "chosen": chosen, "blocks": numbers, "shape": "a label",
    }  # fmt: skip


ROWS = [
    row("VECTOR_QUANTIZE", ("tensor cores", "few", 32, 4), "shipped", 0.02, False, "num_warps=4"),
    row("VECTOR_QUANTIZE", ("tensor cores", "few", 32, 4), "x", 0.01, True,
        "num_warps=8 num_stages=2 BN=16 BK=32"),
    row("ST_ATTENTION", KEY, "shipped", 0.2, False, "num_warps=1 num_stages=1"),
    row("ST_ATTENTION", KEY, "y", 0.1, True, "num_warps=2 num_stages=1"),
    row("ADALN", ("forward", 2048), "shipped", 0.1, True, "num_warps=4 num_stages=1"),
]  # fmt: skip


def test_the_section_is_python_that_sets_the_rows_and_depends_on_no_order() -> None:
    made = tune.section(ROWS, "a card", {"torch": "2.11"})
    assert made == tune.section(ROWS[::-1], "a card", {"torch": "2.11"})
    names = {
        "ST_ATTENTION": {}, "VECTOR_QUANTIZE": {}, "Blocks": tuning.Blocks, "Tile": tuning.Tile
    }  # fmt: skip
    exec(made, names)
    assert names["ST_ATTENTION"] == {
        (90, *KEY): tuning.Blocks(2, "measured: 100 us, 200 before", num_stages=1)
    }
    tile = names["VECTOR_QUANTIZE"][90, "tensor cores", "few", 32, 4]
    assert (tile.BN, tile.BK, tile.num_warps, tile.num_stages) == (16, 32, 8, 2)
    assert "# a label; a card, torch 2.11" in made and "ADALN" not in made
    assert max(map(len, made.splitlines())) <= 100


def test_the_section_of_the_checkout_can_be_written_again() -> None:
    table = tune.tables()
    assert table == gate.repository() / "kernels" / "tuning.py"
    text = table.read_text()
    once = tune.rewrite(text, tune.section(ROWS, "a card", {"torch": "2"}))
    assert once.count(tune.OPEN) == once.count(tune.CLOSE) == 1
    assert tune.rewrite(once, tune.section([], "", {})).count("Nothing was faster") == 1
    with pytest.raises(ValueError, match="expected a section"):
        tune.rewrite("nothing here", "")


def test_the_command_writes_the_table(monkeypatch, tmp_path, capsys) -> None:
    table = tmp_path / "tuning.py"
    table.write_text(f"import math\n{tune.OPEN}\nold\n{tune.CLOSE}\nafter = 1\n")
    out = tmp_path / "tune.json"
    tried = place(blocks(2))
    monkeypatch.setattr(tune, "tables", lambda: table)
    monkeypatch.setattr(tune, "architecture", lambda device: 90)
    monkeypatch.setattr(tune, "places", lambda: [tried])
    monkeypatch.setattr(tune, "spilled", lambda place, before: 0)
    times = {"shipped": (2.0, 2.0, 2.0), "num_warps=2 num_stages=1": (1.0, 1.0, 1.0)}
    monkeypatch.setattr("benchmarks.timing.interleaved", lambda calls, **_: times)
    assert tune.main(["--out", str(out), "--device", "cpu", "--write"]) == 0
    text = table.read_text()
    assert 'ST_ATTENTION[90, "forward", 16, 80, 2] = Blocks(' in text and "old" not in text
    assert text.startswith("import math\n") and text.endswith("after = 1\n")
    assert "written: tuning.py" in capsys.readouterr().out
    monkeypatch.setattr(tune, "tables", lambda: None)
    assert tune.main(["--out", str(out), "--device", "cpu", "--write"]) == 1


def test_every_place_is_a_row_of_a_table_and_is_named_once() -> None:
    found = list(tune.places())
    assert len({(p.table, p.key) for p in found}) == len(found) >= 14
    for p in found:
        shipped = tuning.pick(getattr(tuning, p.table), 90, *p.key)
        assert type(shipped) is type(p.candidates[0]), p.label
    assert [p.label.split(",")[0] for p in found[:4]] == [
        "st_attention backward 16x72 bfloat16", "st_attention forward 16x72 bfloat16",
        "adaln backward C=1152 bfloat16", "adaln forward C=1152 bfloat16",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "these",
    [
        lambda: places.attention(1, 16, 1, 16, 72, torch.bfloat16),
        lambda: places.attention(1, 32, 1, 12, 64, torch.float32),
        lambda: places.modulation(1, 1, 1, 1152, torch.bfloat16),
        lambda: places.prologue(1, 2, 16, 72, torch.bfloat16),
        lambda: places.search(70, 8, 32, torch.float32),
        lambda: places.search(20_000, 8, 128, torch.float32),
        lambda: places.search(70, 8, 128, torch.bfloat16),
    ],
)
def test_a_place_is_the_row_that_its_call_takes(monkeypatch, these) -> None:
    """What a launch asks the table for is the key of the place: the call is followed up to there."""

    class Asked(Exception):
        pass

    def pick(table, arch, *key):
        raise Asked(key)

    for found in list(these()):
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "pick", pick)
            with pytest.raises(Asked) as asked:
                found.prepare("cpu")()
        if (found.table, found.key[0]) == ("ADALN", "backward"):
            assert asked.value.args[0] == ("forward", *found.key[1:])  # what the gradient needs
        else:
            assert asked.value.args[0] == found.key, found.label
