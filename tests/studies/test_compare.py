"""Comparisons and tables from rows made by hand: what is paired, what intervals are over, what is said."""

from __future__ import annotations

import math

import pytest

from colaworld.files import FileError
from colaworld.studies.compare import alike, arm_mean, difference
from colaworld.studies.curves import curves_of, over_seeds
from colaworld.studies.readings import number_at
from colaworld.studies.rows import collapsed, collapsed_at, read_rows, write_rows
from colaworld.studies.tables import (
    ahead_table,
    arms_table,
    budgets_table,
    curves_table,
    markdown,
    notes_of,
    sets_of,
)


def row(arm: str, seed: int, deltas: list[float], probe: float | None = None, **more) -> dict:
    """A row of a run whose clips (episodes 0, 0, 1, 1) have these delta-PSNRs."""
    mean = sum(deltas) / len(deltas)
    numbers = {
        "delta_psnr.random": {"mean": mean, "low": mean - 1, "high": mean + 1},
        "probe.score": None if probe is None else {"mean": probe, "low": None, "high": None},
    }
    return {
        **{"study": "s", "data": "d", "arm": arm, "reference": "base", "seed": seed},
        **{"status": "finished", "why": "", "recipe": "nano.cola", "steps": 10},
        **{"clips_trained": 80, "seconds": 60.0, "flops": 1e12, "collapsed_at": None},
        "numbers": numbers,
        "beside": {"probe.chance": 0.2, "probe.pixel_difference": None},
        "clips": {
            "rolled": "same",
            "episode": [0, 0, 1, 1],
            "values": {"delta_psnr": deltas},
        },
        **{"entropy": [], "control": []},
        **more,
    }


def test_a_difference_is_paired_by_seed_and_episode() -> None:
    # Seeds and episodes differ by far more than the arms, which differ by 1 everywhere.
    base = [row("base", 0, [0, 0, 8, 8]), row("base", 1, [20, 20, 28, 28])]
    ours = [row("ours", 1, [21, 21, 29, 29]), row("ours", 0, [1, 1, 9, 9])]
    told = difference(ours, base, "delta_psnr.random")
    assert (told.interval.mean, told.interval.low, told.interval.high) == (1, 1, 1)
    assert (told.seeds, told.agree, told.over) == (2, 2, "seeds and episodes")
    alone = arm_mean(ours, "delta_psnr.random")
    assert alone.interval.mean == 15 and alone.interval.low == 1 and alone.interval.high == 29


def test_where_no_plan_of_any_seed_succeeds_the_interval_is_that_of_one_seed() -> None:
    """What is drawn from zeros alone is zero, however few they are."""
    key, rows = "planned.latent.success", []
    for seed in range(3):
        one = row("ours", seed, [0, 0, 0, 0])
        one["numbers"][key] = {"mean": 0.0, "low": 0.0, "high": 0.49}
        clips = {"rolled": "same", "episode": [0, 1, 2, 3], "values": {"success": [0.0] * 4}}
        rows.append(one | {"after": {"planned.latent": clips}})
    told = arm_mean(rows, key)
    assert (told.interval.mean, told.interval.low, told.interval.high) == (0.0, 0.0, 0.49)
    assert (told.seeds, told.over) == (3, "episodes")


@pytest.mark.parametrize("seeds", [1, 2])
def test_plans_that_all_succeed_leave_a_difference_possible(seeds) -> None:
    """Four episodes alike do not say that no fifth would differ."""
    key = "planned.latent.success"

    def planned(arm: str, seed: int) -> dict:
        one = row(arm, seed, [0, 0, 0, 0])
        one["numbers"][key] = {"mean": 1.0, "low": 0.51, "high": 1.0}
        clips = {"rolled": "same", "episode": [0, 1, 2, 3], "values": {"success": [1.0] * 4}}
        return one | {"after": {"planned.latent": clips}}

    base, ours = ([planned(arm, seed) for seed in range(seeds)] for arm in ("base", "ours"))
    told = difference(ours, base, key)
    assert told.interval.mean == 0 and told.interval.low < -0.3 and told.interval.high > 0.3
    assert (told.seeds, told.agree) == (seeds, seeds)


