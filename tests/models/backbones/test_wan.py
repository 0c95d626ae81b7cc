"""Wan against plain formulas in float64, causality, the cache, modulation per frame, sizes.

Equality with diffusers is in `test_wan_diffusers.py`, the names of weights in `test_wan_keys.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.layers.attention import use_backend

SMALL = WanConfig(layers=2, heads=2, head_dim=14, ffn=40, in_channels=3, freq_dim=16, text_width=10)
WITH_TEXT = replace(SMALL, text="full")


def clip(config: WanConfig, *, frames: int = 4, rows: int = 4, columns: int = 6, batch: int = 1):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, frames, rows, columns, generator=generator)
    times = torch.rand(batch, frames, generator=generator)
    shape = (batch, frames, config.layers, 6 * config.width)
    return x, times, 0.3 * torch.randn(shape, generator=generator)


def caption(config: WanConfig, *, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 5, config.text_width, generator=generator)


def by_hand(weights, config, x, times, modulation, text):
    """The forward pass in float64, token by token where that matters; published sign."""
    w = {key: value.double() for key, value in weights.items()}
    B, channels, T, height, width = x.shape
    rows, columns = height // 2, width // 2
    C, H, D = config.width, config.heads, config.head_dim
    places = [(t, r, c) for t in range(T) for r in range(rows) for c in range(columns)]
    frame = torch.tensor([t for t, _, _ in places])

    def linear(name, v):
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(v):
        return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    def silu(v):
        return v / (1 + torch.exp(-v))

    def norm(v):
        v = v - v.mean(-1, keepdim=True)
        return v / torch.sqrt((v * v).mean(-1, keepdim=True) + config.eps)

    def rms(name, v):
        return v / torch.sqrt((v * v).mean(-1, keepdim=True) + config.eps) * w[f"{name}.weight"]

    def angles():
        """Pairs of a head: first those of the frame, then of the row, then of the column."""
        pairs = D // 6
        shares = (D // 2 - 2 * pairs, pairs, pairs)
        return torch.tensor(
            [
                [
                    p * 10_000 ** (-i / n)
                    for p, n in zip(place, shares, strict=True)
                    for i in range(n)
                ]
                for place in places
            ],
            dtype=torch.float64,
        )

    def rotate(v):  # [N, H, D]
        turned = torch.view_as_complex(v.reshape(*v.shape[:-1], D // 2, 2).contiguous())
        turn = torch.exp(1j * angles())[:, None]
        return torch.view_as_real(turned * turn).flatten(-2)

    def attend(q, k, v, allowed):  # [N, H, D], [M, H, D], [N, M]
        score = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(D)
        score = score.masked_fill(~allowed, -math.inf)
        return torch.einsum("hnm,mhd->nhd", score.softmax(-1), v).flatten(1)

    allowed = (
        frame[:, None] >= frame[None]
        if config.causal
        else torch.ones(len(places), len(places), dtype=torch.bool)
    )
    half = config.freq_dim // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float64) / half)
    out = torch.empty(B, channels, T, height, width, dtype=torch.float64)
    for b in range(B):
        angle = 1000 * times[b].double()[:, None] * frequencies
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)
        embedder = "condition_embedder.time_embedder"
        time = linear(f"{embedder}.linear_2", silu(linear(f"{embedder}.linear_1", features)))
        base = linear("condition_embedder.time_proj", silu(time))  # [T, 6 C]
        if text is not None:
            embedder = "condition_embedder.text_embedder"
            words = linear(f"{embedder}.linear_1", text[b].double())
            words = linear(f"{embedder}.linear_2", gelu(words))
        h = torch.stack(
            [
                torch.einsum(
                    "ocij,cij->o",
                    w["patch_embedding.weight"][:, :, 0],
                    x[b, :, t, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].double(),
                )
                for t, r, c in places
            ]
        )
        h = h + w["patch_embedding.bias"]
        for i in range(config.layers):
            name = f"blocks.{i}"
            six = base if modulation is None else base + modulation[b, :, i].double()
            six = (six.view(T, 6, C) + w[f"{name}.scale_shift_table"])[frame].unbind(1)
            fed = norm(h) * (1 + six[1]) + six[0]
            q, k, v = (linear(f"{name}.attn1.to_{p}", fed) for p in "qkv")
            q, k = rms(f"{name}.attn1.norm_q", q), rms(f"{name}.attn1.norm_k", k)
            q, k, v = (p.view(-1, H, D) for p in (q, k, v))
            mixed = attend(rotate(q), rotate(k), v, allowed)
            h = h + six[2] * linear(f"{name}.attn1.to_out.0", mixed)
            if text is not None:
                fed = norm(h) * w[f"{name}.norm2.weight"] + w[f"{name}.norm2.bias"]
                q = rms(f"{name}.attn2.norm_q", linear(f"{name}.attn2.to_q", fed))
                k = rms(f"{name}.attn2.norm_k", linear(f"{name}.attn2.to_k", words))
                v = linear(f"{name}.attn2.to_v", words)
                q, k, v = (p.view(-1, H, D) for p in (q, k, v))
                read = attend(q, k, v, torch.ones(len(q), len(k), dtype=torch.bool))
                h = h + linear(f"{name}.attn2.to_out.0", read)
            fed = norm(h) * (1 + six[4]) + six[3]
            fed = gelu(linear(f"{name}.ffn.net.0.proj", fed))
            h = h + six[5] * linear(f"{name}.ffn.net.2", fed)
        table = (w["scale_shift_table"] + time[:, None])[frame]
        tokens = linear("proj_out", norm(h) * (1 + table[:, 1]) + table[:, 0])
        for (t, r, c), token in zip(places, tokens, strict=True):
            patch = token.view(2, 2, channels).permute(2, 0, 1)  # channels fastest
            out[b, :, t, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = patch
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("text", ["full", "null", "removed"])
def test_velocity_equals_plain_formulas(causal, text, randomised):
    config = replace(SMALL, causal=causal, text=text)
    model = randomised(Wan(config))
    x, times, modulation = clip(config, frames=3, batch=2)
    times[:, 0] = 0  # clean history
    words = caption(config, batch=2) if text == "full" else None
    read = torch.zeros(2, 512, config.text_width) if text == "null" else words  # padding alone
    with torch.no_grad():
        made = model.velocity(x, times, modulation=modulation, text=words)
        expected = -by_hand(model.state_dict(), config, x, times, modulation, read)
    assert made.dtype == torch.float32
    # An angle of 1000 radians in float32, as published, is itself off by up to 6e-5.
    torch.testing.assert_close(made.double(), expected, atol=2e-4, rtol=2e-4)


def test_causal_velocity_does_not_see_later_frames(randomised):
    """Frame 2's latent, its time or its action changes: frames 0 and 1 do not, bit for bit."""
    for causal in (True, False):
        config = replace(WITH_TEXT, causal=causal)
        model = randomised(Wan(config))
        inputs, words = clip(config), caption(config)
        with torch.no_grad():
            before = model.velocity(inputs[0], inputs[1], modulation=inputs[2], text=words)
            for which in range(3):
                x, times, modulation = (value.clone() for value in inputs)
                (x[:, :, 2], times[:, 2:3], modulation[:, 2])[which].add_(0.5)
                after = model.velocity(x, times, modulation=modulation, text=words)
                moved = (after - before).abs().amax((0, 1, 3, 4))
                assert (moved[2:] > 0).all(), which
                if causal:
                    assert moved[:2].max() == 0, which
                else:
                    assert (moved[:2] > 0).all(), which


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1), (2, 3), (3, 1, 1), (4, 1)])
def test_cached_equals_uncached(chunks, randomised):
    """A clip given in parts, each behind the cached ones, has the velocity of the whole clip."""
    model = randomised(Wan(WITH_TEXT))
    x, times, modulation = clip(WITH_TEXT, frames=5, batch=2)
    words = caption(WITH_TEXT, batch=2)
    with torch.no_grad():
        whole = model.velocity(x, times, modulation=modulation, text=words)
        cache, parts, first = model.new_cache(), [], 0
        for count in chunks:
            part = slice(first, first + count)
            given = {"modulation": modulation[:, part], "text": words, "cache": cache}
            # a look that stores nothing leaves no trace: denoising steps may come before the store
            model.velocity(x[:, :, part] + 1, times[:, part], **given)
            assert cache.frames == first
            parts.append(model.velocity(x[:, :, part], times[:, part], **given, store=True))
            first += count
            assert cache.frames == first
            assert cache.layers[1].frames == first
            assert cache.layers[1].parts[-1].keys.shape == (2, first, 6, 2, 14)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=1e-5)


