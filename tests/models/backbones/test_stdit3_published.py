"""What STDiT3 needs to give the outputs of the published model: text, held frames, odd sizes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.backbones.stdit3.published import from_published
from colaworld.models.layers.cross_attention import CaptionEmbedder, CrossAttention

SMALL = STDiT3Config(
    depth=2,
    width=24,
    heads=2,
    in_channels=4,
    predict_sigma=True,
    causal=False,
    text="full",
    caption_width=10,
    caption_length=5,
)


def drawn(*shape, seed: int = 1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_text_has_the_published_keys():
    with torch.device("meta"):
        text = STDiT3(STDiT3Config.xl2(text="full")).state_dict()
        without = STDiT3(STDiT3Config.xl2()).state_dict()
    added = {key: tuple(value.shape) for key, value in text.items() if key not in without}
    expected = {
        "y_embedder.y_embedding": (300, 4096),
        "y_embedder.y_proj.fc1.weight": (1152, 4096),
        "y_embedder.y_proj.fc1.bias": (1152,),
        "y_embedder.y_proj.fc2.weight": (1152, 1152),
        "y_embedder.y_proj.fc2.bias": (1152,),
    }
    for kind in ("spatial_blocks", "temporal_blocks"):
        for i in range(28):
            for layer, rows in (("q_linear", 1152), ("kv_linear", 2304), ("proj", 1152)):
                expected[f"{kind}.{i}.cross_attn.{layer}.weight"] = (rows, 1152)
                expected[f"{kind}.{i}.cross_attn.{layer}.bias"] = (rows,)
    assert added == expected
    assert len(text) == 973 - 1  # rope.freqs is computed
    assert sum(v.numel() for v in text.values()) == 1_208_872_772 - 36


def test_the_larger_model_has_the_published_width():
    with torch.device("meta"):
        model = STDiT3(STDiT3Config.large())
    assert model.width == 1872 and model.spatial_blocks[0].attn.q_norm.weight.shape == (72,)


def test_cross_attention_by_hand(randomised):
    module = randomised(CrossAttention(6, 3))
    x, caption = drawn(1, 4, 6), drawn(1, 5, 6, seed=2)
    mask = torch.tensor([[1, 1, 0, 1, 0]]).bool()
    w = {key: value.double() for key, value in module.state_dict().items()}

    def linear(name, v):
        return w[f"{name}.weight"] @ v.double() + w[f"{name}.bias"]

    for keep in (None, mask):
        tokens = [j for j in range(5) if keep is None or keep[0, j]]
        with torch.no_grad():
            made = module(x, caption, keep)
        for n in range(4):
            q = linear("q_linear", x[0, n]).view(3, 2)
            kv = [linear("kv_linear", caption[0, j]).view(2, 3, 2) for j in tokens]
            heads = []
            for head in range(3):
                score = torch.stack([q[head] @ e[0, head] / math.sqrt(2) for e in kv])
                share = score.softmax(0)
                heads.append(sum(s * e[1, head] for s, e in zip(share, kv, strict=True)))
            expected = linear("proj", torch.cat(heads))
            torch.testing.assert_close(made[0, n].double(), expected, atol=1e-5, rtol=1e-5)


def test_the_caption_stands_between_attention_and_mlp_without_norm_or_gate(randomised):
    """One block by hand: x += gate attn(..); x += cross(x); x += gate mlp(modulated norm of x)."""
    model = randomised(STDiT3(replace(SMALL, depth=1)))
    block = model.spatial_blocks[0]
    x, modulation, caption = drawn(1, 2, 4, 24), drawn(1, 2, 144), drawn(1, 5, 24)
    six = (block.scale_shift_table + modulation.view(1, 2, 6, 24)).unsqueeze(3).unbind(2)

    def modulated(v, shift, scale):
        return F.layer_norm(v, (24,), eps=1e-6) * (1 + scale) + shift

    with torch.no_grad():
        h = x + six[2] * block.attn(modulated(x, six[0], six[1]))
        h = h + block.cross_attn(h.flatten(1, 2), caption).view_as(h)
        expected = h + six[5] * block.mlp(modulated(h, six[3], six[4]))
        out, branch, gate = block(x, None, None, modulation, caption)
        made = out + gate[:, :, None] * branch
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_caption_embedder_and_the_null_caption(randomised):
    module = randomised(CaptionEmbedder(10, 8, 5))
    assert "y_embedding" not in dict(module.named_parameters())  # it takes no gradient
    features = drawn(2, 3, 10)
    hidden = F.gelu(module.y_proj.fc1(features), approximate="tanh")
    torch.testing.assert_close(module(features, 2), module.y_proj.fc2(hidden))
    torch.testing.assert_close(module(None, 2), module(module.y_embedding.expand(2, 5, 10), 2))
    with pytest.raises(ValueError, match=r"caption: expected \[2, L, 10\], got \[2, 3, 9\]"):
        module(drawn(2, 3, 9), 2)


def test_captions_matter_and_padding_does_not(randomised):
    model = randomised(STDiT3(SMALL))
    x, time = drawn(2, 4, 3, 4, 4), torch.tensor([100.0, 700.0])
    caption = drawn(2, 5, 10, seed=3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        null = model(x, time)
        named = model(x, time, caption=caption, caption_mask=mask)
        assert (null - named).abs().max() > 1e-3
        assert torch.equal(named, model(x, time, caption=caption[:, None], caption_mask=mask))
        assert torch.equal(
            null, model(x, time, caption=model.y_embedder.y_embedding.expand(2, -1, -1))
        )
        other = caption.clone()
        other[0, 3:] = 7.0
        assert torch.equal(named, model(x, time, caption=other, caption_mask=mask))
        alone = model(x[:1], time[:1], caption=caption[:1, :3])
        torch.testing.assert_close(named[:1], alone, atol=1e-5, rtol=1e-5)


def test_text_of_null_and_removed_take_no_caption():
    for text in ("null", "removed"):
        model = STDiT3(replace(SMALL, text=text))
        with pytest.raises(ValueError, match=rf"caption was given, but text is '{text}'"):
            model(drawn(1, 4, 2, 4, 4), torch.zeros(1), caption=drawn(1, 5, 10))
    with pytest.raises(ValueError, match=r"caption_mask: expected \[1, 5\].*got \[1, 4\]"):
        STDiT3(SMALL)(
            drawn(1, 4, 2, 4, 4),
            torch.zeros(1),
            caption=drawn(1, 5, 10),
            caption_mask=torch.ones(1, 4),
        )


def test_null_equals_full_without_a_caption(randomised):
    full = randomised(STDiT3(SMALL))
    null = STDiT3(replace(SMALL, text="null"))
    null.load_state_dict(full.state_dict())
    x, time = drawn(1, 4, 3, 4, 4), torch.tensor([300.0])
    with torch.no_grad():
        assert torch.equal(null(x, time), full(x, time))


def test_the_null_caption_takes_a_mask(randomised):
    """Where the original guides, its null caption has the prompt's mask on."""
    full = randomised(STDiT3(SMALL))
    null = STDiT3(replace(SMALL, text="null"))
    null.load_state_dict(full.state_dict())
    x, time = drawn(2, 4, 3, 4, 4), torch.tensor([100.0, 700.0])
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    stored = full.y_embedder.y_embedding.expand(2, -1, -1)
    with torch.no_grad():
        named = full(x, time, caption=stored, caption_mask=mask)
        for model in (full, null):
            assert torch.equal(model(x, time, caption_mask=mask), named)
            assert (model(x, time) - named).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"caption_mask: expected \[2, 5\], .*got \[2, 4\]"):
        null(x, time, caption_mask=mask[:, :4])
    with pytest.raises(ValueError, match=r"caption_mask was given, but text is 'removed'"):
        STDiT3(replace(SMALL, text="removed"))(x, time, caption_mask=mask)