def test_seeds_that_do_not_agree_are_counted() -> None:
    base = [row("base", seed, [0, 0, 0, 0]) for seed in range(3)]
    ours = [row("ours", seed, [d] * 4) for seed, d in enumerate((2.0, 3.0, -1.0))]
    told = difference(ours, base, "delta_psnr.random")
    assert told.interval.mean == pytest.approx(4 / 3) and told.agree == 2
    assert (told.interval.low, told.interval.high) == (-1, 3)  # the worst and the best, thrice


def test_only_seeds_of_both_are_paired() -> None:
    base = [row("base", 0, [0, 0, 0, 0])]
    ours = [row("ours", 0, [1, 1, 3, 3]), row("ours", 1, [9, 9, 9, 9])]
    told = difference(ours, base, "delta_psnr.random")
    assert (told.interval.mean, told.seeds, told.over) == (2, 1, "episodes")
    assert (told.interval.low, told.interval.high) == (1, 3)
    assert difference(ours[1:], base, "delta_psnr.random") is None


def test_a_number_without_clips_is_over_seeds() -> None:
    rows = [row("ours", seed, [0] * 4, probe) for seed, probe in enumerate((0.5, 0.7))]
    told = arm_mean(rows, "probe.score")
    assert told.interval.mean == pytest.approx(0.6) and told.over == "seeds"
    assert (told.interval.low, told.interval.high) == (0.5, 0.7)
    base = [row("base", 0, [0] * 4, 0.4), row("base", 1, [0] * 4, None)]
    told = difference(rows, base, "probe.score")  # one pair: no interval
    assert told.interval.mean == pytest.approx(0.1) and math.isnan(told.interval.low)
    assert arm_mean([row("ours", 0, [0] * 4)], "probe.score") is None


def test_one_run_keeps_its_own_interval() -> None:
    told = arm_mean([row("ours", 0, [1, 1, 3, 3])], "delta_psnr.random")
    assert (told.interval.low, told.interval.high, told.over) == (1, 3, "episodes")


def test_runs_on_other_clips_are_not_paired_clip_by_clip() -> None:
    other = {"rolled": "other", "episode": [0, 0, 1, 1], "values": {"delta_psnr": [5.0] * 4}}
    base = [row("base", 0, [0] * 4), row("base", 1, [0] * 4)]
    ours = [row("ours", 0, [5] * 4), row("ours", 1, [5] * 4, clips=other)]
    assert not alike([*base, *ours])
    assert difference(ours, base, "delta_psnr.random").over == "seeds"
    assert "same clips" in notes_of({"base": base, "ours": ours})[0]


def test_tables_say_what_they_are_made_of() -> None:
    rows = [
        row("base", 0, [1, 1, 1, 1], 0.5),
        row("base", 1, [1, 1, 1, 1], 0.5),
        row("ours", 0, [3] * 4, 0.6, collapsed_at=7, steps=8, flops=None, entropy=[[7, 0.1]]),
        row(
            "ours", 1, [2] * 4, 0.6, status="collapsed", why="phase warmup ended", entropy=[[7, 1]]
        ),
    ]
    arms = sets_of(rows)["d"]
    assert arms_table(arms)[0] == [
        "arm",
        "seeds",
        "collapsed",
        "delta-PSNR over random, dB",
        "probe",
    ]
    assert arms_table(arms)[1][2] == "-"  # nothing is known of its codes
    assert arms_table(arms)[2] == ["ours", "2", "1 of 2", "2.50 [2.00, 3.00]", "0.60 [0.60, 0.60]"]
    took = budgets_table(arms)[2]
    assert took == ["ours", "nano.cola", "8 to 10", "80", "-", "1.0", "7, -", "finished, collapsed"]
    text = markdown(rows)
    assert "| minus base |" in text and "+1.50 [+1.00, +2.00] (2 of 2)" in text
    assert "ours, seed 1: collapsed: phase warmup ended" in text
    assert "Fewer than three seeds" in text and "probe.chance 0.20" in text


