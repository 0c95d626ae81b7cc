"""colaworld goal-head and plan --head: what is learnt of a scene is what plans cost there, and nowhere else."""

from __future__ import annotations

import json

import pytest

from colaworld.cli.goal_head import _preset
from colaworld.cli.plan_options import preset_of
from colaworld.planning.config import MPCConfig
from colaworld.planning.goal_head import load_head
from colaworld.runs import steering

PLAYED = ("--mpc.steps", 4, "--mpc.horizon", 3, "--planner.candidates", 24)
FEW = (*PLAYED, "--planner.iterations", 3)
LEARNT = ("--episodes", 24, "--fit-steps", 30, *FEW)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head of frames of 16x16 px, hardly trained."""
    from colaworld.cli.main import main

    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    call = ("goal-head", "scene", "--size", 16, "--goal-offset", 2, "--out", path, *LEARNT)
    assert main([str(a) for a in call]) == 0
    return path


def test_the_file_tells_how_right_it_is_and_what_it_saw(head, colaworld, tmp_path) -> None:
    _, described = load_head(head)
    assert described["env"] == "scene" and described["shape"] == [3, 16, 16]
    assert described["goal_offset"] == 2 and described["training"]["episodes"] == 24
    found = described["held_out"]
    assert found["episodes"] == 5 and 0 <= found["accuracy"] <= 1
    out = tmp_path / "value.safetensors"
    asked = ("--size", 16, "--out", out, "--discount", 0.8, "--over", "last")
    said = colaworld("goal-head", "scene", *asked, *LEARNT)
    assert said.status == 0 and "held out: 5 episodes, " in said.out
    assert "mean distance from the target" in said.out and "right in" not in said.out
    head, described = load_head(out)
    assert head.config.discount == 0.8 and described["training"]["over"] == "last"


def test_a_head_alone_is_a_cost(head, colaworld, tmp_path) -> None:
    asked = ("--size", 16, "--episodes", 1, "--rows", "oracle", "--goal-offset", 2, *FEW)
    costs = []
    for weights in ((1, 0), (0, 2), (1, 2)):
        more = ("--distance-weight", weights[0], "--head-weight", weights[1], "--mpc.steps", 1)
        said = colaworld("plan", "scene", "--head", head, *asked, *more, "--out", tmp_path)
        assert said.status == 0
        result = json.loads((tmp_path / "plan.json").read_text())
        costs.append(result["rows"]["oracle"]["cost_by_decision"][0])
    assert costs[0] > 0 and len(set(costs)) == 3
    assert f"- 2 logit of {head}" in said.plain
    assert result["protocol"]["head"] == str(head) and result["protocol"]["head_weight"] == 2


def test_a_head_of_latents_plans_without_decoding(colaworld, trained, scene, tmp_path) -> None:
    path = tmp_path / "latent.safetensors"
    said = colaworld("goal-head", "scene", "--run", trained, "--out", path, *LEARNT)
    assert said.status == 0
    assert load_head(path)[0].config.tokenizer
    run = ("--run", trained, "--data", scene, "--head", path, "--out", tmp_path, "--episodes", 1)
    said = colaworld("plan", "scene", *run, "--cost", "latents", *FEW, "--rows", "world")
    assert said.status == 0
    said = colaworld("plan", "scene", *run, *FEW)  # before anything is read or trained
    assert said.status == 2 and "it reads latents; plan with --cost latents" in said.plain
    said = colaworld("plan", "scene", *run, "--cost", "latents", "--distance-weight", 0, *FEW)
    assert said.status == 2 and "nothing tells the goal in row oracle" in said.plain


def test_what_does_not_fit_is_said(head, colaworld, tmp_path) -> None:
    def refused(*asked: object) -> str:
        said = colaworld(*asked, "--out", tmp_path, *FEW)
        assert said.status == 2 and not list(tmp_path.iterdir())
        return said.plain

    assert "another frames [C, h, w]: expected [3, 32, 32], got [3, 16, 16]" in refused(
        "plan", "scene", "--head", head
    )
    assert "another environment: expected point-mass, got scene" in refused(
        "plan", "point-mass", "--size", 16, "--head", head, "--planner", "categorical"
    )
    assert "--distance-weight 0: nothing tells the goal" in refused(
        "plan", "scene", "--distance-weight", 0
    )
    assert "--distance-weight 0, --head-weight 0: nothing tells the goal" in refused(
        "plan", "scene", "--size", 16, "--head", head, "--distance-weight", 0, "--head-weight", 0
    )
    assert "--head-weight: there is no head" in refused("plan", "scene", "--head-weight", 2)
    assert "with config.json, found none" in refused("plan", "scene", "--encoder", tmp_path)
    assert "--encoder: it sees frames" in refused(
        "plan", "scene", "--encoder", tmp_path, "--cost", "latents"
    )
    assert "expected a file, found a folder" in refused("goal-head", "scene")
    assert "--head none: there is nothing of this name" in refused(
        "plan", "scene", "--head", "none"
    )
    assert "name the environment first: colaworld goal-head scene" in refused(
        "goal-head", "--seed", 1, "scene"
    )


def test_the_loop_is_that_of_the_environments_protocol() -> None:
    """As plan plays it, and by the same steps of a plan."""
    for env in ("pusht", "robodesk"):
        head, plan = _preset([env, "--seed", "1"]), preset_of([env])
        assert head.mpc == plan["mpc"] != MPCConfig() and head.how.over == plan["how"].over
    assert _preset(["pusht"]).how.over == "last" != _preset(["scene"]).how.over
    assert _preset(["scene"]).mpc == _preset([]).mpc == MPCConfig()


def test_a_head_of_another_environment_is_refused_before_codes_are_read(
    head, colaworld, trained, scene, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(steering, "steer", lambda *_, **__: pytest.fail("codes were read"))
    run = ("--run", trained, "--data", scene, "--out", tmp_path / "plan")
    said = colaworld("plan", "point-mass", *run, "--head", head)
    assert said.status == 2
    assert "this head is of another environment: expected point-mass, got scene" in said.plain
