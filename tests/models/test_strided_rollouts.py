"""Rollouts with a temporal stride of r: which actions lead into which latent frame.

A toy tokenizer of stride r shows channel i of a latent as the i-th of its r pixel frames, and a toy
generator paints the actions that led into a latent into its channels. So a generated pixel frame
shows the number of the action that led into it: frame k shows action k - 1.

    pixel frame     0    1 2 3 4    5 6 7 8
    latent frame    0    1          2
    shows           -    0 1 2 3    4 5 6 7
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.conditioning import ActionConditioner
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.tokenizers.tokenizer import latent_frames
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel

ONE = SamplerConfig(steps=1)


class ToyTokenizer(nn.Module):
    """Channel i of a latent is the brightness of its i-th pixel frame (of frame 0, all are).

    `extra` further channels repeat them. Causal in time, decodes from a beginning what it decodes
    from the whole.
    """

    def __init__(self, stride: int, extra: int = 0) -> None:
        super().__init__()
        self.temporal_stride, self.spatial_stride, self.channels = stride, 1, stride + extra

    def encode(self, frames):
        rest = latent_frames(frames.shape[1], self.temporal_stride) - 1
        first = frames[:, :1].expand(-1, self.temporal_stride, -1, -1, -1)
        x = torch.cat([first, frames[:, 1:]], 1).mean(2)  # [B, r (T' ), H, W]
        x = x.unflatten(1, (rest + 1, self.temporal_stride)).transpose(1, 2)
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, self.channels - self.temporal_stride))

    def decode(self, latents):
        x = latents[:, : self.temporal_stride].transpose(1, 2).flatten(1, 2)  # [B, r T', H, W]
        x = torch.cat([x[:, :1], x[:, self.temporal_stride :]], 1)
        return x[:, :, None].expand(-1, -1, 3, -1, -1)


class ShownActions(nn.Module):
    """A conditioner that hands on the packed actions as they are: [B, T, 1, r]; frame 0: -1."""

    tokens, dim = 1, 1

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, codes, drop=None):
        packed = codes.flatten(1).unflatten(1, (-1, self.stride))
        first = packed.new_full((codes.shape[0], 1, self.stride), -1)
        return torch.cat([first, packed], 1)[:, :, None]


class PaintActions(nn.Module):
    """A generator whose one Euler step from any noise lands on the actions of each frame."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.width, self.channels, self.modulated_blocks = 1, stride, 1
        self.weight = nn.Parameter(torch.zeros(1))
        self.first_action = []  # of every window it was called with, as its first frame was told

    def velocity(self, latents, times, *, modulation, fps=None):
        self.first_action.append(modulation[0, 0, 0, 0].item())
        return modulation[:, :, 0].transpose(1, 2)[..., None, None] - latents

    def new_cache(self):
        raise ValueError("paints without a cache")


def painter(stride: int, window: int) -> WorldModel:
    model = WorldModel(ModelConfig(window=window), parts=())
    model.tokenizer, model.backbone = ToyTokenizer(stride), PaintActions(stride)
    model.conditioner = ShownActions(stride)
    return model


def numbered(count: int, clips: int = 2) -> torch.Tensor:
    """Actions [B, count, 1, 1] that carry their own numbers."""
    return torch.arange(count).float().view(1, -1, 1, 1).expand(clips, -1, -1, -1)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def shown(frames: torch.Tensor) -> list[float]:
    """One number per pixel frame of the first clip, which all its pixels show."""
    x = frames[0].flatten(1)
    torch.testing.assert_close(x, x[:, :1].expand_as(x), atol=1e-4, rtol=0)
    return [round(value, 3) for value in x[:, 0].tolist()]


@pytest.mark.parametrize(("stride", "histories"), [(1, (1, 2, 5)), (4, (1, 5, 9)), (2, (1, 3))])
@pytest.mark.parametrize("chunk", [1, 2])
def test_frame_k_is_led_into_by_action_k_minus_1(stride, histories, chunk):
    """17 frames are 5 latents for r = 4 and 17 for r = 1; a window of 9 frames slides."""
    model = painter(stride, window=9)
    for given in histories:
        history = torch.full((2, given, 3, 2, 2), 0.5)
        made = World(model, ONE).rollout(history, numbered(16), generator=seeded(), chunk=chunk)
        assert made.frames.shape[1] == 17 and made.history == given
        assert shown(made.frames) == [0.5] * given + list(range(given - 1, 16)), given


def test_a_window_begins_with_a_frame_that_no_action_led_into():
    model = painter(4, window=9)  # 3 latent frames
    World(model, ONE).rollout(torch.zeros(1, 1, 3, 2, 2), numbered(16, 1), generator=seeded())
    assert model.backbone.first_action == [-1] * 4