# What the original's weights, which are bfloat16, make of times 0 .. 1000 before they embed them:
# above 512 there are multiples of 4 alone, above 256 of 2.
SEEN = {
    1000.0: 1000.0,
    909.6: 908.0,
    817.3: 816.0,
    722.9: 724.0,
    626.5: 628.0,
    301.2: 302.0,
    110.5: 110.5,
    0.0: 0.0,
}


def test_times_are_rounded_as_the_original_rounds_them(randomised):
    plain, rounding = (STDiT3(replace(SMALL, round_times=r)) for r in (False, True))
    rounding.load_state_dict(randomised(plain).state_dict())
    x = drawn(1, 4, 2, 4, 4)
    with torch.no_grad():
        for time, seen in SEEN.items():
            given, embedded = torch.tensor([time]), torch.tensor([seen])
            assert torch.equal(rounding(x, given), plain(x, embedded)), time
            if time != seen:
                assert (rounding(x, given) - plain(x, given)).abs().max() > 1e-3
            # in training and sampling: a time per frame, in [0, 1]
            made = rounding.velocity(x, torch.tensor([[0.0, time / 1000]]))
            wanted = plain.velocity(x, torch.tensor([[0.0, seen / 1000]]))
            torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)
        held = torch.tensor([[False, True]])
        made = rounding(x, torch.tensor([909.6]), x_mask=held)
        assert torch.equal(made, plain(x, torch.tensor([908.0]), x_mask=held))
        # a frame rate goes the same way: 29.97 is 30
        assert torch.equal(rounding(x, embedded, fps=29.97), plain(x, embedded, fps=30.0))


