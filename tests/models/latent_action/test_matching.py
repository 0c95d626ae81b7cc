"""The matching volume: where each patch came from, by hand."""

import pytest
import torch

from colaworld.models.latent_action.matching import matching_volume


def textured(h: int = 4, w: int = 5) -> torch.Tensor:
    """[1, 3, h, w]: every patch differs clearly from every other."""
    return torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (0, 1), (0, -1), (1, 0), (-1, -1)])
def test_a_shift_is_a_sure_match_at_its_place(dy, dx):
    before = textured()
    now = torch.roll(before, (dy, dx), dims=(2, 3))  # now[y, x] came from before[y - dy, x - dx]
    volume = matching_volume(torch.stack([before, now], 1), radius=1, temperature=1e-4)
    assert volume.shape == (1, 2, 9, 4, 5)
    inside = volume[0, 1, :, 1:-1, 1:-1]
    candidate = (1 - dy) * 3 + (1 - dx)  # row by row from (-1, -1)
    torch.testing.assert_close(inside[candidate], torch.full((2, 3), 8.0), atol=1e-3, rtol=0)
    others = torch.cat([inside[:candidate], inside[candidate + 1 :]])
    torch.testing.assert_close(others, torch.full((8, 2, 3), -1.0), atol=1e-3, rtol=0)


def test_a_uniform_frame_matches_everywhere_alike_and_frame_0_has_nothing_before_it():
    flat = torch.full((2, 3, 12, 4, 4), 0.3)
    torch.testing.assert_close(matching_volume(flat, radius=1), torch.zeros(2, 3, 9, 4, 4))
    assert matching_volume(torch.randn(1, 2, 3, 4, 4), radius=2)[:, 0].abs().max() == 0


def test_the_lifts_of_a_patch_sum_to_nothing_and_later_frames_are_not_seen():
    clip = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    volume = matching_volume(clip, radius=1)
    torch.testing.assert_close(volume.sum(2), torch.zeros(1, 4, 4, 4), atol=1e-5, rtol=0)
    changed = clip.clone()
    changed[:, 3] += 1
    assert torch.equal(matching_volume(changed, radius=1)[:, :3], volume[:, :3])