def test_one_cached_history_serves_many_clips(randomised):
    model = randomised(Wan(SMALL))
    x, times, _ = clip(SMALL, frames=3, batch=3)
    x[:, :, :2], times[:, :2] = x[:1, :, :2], 0
    with torch.no_grad():
        cache = model.new_cache()
        model.velocity(x[:1, :, :2], times[:1, :2], cache=cache, store=True)
        for history in (cache, cache.copy()):
            made = model.velocity(x[:, :, 2:], times[:, 2:], cache=history)
            expected = model.velocity(x, times)[:, :, 2:]
            torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_forgotten_frames_are_not_seen_and_positions_go_on(randomised):
    """In one block the keys of a frame depend on that frame alone and rotation is relative: what is
    left after forgetting frames 0 and 1 acts as a clip that starts at frame 2."""
    model = randomised(Wan(replace(SMALL, layers=1)))
    x, times, _ = clip(SMALL, frames=5)
    with torch.no_grad():
        cache = model.new_cache()
        model.velocity(x[:, :, :3], times[:, :3], cache=cache, store=True)
        cache.forget(2)
        made = model.velocity(x[:, :, 3:], times[:, 3:], cache=cache, store=True)
        expected = model.velocity(x[:, :, 2:], times[:, 2:])[:, :, 1:]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert cache.frames == 5 and cache.layers[0].frames == 3


