"""The action path: which action reaches which frame, the null action, and a start at nothing."""

from __future__ import annotations

import pytest
import torch

from colaworld.models.conditioning import ActionConditioner
from colaworld.models.config import ConditionerConfig

WIDTH, BLOCKS, TOKENS, DIM = 12, 4, 2, 5


def build(r: int = 1, **changes) -> ActionConditioner:
    config = ConditionerConfig(depth=2, heads=2, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ActionConditioner(
            config, width=WIDTH, blocks=BLOCKS, tokens=TOKENS, dim=DIM, actions_per_frame=r
        )


def actions(steps: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, steps, TOKENS, DIM, generator=generator)


@pytest.mark.parametrize("r", [1, 4])
@pytest.mark.parametrize("per_block", [True, False])
def test_one_modulation_per_frame_and_block(r, per_block):
    made = build(r, per_block=per_block)(actions(3 * r))
    assert made.shape == (2, 4, BLOCKS if per_block else 1, 6 * WIDTH)


def test_untrained_it_adds_exactly_nothing():
    conditioner = build()
    for drop in (None, torch.tensor([[True, False, True]] * 2), torch.ones(2, 3).bool()):
        assert not conditioner(actions(3), drop).any()


@pytest.mark.parametrize("r", [1, 4])
def test_the_r_actions_into_a_frame_move_it_and_later_frames_only(r, randomised):
    conditioner = randomised(build(r))
    codes = actions(3 * r)
    with torch.no_grad():
        before = conditioner(codes)
        for step in range(3 * r):
            other = codes.clone()
            other[0, step] += 0.5
            moved = (conditioner(other) - before).abs().amax((2, 3))
            frame = step // r + 1  # the first frame that this action leads into
            assert moved[1].max() == 0
            assert moved[0, :frame].max() == 0 and (moved[0, frame:] > 1e-6).all(), step


def test_packing_keeps_the_order_of_actions(randomised):
    """Two actions into one frame: swapping them must matter."""
    conditioner = randomised(build(2))
    codes = actions(2)
    with torch.no_grad():
        assert (conditioner(codes) - conditioner(codes.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize("r", [1, 4])
def test_a_dropped_action_is_the_null_action(r, randomised):
    conditioner = randomised(build(r))
    codes = actions(2 * r)
    drop = torch.zeros(2, 2 * r, dtype=torch.bool)
    drop[0, r], drop[1, 0] = True, True
    replaced = codes.clone()
    replaced[0, r] = replaced[1, 0] = conditioner.null.detach().view(TOKENS, DIM)
    with torch.no_grad():
        torch.testing.assert_close(conditioner(codes, drop), conditioner(replaced))
        assert (conditioner(codes, drop) - conditioner(codes)).abs().max() > 1e-3
        null = conditioner.null_modulation(codes)
        everywhere = conditioner.null.view(TOKENS, DIM).expand_as(codes)
        torch.testing.assert_close(null, conditioner(everywhere))
        assert torch.equal(null, conditioner.null_modulation(torch.zeros_like(codes)))


def test_null_action_and_codes_share_the_gradient(randomised):
    conditioner = randomised(build())
    codes = actions(3).requires_grad_()
    drop = torch.tensor([[False, True, False], [False, False, False]])
    conditioner(codes, drop).square().mean().backward()
    assert conditioner.null.grad.any()
    reached = codes.grad.abs().amax((2, 3)) > 0
    assert torch.equal(reached, ~drop)


def test_no_frame_but_the_first(randomised):
    """A single frame is led into by nothing: its modulation is learned, and needs no action."""
    conditioner = randomised(build())
    with torch.no_grad():
        alone = conditioner(actions(0))
        assert alone.shape == (2, 1, BLOCKS, 6 * WIDTH)
        torch.testing.assert_close(alone, conditioner(actions(3))[:, :1])


def test_the_residual_stream_stays_in_float32_under_autocast(randomised):
    conditioner = randomised(build())
    seen = []
    for block in conditioner.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        conditioner(actions(3))
    assert seen == [torch.float32, torch.float32]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"6 actions are not whole frames of 4 actions"):
        build(4)(actions(6))
    with pytest.raises(ValueError, match=r"expected codes \[B, r \(T - 1\), 2, 5\], got \(1, 2, 1"):
        build()(torch.zeros(1, 2, 1, DIM))
    with pytest.raises(ValueError, match=r"conditioner.heads: width 12 / heads 5 must be an even"):
        ActionConditioner(ConditionerConfig(heads=5), width=12, blocks=1, tokens=1, dim=1)


def test_tokens_of_an_action_are_dropped_one_by_one(randomised):
    conditioner = randomised(build(2, nested_dropout=0.5))
    codes = actions(4)
    drop = torch.zeros(2, 4, TOKENS, dtype=torch.bool)
    drop[0, 1, 1] = drop[1, 2, 0] = drop[1, 2, 1] = True
    null = conditioner.null.detach().view(TOKENS, DIM)
    replaced = torch.where(drop[..., None], null, codes)
    with torch.no_grad():
        torch.testing.assert_close(conditioner(codes, drop), conditioner(replaced))
        assert (conditioner(codes, drop) - conditioner(codes)).abs().max() > 1e-3
        whole = drop.all(-1, keepdim=True).expand_as(drop)
        assert torch.equal(conditioner(codes, whole), conditioner(codes, whole[..., 0]))


def test_one_token_cannot_be_shortened():
    config = ConditionerConfig(heads=2, nested_dropout=0.5)
    with pytest.raises(ValueError, match=r"idm.tokens must be at least 2, got 1"):
        ActionConditioner(config, width=WIDTH, blocks=1, tokens=1, dim=DIM)
