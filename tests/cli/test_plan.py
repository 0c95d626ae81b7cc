"""colaworld plan: rows, protocol and page of a tiny run; what does not fit is said in one line."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from colaworld.cli.plan import told
from colaworld.cli.plan_options import preset_of
from colaworld.planning import TASKS
from colaworld.planning.protocols import episodes_of, frame_size, preset, protocol_of
from colaworld.planning.tasks import SceneTask
from colaworld.registry import from_outside

FEW = (
    "--episodes",
    2,
    "--mpc.steps",
    2,
    "--mpc.horizon",
    2,
    "--planner.candidates",
    4,
    "--shown",
    1,
    "--cloning.steps",
    3,
    "--cloning.width",
    4,
)


@pytest.fixture(scope="module")
def planned(trained, scene, tmp_path_factory):
    """plan.json and plan.html of the tiny world in the scene, with a prior, costs in latents."""
    from colaworld.cli.main import main

    out = tmp_path_factory.mktemp("plan")
    asked = (
        "--run",
        trained,
        "--data",
        scene,
        "--out",
        out,
        "--prior",
        "data",
        "--cost",
        "latents",
    )
    call = ("plan", "scene", *asked, *FEW, "--planner.iterations", 2)
    assert main([str(a) for a in call]) == 0
    return json.loads((out / "plan.json").read_text()), (out / "plan.html").read_text()


def test_every_row_plays_the_same_episodes_under_a_stated_protocol(planned) -> None:
    result, _ = planned
    assert list(result["rows"]) == ["world", "oracle", "cloning", "random", "copy"]
    seeds = {tuple(one["seed"] for one in row["episodes"]) for row in result["rows"].values()}
    assert seeds == {tuple(result["protocol"]["episode_seeds"])} and len(*seeds) == 2
    said = result["protocol"]
    assert (said["env"], said["height"], said["width"], said["goal_offset"]) == ("scene", 32, 32, 3)
    assert said["planner"]["kind"] == "categorical" and said["space"] == "latent"
    assert said["sampler"]["steps"] == 3 and said["sampler"]["guidance"] == 1
    assert result["missing"] == [] and result["cloning"]["best_step"] == 3
    assert 0 <= result["cloning"]["error"] <= 1 and result["cloning"]["classes"]
    assert result["run"]["recipe"] == "nano.cola" and result["run"]["weights_sha256"]
    world = result["rows"]["world"]
    assert world["calls_per_decision"] == 4 * 2 * 2  # candidates x steps x rounds
    assert result["rows"]["random"]["calls_per_decision"] == 0
    assert result["rows"]["copy"]["successes"] == 0  # the goal is three moves away, two are allowed


def test_the_table_of_codes_is_stated(planned) -> None:
    found = planned[0]["action_map"]
    assert sum(found["counts"]) == found["recorded_steps"]
    assert all(action in range(5) for action in found["actions"])
    assert 0 < found["baseline"] <= found["agreement"] <= 1
    assert found["carried_out"] == 4 and found["carried_out_unseen"] == 0  # under the prior


def test_the_page_shows_real_beside_imagined_frames(planned) -> None:
    _, page = planned
    for row in ("world", "oracle"):  # cost over time of the shown episode
        assert f"Cost of the plans, {row}, episode 1" in page
    assert "Cost of the plans, mean of episodes under way" in page and "The fewest are 3." in page
    assert page.count("imagined frame 1") == 2  # of world and oracle
    assert "data:image/png;base64" in page and "<script" not in page
    assert "planner.candidates" in page


def test_parts_are_replaced_by_the_truth_one_after_another(
    colaworld, trained, scene, tmp_path
) -> None:
    asked = ("--run", trained, "--data", scene, "--out", tmp_path, *FEW)
    rows = ("world", "oracle-codes", "oracle", "oracle-state")
    said = colaworld("plan", "scene", *asked, "--rows", *rows)
    assert said.status == 0
    result = json.loads((tmp_path / "plan.json").read_text())
    assert list(result["rows"]) == list(rows)
    parts = [one["parts"] for one in result["limits"]]
    assert parts == [["generator"], ["action map"], ["cost"], ["planner"]]
    total = sum(one["lost"]["mean"] for one in result["limits"])
    assert total + result["rows"]["world"]["success"]["mean"] == pytest.approx(1)
    assert "  generator: 0 (-" in said.out and ", world to oracle-codes" in said.out
    page = (tmp_path / "plan.html").read_text()
    assert "What limits it" in page and "oracle-state, episode 1" in page
    calls = {row["calls_per_decision"] for row in result["rows"].values()}
    assert len(calls) == 1  # the same planner throughout
    said = colaworld("plan", "scene", *asked, "--rows", "world-inferred")
    assert said.status == 2 and "an adapted run whose world plans real actions" in said.plain


def test_films_are_written_for_each_row_and_linked(colaworld, tmp_path) -> None:
    asked = ("--size", 16, "--videos", 2, "--rows", "oracle", "random", "--out", tmp_path)
    said = colaworld("plan", "scene", *asked, *FEW)
    names = [f"{row}-{number}.mp4" for row in ("oracle", "random") for number in (1, 2)]
    assert said.status == 0 and "videos: 4 films" in said.out
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == names
    page = (tmp_path / "plan.html").read_text()
    assert "videos/oracle-1.mp4" in page and page.count("oracle, episode 2") == 0  # one is shown
    said = colaworld("plan", "scene", "--size", 16, "--rows", "oracle", "--out", tmp_path, *FEW)
    assert said.status == 0 and not list((tmp_path / "videos").iterdir())


@pytest.fixture(scope="module")
def adapted(trained, scene, tmp_path_factory):
    """The tiny run, adapted to the scene's moves."""
    from colaworld.cli.main import main

    out = tmp_path_factory.mktemp("adapted") / "run"
    short = ("--steps", 1, "--adapter-steps", 1, "--evaluation.clips", 2, "--evaluation.horizon", 2)
    quick = ("--sampler.steps", 1, "--evaluation.bootstrap-samples", 5)
    call = ("adapt", trained, "--data", scene, "--out", out, *short, *quick)
    assert main([str(a) for a in call]) == 0
    return out