def test_rollbacks_and_what_runs_were_made_from_are_told() -> None:
    """Of a stopped run the reason, not all that could be done about it; rows from before have none of this."""
    made = {"data": "record scene --seed 1", "generator": "nano.pretrain 0123"}
    why = "the codebook collapsed in phase joint. Train it longer"
    rows = [row("base", seed, [1] * 4, made=made) for seed in (0, 1)]
    rows.append(row("ours", 0, [2] * 4, status="collapsed", why=why, rollbacks=1, made=made))
    (arms,) = sets_of(rows).values()
    assert [line[-1] for line in budgets_table(arms)[1:]] == [
        "finished",
        "collapsed after 1 rollback",
    ]
    notes = notes_of(arms)
    assert "data: `record scene --seed 1`." in notes and "generator: `nano.pretrain 0123`." in notes
    assert "ours, seed 0: collapsed: the codebook collapsed in phase joint." in notes
    other = row("ours", 1, [2] * 4, made=made | {"data": "record scene --seed 2"})
    arms["ours"].append(other)
    assert "Not all runs had data and generator made by the same calls." in notes_of(arms)


def test_notes_tell_the_precision_of_training() -> None:
    half = {"changes": {"training.autocast": "bf16"}}
    arms = {"base": [row("base", 0, [1] * 4, **half)], "ours": [row("ours", 0, [2] * 4, **half)]}
    assert "Trained in bfloat16 (autocast), evaluated in float32." in notes_of(arms)
    arms["ours"][0]["changes"] = {}
    assert "Runs differ in training.autocast: auto, bf16." in notes_of(arms)


def test_runs_of_one_arm_that_were_configured_otherwise_are_told() -> None:
    runs = [row("base", seed, [1] * 4, changes={"phases.joint.steps": 400}) for seed in range(2)]
    assert "configured alike" not in " ".join(notes_of({"base": runs}))
    runs[1]["changes"] = {"phases.joint.steps": 800}
    assert "Runs of base were not all configured alike." in notes_of({"base": runs})
    for run in runs:  # a recipe has changed, or more is said than before
        run["asked_sha256"] = "0"
    assert "configured alike" not in " ".join(notes_of({"base": runs}))
    runs[1] |= {"changes": runs[0]["changes"], "asked_sha256": "1"}
    assert "Runs of base were not all configured alike." in notes_of({"base": runs})


def test_one_code_on_held_out_clips_is_a_collapse_whatever_flickers_in_training() -> None:
    runs = [row("base", seed, [1] * 4, entropy=[[1, 0.5]]) for seed in range(3)]
    for run, entropy in zip(runs, (0.0, 0.3, None), strict=True):
        told = None if entropy is None else {"mean": entropy, "low": None, "high": None}
        run["numbers"]["codebook.entropy_normalised"] = told
    assert [collapsed(run) for run in runs] == [True, False, False]
    assert arms_table({"base": runs})[1][2] == "1 of 3"


def test_a_codebook_has_collapsed_where_it_stays_down() -> None:
    assert collapsed_at([(1, 0.8), (20, 0.2), (40, 0.4), (60, 0.1), (80, 0.0)], floor=0.3) == 60
    assert collapsed_at([(1, 0.1), (20, 0.3)], floor=0.3) is None
    assert collapsed_at([], floor=0.3) is None


def test_numbers_of_an_evaluation() -> None:
    found = {"a": {"b": {"mean": 1.0, "low": 0.5, "high": 2.0, "by": []}, "c": 3}, "none": None}
    assert number_at(found, "a.b") == {"mean": 1.0, "low": 0.5, "high": 2.0}
    assert number_at(found, "a.c") == {"mean": 3.0, "low": None, "high": None}
    assert number_at(found, "none.score") is None and number_at(found, "a.absent") is None
    with pytest.raises(FileError, match=r"a: expected a number or \{mean, low, high\}"):
        number_at(found, "a")


