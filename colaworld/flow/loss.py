"""The flow-matching loss on the frames that are to be predicted."""

from __future__ import annotations

from torch import Tensor

from colaworld.flow.config import Average


def flow_matching_loss(
    predicted: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    average: Average = "frames",
    usual: Tensor | None = None,
) -> Tensor:
    """Mean squared error over the frames where `mask` [B, T] is True; a float32 scalar.

    predicted, target: [B, C, T, h, w]. `average` over all these frames alike, or over the clips, each
    counting once however many frames it predicts. `usual`, a scalar: how many frames a clip predicts in
    the mean over the whole update, of which these are some (None: all); then means over frames do not
    depend on how it is cut into passes. Raises ValueError on shapes that do not fit.
    """
    if predicted.shape != target.shape or mask.shape != (target.shape[0], target.shape[2]):
        raise ValueError(
            f"flow_matching_loss: expected equal [B, C, T, h, w] and mask [B, T], got "
            f"{tuple(predicted.shape)}, {tuple(target.shape)}, {tuple(mask.shape)}"
        )
    if average not in ("frames", "clips"):
        raise ValueError(
            f"flow_matching_loss: average: expected 'frames' or 'clips', got {average!r}"
        )
    error = (predicted.float() - target.float()).square().mean(dim=(1, 3, 4))  # [B, T]
    weight = mask.to(error.dtype)
    if average == "clips":
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1)
    total = weight.sum()
    if average == "frames" and usual is not None:
        total = usual * len(mask)
    return (error * weight).sum() / total.clamp(min=1)