def test_an_adapted_run_plans_the_moves_themselves(adapted, colaworld, tmp_path) -> None:
    rows = ("--rows", "world", "world-inferred")
    asked = ("--space", "real", *rows, "--penalty", 0.1, "--out", tmp_path)
    said = colaworld("plan", "scene", "--run", adapted, *asked, *FEW, "--planner.iterations", 1)
    assert said.status == 0
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["protocol"]["space"] == "real" and result["action_map"] is None
    assert result["missing"] == ["oracle", "cloning", "random", "copy"]
    assert result["rows"]["world"]["calls_per_decision"] == 4 * 2
    assert [one["parts"][0] for one in result["limits"]] == ["adapter", "generator"]
    said = colaworld("plan", "point-mass", "--run", adapted, "--space", "real", "--out", tmp_path)
    assert "this run: its actions are 5 classes, point-mass takes 2 numbers" in said.plain


def test_environments_of_ones_own_are_held_against_the_run(colaworld, trained, tmp_path) -> None:
    def large(*, height: int, width: int, **options) -> SceneTask:
        return SceneTask(height=height + 8, width=width, **options)

    def absent(**options) -> SceneTask:
        raise ImportError("Sims needs the extra: pip install 'colaworld[sims]'")

    with from_outside():
        TASKS.add("large", large)
        TASKS.add("absent", absent)
        said = colaworld("plan", "large", "--run", trained, "--out", tmp_path)
        assert said.status == 2
        assert "renders 40x32 px (height x width), and this run was trained on 32x32" in said.plain
        said = colaworld("plan", "absent", "--run", trained, "--out", tmp_path)
        assert said.status == 2 and "pip install 'colaworld[sims]'" in said.plain
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("planner", ["shooting", "cem", "icem", "mppi", "beam"])
def test_every_planner_plans_without_a_run(colaworld, tmp_path, planner) -> None:
    small = ["--planner.width", 2] if planner == "beam" else ["--planner.candidates", 4]
    asked = ["--episodes", 1, "--mpc.steps", 1, "--mpc.horizon", 2, "--size", 16, *small]
    said = colaworld("plan", "scene", "--planner", planner, *asked, "--out", tmp_path)
    assert said.status == 0 and f"{planner}: " in said.out
    assert "not played: world, cloning; without them this is no result yet" in said.out