def test_rows_come_back_and_others_are_refused(tmp_path) -> None:
    path = tmp_path / "rows.json"
    rows = [row("base", 0, [1.0] * 4), row("base", 1, [2.0] * 4)]
    write_rows(path, rows)
    assert read_rows(path) == rows and len(path.read_text().splitlines()) == 4
    path.write_text('[{"arm": "base"}]')
    with pytest.raises(FileError, match="row 1 has no study, data, reference"):
        read_rows(path)
    path.write_text("[]")
    with pytest.raises(FileError, match="expected a list of rows of a study"):
        read_rows(path)


def test_curves_over_seeds_go_as_far_as_the_longest() -> None:
    short, long = [(0, 0.0), (10, 1.0)], [(0, 1.0), (5, 1.0), (10, 1.0), (20, 0.5)]
    curve = over_seeds([short, long])
    assert curve.steps == [0, 5, 10, 20] and curve.mean == [0.5, 0.75, 1.0, 0.5]
    assert curve.low == [0.0, 0.5, 1.0, 0.5] and curve.high == [1.0, 1.0, 1.0, 0.5]
    before = over_seeds([short], [-1, 5])
    assert math.isnan(before.mean[0]) and before.mean[1] == 0.5


def test_curves_in_a_table() -> None:
    """Rows from before there was a probe have none; a stage without a world has no control."""
    probed = {"probe": [[1, 0.2], [100, 0.4], [800, 0.7]]}
    rows = [
        row("base", seed, [1] * 4, control=[[401, -0.001], [800, 0.2 * seed]]) for seed in (0, 1)
    ]
    rows.append(row("ours", 0, [2] * 4, control=[[1, 0.0], [800, 0.5]]) | probed)
    (arms,) = sets_of(rows).values()
    assert list(curves_of(arms, "probe")) == ["ours"]
    head, *table = curves_table(arms)
    assert head[3:] == ["step 1", *(f"step {n}" for n in range(100, 801, 100))]
    assert [line[:3] for line in table] == [
        *(["control", "base", "2"], ["control", "ours", "1"], ["probe", "ours", "1"])
    ]
    assert table[0][3:8] == ["-"] * 5 and table[0][-1] == "0.10 [0.00, 0.20]"
    assert table[2][3:5] == ["0.20", "0.40"] and table[2][-1] == "0.70"
    assert "| control | base | 2 | - |" in markdown(rows)
    assert curves_table({"base": [row("base", 0, [1] * 4)]}) == []


def test_rollouts_frame_by_frame_beside_the_last_frame() -> None:
    def seen(psnr: list[float]) -> dict:
        line = [[i, value] for i, value in enumerate(psnr, start=1)]
        return {"psnr_ahead": line, "copy_psnr_ahead": [[1, 21.0], [2, 19.0], [3, 18.0]]}

    rows = [
        row("base", 0, [1] * 4, **seen([20, 19, 18])),
        row("base", 1, [1] * 4, **seen([22, 19])),
    ]
    rows.append(row("ours", 0, [1] * 4))
    (arms,) = sets_of(rows).values()
    head, *table = ahead_table(arms)
    assert head == ["frames ahead", "arm", "seeds", "1", "2", "3"]
    shown = ["21.00 [20.00, 22.00]", "19.00 [19.00, 19.00]", "18.00 [18.00, 18.00]"]
    assert table[0] == ["PSNR, dB", "base", "2", *shown]
    assert table[1] == ["PSNR, dB", "the last frame", "", "21.00", "19.00", "18.00"]
    assert len(table) == 2  # no SSIM is known, and nothing of ours
    rows[1]["clips"]["rolled"] = "others"
    assert len(ahead_table(arms)) == 2  # one line for all would be wrong
    many = row("base", 0, [1] * 4, psnr_ahead=[[i, 20.0] for i in range(1, 33)])
    shown = ahead_table({"base": [many]})[0][3:]
    assert shown[0] == "1" and shown[-1] == "32" and len(shown) == 8
