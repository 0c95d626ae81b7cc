"""Innovations: what the frame before foretells is taken away, exactly where the relation is linear; by hand and by kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.idm import InverseDynamicsModel
from colaworld.models.latent_action.quantizers import QUANTIZERS, build_quantizer
from colaworld.models.latent_action.quantizers.innovation import Foretold
from colaworld.models.world_model import WorldModel

DIM = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(rows: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(before and z [rows, 1, 2 d], the action [rows, 1, d] in z): z is a linear map of a large scene, and a small action."""
    generator = seeded(seed)
    before = 3 + 2 * torch.randn(rows, 1, DIM, generator=generator)
    action = 0.1 * torch.randn(rows, 1, DIM, generator=generator)
    mixed = before @ torch.linspace(-0.4, 0.6, DIM * DIM).view(DIM, DIM) - 1
    return torch.cat([before, mixed + action], dim=-1), action


def build(kind: str, **changes):
    config = QUANTIZERS[kind].config
    settings = {"codebook_size": 8, "levels": (4, 3, 2, 5), "innovation": True} | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_quantizer(
            config(**{k: v for k, v in settings.items() if hasattr(config, k)}), DIM
        )


def test_what_is_foretold_is_least_squares() -> None:
    both, _ = scenes(200)
    layer = Foretold(DIM, ridge=0.0)
    layer.start(both)
    before, z = both.flatten(0, 1).split(DIM, dim=-1)
    design = torch.cat([before, torch.ones(len(before), 1)], dim=1)
    expected = design @ torch.linalg.lstsq(design, z).solution
    torch.testing.assert_close(layer(before), expected, atol=1e-4, rtol=1e-4)


def test_it_follows_running_moments_and_a_forward_pass_changes_nothing() -> None:
    first, second = scenes(300)[0], scenes(300, seed=1)[0]
    layer = Foretold(DIM, momentum=0.25)
    layer.start(first)
    weight = layer.weight.clone()
    layer(first[..., :DIM])
    assert torch.equal(layer.weight, weight)
    layer.update(Foretold.moments_of(second))
    mixed = 0.75 * Foretold.moments_of(first) + 0.25 * Foretold.moments_of(second)
    torch.testing.assert_close(layer.moments, mixed)
    once = Foretold(DIM)
    once.start(torch.cat([first] * 3 + [second]))
    torch.testing.assert_close(layer.weight, once.weight, atol=1e-3, rtol=1e-3)


def test_a_past_that_never_varies_foretells_the_mean() -> None:
    layer = Foretold(DIM)
    both = torch.cat([torch.full((50, 1, DIM), 2.0), scenes(50)[1]], dim=-1)
    layer.start(both)
    told = layer(both[..., :DIM])
    assert told.isfinite().all()
    torch.testing.assert_close(told[0, 0], both[..., DIM:].mean((0, 1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_quantizer_takes_what_is_left(kind) -> None:
    """As the same quantizer takes the action alone, once the linear relation is known."""
    both, action = scenes(512)
    ours, plain = build(kind), build(kind, innovation=False)
    ours.start(both, generator=seeded())
    left = ours.innovation(both)
    off = (left - (action - action.mean((0, 1)))).square().mean().sqrt()
    assert off < 0.02 < action.std() / 4  # an estimate, from 512 rows
    plain.start(left, generator=seeded())
    made, expected = ours.eval()(both), plain.eval()(left)
    torch.testing.assert_close(made.codes, expected.codes)
    assert made.codes.shape == (512, 1, DIM)
    with pytest.raises(ValueError, match=r"expected z \[\.\.\., 8\], got \(512, 1, 4\)"):
        ours(action)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_passes_of_a_step_count_as_one(kind) -> None:
    both = scenes(64)[0]
    one, two = build(kind), build(kind)
    for quantizer, parts in ((one, [both]), (two, both.split(32))):
        quantizer.start(both, generator=seeded())
        quantizer.train().begin_step()
        for part in parts:
            quantizer.observe(quantizer(part, generator=seeded()), generator=seeded())
        quantizer.after_step(generator=seeded())
    torch.testing.assert_close(one.foretold.moments, two.foretold.moments)
    torch.testing.assert_close(one.foretold.weight, two.foretold.weight, atol=1e-4, rtol=1e-3)
    assert two.foretold.moments[-1, -1] == pytest.approx(1.0)


def test_gradients_pass_what_is_left_and_train_no_statistics() -> None:
    both = scenes(64)[0].requires_grad_()
    quantizer = build("none", normalise=False).train()
    quantizer.start(both.detach(), generator=seeded())
    quantizer(both).codes.sum().backward()
    before, now = both.grad.split(DIM, dim=-1)
    torch.testing.assert_close(now, torch.ones_like(now))
    torch.testing.assert_close(before[0, 0], -quantizer.foretold.weight.sum(1))
    assert not list(quantizer.parameters())


def test_the_reading_before_sees_nothing_of_the_later_frame() -> None:
    idm = InverseDynamicsModel(IDMConfig(tokens=2, dim=DIM, motion=True)).eval()
    frames = torch.rand(2, 3, 3, 16, 16, generator=seeded())
    both = idm(frames, before=True)
    assert both.shape == (2, 2, 2, 2 * DIM)
    torch.testing.assert_close(both[..., DIM:], idm(frames))
    other = frames.clone()
    other[:, 2] = torch.rand(2, 3, 16, 16, generator=seeded(1))
    changed = idm(other, before=True)
    torch.testing.assert_close(changed[..., :DIM], both[..., :DIM])
    assert not torch.allclose(changed[:, 1, :, DIM:], both[:, 1, :, DIM:])


def test_a_model_asks_for_it_where_its_quantizer_does() -> None:
    config = ModelConfig()
    frames = torch.rand(1, 3, 3, 32, 32, generator=seeded())
    for asked, width in ((False, config.idm.dim), (True, 2 * config.idm.dim)):
        model = WorldModel(
            replace(config, quantizer=replace(config.quantizer, innovation=asked))
        ).eval()
        assert model.latents(frames).shape[-1] == width
        assert model.infer_actions(frames).codes.shape == (1, 2, config.idm.tokens, config.idm.dim)