def test_an_environment_is_played_by_its_protocol_and_departures_are_said(
    colaworld, tmp_path
) -> None:
    pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'colaworld[pusht]'")
    small = ("--episodes", 1, "--rows", "random", "--size", 16, "--out", tmp_path)
    said = colaworld("plan", "pusht", *small)
    assert said.status == 0
    result = json.loads((tmp_path / "plan.json").read_text())["protocol"]
    assert (result["mpc"]["horizon"], result["mpc"]["replan"], result["mpc"]["steps"]) == (5, 5, 10)
    assert (result["goal_offset"], result["block"], result["over"]) == (25, 5, "last")
    assert result["protocol"]["name"] == "stable-worldmodel"
    departs = {"episodes": [1, 50], "planner.kind": ["categorical", "cem"]}
    assert result["protocol"]["departs"] == departs and result["near_px"] == 20
    assert (
        "departs from it: episodes 1 (there 50), planner.kind categorical (there cem)" in said.out
    )
    assert "always: episodes of our scripted pusher" in said.out
    assert result["protocol"]["always"].startswith("episodes of our scripted pusher")
    named = ("--protocol", "stable-worldmodel", "--planner.candidates", 7)
    nearer = ("--goal-offset", 10, "--block", 1)
    assert colaworld("plan", "pusht", *named, *nearer, *small).status == 0
    result = json.loads((tmp_path / "plan.json").read_text())["protocol"]
    departs = result["protocol"]["departs"]
    assert departs["goal_offset"] == [10, 25] and departs["block"] == [1, 5]
    assert colaworld("plan", "pusht", *named, *small).status == 0
    result = json.loads((tmp_path / "plan.json").read_text())["protocol"]
    assert result["planner"]["iterations"] == 30
    assert result["protocol"]["departs"] == {"episodes": [1, 50], "planner.candidates": [7, 300]}


def test_a_file_of_goals_is_played(colaworld, tmp_path) -> None:
    file = tmp_path / "goals.safetensors"
    said = colaworld("goals", "scene", "--episodes", 3, "--size", 16, "--seed", 4, "--out", file)
    assert said.status == 0 and "3 episodes of scene, 16x16 px, goal_offset 3" in said.out
    told = said.out.split("hash ")[1].split()[0]
    out = tmp_path / "plan"
    asked = ("plan", "scene", "--goals", file, "--rows", "random", "--out", out)
    assert colaworld(*asked).status == 0
    result = json.loads((out / "plan.json").read_text())
    assert result["protocol"]["goals"] == result["protocol"]["goals_file"]["hash"] == told
    assert result["protocol"]["episodes"] == 3 and result["protocol"]["height"] == 16
    said = colaworld(*asked, "--episodes", 1)
    assert said.status == 0 and f"of {file}" in said.out
    assert "1 episodes of the file, planned under seed 0" in said.out  # they were made of seed 4
    said = colaworld(*asked, "--size", 32)
    assert (
        said.status == 2
        and "its frames are 16x16 px (height x width), expected 32x32" in said.plain
    )


def test_a_run_of_another_size_is_told_before_it_plans(colaworld, trained, scene, tmp_path) -> None:
    file = tmp_path / "goals.safetensors"
    assert colaworld("goals", "scene", "--episodes", 1, "--size", 16, "--out", file).status == 0
    said = colaworld("plan", "scene", "--run", trained, "--data", scene, "--goals", file)
    assert said.status == 2 and "expected 32x32" in said.plain
    small = tmp_path / "small"
    recorded = ("record", "scene", "--size", 24, "--episodes", 3, "--steps", 8, "--out", small)
    assert colaworld(*recorded).status == 0
    said = colaworld("plan", "scene", "--run", trained, "--data", small, "--rows", "world")
    assert said.status == 2 and "expected frames of 32x32 px" in said.plain
    assert "got 24x24; name a set of that size with --data" in said.plain


