"""The masked loss by hand."""

from __future__ import annotations

import pytest
import torch

from colaworld.flow.loss import flow_matching_loss


def test_mean_over_the_frames_that_are_predicted():
    target = torch.zeros(2, 1, 3, 1, 2)
    predicted = torch.zeros(2, 1, 3, 1, 2)
    predicted[0, 0, 1] = torch.tensor([1.0, 3.0])  # frame error (1 + 9) / 2 = 5
    predicted[0, 0, 2] = torch.tensor([2.0, 2.0])  # 4
    predicted[1, 0, 2] = torch.tensor([0.0, 2.0])  # 2
    predicted[:, :, 0] = 100.0  # history: masked out
    predicted[1, 0, 1] = 50.0  # masked out in clip 1 alone
    mask = torch.tensor([[False, True, True], [False, False, True]])
    assert flow_matching_loss(predicted, target, mask).item() == pytest.approx((5 + 4 + 2) / 3)


def test_an_average_that_does_not_exist_is_not_another_one():
    x = torch.zeros(1, 1, 2, 1, 1)
    with pytest.raises(ValueError, match=r"average: expected 'frames' or 'clips', got 'clip'"):
        flow_matching_loss(x, x, torch.ones(1, 2).bool(), average="clip")


def test_mean_over_clips_does_not_depend_on_how_a_batch_is_cut(generator):
    """Clips with 1, 2 and 4 of 4 frames to predict: by hand, and as two passes of unlike sizes."""
    predicted = torch.randn(3, 2, 4, 2, 2, generator=generator)
    target = torch.zeros_like(predicted)
    mask = torch.arange(4) >= torch.tensor([[3], [2], [0]])
    frame = predicted.square().mean(dim=(1, 3, 4))
    by_hand = (frame[0, 3:].mean() + frame[1, 2:].mean() + frame[2].mean()) / 3
    made = flow_matching_loss(predicted, target, mask, average="clips")
    torch.testing.assert_close(made, by_hand)
    parts = [
        len(predicted[s])
        / 3
        * flow_matching_loss(predicted[s], target[s], mask[s], average="clips")
        for s in (slice(1), slice(1, 3))
    ]
    torch.testing.assert_close(made, sum(parts))
    assert not torch.isclose(made, flow_matching_loss(predicted, target, mask))
    same = mask[:1].expand(3, -1)  # equally many everywhere: the two definitions agree
    torch.testing.assert_close(
        flow_matching_loss(predicted, target, same, average="clips"),
        flow_matching_loss(predicted, target, same),
    )
    nothing = flow_matching_loss(predicted, target, torch.zeros(3, 4).bool(), average="clips")
    assert nothing.item() == 0


def test_gradient_stays_off_the_masked_frames(generator):
    predicted = torch.randn(1, 2, 2, 2, 2, generator=generator).requires_grad_()
    mask = torch.tensor([[False, True]])
    flow_matching_loss(predicted, torch.zeros_like(predicted), mask).backward()
    assert predicted.grad[:, :, 0].abs().max() == 0
    torch.testing.assert_close(predicted.grad[:, :, 1], predicted.detach()[:, :, 1] * 2 / 8)


def test_half_precision_is_averaged_in_float32():
    predicted = torch.full((1, 1, 1, 64, 64), 1.01, dtype=torch.bfloat16)
    loss = flow_matching_loss(predicted, torch.zeros_like(predicted), torch.ones(1, 1).bool())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(predicted.float()[0, 0, 0, 0, 0].item() ** 2, rel=1e-6)


def test_no_frame_to_predict_is_zero_not_nan():
    x = torch.ones(1, 1, 2, 1, 1)
    assert flow_matching_loss(x, 0 * x, torch.zeros(1, 2).bool()).item() == 0


def test_shapes_that_do_not_fit_are_named():
    x = torch.zeros(2, 1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 2, 2\), \(2, 1, 3, 2, 2\), \(2, 2\)"):
        flow_matching_loss(x, x, torch.ones(2, 2).bool())
    with pytest.raises(ValueError, match=r"expected equal \[B, C, T, h, w\]"):
        flow_matching_loss(x[:, :, :2], x, torch.ones(2, 3).bool())