def test_gradients_with_a_cache_are_those_of_the_last_frame(randomised):
    """The input's gradient through a stored history equals the uncached one."""
    model = randomised(Wan(SMALL))
    x, times, _ = clip(SMALL, frames=3)
    weight = torch.randn(1, 3, 1, 4, 6, generator=torch.Generator().manual_seed(4))
    grads = []
    for cached in (False, True):
        last = x[:, :, 2:].clone().requires_grad_()
        if cached:
            cache = model.new_cache()
            with torch.no_grad():
                model.velocity(x[:, :, :2], times[:, :2], cache=cache, store=True)
            out = model.velocity(last, times[:, 2:], cache=cache)
        else:
            out = model.velocity(torch.cat([x[:, :, :2], last], dim=2), times)[:, :, 2:]
        (out * weight).sum().backward()
        grads.append(last.grad)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-5)


def test_no_modulation_changes_nothing(randomised):
    for text in ("full", "removed"):
        config = replace(SMALL, text=text)
        model = randomised(Wan(config))
        x, times, modulation = clip(config, batch=2)
        words = caption(config, batch=2) if text == "full" else None
        with torch.no_grad():
            plain = model.velocity(x, times, text=words)
            for zero in (torch.zeros_like(modulation), torch.zeros_like(modulation[:, :, :1])):
                assert torch.equal(model.velocity(x, times, modulation=zero, text=words), plain)


def test_modulation_of_a_block_acts_as_its_own_table(randomised):
    model = randomised(Wan(SMALL))
    x, times, _ = clip(SMALL)
    six = 0.5 * torch.randn(1, 6, 28, generator=torch.Generator().manual_seed(2))
    for index, block in enumerate(model.blocks):
        modulation = torch.zeros(1, 4, 2, 168)
        modulation[:, :, index] = six.flatten()
        with torch.no_grad():
            through_action = model.velocity(x, times, modulation=modulation)
            block.scale_shift_table += six
            through_table = model.velocity(x, times)
            block.scale_shift_table -= six
            assert (through_table - model.velocity(x, times)).abs().max() > 1e-3
        torch.testing.assert_close(through_action, through_table, atol=1e-5, rtol=1e-5)


def test_modulation_is_per_frame(randomised):
    """In the last block after attention nothing mixes frames: only the modulated one moves."""
    model = randomised(Wan(SMALL))
    x, times, _ = clip(SMALL)
    modulation = torch.zeros(1, 4, 2, 6, 28)
    modulation[:, 1, 1, 3:] = 0.5  # frame 1, last block, shift, scale and gate of its MLP
    with torch.no_grad():
        difference = model.velocity(x, times, modulation=modulation.flatten(3))
        difference = (difference - model.velocity(x, times)).abs().amax((0, 1, 3, 4))
    assert (difference > 0).tolist() == [False, True, False, False]


def test_one_modulation_serves_all_blocks(randomised):
    model = randomised(Wan(SMALL))
    x, times, modulation = clip(SMALL)
    one = modulation[:, :, :1]
    with torch.no_grad():
        shared = model.velocity(x, times, modulation=one)
        assert torch.equal(shared, model.velocity(x, times, modulation=one.expand(-1, -1, 2, -1)))


