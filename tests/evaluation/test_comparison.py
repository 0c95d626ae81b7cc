"""Runs side by side: alike ones with paired differences, all others named and left out."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from colaworld.evaluation.comparison import comparison

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())["moves"]["result"]
EPISODES = np.repeat(np.arange(8), 3)


def run(shift=0.0, **counts):
    """An evaluation whose clips gain 2 dB, give or take, plus `shift`."""
    result = copy.deepcopy(GOLDEN)
    gain = 2 + np.random.default_rng(0).normal(size=24) + shift
    error, motion = np.full(24, 0.5 - shift / 10), np.ones(24)
    result["delta_psnr"]["random"]["mean"] = gain.mean()
    result["counts"] |= counts
    result["data"] = {"name": "crafter"}
    result["nmse"] = {"mean": error.mean(), "low": 0.4, "high": 0.6, "by_horizon": [0.5] * 4}
    values = {"delta_psnr": gain, "psnr": gain + 20, "error": error, "motion": motion}
    result["clips"] = {
        "rolled": "aa",
        "probed": "bb",
        "episode": EPISODES.tolist(),
        "values": {name: v.tolist() for name, v in values.items()},
    }
    return result


def test_differences_are_paired_over_the_same_clips():
    found = comparison({"mine": run(), "worse": run(-0.25), "better": run(0.5)})
    assert [row[0] for row in found.rows] == [
        "run",
        "mine",
        "better",  # sorted by delta-PSNR, the best first
        "  difference to mine",
        "worse",
        "  difference to mine",
    ]
    # every clip is better by .5 dB: what differs between clips is no part of the difference
    at = found.rows[0].index("delta-PSNR over random codes")
    assert found.rows[3][at] == "+0.50 [+0.50, +0.50]"
    assert found.rows[5][at] == "-0.25 [-0.25, -0.25]"
    assert found.rows[3][found.rows[0].index("NMSE of rollouts")] == "-0.05 [-0.05, -0.05]"
    assert found.rows[3][found.rows[0].index("codebook utilisation")] == "+0.00"
    assert found.notes == {} and found.alike == ["mine", "better", "worse"]
    assert all(len(row) == len(found.rows[0]) for row in found.rows)


def test_a_clip_without_a_number_is_read_as_such():
    """JSON has no NaN: evaluation.json holds null there."""
    mine, other = run(), run(0.5)
    mine["clips"]["values"]["psnr"][3] = None
    found = comparison({"mine": mine, "other": other})
    assert "+0.50 [+0.50, +0.50]" in found.rows[3]


def test_a_run_without_the_numbers_of_a_measure_has_no_difference_there():
    other = run(0.5)
    del other["clips"]["values"]["error"]
    found = comparison({"mine": run(), "other": other})
    assert found.rows[3][found.rows[0].index("NMSE of rollouts")] == "-"
    assert "+0.50 [+0.50, +0.50]" in found.rows[3]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["counts"].update(clips=8, episodes=3), "8 clips, not 24; 3 episodes, not 8"),
        (lambda r: r["counts"].update(horizon=5), "horizon 5, not 4"),
        (lambda r: r["counts"].update(height=28, width=36), "28x36 px, not 12x14"),
        (lambda r: r["counts"].update(history=1), "1 given frames, not 2"),
        (lambda r: r["data"].update(name="pusht"), "data set pusht, not crafter"),
        (lambda r: r["clips"].update(rolled="cc"), "other clips or other pixels"),
    ],
)
def test_a_run_that_was_not_evaluated_alike_stands_in_no_column(change, says):
    other = run()
    change(other)
    found = comparison({"mine": run(), "other": other})
    assert [row[0] for row in found.rows] == ["run", "mine"] and found.alike == ["mine"]
    assert says in found.notes["other"]
    assert f"other: not compared: {found.notes['other']}" in found.text()


def test_a_probe_of_another_kind_has_a_column_of_its_own():
    other = run()
    other["probe"].update(kind="r2", l1=None)
    found = comparison({"mine": run(), "other": other})
    accuracy, r2 = (found.rows[0].index(f"linear probe, {kind}") for kind in ("accuracy", "R²"))
    assert [row[accuracy] for row in found.rows[1:]] == ["1.00 [1.00, 1.00]", "-", "-"]
    assert [row[r2] for row in found.rows[1:]] == ["-", "1.00 [1.00, 1.00]", "-"]
    assert "measured by r2, not accuracy" in found.notes["other"]


def test_random_latents_do_not_stand_below_random_codes():
    other = run()
    other["world"]["codebook_size"] = other["codebook"] = None
    found = comparison({"mine": run(), "other": other})
    assert {"delta-PSNR over random codes", "delta-PSNR over others' latents"} <= set(found.rows[0])
    assert "compare delta-PSNR over shuffled actions, 20.09 dB to 20.09 dB" in found.notes["other"]


def test_what_is_not_known_to_be_alike_is_marked():
    old, probed, noise, later = run(), run(), run(), run() | {"format_version": 4}
    del old["clips"]
    probed["clips"]["probed"] = "dd"
    noise["config"]["seed"] = 4
    others = {"old": old, "probed": probed, "noise": noise, "later": later}
    found = comparison({"mine": run(), **others})
    assert "not known that both saw the same clips" in found.notes["old"]
    assert "probe and codebook were measured on other clips" in found.notes["probed"]
    assert found.notes["noise"] == "other noise (evaluation.seed 4, not 3)"
    assert found.notes["later"] == "other noise (format_version 4, not 1)"
    below = {found.rows[i - 1][0]: row for i, row in enumerate(found.rows) if "differ" in row[0]}
    assert set(below) == {"probed", "noise", "later"}  # a difference needs the same clips
    entropy = found.rows[0].index("normalised code entropy")
    assert below["probed"][entropy] == "-" and below["noise"][entropy] == "+0.00"