def test_published_sizes_round_times_and_nano_does_not():
    assert STDiT3Config.xl2().round_times and STDiT3Config.large().round_times
    assert not STDiT3Config.nano().round_times and not STDiT3Config.tiny().round_times
    found = from_published({}, text="removed", causal=True, source="")
    assert found.round_times


def test_held_frames_are_at_time_zero(randomised):
    """x_mask equals one time per frame, but for the double pass of the held frames at the end."""
    model = randomised(STDiT3(SMALL))
    x, time = drawn(2, 4, 3, 4, 4), torch.tensor([100.0, 700.0])
    mask = torch.tensor([[False, True, True], [True, False, True]])
    with torch.no_grad():
        held = model(x, time, x_mask=mask, fps=24.0)
        each = model(x, time[:, None] * mask, fps=24.0)
        frames = mask[:, None, :, None, None].expand_as(held)
        torch.testing.assert_close(held[frames], each[frames], atol=1e-5, rtol=1e-5)
        assert (held[~frames] - each[~frames]).abs().max() > 1e-3
        none_held = model(x, time, x_mask=mask.new_ones(2, 3))
        torch.testing.assert_close(none_held, model(x, time), atol=1e-4, rtol=1e-5)


def test_held_frames_are_modulated_twice_at_the_end(randomised):
    """As the published code does it: norm and modulation at t, then again at 0 on the result."""
    model = randomised(STDiT3(SMALL))
    final, x = model.final_layer, drawn(1, 2, 4, 24)
    held, noised = drawn(1, 1, 24, seed=4), drawn(1, 24, seed=5)
    mask = torch.tensor([[False, True]])
    time = torch.cat([held, noised[:, None]], 1)

    def modulated(v, t):
        shift, scale = (final.scale_shift_table + t).unbind(-2)
        return F.layer_norm(v, (24,), eps=1e-6) * (1 + scale) + shift

    with torch.no_grad():
        made = final(x, torch.zeros_like(x), torch.zeros(1, 2, 24), time, (mask, noised))
        once = modulated(x, noised)
        expected = final.linear(torch.stack([modulated(once[0, 0], held[0, 0]), once[0, 1]])[None])
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_sizes_that_are_no_multiples_of_the_patch_are_filled_up(randomised):
    """Zeros at the end, cut again; the position's scale comes from the height and width given."""
    model = randomised(STDiT3(SMALL))
    x, time = drawn(1, 4, 2, 5, 7), torch.tensor([400.0])
    with torch.no_grad():
        made = model(x, time, height=10.0, width=14.0)
        filled = model(F.pad(x, (0, 1, 0, 1)), time, height=10.0, width=14.0)
        assert made.shape == (1, 8, 2, 5, 7)
        assert torch.equal(made, filled[..., :5, :7])
        assert torch.equal(made, model(x, time))  # 5 x 2 and 7 x 2 pixels
        other = model(x, time, height=torch.tensor([20.0]), width=torch.tensor([28.0]))
        assert (made - other).abs().max() > 1e-3


def test_a_timestep_of_another_shape():
    model = STDiT3(SMALL)
    with pytest.raises(ValueError, match=r"timestep: expected \[2\] or \[2, 3\], got \[3\]"):
        model(drawn(2, 4, 3, 4, 4), torch.zeros(3))
    with pytest.raises(ValueError, match=r"x_mask: expected \[2, 3\] beside a timestep \[2\]"):
        model(drawn(2, 4, 3, 4, 4), torch.zeros(2, 3), x_mask=torch.ones(2, 3))


def test_time_shift_by_hand():
    """Open-Sora: sqrt(H W / 512^2) sqrt(latent frames); 32 x 32 latents are 256 x 256 pixels."""
    model = STDiT3(replace(STDiT3Config.xl2(), depth=1, width=72, heads=1))
    assert model.time_shift(5, 32, 32) == pytest.approx(0.5 * 5**0.5)
    assert model.time_shift(1, 64, 64) == pytest.approx(1.0)