def test_plans_of_codes_that_were_never_seen_are_told_how_to_stay(planned) -> None:
    result, _ = planned
    assert "--codes seen" not in "\n".join(told(result))
    strays = {**result["action_map"], "carried_out": 10, "carried_out_unseen": 3}
    said = "\n".join(told({**result, "action_map": strays}))
    assert "3 of 10 codes carried out were not in it (--codes seen plans only those" in said


def test_codes_that_were_seen_are_planned_alone(colaworld, trained, scene, tmp_path) -> None:
    asked = ("--run", trained, "--data", scene, "--codes", "seen", "--rows", "world")
    assert (
        colaworld("plan", "scene", *asked, "--prior", "data", *FEW, "--out", tmp_path).status == 0
    )
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["protocol"]["codes"] == "seen"
    found = result["action_map"]
    assert found["carried_out"] > 0 == found["carried_out_unseen"]
    said = colaworld("plan", "scene", "--codes", "seen", "--out", tmp_path)
    assert said.status == 2 and "codes are those of a world (--run)" in said.plain


def test_plans_become_a_table(colaworld, planned, tmp_path) -> None:
    files = []
    for seed in (0, 1):
        files.append(f"mine={tmp_path / str(seed)}")
        (tmp_path / str(seed)).mkdir()
        another = planned[0] | {"run": planned[0]["run"] | {"weights_sha256": f"of seed {seed}"}}
        (tmp_path / str(seed) / "plan.json").write_text(json.dumps(another))
    said = colaworld("plan-table", *files, "--json", tmp_path / "table.json")
    assert said.status == 0 and "mine 2, oracle 1, cloning 1, random 1, copy 1" in said.out
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["tasks"]["scene"]["copy"]["success"]["mean"] == 0
    assert colaworld("plan-table", tmp_path).status == 2


def test_vp2_is_played_as_it_stands() -> None:
    made = preset("robodesk", "vp2", space="real")
    found = protocol_of("robodesk")
    assert found is not None
    made["how"] = replace(made["how"], episodes=episodes_of("robodesk"))
    facts = {"goal_offset": 10, "block": 1, "quality": "paper"}
    assert not found.departures(made["planner"], made["mpc"], made["how"], 64, facts)
    codes = preset("robodesk", "vp2", space="latent")["planner"]
    assert codes.std == (0.5,)
    departs = found.departures(codes, made["mpc"], made["how"], 32, facts)
    assert departs == {"size": [32, 64], "planner.std": [[0.5], [0.5, 0.5, 0.5, 0.1, 0.1]]}
    other = replace(made["how"], encoder=Path("dino"))
    departs = found.departures(made["planner"], made["mpc"], other, 64, facts | {"block": 2})
    assert departs == {"encoder": ["dino", None], "block": [2, 1]}
    fast = found.departures(
        made["planner"], made["mpc"], made["how"], 64, facts | {"quality": "fast"}
    )
    assert fast == {"quality": ["fast", "paper"]}  # the default here; no number compares
    assert found.always.startswith("starts and goals of our scripted hand")
    assert frame_size("robodesk", None) == (64, 64) and frame_size("robodesk", 32) == (32, 32)
    assert frame_size("crafter", None) == (28, 36) and frame_size("scene", None) == (32, 32)
    assert "planner" not in preset("robodesk", None, space="real") and not preset(
        "scene", None, space="real"
    )


def test_bounds_alone_plan_real_actions_as_the_protocol_does() -> None:
    """Without a world there are no codes, which have no dimensions to name."""
    asked = ["robodesk", "--protocol", "vp2"]
    assert preset_of(asked)["planner"].std == (0.5, 0.5, 0.5, 0.1, 0.1)
    assert preset_of([*asked, "--run", "runs/a"])["planner"].std == (0.5,)
    assert len(preset_of([*asked, "--run=runs/a", "--space=real"])["planner"].std) == 5


