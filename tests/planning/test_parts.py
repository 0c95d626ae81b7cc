"""Noise, prior, costs, spaces and the table of codes, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colaworld.contracts import ActionSpec
from colaworld.envs.point_mass import PointMass
from colaworld.planning import Continuous, Discrete
from colaworld.planning.action_map import ActionMap
from colaworld.planning.contracts import Seen
from colaworld.planning.costs import ActionPenalty, GoalDistance, WeightedSum
from colaworld.planning.exact import PointMassDynamics
from colaworld.planning.noise import coloured, correlated
from colaworld.planning.prior import CodeBigram
from colaworld.planning.spaces import Grid, Scores
from colaworld.planning.tasks import PointMassTask

MANY = (1, 40_000, 6, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
@pytest.mark.parametrize("colour", [0.0, 2.0])
def test_coloured_noise_has_the_covariance_of_its_spectrum(steps, colour) -> None:
    """sum over frequencies f of power(f) cos(2 pi f lag), each counted as often as it occurs; step by step."""
    noise = coloured((1, 40_000, steps, 1), colour, generator=seeded())[0, :, :, 0].double()
    measured = noise.T @ noise / len(noise)
    power = [max(min(k, steps - k), 1) ** -colour for k in range(steps)]  # both signs of f
    for lag in range(steps):
        wanted = sum(p * np.cos(2 * np.pi * k * lag / steps) for k, p in enumerate(power))
        assert float(measured[0, lag]) == pytest.approx(wanted / sum(power), abs=0.03)
        assert float(measured.diagonal()[lag]) == pytest.approx(1, abs=0.03)


def test_correlated_noise_has_vp2s_variances() -> None:
    """Var e_t = b^2 Var e_(t-1) + (1 - b)^2, from 1; Cov(e_0, e_1) = b."""
    noise = correlated(MANY, 0.5, generator=seeded())[0, :, :, 0]
    wanted = [1.0]
    for _ in range(5):
        wanted.append(0.25 * wanted[-1] + 0.25)
    assert noise.var(dim=0).tolist() == pytest.approx(wanted, abs=0.03)
    assert float((noise[:, 0] * noise[:, 1]).mean()) == pytest.approx(0.5, abs=0.02)


def test_a_bigram_counts_pairs_within_sequences() -> None:
    """0 1 1 and 1 0: 0 -> 1 once, 1 -> 1 once, 1 -> 0 once; 2 never, so after it as often as each occurs."""
    sequences = [torch.tensor([[0], [1], [1]]), torch.tensor([[1], [0]])]
    prior = CodeBigram.from_indices(sequences, Discrete(3))
    torch.testing.assert_close(prior.first, torch.tensor([[0.4, 0.6, 0.0]]))
    wanted = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.4, 0.6, 0.0]])
    torch.testing.assert_close(prior.follows[0], wanted)
    two = prior.marginals(1, 2, last=None)[0, :, 0]  # .4 * (0 1 0) + .6 * (.5 .5 0)
    torch.testing.assert_close(two, torch.tensor([[0.4, 0.6, 0.0], [0.3, 0.7, 0.0]]))
    drawn = prior.sample((1, 30_000, 2), last=torch.tensor([[0]]), generator=seeded())[0, :, :, 0]
    assert (drawn[:, 0] == 1).all()  # nothing else followed 0
    assert float((drawn[:, 1] == 1).float().mean()) == pytest.approx(0.5, abs=0.02)
    smooth = CodeBigram.from_indices(sequences, Discrete(3), smoothing=1.0)
    torch.testing.assert_close(smooth.follows[0, 0], torch.tensor([1 / 4, 2 / 4, 1 / 4]))
    with pytest.raises(ValueError, match=r"expected codes in 0 .. 2, got 0 .. 3"):
        CodeBigram.from_indices([torch.tensor([[0], [3]])], Discrete(3))
    with pytest.raises(ValueError, match="at least one code, got none"):
        CodeBigram.from_indices([], Discrete(3))


def test_distances_count_the_steps_they_are_told_to() -> None:
    """States 1, 2, 4 against a goal of 2 in two dimensions: squared errors 2, 0, 8."""
    imagined = torch.tensor([1.0, 2.0, 4.0])[None, None, :, None].expand(1, 1, 3, 2)
    goal, actions = torch.full((1, 2), 2.0), torch.zeros(1, 1, 3, 1)
    for over, wanted in (("last", 8.0), ("all", 10.0), ("best", 0.0)):
        cost = GoalDistance(goal, reads="states", over=over)
        assert cost(imagined, actions).tolist() == [[wanted]]
    mean = GoalDistance(goal, reads="states", reduce="mean")
    assert mean(imagined, actions).tolist() == [[4.0]]
    with pytest.raises(ValueError, match="expected over 'last', 'all' or 'best'"):
        GoalDistance(goal, reads="states", over="first")
    with pytest.raises(ValueError, match=r"expected states \[1, n, T, 3\] as the goal's"):
        GoalDistance(torch.zeros(1, 3), reads="states")(imagined, actions)


def test_features_are_compared_in_place_of_pixels() -> None:
    """An encoder that sees only the mean colour: a shifted picture is as good as the goal."""
    picture = torch.rand(1, 3, 4, 4, generator=seeded())
    shifted = picture.roll(1, dims=3)[:, None, None]
    actions = torch.zeros(1, 1, 1, 1)

    def encoder(frames: torch.Tensor) -> torch.Tensor:
        return frames.mean(dim=(2, 3))

    assert float(GoalDistance(picture, reads="frames")(shifted, actions)) > 0.1
    cost = GoalDistance(picture, reads="frames", encoder=encoder, rows=1)
    assert float(cost(shifted, actions)) == pytest.approx(0, abs=1e-10)


def test_actions_cost_and_costs_add_up() -> None:
    numbers = torch.tensor([[[[1.0, 0.0], [0.5, -1.0]]]])
    assert ActionPenalty((0.0, 0.0))(numbers, numbers).tolist() == [[2.25]]
    assert ActionPenalty((0.5, 0.0))(numbers, numbers).tolist() == [[1.25]]
    classes = torch.tensor([[[[0], [3], [0]], [[1], [2], [4]]]])
    assert ActionPenalty((0,))(classes, classes).tolist() == [[1.0, 3.0]]
    goal = GoalDistance(torch.zeros(1, 2), reads="states")
    both = WeightedSum((2.0, goal), (10.0, ActionPenalty((0.0, 0.0))))
    assert both.reads == "states"
    assert both(numbers, numbers).tolist() == [[2 * 1.25 + 22.5]]
    with pytest.raises(ValueError, match=r"that read the same, got \['latents', 'states'\]"):
        WeightedSum((1.0, goal), (1.0, GoalDistance(torch.zeros(1, 2), reads="latents")))


def test_each_space_is_seen_as_the_other_and_back() -> None:
    grid = Grid(Continuous((-1.0, 0.0), (1.0, 4.0)), bins=5)
    assert grid.space == Discrete(5, 2)
    values = grid.out(torch.tensor([[0, 1], [4, 4]]))
    assert values.tolist() == [[-1.0, 1.0], [1.0, 4.0]]
    assert grid.into(torch.tensor([[-0.9, 1.2], [7.0, -7.0]])).tolist() == [[0, 1], [4, 0]]
    scores = Scores(Discrete(3, 2))
    assert scores.space.width == 6
    codes = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(scores.out(scores.into(codes)), codes)
    assert scores.out(torch.tensor([0.1, 0.3, 0.2, 0.9, 0.0, 0.9])).tolist() == [1, 0]


def test_codes_stand_for_the_action_seen_most_under_them() -> None:
    """Code 0 0 with classes 1 1 2, code 1 0 with 0: three of four right, one class for all: two."""
    indices = torch.tensor([[0, 0], [0, 0], [1, 0], [0, 0]])
    actions = torch.tensor([1, 1, 0, 2])
    spec = ActionSpec("action", "discrete", 3)
    found = ActionMap.fit(indices, actions, space=Discrete(2, 2), spec=spec)
    assert found.codes.tolist() == [[0, 0], [1, 0]] and found.actions.tolist() == [1, 0]
    assert (found.agreement, found.baseline) == (0.75, 0.5)
    assert found.absent == (2,)  # recorded, and never the most frequent
    acted, known = found(torch.tensor([[1, 0], [0, 1], [1, 1]]))
    assert acted.tolist() == [0, 1, 0] and known.tolist() == [True, False, False]


def test_codes_stand_for_the_mean_of_numbers() -> None:
    """Means 2 and 5 of values 1 3 5: variance about 3 is 8, what is left 2: three quarters explained."""
    indices = torch.tensor([[0], [0], [1]])
    actions = torch.tensor([[1.0], [3.0], [5.0]])
    spec = ActionSpec("action", "continuous", 1)
    found = ActionMap.fit(indices, actions, space=Discrete(2), spec=spec)
    assert found(torch.tensor([[1], [0]]))[0].tolist() == [[5.0], [2.0]]
    assert found.agreement == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"actions: expected \[3, 1\], .* got \[2, 1\]"):
        ActionMap.fit(indices, actions[:2], space=Discrete(2), spec=spec)


def test_the_point_mass_moves_as_its_dynamics_say() -> None:
    env, generator = PointMass(height=16, width=16), np.random.default_rng(0)
    env.reset(5)
    dynamics = PointMassDynamics(step=env.acceleration)
    state = dynamics.begin(Seen(torch.zeros(1, 1, 3, 1, 1), seeded(), [env]))
    pushes = generator.uniform(-1, 1, (7, 2))
    wanted = []
    for push in pushes:
        env.step(push)
        wanted.append([*env.position, *env.velocity])
    rolled = dynamics.roll(state, torch.from_numpy(pushes).float()[None, None])[0, 0]
    np.testing.assert_allclose(rolled.numpy(), wanted, atol=1e-6)
    frame = env.draw(np.array([0.25, 0.75]))  # between four pixels of 4 and 12
    brightest = np.argwhere(frame[..., 0] == frame[..., 0].max())
    assert brightest.mean(axis=0).tolist() == [11.5, 3.5]
    np.testing.assert_array_equal(env.draw(np.array([1.25, -0.25])), frame)  # it wraps
    with pytest.raises(ValueError, match=r"two numbers in \[-1, 1\]"):
        env.step(np.array([2.0, 0.0]))


@pytest.mark.parametrize("seed", range(8))
def test_the_goal_of_the_point_mass_takes_all_its_pushes(seed) -> None:
    """Even full pushes straight at it have not arrived one step earlier."""
    task = PointMassTask(height=16, width=16, goal_offset=4)
    task.reset(seed)
    way = task.goal - task.state()["position"]
    reach = 0.02 * np.array([1, 3, 6, 10])  # widths after so many full pushes
    assert np.abs(way).max() == pytest.approx(reach[3])
    push = way / reach[3]
    done = []
    for _ in range(4):
        task.step(push)
        done.append(task.succeeded())
    assert done == [False, False, False, True]
    assert np.abs(way).max() - reach[2] > task.tolerance
