"""Crops and resizes against hand-computed boxes and values."""

from __future__ import annotations

import pytest
import torch

from colaworld.data.transforms import crop_box, random_resized_crop, random_shift, resize


@pytest.mark.parametrize(
    ("crop", "size", "target", "expected"),
    [
        ("none", (10, 20), (5, 5), (0, 0, 10, 20)),
        ("center", (10, 20), (5, 5), (0, 5, 10, 10)),
        ("center", (20, 10), (5, 5), (5, 0, 10, 10)),
        ("center", (480, 640), (256, 256), (0, 80, 480, 480)),
        ("center", (480, 640), (90, 160), (60, 0, 360, 640)),
        ("center", (28, 36), (None, None), (0, 0, 28, 36)),
        ((1, 2, 3, 4), (10, 20), (None, None), (1, 2, 3, 4)),
    ],
)
def test_crop_boxes(crop, size, target, expected) -> None:
    box = crop_box(
        crop, height=size[0], width=size[1], target_height=target[0], target_width=target[1]
    )
    assert box == expected


@pytest.mark.parametrize("crop", [(0, 0, 11, 5), (-1, 0, 5, 5), (0, 18, 5, 5), (0, 0, 0, 5)])
def test_boxes_outside_are_refused(crop) -> None:
    with pytest.raises(ValueError, match="10x20"):
        crop_box(crop, height=10, width=20, target_height=None, target_width=None)


def test_resize_by_two_averages_with_the_antialiasing_triangle() -> None:
    row = torch.tensor([0, 80, 160, 240], dtype=torch.uint8)
    frames = row.expand(1, 3, 4, 4).contiguous()
    # triangle of half-width 2 around 0.5: weights 3/8, 3/8, 1/8 of a normalised 3+3+1
    expected = (3 * 0 + 3 * 80 + 1 * 160) / 7
    made = resize(frames, 2, 2)
    assert made.dtype == torch.uint8 and made.shape == (1, 3, 2, 2)
    assert abs(int(made[0, 0, 0, 0]) - expected) <= 0.5
    assert resize(frames, 4, 4) is frames


def test_one_crop_per_clip_and_the_seed_decides() -> None:
    ramp = torch.linspace(0, 1, 40).expand(24, 40)
    clips = ramp.expand(64, 3, 3, 24, 40).contiguous()
    made = random_resized_crop(clips, generator=torch.Generator().manual_seed(0))
    again = random_resized_crop(clips, generator=torch.Generator().manual_seed(0))
    assert made.shape == clips.shape and torch.equal(made, again)
    assert torch.equal(made[:, 0], made[:, 2])  # the same box for every frame of a clip
    # a box of width w shows (w - 1) / 39 of the ramp: the range of widths is sqrt(.8 * 3/4) .. 1
    shown = made[:, 0, 0, 12, -1] - made[:, 0, 0, 12, 0]
    assert shown.min() > (0.8 * 0.75) ** 0.5 - 0.06 and shown.max() <= 1.0 + 1e-6
    assert shown.std() > 0.02 and made[:, 0, 0, 0, 0].std() > 0.01
    with pytest.raises(ValueError, match="float"):
        random_resized_crop(clips.to(torch.uint8), generator=torch.Generator())


def test_the_whole_frame_is_left_as_it_is() -> None:
    clips = torch.rand(2, 2, 3, 8, 8)
    made = random_resized_crop(
        clips, generator=torch.Generator().manual_seed(0), scale=(1, 1), ratio=(1, 1)
    )
    assert torch.equal(made, clips)


def test_a_random_shift_moves_whole_patches_and_repeats_the_border() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(256, 2, 3, 8, 12, generator=generator)
    shifted = random_shift(frames, most=2, patch=4, generator=generator)
    before, after = (
        x.unflatten(4, (3, 4)).unflatten(3, (2, 4)).movedim((3, 5), (1, 2))
        for x in (frames, shifted)
    )  # [B, rows, columns, T, C, 4, 4]
    seen = set()
    for clip in range(256):
        by = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if all(
                torch.equal(
                    after[clip, y, x], before[clip, min(max(y - dy, 0), 1), min(max(x - dx, 0), 2)]
                )
                for y in range(2)
                for x in range(3)
            )
        ]
        assert by, clip  # one by two or more rows shows the same
        seen.update(by)
    assert seen == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    with pytest.raises(ValueError, match="whole patches of 5 px"):
        random_shift(frames, most=1, patch=5, generator=generator)