@pytest.mark.parametrize("stride", [1, 4])
def test_steps_and_candidates_count_alike(stride):
    model = painter(stride, window=9)
    history = torch.full((2, 5, 3, 2, 2), 0.5)
    codes = numbered(16)
    state = World(model, ONE).begin(history, codes[:, :4], generator=seeded())
    parts = [state.step(part) for part in codes[:, 4:].split(stride, dim=1)]
    assert [part.shape[1] for part in parts] == [stride] * (12 // stride)
    assert shown(torch.cat(parts, 1)) == list(range(4, 16))
    many = World(model, ONE).rollout_candidates(
        history,
        torch.stack([codes, codes + 100], 1)[:, :, 4:],
        context_codes=codes[:, :4],
        generator=seeded(),
    )
    assert shown(many[:, 0]) == list(range(4, 16))
    assert shown(many[:, 1]) == list(range(104, 116))


def test_decoding_with_less_context_shows_the_same_where_latents_decode_alone():
    world = World(painter(4, window=9), ONE)
    state = world.begin(torch.zeros(1, 1, 3, 2, 2), generator=seeded(), decode_context=1)
    parts = [state.step(part) for part in numbered(16, 1).split(4, dim=1)]
    assert shown(torch.cat(parts, 1)) == list(range(16))


def test_the_latents_that_are_given_are_decoded():
    """Behind those that are held; changed ones look changed."""
    state = World(painter(2, window=3), ONE).begin(
        torch.zeros(2, 1, 3, 2, 2), generator=seeded(), decode_context=1
    )
    made = [state.advance(numbered(6)[:, at : at + 2]) for at in (0, 2, 4)]
    assert shown(state.decode(made[2])) == [4, 5]
    assert shown(state.decode(made[2] + 10)) == [14, 15]
    with pytest.raises(ValueError, match=r"decode: expected the last 1 .. 1 latent frames, got 2"):
        state.decode(torch.cat(made[1:], dim=2))


def test_what_does_not_fit_says_what_would():
    model = painter(4, window=9)
    history = torch.zeros(2, 5, 3, 2, 2)
    with pytest.raises(ValueError, match=r"rollout: context_frames: .* got 6; take 5 or 9"):
        World(model).rollout(torch.zeros(2, 6, 3, 2, 2), numbered(12), generator=seeded())
    with pytest.raises(ValueError, match=r"7 actions after the context .*; pass 4 or 8"):
        World(model).rollout(history, numbered(4 + 7), generator=seeded())
    with pytest.raises(ValueError, match=r"7 actions after the context .*; pass 4 or 8"):
        World(model, SamplerConfig.planning()).rollout_candidates(
            history, numbered(7)[:, None], context_codes=numbered(4), generator=seeded()
        )
    state = World(model, ONE).begin(history, numbered(4), generator=seeded())
    with pytest.raises(ValueError, match=r"2 actions after the context .*; pass 4"):
        state.step(numbered(2))
    model.config = replace(model.config, window=8)
    with pytest.raises(ValueError, match=r"model.window: .* got 8; take 5 or 9"):
        World(model).rollout(history, numbered(8), generator=seeded())


@pytest.fixture
def strided(randomised) -> WorldModel:
    """A world with a real video model and conditioner on the toy tokenizer of stride 4."""
    config = ModelConfig(
        backbone=STDiT3Config(depth=2, width=16, heads=2),
        idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=4),
        window=9,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel(config, parts=("idm", "quantizer"))
        model.tokenizer = ToyTokenizer(4, extra=8)
        model.conditioner = ActionConditioner(
            ConditionerConfig(depth=1, heads=2),
            width=16,
            blocks=4,
            tokens=2,
            dim=4,
            actions_per_frame=4,
        )
    return randomised(model).eval()


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """A history of two latent frames, and the actions of 17 frames."""
    g = torch.Generator().manual_seed(1)
    return torch.rand(2, 5, 3, 4, 4, generator=g), torch.randn(2, 16, 2, 4, generator=g)


@pytest.mark.parametrize("more", [{}, {"guidance": 4.0}, {"method": "heun"}])
def test_cached_and_uncached_are_equal(strided, more):
    history, codes = drawn()
    cached, plain = (
        World(strided, SamplerConfig(2, cache=cache, **more))
        .rollout(history, codes, generator=seeded())
        .generated
        for cache in ("on", "off")
    )
    assert plain.shape == (2, 12, 3, 4, 4) and plain.std() > 0.1
    assert ((cached - plain).norm() / plain.norm()).item() <= 1e-5


@pytest.mark.parametrize("action", [0, 3, 4, 7, 8, 11, 15])
def test_an_action_changes_nothing_before_its_latent_frame(strided, action):
    history, codes = drawn()
    other = codes.clone()
    other[:, action] += 1.0
    made, changed = (
        World(strided, SamplerConfig(2)).rollout(history, c, generator=seeded()).frames
        for c in (codes, other)
    )
    moved = (made - changed).abs().amax((0, 2, 3, 4))
    # Pixel frames of the first latent frame that it leads into; the history's are given.
    first = max(5, 1 + 4 * (action // 4))
    assert moved[:first].max() == 0
    assert (moved[first : first + 4] > 1e-5).all()
