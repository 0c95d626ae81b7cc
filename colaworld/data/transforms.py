"""Crop and resize frames, as pure functions. Not here: decoding, or normalisation (models)."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.rng import draw

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Crop = Literal["none", "center"] | Box


def crop_box(
    crop: Crop, *, height: int, width: int, target_height: int | None, target_width: int | None
) -> Box:
    """The box that `crop` means for frames of height x width.

    "none" is the whole frame. "center" is the largest centred box with the target's shape (the
    whole frame where there is no target). A tuple is taken as it is, if it lies inside.
    """
    if crop == "none":
        return 0, 0, height, width
    if crop == "center":
        if target_height is None or target_width is None:
            return 0, 0, height, width
        scale = min(height / target_height, width / target_width)
        h = min(height, max(1, round(target_height * scale)))
        w = min(width, max(1, round(target_width * scale)))
        return (height - h) // 2, (width - w) // 2, h, w
    if isinstance(crop, str) or len(crop) != 4:
        raise ValueError(f"crop: expected none, center or (top, left, height, width), got {crop!r}")
    top, left, h, w = crop
    if min(top, left) < 0 or min(h, w) < 1 or top + h > height or left + w > width:
        raise ValueError(
            f"crop: box (top {top}, left {left}, height {h}, width {w}) does not lie inside "
            f"frames of {height}x{width}"
        )
    return top, left, h, w


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, C, height, width], bilinear with antialiasing."""
    if frames.shape[-2:] == (height, width):
        return frames
    resized = F.interpolate(
        frames.float(), (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def random_shift(
    frames: Tensor,  # [B, T, C, H, W]
    *,
    most: int,
    patch: int,
    generator: torch.Generator,
) -> Tensor:
    """Each clip shifted by up to `most` whole patches in rows and columns: [B, T, C, H, W].

    One draw per clip. Places beyond the border repeat the border's patch (random shifts: Yarats et al. 2021, DrQ).
    """
    B, _, _, H, W = frames.shape
    if frames.ndim != 5 or H % patch or W % patch:
        raise ValueError(
            f"random_shift: expected [B, T, C, H, W] of whole patches of {patch} px, got {tuple(frames.shape)}"
        )
    integers = partial(torch.randint, -most, most + 1)
    drawn = draw(integers, (B, 2), generator, device=frames.device)
    rows, columns = (
        _shifted(size, patch, by, frames.device)
        for size, by in zip((H, W), drawn.unbind(1), strict=True)
    )
    clip = torch.arange(B, device=frames.device)[:, None, None]
    return frames[clip, :, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 4, 1, 2)


def _shifted(size: int, patch: int, by: Tensor, device: torch.device) -> Tensor:
    """[B, size]: from which place each comes when patches move on by `by` [B] of them."""
    place = torch.arange(size, device=device)
    return (place // patch - by[:, None]).clamp(0, size // patch - 1) * patch + place % patch


def random_resized_crop(
    frames: Tensor,  # [B, T, C, H, W] float
    *,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.8, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """One random crop per clip, resized back to H x W: [B, T, C, H, W].

    The crop's share of the area is uniform in `scale`, its aspect ratio, relative to the frame's
    own, log-uniform in `ratio`. Where the drawn box is longer than the frame, the long side is cut
    to the frame's: one draw per clip, whatever the frame's shape.
    """
    if frames.ndim != 5 or not frames.is_floating_point():
        raise ValueError(
            "random_resized_crop: expected float [B, T, C, H, W], "
            f"got {frames.dtype} {tuple(frames.shape)}"
        )
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"random_resized_crop: expected 0 < scale <= 1 and ratio > 0, got {scale}, {ratio}"
        )
    B, _, _, H, W = frames.shape
    drawn = draw(torch.rand, (B, 4), generator, device=generator.device).tolist()
    made = torch.empty_like(frames)
    for b, (u_scale, u_ratio, u_top, u_left) in enumerate(drawn):
        area = scale[0] + u_scale * (scale[1] - scale[0])
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + u_ratio * (high - low))
        h = min(H, max(1, round(H * math.sqrt(area / aspect))))
        w = min(W, max(1, round(W * math.sqrt(area * aspect))))
        top, left = int(u_top * (H - h + 1)), int(u_left * (W - w + 1))
        box = frames[b, :, :, top : top + h, left : left + w]
        if (h, w) == (H, W):
            made[b] = box
        else:
            made[b] = F.interpolate(
                box, (H, W), mode="bilinear", antialias=True, align_corners=False
            )
    return made
