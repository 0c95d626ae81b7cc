"""Wan against plain formulas in float64, what forgetting does to a cache, times, published sizes.

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
