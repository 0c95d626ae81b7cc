"""Plans as one table: seeds joined, differences in pairs, and no two that were not of the same episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colaworld.cli.plan_table import lines, markdown
from colaworld.config import ConfigError
from colaworld.files import FileError
from colaworld.runs.planning_table import joined, read_plans


@pytest.fixture
def planned(tmp_path):
    """Writes a plan.json with the given successes of each row; NAME=FOLDER of it."""
    count = 0

    def write(name: str, rows: dict[str, str], weights: str = "", **protocol: Any) -> str:
        nonlocal count
        count += 1
        said = {
            "env": "robodesk",
            "task": "push_red",
            "goals": "ab",
            "mpc": {"steps": 15},
            "space": None,
            "episode_seeds": list(range(max(map(len, rows.values())))),
        } | protocol
        won = {
            row: {"episodes": [{"seed": i, "success": c == "x"} for i, c in enumerate(marks)]}
            for row, marks in rows.items()
        }
        (tmp_path / str(count)).mkdir()
        file = tmp_path / str(count) / "plan.json"
        made = {"format_version": 1, "protocol": said, "rows": won}
        made["run"] = {"weights_sha256": weights} if weights else None
        file.write_text(json.dumps(made))
        return f"{name}={file.parent}"

    return write


def test_seeds_are_joined_and_differences_paired(planned) -> None:
    named = (
        planned("joint", {"world": "xxx.", "random": "...."}),
        planned("joint", {"world": "xx..", "random": "...."}),
        planned("two", {"world": "x...", "random": "....", "oracle": "xxxx"}),
        planned("two", {"world": "x..."}),
    )
    table = joined(read_plans(named), reference="two")
    row = table["tasks"]["robodesk/push_red"]
    assert list(row) == ["joint", "random", "two", "oracle"]
    assert row["joint"]["seeds"] == 2 and row["joint"]["success"]["mean"] == 0.625
    assert row["random"]["seeds"] == 1  # played alike, so one
    assert row["random"]["success"]["low"] == 0 < row["random"]["success"]["high"]
    apart = row["joint"]["difference"]
    assert apart["mean"] == 0.375 and 0 <= apart["low"] < 0.375 < apart["high"] <= 1
    assert row["oracle"]["difference"]["mean"] == 0.75 and row["two"]["difference"] is None
    assert table["mean"] is None and table["missing"] == {"robodesk/push_red": ["cloning", "copy"]}
    said = "\n".join(lines(table))
    assert "62.5 (" in said and "joint minus two: +37.5 (" in said and "2 seed(s)" in said
    assert "not played: cloning, copy; without them this is no result yet" in said


def test_tasks_are_rows_and_their_mean_is_the_last(planned) -> None:
    named = (
        planned("joint", {"world": "xx"}),
        planned("joint", {"world": ".."}, task="open_slide", goals="cd"),
        planned("two", {"world": ".x"}),
        planned("two", {"world": ".x"}, task="open_slide", goals="cd"),
    )
    table = joined(read_plans(named))
    assert list(table["tasks"]) == ["robodesk/push_red", "robodesk/open_slide"]
    assert table["mean"]["joint"]["success"]["mean"] == 0.5
    assert table["mean"]["two"]["difference"]["mean"] == 0.0
    assert lines(table)[3].split()[0] == "mean"
    told = [line.split(" | ") for line in markdown(table).splitlines()]
    assert told[0] == [
        "| success, %",
        "seeds",
        "push_red",
        "open_slide",
        "mean",
        "mean, minus joint |",
    ]
    assert told[2][:2] == ["| joint", "1"] and told[2][-1] == "- |"
    assert told[3][0] == "| two" and told[3][-1].startswith("+0.0 (")
    assert told[3][3].startswith("50.0 (")


def test_what_is_not_of_the_same_episodes_is_refused(planned, tmp_path) -> None:
    first = planned("joint", {"world": "x."})
    for other, words in (
        ({"goals": "ff"}, "goals is 'ff'"),
        ({"mpc": {"steps": 3}}, "steps of the environment is 3, in .* 15"),
        ({"block": 5}, "steps of the environment is 75"),
        ({"mpc": {"steps": 15, "action_repeat": 2}}, "steps of the environment is 30"),
    ):
        with pytest.raises(ConfigError, match=words):
            joined(read_plans([first, planned("two", {"world": "x."}, **other)]))
    another = planned("two", {"world": "x."}, planner={"kind": "cem"}, device="cuda")
    assert joined(read_plans([first, another]))["differing"] == ["planner.kind"]
    larger = planned("two", {"world": "x."}, block=5, mpc={"steps": 3})
    found = joined(read_plans([first, larger]))
    assert found["differing"] == ["block", "mpc.steps"]
    said = found["protocol"]["robodesk/push_red"]
    assert said["steps of the environment"] == 15 and not {"mpc.steps", "block"} & said.keys()
    with pytest.raises(ConfigError, match="--reference none: expected one of joint"):
        joined(read_plans([first]), reference="none")
    for wrong in ("runs/plan", "oracle=runs/plan", "=runs/plan"):
        with pytest.raises(ConfigError, match="expected NAME=FOLDER of a plan"):
            read_plans([wrong])
    with pytest.raises(FileError, match="colaworld plan writes it"):
        read_plans([f"a={tmp_path / 'none'}"])
    Path(tmp_path / "plan.json").write_text('{"format_version": 9}')
    with pytest.raises(ConfigError, match=r"expected a plan.json of version 1"):
        read_plans([f"a={tmp_path}"])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("rows",), [1]),
        (("rows",), {}),
        (("rows", "world"), None),
        (("rows", "world", "episodes"), [{"seed": 0, "success": True}]),
        (("rows", "world", "episodes", 0, "success"), 7),
        (("rows", "world", "episodes", 0, "seed"), 1),
        (("rows", "other"), {"episodes": []}),
        (("protocol",), [1]),
        (("protocol", "env"), None),
        (("protocol", "mpc"), [1]),
        (("protocol", "space"), "x"),
    ],
    ids=lambda one: ".".join(map(str, one)) if isinstance(one, tuple) else f"{one!r}",
)
def test_a_plan_that_was_changed_is_refused(planned, keys, value) -> None:
    named = planned("joint", {"world": "x."})
    path = Path(named.partition("=")[2]) / "plan.json"
    inside = result = json.loads(path.read_text())
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    path.write_text(json.dumps(result))
    with pytest.raises(ConfigError, match=r"plan\.json: expected rows of the protocol's episodes"):
        read_plans([named])


def test_one_plan_is_no_second_seed(planned) -> None:
    named = planned("joint", {"world": "x."})
    with pytest.raises(
        ConfigError, match=r"given twice, as .*, and one run is no second training seed"
    ):
        read_plans([named, f"{named}/plan.json"])
    assert len(read_plans([named, named.replace("joint", "two")])) == 2
    first = planned("joint", {"world": "x."}, weights="ab")
    again = planned("joint", {"world": "xx"}, weights="ab")
    with pytest.raises(ConfigError, match="given twice"):
        read_plans([first, again])
    other = planned("joint", {"world": "xx"}, weights="cd")
    rest = planned("joint", {"oracle-codes": "xx", "oracle": "xx"}, weights="ab")
    elsewhere = planned("joint", {"world": "xx"}, weights="ab", task="open_slide")
    assert len(read_plans([first, other, rest, elsewhere])) == 4


def test_there_is_no_mean_over_tasks_of_other_numbers_of_episodes(planned) -> None:
    named = (
        planned("joint", {"world": "xx"}),
        planned("joint", {"world": "..x"}, task="open_slide", goals="cd"),
    )
    table = joined(read_plans(named))
    assert table["mean"] is None
    assert "no mean over tasks: their numbers of episodes differ" in "\n".join(lines(table))
    assert "mean" not in markdown(table)


def test_seeds_without_a_partner_are_left_out_and_told(planned) -> None:
    """One seed of a method is no bound: it stands beside the first of the other alone."""
    named = (
        planned("joint", {"world": "xx.."}),
        planned("joint", {"world": "xxxx"}),
        planned("joint", {"world": "xxxx"}),
        planned("two", {"world": "x...", "copy": "...."}),
    )
    table = joined(read_plans(named), reference="joint")
    row = table["tasks"]["robodesk/push_red"]
    apart = row["two"]["difference"]
    assert (apart["mean"], apart["seeds"], apart["left_out"]) == (-0.25, 1, {"joint": 2})
    assert row["copy"]["difference"]["seeds"] == 3 and not row["copy"]["difference"]["left_out"]
    said = "\n".join(lines(table))
    assert "1 seed(s); left out, without a partner: the last 2 of joint" in said
    other = joined(read_plans(named), reference="two")["tasks"]["robodesk/push_red"]
    assert other["joint"]["difference"]["mean"] == 0.25
    assert other["joint"]["difference"]["left_out"] == {"joint": 2}


def test_what_limits_each_method_is_taken_from_its_own_worlds(planned) -> None:
    bounds = {"oracle": "xxx.", "oracle-state": "xxxx"}
    named = (
        planned("joint", {"world": "x...", "oracle-codes": "xx..", **bounds}, space="latent"),
        planned("joint", {"world": "x...", "oracle-codes": "xxx."}, space="latent"),
        planned("two", {"world": "....", "oracle-codes": "xx.."}, space="latent"),
        planned("two", {"world": "...."}, space="latent"),
    )
    table = joined(read_plans(named))
    row = table["tasks"]["robodesk/push_red"]
    assert row["joint/oracle-codes"]["seeds"] == 2 and row["oracle-state"]["seeds"] == 1
    limits = table["limits"]["robodesk/push_red"]
    parts = [(*one["parts"], one["lost"]["mean"]) for one in limits["joint"]]
    assert parts == [("generator", 0.375), ("action map", 0.125), ("cost", 0.25), ("planner", 0)]
    # One of two seeds played oracle-codes: the parts are told together.
    assert limits["two"][0]["parts"] == ["generator", "action map"]
    alone = joined(read_plans([planned("joint", {"world": "x..."}, space="latent")]))
    assert alone["limits"]["robodesk/push_red"]["joint"] == []  # its success says it
    with pytest.raises(ConfigError, match="a name other than oracle, cloning, random, copy, orac"):
        read_plans(["oracle-state=runs/plan"])


def test_what_limits_over_all_tasks_is_told_with_the_table(planned) -> None:
    named = []
    for task, world, swapped in (("push_red", "xx..", "xxx."), ("open_slide", "....", "x...")):
        rows = {"world": world, "oracle-codes": swapped, "oracle": "xxx.", "oracle-state": "xxxx"}
        named.append(planned("joint", rows, space="latent", task=task))
    table = joined(read_plans(named))
    lost = [(*one["parts"], one["lost"]["mean"]) for one in table["limits"]["mean"]["joint"]]
    assert lost == [("generator", 0.25), ("action map", 0.25), ("cost", 0.25), ("planner", 0)]
    *_, gap, said, _, told = markdown(table).split("\n")
    assert gap == "" and said.startswith("Points lost to each part")
    assert told.startswith("- joint: generator 25 (") and told.endswith(").")
    alone = joined(read_plans([planned("joint", {"world": "xx.."}, space="latent")]))
    assert "lost" not in markdown(alone)


def test_a_plan_of_bounds_alone_says_nothing_of_the_world_whose_name_it_bears(planned) -> None:
    """As docs/study.md plans PushT: the bounds once, under the name of one of the methods."""
    rolled = {"space": "real", "size": None, "codes": "all", "sampler": {"steps": 3}}
    free = {"space": None, "size": 32, "codes": "all", "sampler": None}
    coded = rolled | {"space": "latent", "codes": "seen"}
    bounds = planned("two", {"oracle": "xxx.", "oracle-state": "xxxx"}, **free)
    mine, theirs = (
        planned("two", {"world": "x..."}, **rolled),
        planned("joint", {"world": "xx.."}, **coded),
    )
    for named in ([theirs, mine, bounds], [bounds, theirs, mine]):
        table = joined(read_plans(named))
        for name, first in (("two", "adapter"), ("joint", "generator")):
            told = table["limits"]["robodesk/push_red"][name]
            assert [one["parts"][0] for one in told] == [first, "cost", "planner"]
        assert table["differing"] == ["codes", "space"]
        assert table["protocol"]["robodesk/push_red"]["sampler.steps"] == 3
    other = planned("two", {"world": "x..."}, **rolled | {"sampler": {"steps": 5}})
    assert joined(read_plans([bounds, mine, other]))["differing"] == ["sampler.steps"]
    mixed = joined(read_plans([mine, planned("two", {"world": "x..."}, **coded), bounds]))
    assert mixed["limits"]["robodesk/push_red"]["two"] == []


@pytest.mark.parametrize("row", ["oracle", "copy", "oracle-state"])
def test_a_bound_under_another_planner_is_no_second_seed(planned, row) -> None:
    """Nor is it one bound where it was played alike: whose it is could not be said."""
    kept = {"planner": {"kind": "cem"}, "mpc": {"steps": 15, "horizon": 5, "context": 2}}
    kept |= {"cost": "frames", "penalty": 0.0, "head": None}
    first = planned("joint", {"world": "x.", row: "x."}, **kept)
    for other, words in (
        ({"planner": {"candidates": 9, "kind": "cem"}}, r"planner\.candidates 9, in .* None"),
        ({"planner": {"kind": "shooting", "bins": 3}}, r"planner\.kind 'shooting', in .* 'cem'"),
        ({"mpc": {"steps": 15, "horizon": 2}}, r"mpc\.horizon 2, in .* 5"),
        ({"penalty": 0.5}, r"penalty 0\.5, in .* 0\.0"),
        ({"head": "a.safetensors"}, r"head 'a\.safetensors', in .* None"),
    ):
        for marks in (".x", "x."):
            second = planned("two", {"world": "xx", row: marks}, **kept | other)
            path = second.partition("=")[2]
            said = rf"plan\.json: {row} was played under {words}"
            with pytest.raises(ConfigError, match=said) as told:
                joined(read_plans([first, second]))
            assert path in str(told.value) and first.partition("=")[2] in str(told.value)
    # What bounds do not read, and rows that nobody plans, may differ.
    latents = {"cost": "latents", "head": "a.safetensors", "head_weight": 2.0, "seed": 1}
    latents["mpc"] = kept["mpc"] | {"context": 4}
    for named in (
        [first, planned("two", {"world": "xx", row: ".x"}, **kept | latents)],
        [
            first,
            planned("two", {"world": "xx", "random": ".x"}, **kept | {"planner": {"kind": "mppi"}}),
        ],
    ):
        assert joined(read_plans(named))["tasks"]["robodesk/push_red"][row]["seeds"] in (1, 2)


def test_tasks_of_one_name_in_two_environments_are_two_columns(planned) -> None:
    named = (
        planned("joint", {"world": "xx"}),
        planned("joint", {"world": ".."}, env="desk", goals="cd"),
        planned("joint", {"world": "x."}, task="open_slide", goals="ef"),
    )
    head, _, row = markdown(joined(read_plans(named))).splitlines()
    assert head.split(" | ")[2:5] == ["robodesk/push_red", "desk/push_red", "open_slide"]
    assert [cell.split()[0] for cell in row.split(" | ")[2:6]] == ["100.0", "0.0", "50.0", "50.0"]