def test_times_per_clip_per_frame_and_per_token_agree(randomised):
    model = randomised(Wan(SMALL))
    x, times, modulation = clip(SMALL, batch=2)
    steps = 1000 * times
    with torch.no_grad():
        frames = model(x, steps, modulation=modulation)
        tokens = model(x, steps.repeat_interleave(6, dim=1), modulation=modulation)
        torch.testing.assert_close(tokens, frames, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(-model.velocity(x, times), model(x, steps))
        whole = model(x, steps[:, 0])
        each = model(x, steps[:, :1].expand(2, 4))
        torch.testing.assert_close(whole, each, atol=1e-5, rtol=1e-5)
        assert (whole - model(x, steps[:, 0].flip(0))).abs().max() > 1e-3
        one_token = steps.repeat_interleave(6, dim=1)
        one_token[0, 3] += 200  # frame 0, row 1, column 0
        moved = (model(x, one_token) - model(x, steps)).abs()[0, :, 0].amax(0)
        assert moved.argmax() // 6 in (2, 3) and moved.argmax() % 6 < 2


def test_every_parameter_gets_a_gradient(randomised):
    model = randomised(Wan(WITH_TEXT))
    x, times, modulation = clip(WITH_TEXT)
    modulation.requires_grad_()
    out = model.velocity(x, times, modulation=modulation, text=caption(WITH_TEXT))
    out.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert (modulation.grad.abs().amax(-1) > 0).all()  # every frame and block


def test_start_is_the_published_one():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Wan(WITH_TEXT)
    zero = {name for name, p in model.named_parameters() if p.abs().max() == 0}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert zero == biases | {"proj_out.weight"}
    q = model.blocks[0].attn1.to_q.weight
    bound = math.sqrt(6 / (28 + 28))  # Xavier, uniform
    assert 0.95 * bound < q.abs().max() <= bound
    patch = model.patch_embedding.weight
    bound = math.sqrt(6 / (28 + 12))
    assert 0.9 * bound < patch.abs().max() <= bound
    embedder = model.condition_embedder.time_embedder.linear_1.weight
    assert 0.015 < embedder.std() < 0.025


@pytest.mark.parametrize(
    ("config", "tensors", "elements"),
    [
        (replace(WanConfig.wan_1_3b(), text="full"), 825, 1_418_996_800),
        # less cross-attention and its norm (283.5 M + 92 160) and the text embedding (8.65 M)
        (WanConfig.wan_1_3b(), 825 - 30 * 12 - 4, 1_126_858_816),
        (replace(WanConfig.wan_14b(), text="null"), 1095, 14_288_491_584),
    ],
)
def test_published_sizes(config, tensors, elements):
    with torch.device("meta"):
        state = Wan(config).state_dict()
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) == elements


def test_meta_tensors_run():
    """What plans memory without weights."""
    with torch.device("meta"):
        model = Wan(WITH_TEXT)
        x, times, words = torch.zeros(1, 3, 4, 4, 6), torch.zeros(1, 4), torch.zeros(1, 5, 10)
        assert model.velocity(x, times, text=words).shape == x.shape


def test_full_graph_forward_and_backward(randomised):
    torch.compiler.reset()
    model = randomised(Wan(replace(WITH_TEXT, layers=1)))
    x, times, modulation = clip(model.config, frames=2)
    words = caption(model.config)
    results = []
    for compiled in (False, True):
        if compiled:
            model.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        model.zero_grad()
        out = model(x, 1000 * times, words, modulation=modulation)
        out.square().mean().backward()
        results.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (eager, eager_grads), (traced, traced_grads) = results
    torch.testing.assert_close(traced, eager, atol=1e-5, rtol=1e-5)
    for key, grad in eager_grads.items():
        torch.testing.assert_close(traced_grads[key], grad, atol=1e-5, rtol=1e-4, msg=key)


def relative(made: torch.Tensor, expected: torch.Tensor) -> float:
    return ((made - expected).norm() / expected.norm()).item()


def test_half_precision_stays_near(randomised):
    """bfloat16 weights, and float32 weights under autocast: 8 bits, some 1 % after two blocks."""
    model = randomised(Wan(WITH_TEXT), scale=0.2)
    x, times, modulation = clip(WITH_TEXT)
    words = caption(WITH_TEXT)
    with torch.no_grad():
        full = model.velocity(x, times, modulation=modulation, text=words)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model.velocity(x, times, modulation=modulation, text=words)
        half = model.to(torch.bfloat16).velocity(x, times, modulation=modulation, text=words)
    assert mixed.dtype == half.dtype == torch.float32
    assert 0 < relative(mixed, full) < 0.05
    assert 0 < relative(half, full) < 0.05


