"""The whole model: what sees what, a start at the plain video model, guidance, rollouts, its parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.guidance import ConditionedVelocity
from colaworld.models.latent_action.config import FDMConfig, IDMConfig
from colaworld.models.latent_action.quantizers import GaussianConfig, NoneConfig, VQConfig
from colaworld.models.layers.attention import AxialAttention
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel

SMALL = ModelConfig(
    backbone=STDiT3Config(depth=1, width=16, heads=2),
    idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=4),
    quantizer=VQConfig(codebook_size=4),
    conditioner=ConditionerConfig(depth=1, heads=2),
    fdm=FDMConfig(depth=1, width=16, heads=2),
)


def build(config: ModelConfig = SMALL, **more) -> WorldModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WorldModel(config, **more)


def video(batch: int = 2, length: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, length, 3, 8, 8, generator=generator)


def inputs(batch: int = 2, length: int = 4):
    """Noised latents, times with one clean frame, codes."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 12, length, 4, 4, generator=generator)
    times = torch.rand(batch, length, generator=generator)
    times[:, 0] = 0
    return x, times, torch.randn(batch, length - 1, 2, 4, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_parts_are_the_direct_children_and_own_every_parameter():
    everything = build(parts=("idm", "quantizer", "conditioner", "fdm"))
    names = [name for name, _ in everything.named_children()]
    assert names == ["tokenizer", "backbone", "idm", "quantizer", "conditioner", "fdm"]
    assert not list(everything.named_parameters(recurse=False))
    assert [n for n, _ in build(parts=()).named_children()] == ["tokenizer", "backbone"]
    with pytest.raises(
        ValueError,
        match=r"no part 'idn' is registered; known: action_head, adapter, aligner, conditioner, fdm, idm, lora, q",
    ):
        build(parts=("idn",))


def test_tokenizer_and_generator_must_agree_on_channels():
    wrong = replace(SMALL, backbone=replace(SMALL.backbone, in_channels=4))
    with pytest.raises(ValueError, match=r"latents of 4 channels .*the tokenizer makes 12"):
        build(wrong)


def test_untrained_conditioner_leaves_the_generator_exactly_as_it_was(randomised):
    """The backbone is trained (here: drawn at random), the conditioner is new."""
    model = build()
    randomised(model.backbone)
    x, times, codes = inputs()
    drop = torch.tensor([[True, False, True], [False, False, True]])
    with torch.no_grad():
        plain = model.velocity(x, times)
        assert plain.abs().max() > 0.1
        assert torch.equal(plain, model.backbone.velocity(x, times))
        assert torch.equal(plain, model.velocity(x, times, codes))
        assert torch.equal(plain, model.velocity(x, times, codes, drop))
        assert torch.equal(plain, ConditionedVelocity(model, codes)(x, times))
        randomised(model.conditioner)
        assert (plain - model.velocity(x, times, codes)).abs().max() > 1e-2


def test_frame_t_sees_no_later_frame_and_no_later_action(randomised):
    for causal in (True, False):
        model = randomised(build(replace(SMALL, backbone=replace(SMALL.backbone, causal=causal))))
        x, times, codes = inputs()
        with torch.no_grad():
            before = model.velocity(x, times, codes)
            for what in ("frame", "action"):
                other = [x.clone(), codes.clone()]
                if what == "frame":
                    other[0][:, :, 2] += 0.5
                else:
                    other[1][:, 1] += 0.5  # leads from frame 1 to frame 2
                after = model.velocity(other[0], times, other[1])
                moved = (after - before).abs().amax((0, 1, 3, 4))
                assert (moved[2:] > 1e-6).all(), what
                if causal:
                    assert moved[:2].max() == 0, what
                else:
                    assert (moved[:2] > 1e-6).all(), what


def test_the_generator_teaches_the_inverse_dynamics_model(randomised):
    """The gradient of the velocity's error reaches every part on the way back to the pixels."""
    model = randomised(build())
    x, times, _ = inputs()
    quantized = model.quantize(video())
    (model.velocity(x, times, quantized.codes).square().mean()).backward()
    for part in ("idm", "conditioner", "backbone"):
        grads = [
            p.grad is not None and bool(p.grad.any()) for p in getattr(model, part).parameters()
        ]
        assert sum(grads) >= len(grads) - 1, part  # the null action is not used here
    assert model.conditioner.null.grad is None or not model.conditioner.null.grad.any()


def test_guidance_by_formula(randomised):
    model = randomised(build())
    x, times, codes = inputs()
    with torch.no_grad():
        conditional = model.velocity(x, times, codes)
        null = model.velocity(x, times, codes, torch.ones(2, 3).bool())
        expected = null + 4 * (conditional - null)
        for passes in ("one", "two"):
            made = ConditionedVelocity(model, codes, guidance=4.0, passes=passes)(x, times)
            # The batch of twice the clips rounds its products differently, guidance magnifies it.
            assert (made - expected).norm() <= 2e-6 * expected.norm(), passes
        assert torch.equal(ConditionedVelocity(model, codes)(x, times), conditional)
        assert torch.equal(
            ConditionedVelocity(model, None)(x, times), model.backbone.velocity(x, times)
        )


def test_inferred_actions_are_in_evaluation_mode_and_change_nothing(randomised):
    model = randomised(build())
    model.train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    actions = model.infer_actions(video())
    assert actions.codes.shape == (2, 3, 2, 4) and actions.indices.shape == (2, 3, 2)
    assert not actions.codes.requires_grad
    assert torch.equal(model.lookup(actions.indices), actions.codes)
    assert torch.equal(model.infer_actions(video()[:1]).codes, actions.codes[:1])
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert (model.codebook_size, model.tokens) == (4, 2)


def test_actions_of_a_long_video_are_inferred_through_the_window(randomised):
    """Window 4, and continuous latents, which show the least difference."""
    frames = video(length=7)
    assert randomised(build()).infer_actions(frames).indices.shape == (2, 6, 2)
    model = randomised(build(replace(SMALL, quantizer=NoneConfig())))
    actions = model.infer_actions(frames)
    assert actions.codes.shape == (2, 6, 2, 4)
    torch.testing.assert_close(actions.codes[:, :3], model.infer_actions(frames[:, :4]).codes)
    for t in (3, 4, 5):
        part = model.infer_actions(frames[:, t - 2 : t + 2])  # the window that ends at frame t + 1
        assert torch.equal(actions.codes[:, t], part.codes[:, -1])


def test_modes_are_restored_after_an_error():
    model = build()
    model.train()
    with pytest.raises(ValueError, match="two frames"):
        model.infer_actions(video(length=1))
    assert all(module.training for module in model.modules())


def test_continuous_actions_have_no_codebook():
    model = build(replace(SMALL, quantizer=GaussianConfig()))
    assert model.codebook_size is None and model.infer_actions(video()).indices is None
    assert build(parts=()).codebook_size is None


def test_rollout_keeps_history_bit_for_bit_and_repeats_with_the_seed(randomised):
    model = randomised(build())
    model.train()
    history = video()[:, :2]
    codes = inputs(length=6)[2]
    config = SamplerConfig(steps=2)
    made = World(model, config).rollout(history, codes, generator=seeded())
    assert made.frames.shape == (2, 6, 3, 8, 8) and made.history == 2
    assert torch.equal(made.frames[:, :2], history)
    assert made.generated.min() >= 0 and made.generated.max() <= 1
    again = World(model, config).rollout(history, codes, generator=seeded())
    assert torch.equal(made.frames, again.frames)
    other = World(model, config).rollout(history, codes, generator=seeded(1))
    assert not torch.equal(made.generated, other.generated)
    assert all(module.training for module in model.modules())


def test_rollout_follows_actions_from_their_frame_on(randomised):
    model = randomised(build())
    history, codes = video()[:, :1], inputs(length=5)[2]
    changed = codes.clone()
    changed[:, 2] += 1.0  # leads from frame 2 to frame 3
    config = SamplerConfig(steps=2)
    made, other = (
        World(model, config).rollout(history, c, generator=seeded()).frames
        for c in (codes, changed)
    )
    moved = (made - other).abs().amax((0, 2, 3, 4))
    assert moved[:3].max() == 0 and (moved[3:] > 1e-4).all()


def test_rollout_guidance_is_the_samplers(randomised):
    model = randomised(build())
    history, codes = video()[:, :1], inputs(length=2)[2]
    plain, strong = (
        World(model, SamplerConfig(2, guidance=g)).rollout(history, codes, generator=seeded())
        for g in (1.0, 4.0)
    )
    assert (plain.generated - strong.generated).abs().max() > 1e-3


def test_rollout_without_actions_needs_a_length(randomised):
    model = randomised(build(parts=()))
    history = video()[:, :2]
    config = SamplerConfig(steps=2)
    made = World(model, config).rollout(history, None, generator=seeded(), frames=5)
    assert made.frames.shape[1] == 5
    for frames in (None, 1):
        with pytest.raises(
            ValueError, match=rf"frames, which it needs without codes: .* >= 2, got {frames}"
        ):
            World(model).rollout(history, None, generator=seeded(), frames=frames)


def test_an_attention_backend_is_chosen_by_name_for_every_layer(monkeypatch) -> None:
    config = ModelConfig(attention="sdpa")
    layers = [m for m in WorldModel(config).modules() if isinstance(m, AxialAttention)]
    assert layers and {layer.backend for layer in layers} == {"sdpa"}
    with pytest.raises(ValueError, match=r"attention: expected one of 'auto', .* got 'fast'"):
        WorldModel(ModelConfig(attention="fast"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"colaworld\[flash\]"):
        WorldModel(ModelConfig(attention="flash"))


def test_a_world_model_is_given_no_captions():
    for backbone in (STDiT3Config(text="full"), WanConfig(text="full")):
        with pytest.raises(ValueError, match=r"backbone\.text: .* got 'full'; use 'null'"):
            WorldModel(replace(SMALL, backbone=backbone))


def test_indices_that_no_codebook_has():
    model = WorldModel(SMALL)
    for index in (-1, model.codebook_size):
        with pytest.raises(
            ValueError, match=rf"lookup: expected indices 0 \.\. \d+, .*got {index}"
        ):
            World(model).lookup(torch.tensor([[[0], [index]]]).expand(-1, -1, model.tokens))
