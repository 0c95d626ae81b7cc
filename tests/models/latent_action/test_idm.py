"""The inverse dynamics model sees frames up to t + 1 for z_t, and never a later one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.idm import (
    AttentionPooling,
    InverseDynamicsModel,
    standardised,
)

CONFIG = IDMConfig(depth=2, width=16, heads=2, patch=2, tokens=2, dim=5)


def frames(batch: int = 2, length: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, length, 3, 4, 6, generator=generator)


def test_shapes(randomised):
    z = randomised(InverseDynamicsModel(CONFIG))(frames())
    assert z.shape == (2, 4, 2, 5) and z.dtype == torch.float32


@pytest.mark.parametrize("changed", range(5))
def test_action_t_sees_exactly_the_frames_to_t_plus_1(changed, randomised):
    model = randomised(InverseDynamicsModel(CONFIG))
    video = frames()
    other = video.clone()
    other[0, changed] = 1 - other[0, changed]
    with torch.no_grad():
        moved = (model(video) - model(other)).abs().amax((2, 3))
    assert moved[1].max() == 0  # the other clip
    blind = max(0, changed - 1)  # z_t sees frames 0 .. t + 1, so z_t with t + 1 < changed is blind
    assert (moved[0, :blind] == 0).all()  # bit for bit
    assert (moved[0, blind:] > 1e-5).all()


def test_actions_of_a_shorter_clip_are_those_of_its_beginning(randomised):
    model = randomised(InverseDynamicsModel(CONFIG))
    with torch.no_grad():
        whole, part = model(frames()), model(frames()[:, :3])
    torch.testing.assert_close(part, whole[:, :2], atol=1e-6, rtol=1e-6)


def test_every_parameter_gets_a_gradient_from_the_start():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = InverseDynamicsModel(CONFIG)
    z = model(frames())
    generator = torch.Generator().manual_seed(1)
    (z * torch.randn(z.shape, generator=generator)).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_pooling_by_hand(randomised, generator):
    """Each head of each learned query: a softmax over the S tokens."""
    pool = randomised(AttentionPooling(6, 2, 3, 4))
    x = torch.randn(2, 5, 6, generator=generator)
    k, v = (x @ pool.kv.weight.T + pool.kv.bias).chunk(2, dim=-1)
    pooled = torch.empty(2, 3, 6)
    for head in (slice(0, 3), slice(3, 6)):
        score = torch.einsum("nc,bsc->bns", pool.query[:, head], k[..., head]) / 3**0.5
        pooled[..., head] = score.softmax(-1) @ v[..., head]
    expected = pooled @ pool.out.weight.T + pool.out.bias
    torch.testing.assert_close(pool(x), expected)


def test_a_clip_too_short_and_frames_that_are_not_whole_patches():
    model = InverseDynamicsModel(CONFIG)
    with pytest.raises(ValueError, match=r"needs two frames, got T = 1"):
        model(torch.rand(1, 1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"frames 4x5 are not whole patches of 2 px"):
        model(torch.rand(1, 2, 3, 4, 5))


def test_the_residual_stream_stays_in_float32_under_autocast(randomised):
    model = randomised(InverseDynamicsModel(CONFIG))
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(frames())
    assert seen == [torch.float32, torch.float32]


def test_the_paper_sizes():
    with torch.device("meta"):
        model = InverseDynamicsModel(IDMConfig.paper())
    count = sum(p.numel() for p in model.parameters())
    assert 0.10e9 < count < 0.13e9  # paper: about 0.12 B
    assert (model.config.tokens, model.config.dim) == (2, 32)


@pytest.mark.parametrize("matching", [0, 1])
def test_what_a_patch_is_embedded_from(matching, randomised):
    """The two inputs with the frame before are one linear map of the same pixels; zeros there give `frame`."""
    base = replace(CONFIG, matching=matching)
    made = {
        kind: randomised(InverseDynamicsModel(replace(base, input=kind)))
        for kind in ("frame", "difference", "tubelet")
    }
    own, pixels = made["frame"].state_dict(), 3 * CONFIG.patch**2
    weight = own["embed.weight"]
    now, volume = weight[:, :pixels], weight[:, pixels:]
    before = torch.randn(now.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for second in (torch.zeros_like(before), before):
            # now x + before (x - y) = (now + before) x - before y
            for kind, columns in (
                ("difference", (now, second, volume)),
                ("tubelet", (now + second, -second, volume)),
            ):
                made[kind].load_state_dict({**own, "embed.weight": torch.cat(columns, dim=1)})
            z = {kind: model(frames()) for kind, model in made.items()}
            torch.testing.assert_close(z["difference"], z["tubelet"], atol=1e-5, rtol=1e-5)
            same = torch.allclose(z["difference"], z["frame"], atol=1e-5)
            assert same == (not second.any())


@pytest.mark.parametrize("kind", ["difference", "tubelet"])
def test_the_frame_before_is_seen_and_no_later_one(kind, randomised):
    config = replace(CONFIG, input=kind, depth=1, matching=0)
    model = randomised(InverseDynamicsModel(config))
    model.blocks[0].temporal.forward = torch.zeros_like  # what is left sees its own token alone
    video = frames()
    with torch.no_grad():
        z = model(video)
        for changed in range(5):
            other = video.clone()
            other[:, changed] = 1 - other[:, changed]
            moved = (model(other) - z).abs().amax((0, 2, 3)) > 1e-5
            assert moved.tolist() == [changed in (t, t + 1) for t in range(4)]


def test_standardised_frames_tell_no_brightness() -> None:
    """Of each channel of each frame mean and spread are gone; what is flat stays flat."""
    frames = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    idm = InverseDynamicsModel(IDMConfig(tokens=2, standardise_frames=True)).eval()
    brighter = frames * torch.tensor([1.0, 0.8, 0.9])[:, None, None, None] + 0.05
    torch.testing.assert_close(idm(brighter), idm(frames), atol=0.05, rtol=0)
    plain = InverseDynamicsModel(IDMConfig(tokens=2)).eval()
    plain.load_state_dict(idm.state_dict())
    apart = (plain(brighter) - plain(frames)).abs().max()
    assert (idm(brighter) - idm(frames)).abs().max() < apart / 5
    even = standardised(frames)
    torch.testing.assert_close(even.mean((-2, -1)), torch.zeros(2, 3, 3), atol=1e-6, rtol=0)
    spread = frames.std((-2, -1), correction=0)
    torch.testing.assert_close(even.std((-2, -1), correction=0), 0.5 * spread / (spread + 0.05))
    assert not standardised(torch.full((1, 2, 3, 8, 8), 0.7)).any()
