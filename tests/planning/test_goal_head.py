"""A head that is learnt: it tells held-out goals from others, is the same again, and belongs to what it saw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from colaworld.files import FileError
from colaworld.planning import goal_head
from colaworld.planning.goal_head import (
    Examples,
    GoalHead,
    GoalHeadCost,
    HeadConfig,
    check_head,
    fit,
    load_head,
    save_head,
    targets,
)

OF = HeadConfig("dots", "frames", (3, 8, 8), width=24)


def dots(episodes: int = 200) -> Examples:
    """A dot that goes right on 8x8 px; the goal shows it some columns further: every other time in its row, which
    it reaches, else in another, which it never does."""
    g = torch.Generator().manual_seed(0)
    parts: list[list[torch.Tensor]] = [[], [], [], []]
    for number in range(episodes):
        row, goal = (int(torch.randint(1, 7, (), generator=g)) for _ in range(2))
        reached = number % 2 == 0
        for column in range(goal + 1):
            at = row if reached else (row + 4) % 8
            for part, place in ((parts[0], (row, column)), (parts[1], (at, goal))):
                frame = torch.zeros(3, 8, 8)
                frame[:, place[0], place[1]] = 1
                part.append(frame)
            parts[2].append(torch.tensor(goal - column if reached else -1))
            parts[3].append(torch.tensor(number))
    return Examples(*(torch.stack(part) for part in parts))


@pytest.fixture(scope="module")
def learnt() -> tuple[GoalHead, dict]:
    return fit(OF, dots(), seed=1, steps=600)


def test_a_head_is_trained_where_its_pictures_are(monkeypatch) -> None:
    """On a GPU, for which a device without memory stands in; counts and episodes stay on the CPU."""
    monkeypatch.setattr(goal_head, "measure", lambda head, examples: {})
    made = dots(20)
    away = made._replace(seen=made.seen.to("meta"), goal=made.goal.to("meta"))
    head, _ = fit(OF, away, seed=1, steps=2)
    assert {one.device.type for one in head.parameters()} == {"meta"}


def test_success_is_told_in_episodes_that_were_held_out(learnt) -> None:
    _, found = learnt
    assert found["episodes"] == 40 and 0 < found["reached"] < found["moments"]
    assert found["accuracy"] > 0.95 > found["baseline"]
    assert found["found"] > 0.9 and found["false"] < 0.1
    assert found["error"] < found["error_of_mean"] / 3


def test_values_fall_with_the_actions_that_are_left(learnt) -> None:
    torch.testing.assert_close(
        targets(torch.tensor([0, 1, 3, -1]), 0.5), torch.tensor([1, 0.5, 0.125, 0])
    )
    assert targets(torch.tensor([0, 1, -1]), 0.0).tolist() == [1, 0, 0]
    head, found = fit(replace(OF, discount=0.7), dots(), seed=1, steps=600)
    assert found["error"] < found["error_of_mean"] and "accuracy" not in found
    examples = dots()
    one = examples.take(examples.episode == int(examples.episode[examples.left == 3][0]))
    told = head(one.seen, one.goal)
    assert len(told) > 3 and (told.diff() > 0).all()  # nearer, action by action


def test_equal_seeds_learn_equally() -> None:
    examples = dots(20)
    heads = [fit(OF, examples, seed=seed, steps=5)[0] for seed in (1, 1, 2)]
    first, again, other = (torch.cat([p.flatten() for p in h.parameters()]) for h in heads)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_minus_the_logit_is_a_cost(learnt) -> None:
    head, _ = learnt
    examples = dots()
    one = examples.take(examples.episode == int(examples.episode[examples.left == 3][0]))
    film = one.seen[None, None, -3:]  # [1, 1, 3, 3, 8, 8], the goal last
    logit = head(one.seen[-3:], one.goal[-3:])
    actions = torch.zeros(1, 1, 3, 1)
    for over, wanted in (("last", -logit[-1]), ("all", -logit.sum()), ("best", -logit.max())):
        cost = GoalHeadCost(head, one.goal[:1], over=over, rows=2)
        torch.testing.assert_close(cost(film, actions)[0, 0], wanted)
    assert cost.reads == "frames"
    with pytest.raises(
        ValueError, match=r"expected frames \[1, n, T, 3, 8, 8\], got \[1, 1, 3, 3, 8, 9\]"
    ):
        GoalHeadCost(head, one.goal[:1])(torch.zeros(1, 1, 3, 3, 8, 9), actions)


def test_a_file_brings_it_back_with_all_that_was_told(learnt, tmp_path) -> None:
    head, found = learnt
    path = tmp_path / "head.safetensors"
    save_head(path, head, held_out=found)
    back, described = load_head(path)
    assert back.config == OF and described["held_out"] == found
    examples = dots()
    assert torch.equal(back(examples.seen, examples.goal), head(examples.seen, examples.goal))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("other", "text", "none"):
        with pytest.raises(FileError, match=f"{name}.safetensors: expected a file that `colaworld"):
            load_head(tmp_path / f"{name}.safetensors")


def test_a_head_of_something_else_is_refused(learnt, tmp_path) -> None:
    head, _ = learnt
    fits = {"env": "dots", "shape": [3, 8, 8], "tokenizer": None}
    check_head(head, tmp_path, **fits)
    for wrong, words in (
        ({"env": "scene"}, "another environment: expected scene, got dots"),
        (
            {"shape": [3, 8, 9]},
            r"another frames \[C, h, w\]: expected \[3, 8, 9\], got \[3, 8, 8\]",
        ),
        ({"tokenizer": "abc"}, "another tokenizer: expected abc, got None"),
    ):
        with pytest.raises(ValueError, match=words):
            check_head(head, tmp_path, **(fits | wrong))


@pytest.mark.parametrize("left", [-1, 0])
def test_episodes_without_both_ends_teach_nothing(left) -> None:
    examples = dots()._replace(left=torch.full((len(dots().left),), left))
    with pytest.raises(
        ValueError, match=r"reached in \d+ of the \d+ training moments; expected some of both"
    ):
        fit(OF, examples, seed=0, steps=1)
