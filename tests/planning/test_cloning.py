"""Behaviour cloning: it learns what the goal asks for, on episodes it never saw, from equal seeds equally."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colaworld.contracts import ActionSpec
from colaworld.planning.cloning import Cloned, CloningAgent, Policy, clone, untold
from colaworld.planning.config import CloningConfig
from colaworld.planning.contracts import Seen
from colaworld.planning.mpc import Asked

CLASSES = ActionSpec("action", "discrete", 3)
NUMBERS = ActionSpec("action", "continuous", 2)
SMALL = CloningConfig(steps=120, batch=32, width=16, learning_rate=3e-3)


def _films(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bar that goes left (1) or right (2) all along, and which of them; [C, 4, 3, 8, 16], [C, 3]."""
    rng = torch.Generator().manual_seed(0)
    way = torch.randint(1, 3, (count,), generator=rng)
    begin = torch.randint(3, 11, (count,), generator=rng)
    at = begin[:, None] + torch.arange(4) * (2 * way - 3)[:, None]
    films = torch.zeros(count, 4, 3, 8, 16, dtype=torch.uint8)
    for thick in range(3):
        films.movedim(-1, 2)[torch.arange(count)[:, None], torch.arange(4), at + thick] = 200
    return films, way[:, None].expand(-1, 3).contiguous()


@pytest.fixture(scope="module")
def films() -> tuple[torch.Tensor, torch.Tensor]:
    return _films(200)


def _cloned(films, spec: ActionSpec, actions: torch.Tensor, seed: int = 0) -> Cloned:
    episodes = torch.arange(len(films)) // 2
    return clone(films, actions, episodes, spec=spec, config=SMALL, seed=seed)


def test_classes_are_chosen_by_where_the_goal_lies(films) -> None:
    frames, actions = films
    cloned = _cloned(frames, CLASSES, actions)
    assert cloned.error < 0.1 < 0.25 < cloned.baseline
    assert sum(cloned.clips) == 200 and cloned.clips[1] == cloned.clips[2] == 20
    seen = frames[:4, 0].float() / 255
    goals = frames[:4, 2].float() / 255
    agent = CloningAgent(cloned)
    rng = torch.Generator()
    decided = agent.decide(Asked(Seen(seen[:, None], rng), goals, 5, rng))
    assert decided.actions.shape == (4, 1) and decided.calls == 0 and decided.plan is None
    assert (decided.actions[:, 0] == actions[:4, 0]).double().mean() >= 0.75


def test_pairs_set_aside_are_judged_in_batches(films, monkeypatch) -> None:
    """All at once they would be as many frames as no memory holds."""
    given = []
    forward = Policy.forward

    def counted(self, frames, goals):
        given.append(len(frames))
        return forward(self, frames, goals)

    monkeypatch.setattr(Policy, "forward", counted)
    frames, actions = films
    clone(
        *(frames, actions, torch.arange(200)),
        spec=CLASSES,
        config=replace(SMALL, steps=1),
        seed=0,
    )
    assert given == [32, 256, 144, 256, 144]  # a step, then 20 pairs of each of 20 clips, twice


def test_a_loss_that_is_not_finite_is_said(films) -> None:
    frames, actions = films
    wild = replace(SMALL, steps=2, learning_rate=1e9)
    with pytest.raises(ValueError, match=r"cloning.learning_rate: .* not finite"):
        clone(frames, actions, torch.arange(200), spec=CLASSES, config=wild, seed=0)


def test_numbers_come_out_in_their_own_units(films) -> None:
    frames, ways = films
    sideways = 300.0 + 100.0 * (2 * ways - 3)
    numbers = torch.stack([sideways, torch.full_like(sideways, 7.0)], dim=-1)
    cloned = _cloned(frames, NUMBERS, numbers)
    assert cloned.error < 0.4 and cloned.baseline == 1.0
    assert cloned.by_number == (cloned.error, None)
    said = cloned.choose(frames[:30, 0].float() / 255, frames[:30, 1].float() / 255)
    assert said.shape == (30, 2)
    torch.testing.assert_close(said[:, 1], torch.full((30,), 7.0), atol=1e-3, rtol=0)
    assert (said[:, 0] > 300).eq(numbers[:30, 0, 0] > 300).double().mean() > 0.8


def test_the_error_of_numbers_counts_each_alike_whatever_its_unit() -> None:
    """One in px is told, one in radians is not; pooled, px alone would count. One that stays has no error."""
    rng = torch.Generator().manual_seed(0)
    done = torch.randn(500, 3, generator=rng) * torch.tensor([100.0, 0.1, 0.0])
    done[:, 2] += 100.3
    said = done.clone()
    said[:, 1] = 0
    told, untold_, stays = untold(said, done, done.double().mean(0))
    assert told == 0 and untold_ == pytest.approx(1, abs=0.01) and stays is None


def test_equal_seeds_train_equally_and_no_global_state_is_touched(films) -> None:
    frames, actions = films
    before = torch.get_rng_state()
    short = replace(SMALL, steps=3)
    episodes = torch.arange(200)
    one, again, other = (
        clone(frames, actions, episodes, spec=CLASSES, config=short, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    now, goals = frames[:9, 0].float() / 255, frames[:9, 1].float() / 255
    assert torch.equal(one.choose(now, goals), again.choose(now, goals))
    assert one.told() == again.told() != other.told()


def test_too_few_episodes_are_refused(films) -> None:
    frames, actions = films
    with pytest.raises(ValueError, match="expected clips of 3 or more episodes, got 2"):
        clone(frames, actions, torch.arange(200) % 2, spec=CLASSES, config=SMALL, seed=0)
