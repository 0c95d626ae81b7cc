"""Rows with one part replaced by the truth: a part that is useless costs exactly its own step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from colaworld.action_contract import ActionContract
from colaworld.config import ConfigError
from colaworld.models.adapters import TableAdapterConfig
from colaworld.models.latent_action.quantizers import GaussianConfig
from colaworld.planning import TASKS, CategoricalConfig, MPCConfig
from colaworld.planning.action_map import ActionMap
from colaworld.planning.config import EpisodesConfig, MPPIConfig
from colaworld.planning.contracts import Seen
from colaworld.planning.dynamics import InferredDynamics, WorldDynamics
from colaworld.planning.exact import SimulatorDynamics
from colaworld.planning.tasks import PointMassTask, SceneTask
from colaworld.registry import from_outside
from colaworld.runs.planning import plan_run
from colaworld.runs.planning_limits import limits, lines
from colaworld.runs.steering import Steering, steer_real

QUICK = {
    "size": (16, 16),
    "planner": CategoricalConfig(candidates=60, iterations=3),
    "mpc": MPCConfig(horizon=2, steps=2),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def episodes(*rows: str) -> EpisodesConfig:
    return EpisodesConfig(episodes=3, goal_offset=2, rows=rows, shown=0)


def coded(actions: torch.Tensor) -> Steering:
    """Each of 16 combinations of codes stands for an action."""
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    table = ActionMap(codes, actions, torch.ones(16, dtype=torch.int64), 1.0, 0.2)
    return Steering("latent", lambda one, task: task.recorded(table(one[None])[0][0]), table)


def successes(result: dict) -> dict[str, int]:
    return {name: row["successes"] for name, row in result["rows"].items()}


def lost(result: dict) -> dict[str, float]:
    return {" and ".join(one["parts"]): one["lost"]["mean"] for one in result["limits"]}


@pytest.mark.parametrize("useless", [False, True])
def test_an_action_map_that_says_nothing_is_what_limits_the_codes(small, useless) -> None:
    actions = torch.zeros(16, dtype=torch.int64) if useless else torch.arange(16) % 5
    world, steering = replace(small(), frame_size=(16, 16)), coded(actions)
    rows = episodes("oracle-codes", "oracle", "oracle-state")
    result, _ = plan_run("scene", world, config=rows, steering=steering, **QUICK)
    won = 0 if useless else 3
    assert successes(result) == {"oracle-codes": won, "oracle": 3, "oracle-state": 3}
    assert lost(result) == {"action map": 1 - won / 3, "cost": 0, "planner": 0}
    assert result["action_map"]["carried_out"] == 0  # they are those of the world's plans


class _Dark(SceneTask):
    """Pictures that do not tell where the camera is."""

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        frame, goal = super().reset(seed)
        return 0 * frame, 0 * goal

    def frame(self) -> np.ndarray:
        return 0 * super().frame()


def test_a_picture_that_says_nothing_is_what_limits_the_cost() -> None:
    with from_outside():
        TASKS.add("dark-scene", _Dark)
        rows = episodes("oracle", "oracle-state")
        result, _ = plan_run("dark-scene", None, config=rows, **QUICK)
    assert successes(result) == {"oracle": 0, "oracle-state": 3}
    assert lost(result) == {"cost": 1, "planner": 0}


def test_a_planner_that_hardly_looks_is_what_limits_the_truth() -> None:
    few = {**QUICK, "planner": CategoricalConfig(candidates=1, iterations=1)}
    result, _ = plan_run("scene", None, config=episodes("oracle-state"), **few)
    assert successes(result)["oracle-state"] < 3
    assert lost(result) == {"planner": 1 - successes(result)["oracle-state"] / 3}


def test_an_adapter_that_says_nothing_is_what_the_inferred_codes_mend(small) -> None:
    """It gives every action the same codes: the world goes one way under all. What truly happens still differs."""
    world = replace(
        small(TableAdapterConfig(discrete=True, size=5), GaussianConfig()),
        actions=ActionContract("action", "discrete", 5),
    )
    with torch.no_grad():
        for parameter in world.model.adapter.parameters():
            parameter.zero_()
    task = SceneTask(height=8, width=8)
    frame, _ = task.reset(0)
    first = torch.from_numpy(frame).movedim(-1, 0).float()[None, None] / 255
    act = steer_real(world, task).act
    simulator = SimulatorDynamics(act=act)
    actions = torch.arange(5).view(1, 5, 1, 1).expand(1, 5, 3, 1)
    blind, true = WorldDynamics(world, space="real"), InferredDynamics(world, simulator)
    assert blind.space == true.space
    same = blind.roll(blind.begin(Seen(first, seeded(), [task])), actions)
    torch.testing.assert_close(same, same[:, :1].expand_as(same), rtol=0, atol=1e-5)
    made = true.roll(true.begin(Seen(first, seeded(), [task])), actions)
    assert made.std(dim=1).max() > 1e-3
    films = torch.cat([first.expand(5, -1, -1, -1, -1), simulator.roll([task], actions)[0]], dim=1)
    codes = world.infer_actions(films).codes
    wanted = world.rollout_candidates(first, codes[None], generator=seeded())
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


def test_inferred_codes_go_on_from_the_context(small) -> None:
    """The inverse dynamics model sees the frames before, as in training."""
    world = replace(
        small(TableAdapterConfig(discrete=True, size=5)),
        actions=ActionContract("action", "discrete", 5),
    )
    task = SceneTask(height=8, width=8)
    frames = [task.reset(0)[0]]
    for move in (1, 3):
        task.step(move)
        frames.append(task.frame())
    given = torch.from_numpy(np.stack(frames)).movedim(-1, 1).float()[None] / 255
    simulator = SimulatorDynamics(act=steer_real(world, task).act)
    dynamics = InferredDynamics(world, simulator)
    actions = torch.tensor([2, 4, 0]).view(1, 1, 3, 1)
    made = dynamics.roll(dynamics.begin(Seen(given, seeded(), [task])), actions)
    film = torch.cat([given, simulator.roll([task], actions)[0]], dim=1)
    wanted = world.rollout(given, world.infer_actions(film).codes, generator=seeded()).generated
    torch.testing.assert_close(made[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_world_under_inferred_codes_plays(small) -> None:
    world = replace(
        small(TableAdapterConfig(discrete=True, size=5)),
        actions=ActionContract("action", "discrete", 5),
        frame_size=(16, 16),
    )
    steering = steer_real(world, SceneTask(height=16, width=16))
    rows = replace(episodes("world", "world-inferred", "oracle"), episodes=1)
    few = {**QUICK, "planner": CategoricalConfig(candidates=4, iterations=1)}
    result, _ = plan_run("scene", world, config=rows, steering=steering, **few)
    assert list(lost(result)) == ["adapter", "generator", "cost and planner"]
    total = sum(lost(result).values()) + successes(result)["world"]
    assert total == pytest.approx(1)


def test_true_distances_end_where_the_goal_is_reached() -> None:
    """A point mass that flies through its goal has nothing left from there on; its picture comes back."""
    task = PointMassTask(height=16, width=16, goal_offset=2)
    task.reset(0)
    way = (task.goal - task._env.position) / (3 * task._env.acceleration)
    push = torch.tensor(way, dtype=torch.float32).expand(1, 1, 4, 2)
    told = SimulatorDynamics(gives="distances")
    left = told.roll([task], push)[0, 0]
    away = torch.tensor([2 / 3, 0, 0, 0]) * task.distance()
    torch.testing.assert_close(left, away.float(), rtol=1e-5, atol=1e-6)
    last = SimulatorDynamics(gives="distances", last=True).roll([task], push)
    assert last.shape == (1, 1, 1) and last.item() == 0


def test_the_true_cost_is_as_large_as_the_pictures_so_that_mppi_weighs_it_alike() -> None:
    options = {**QUICK, "planner": MPPIConfig(candidates=8, gamma=0.05), "size": (16, 16)}
    rows = replace(episodes("oracle", "oracle-state"), over="last")
    one = {**options, "mpc": MPCConfig(horizon=1, steps=1)}
    for weight in (1.0, 0.01):
        weighted = replace(rows, distance_weight=weight)
        result, _ = plan_run("scene", None, config=weighted, **one)
        seen, true = (result["rows"][name]["cost_by_decision"][0] for name in rows.rows)
        assert 0.2 < true / seen < 5


def test_losses_and_success_add_up_and_rows_that_are_left_out_join_their_parts() -> None:
    won = {
        "world": np.array([[1, 0, 0, 0]]),
        "oracle-codes": np.array([[1, 1, 0, 0]]),
        "oracle": np.array([[1, 1, 1, 0]]),
        "oracle-state": np.array([[1, 1, 1, 1]]),
        "random": np.array([[0, 0, 0, 0]]),
    }
    told = limits(won, "latent")
    assert [one["parts"] for one in told] == [["generator"], ["action map"], ["cost"], ["planner"]]
    assert [one["lost"]["mean"] for one in told] == [0.25, 0.25, 0.25, 0]
    assert 0 < told[-1]["lost"]["high"] < 1 == told[0]["lost"]["mean"] * 4
    assert lines(told)[-1] == "  planner: 0 (0 .. 49), oracle-state to all episodes"
    few = limits({name: won[name] for name in ("world", "oracle")}, "real")
    assert [one["parts"] for one in few] == [["adapter", "generator"], ["cost", "planner"]]
    assert "adapter and generator: 50 (-26 .. 93), world to oracle" in "\n".join(lines(few))
    assert limits({"random": won["random"]}, None) == [] == lines([])
    seeds = limits({"world": np.array([[1, 0], [0, 0]]), "oracle": np.array([[1, 1]])}, "latent")
    assert seeds[0]["lost"]["mean"] == 0.75


def test_what_a_row_needs_is_said(small) -> None:
    class Blind(SceneTask):
        distance = None  # type: ignore[assignment]

        def succeeded(self) -> bool:
            return False

    for row, words in (
        ("oracle-codes", r"--rows oracle-codes: it needs a run whose world plans codes"),
        ("world-inferred", r"--rows world-inferred: it needs an adapted run"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan_run("scene", None, config=episodes(row), **QUICK)
    world, steering = replace(small(), frame_size=(16, 16)), coded(torch.zeros(16, dtype=int))
    with pytest.raises(ConfigError, match="--penalty: codes have no size of their own"):
        rows = replace(episodes("oracle-codes"), penalty=1.0)
        plan_run("scene", world, config=rows, steering=steering, **QUICK)
    with from_outside():
        TASKS.add("blind-scene", Blind)
        with pytest.raises(ConfigError, match="oracle-state: scene does not tell how far a goal"):
            plan_run("blind-scene", None, config=episodes("oracle-state"), **QUICK)
