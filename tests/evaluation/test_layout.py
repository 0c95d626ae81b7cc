"""evaluation.json read back: what is refused, and that file and key are named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from colaworld.evaluation.layout import check, read_evaluation
from colaworld.files import FileError

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def test_evaluations_of_the_first_version_are_read(tmp_path):
    for name, case in GOLDEN.items():
        (tmp_path / "evaluation.json").write_text(json.dumps(case["result"]))
        assert read_evaluation(tmp_path / "evaluation.json") == case["result"], name


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["counts"], None, "counts: expected an object, got null"),
        (["counts", "clips"], "many", "counts.clips: expected an integer, got 'many'"),
        (["probe"], 5, "probe: expected an object, got 5"),
        (["probe", "score"], None, "probe.score: expected an object, got null"),
        (["probe", "score", "low"], "x", "probe.score.low: expected a number, got 'x'"),
        (["codebook"], [], r"codebook: expected an object, got \[\]"),
        (
            ["delta_psnr", "random", "mean"],
            "x",
            "delta_psnr.random.mean: expected a number, got 'x'",
        ),
        (["rollout", "psnr_by_horizon"], 3, "rollout.psnr_by_horizon: expected a list, got 3"),
        (
            ["rollout", "psnr_by_horizon", 1],
            True,
            r"psnr_by_horizon\[1\]: expected a number, got Tr",
        ),
        (["world", "tokens"], 1.5, "world.tokens: expected an integer, got 1.5"),
        (
            ["format_version"],
            99,
            "format_version: expected 1 .. 4, which this release reads, got 99",
        ),
        (["format_version"], None, "format_version: expected 1 .. 4"),
        (["clips", "values"], None, "clips.values: expected an object, got null"),
        (["clips", "values", "psnr"], 3, "clips.values.psnr: expected a list, got 3"),
        (["clips", "values", "psnr"], [1, "x"], r"values.psnr\[1\]: expected a number, got 'x'"),
        (["clips", "values", "psnr"], [1.5], "clips.values.psnr: expected 2 numbers, .*got 1"),
    ],
)
def test_file_and_key_are_named(path, value, says, tmp_path):
    result = copy.deepcopy(GOLDEN["moves"]["result"])
    values = {"psnr": [1.5, None]}
    result["clips"] = {"rolled": "a", "probed": "b", "episode": [0, 1], "values": values}
    check(result, source="as it was")
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    with pytest.raises(FileError, match=f"evaluation.json: .*{says}"):
        read_evaluation(tmp_path / "evaluation.json")


def test_a_missing_key_and_no_object_at_all():
    result = copy.deepcopy(GOLDEN["moves"]["result"])
    del result["rollout"]["variants"]["copy"]
    with pytest.raises(FileError, match=r"here: rollout\.variants\.copy: missing"):
        check(result, source="here")
    for nonsense in (None, 5, [], "text"):
        with pytest.raises(FileError, match="here: the whole: expected an object"):
            check(nonsense, source="here")