def test_what_does_not_fit_is_said(colaworld, trained, scene, tmp_path) -> None:
    def refused(*asked: object) -> str:
        said = colaworld("plan", *asked, "--out", tmp_path, *FEW)
        assert said.status == 2 and not list(tmp_path.iterdir())
        return said.plain

    run = ("--run", trained, "--data", scene)
    assert "this run knows no real actions: colaworld adapt" in refused(
        "scene", *run, "--space", "real"
    )
    assert "its actions are 5 classes, point-mass takes 2 numbers" in refused("point-mass", *run)
    assert "mpc.calls: a round of categorical needs 8 model calls, 3 are left of 3" in refused(
        "scene", "--mpc.calls", 3
    )
    assert "--goal-offset: expected 1 .. 10 moves" in refused("scene", "--goal-offset", 30)
    assert "--goal-offset: expected <= 1000" in refused("pusht", "--goal-offset", 100_000)
    assert "--rows: nobody is left to play" in refused("scene", "--rows", "world")
    assert "--prior: it belongs to a world; name it with --run" in refused(
        "scene", "--prior", "data"
    )
    assert "its frames are 32x32 px (height x width), those to be planned in 16x16" in refused(
        "scene", "--data", scene, "--size", 16
    )
    assert "its actions are 5 classes, point-mass takes 2 numbers" in refused(
        "point-mass", "--data", scene
    )
    assert "expected one of" in refused("scene", "--planner", "cemm")
    assert "--protocol vp2: it is of robodesk, not of scene" in refused(
        "scene", "--protocol", "vp2"
    )
    assert "no protocol 'vp3' is registered" in refused("robodesk", "--protocol", "vp3")
    assert "name the environment first: colaworld plan scene" in refused("--seed", 1, "scene")
    assert "--task: scene has none; leave it out" in refused("scene", "--task", "reach")
    assert "--size 16: frames are those of the run, 32x32 px; leave it out" in refused(
        "scene", *run, "--size", 16
    )
    assert (
        "no environment with goals 'scen' is registered; known: crafter, point-mass, pusht, robodesk, scene"
        in refused("scen")
    )
    assert "a data prior is of codes" in refused(
        "scene", *run, "--prior", "data", "--planner", "cem"
    )


@pytest.mark.parametrize(
    ("call", "where", "said"),
    [
        (
            "plan scene --size 16 --out",
            "file/in",
            "--out: expected a folder, there or to be made, got",
        ),
        ("goals scene --out", "file/in", "--out: expected a file to be written, got"),
        ("goals scene --out", "", "expected a file, found a folder"),
        ("goal-head scene --size 16 --out", "file/in", "--out: expected a file to be written, got"),
        ("plan-table a=none --json", "file/in", "--json: expected a file to be written, got"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_anything_is_played(
    call, where, said, colaworld, tmp_path
) -> None:
    (tmp_path / "file").write_text("")
    found = colaworld(*call.split(), tmp_path / where)
    assert found.status == 2 and said in found.plain and not found.out


def test_a_planner_that_one_row_cannot_use_is_refused_before_any_row_plays(
    colaworld, tmp_path
) -> None:
    asked = ("--size", 16, "--block", 20, "--planner", "beam", "--rows", "random", "oracle")
    said = colaworld("plan", "point-mass", *asked, "--episodes", 1, "--out", tmp_path)
    assert said.status == 2 and not said.out
    assert "row oracle: beam: expected at most 65536 actions a step" in said.plain


def test_what_was_played_is_told_where_the_disk_is_full(colaworld, monkeypatch, tmp_path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = colaworld("plan", "scene", "--size", 16, "--rows", "random", "--out", tmp_path, *FEW)
    assert said.status == 1 and "random " in said.out and not list(tmp_path.iterdir())
    assert f"No space left on device: '{tmp_path}/plan.json'" in said.err


@pytest.mark.parametrize(
    ("env", "module", "install"),
    [
        ("crafter", "crafter", "pip install 'colaworld[crafter]'"),
        ("pusht", "gym_pusht", "pip install 'colaworld[pusht]'"),
        ("robodesk", "mujoco", "pip install 'colaworld[robodesk]'"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "goals"])
def test_a_missing_extra_is_named(
    colaworld, monkeypatch, tmp_path, verb, env, module, install
) -> None:
    if env == "robodesk":
        from colaworld.planning import robodesk_task

        robodesk_task._desk.cache_clear()  # one may be open from before
    monkeypatch.setitem(sys.modules, module, None)
    said = colaworld(verb, env, "--out", tmp_path / "new")
    assert said.status == 2 and install in said.plain and len(said.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