def test_times_are_embedded_in_full_precision_under_autocast(randomised):
    model = randomised(Wan(SMALL))
    step = torch.tensor([[937.0, 938.0]])
    with torch.no_grad():
        plain = model.condition_embedder.time(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model.condition_embedder.time(step)
    for a, b in zip(plain, mixed, strict=True):
        assert torch.equal(a, b)


def test_shift_of_times_and_what_is_modulated():
    model = Wan(SMALL)
    assert model.time_shift(21, 60, 104) == model.time_shift(1, 4, 4) == 3.0
    assert (model.width, model.channels, model.patch) == (28, 3, (1, 2, 2))
    assert model.modulated_blocks == 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 2, 4, 4), r"expected latents \[B, 3, T, h, w\] .* got \[1, 4, 2, 4, 4\]"),
        ((1, 3, 2, 5, 4), r"multiples of 2 and 2, got \[1, 3, 2, 5, 4\]"),
        ((1, 3, 4, 4), r"expected latents .* got \[1, 3, 4, 4\]"),
    ],
)
def test_latents_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        Wan(SMALL)(torch.zeros(shape), torch.zeros(1))


@pytest.mark.parametrize("shape", [(1, 4, 3, 168), (1, 1, 2, 168), (2, 4, 2, 168), (1, 4, 2, 24)])
def test_modulation_that_does_not_fit(shape):
    x, times, _ = clip(SMALL)
    with pytest.raises(ValueError, match=r"modulation: expected \[1, 4, 1 or 2, 168\], got"):
        Wan(SMALL).velocity(x, times, modulation=torch.zeros(shape))


def test_times_that_do_not_fit():
    x, times, _ = clip(SMALL)
    model = Wan(SMALL)
    with pytest.raises(ValueError, match=r"times: expected \[B, T\] = \[1, 4\].* got \[1, 3\]"):
        model.velocity(x, times[:, :3])
    with pytest.raises(ValueError, match=r"\[1\], \[1, 4\] for frames or \[1, 24\] for tokens"):
        model(x, torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("mode", "given", "message"),
    [
        ("removed", (1, 5, 10), r"text='removed' wants no caption, got one of \[1, 5, 10\]"),
        ("null", (1, 5, 10), r"text='null' wants no caption"),
        ("full", None, r"text='full' wants a caption \[1, L, 10\], got none"),
        ("full", (1, 5, 9), r"text: expected \[1, L, 10\], got \[1, 5, 9\]"),
        ("full", (2, 5, 10), r"text: expected \[1, L, 10\], got \[2, 5, 10\]"),
    ],
)
def test_text_that_does_not_fit(mode, given, message):
    x, times, _ = clip(SMALL)
    words = None if given is None else torch.zeros(given)
    with pytest.raises(ValueError, match=message):
        Wan(replace(SMALL, text=mode)).velocity(x, times, text=words)


def test_caches_that_do_not_fit():
    x, times, _ = clip(SMALL, batch=2)
    model, whole = Wan(SMALL), Wan(replace(SMALL, causal=False))
    with pytest.raises(ValueError, match=r"causal=True"):
        whole.new_cache()
    with pytest.raises(ValueError, match=r"causal=True"):
        whole.velocity(x, times, cache=model.new_cache())
    with pytest.raises(ValueError, match=r"store=True without a cache"):
        model.velocity(x, times, store=True)
    other = Wan(replace(SMALL, layers=1)).new_cache()
    with pytest.raises(ValueError, match=r"expected 2 layers, got 1"):
        model.velocity(x, times, cache=other)
    cache = model.new_cache()
    with torch.no_grad():
        model.velocity(x, times, cache=cache, store=True)
    with pytest.raises(ValueError, match=r"expected 4 tokens per frame of 2 clips .* holds 6 of 2"):
        model.velocity(x[..., :4], times, cache=cache)
    with pytest.raises(ValueError, match=r"expected 6 tokens per frame of 1 clips .* holds 6 of 2"):
        model.velocity(x[:1], times[:1], cache=cache)


def test_sizes_that_are_refused():
    with pytest.raises(ValueError, match=r"temporal patch must be 1, got 2"):
        Wan(replace(SMALL, patch=(2, 2, 2)))
    with pytest.raises(ValueError, match=r"head_dim: expected an even number of 6 at least"):
        Wan(replace(SMALL, head_dim=4))


def test_a_backend_it_does_not_have_is_refused() -> None:
    model = Wan(WanConfig(layers=1))
    for name in ("sdpa", "flex", "auto"):
        use_backend(model, name)
        assert model.blocks[0].attn1.backend == name
    with pytest.raises(ValueError, match=r"WanSelfAttention runs on auto, sdpa, flex, got 'fused'"):
        use_backend(model, "fused")
