"""STDiT3: the published keys, its formulas against loops, one time for a clip."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.backbones.stdit3.layers import PatchEmbedding

SMALL = STDiT3Config(
    depth=2, width=24, heads=2, in_channels=4, predict_sigma=True, input_sq_size=16
)


def published_shapes(depth: int, width: int, heads: int, channels: int) -> dict[str, tuple]:
    """Keys and shapes of Open-Sora v1.2 without text, cross-attention and the stored rope.freqs."""
    C, D = width, width // heads
    shapes = {
        "x_embedder.proj.weight": (C, channels, 1, 2, 2),
        "x_embedder.proj.bias": (C,),
        "t_block.1.weight": (6 * C, C),
        "t_block.1.bias": (6 * C,),
        "final_layer.scale_shift_table": (2, C),
        "final_layer.linear.weight": (4 * 2 * channels, C),
        "final_layer.linear.bias": (4 * 2 * channels,),
    }
    for embedder in ("t_embedder", "fps_embedder"):
        shapes |= {
            f"{embedder}.mlp.0.weight": (C, 256),
            f"{embedder}.mlp.0.bias": (C,),
            f"{embedder}.mlp.2.weight": (C, C),
            f"{embedder}.mlp.2.bias": (C,),
        }
    for kind in ("spatial_blocks", "temporal_blocks"):
        for i in range(depth):
            shapes |= {
                f"{kind}.{i}.scale_shift_table": (6, C),
                f"{kind}.{i}.attn.qkv.weight": (3 * C, C),
                f"{kind}.{i}.attn.qkv.bias": (3 * C,),
                f"{kind}.{i}.attn.q_norm.weight": (D,),
                f"{kind}.{i}.attn.k_norm.weight": (D,),
                f"{kind}.{i}.attn.proj.weight": (C, C),
                f"{kind}.{i}.attn.proj.bias": (C,),
                f"{kind}.{i}.mlp.fc1.weight": (4 * C, C),
                f"{kind}.{i}.mlp.fc1.bias": (4 * C,),
                f"{kind}.{i}.mlp.fc2.weight": (C, 4 * C),
                f"{kind}.{i}.mlp.fc2.bias": (C,),
            }
    return shapes


def clip(config: STDiT3Config, *, frames: int = 4, side: int = 4, batch: int = 1):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, frames, side, side, generator=generator)
    times = torch.rand(batch, frames, generator=generator)
    shape = (batch, frames, 2 * config.depth, 6 * config.width)
    return x, times, 0.3 * torch.randn(shape, generator=generator)


def test_keys_and_shapes_are_the_published_ones():
    shapes = {key: tuple(value.shape) for key, value in STDiT3(SMALL).state_dict().items()}
    assert shapes == published_shapes(2, 24, 2, 4)


def test_xl2_has_the_published_parameters_less_text():
    with torch.device("meta"):
        model = STDiT3(STDiT3Config.xl2())
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == published_shapes(28, 1152, 16, 4)
    text = 300 * 4096 + (1152 * 4096 + 1152) + (1152 * 1152 + 1152)
    cross = (1152 * 1152 + 1152) + (2304 * 1152 + 2304) + (1152 * 1152 + 1152)
    rope_frequencies = 36
    # 973 tensors: 336 of cross-attention, 5 of text, 1 of RoPE
    assert len(shapes) == 973 - 56 * 6 - 5 - 1
    expected = 1_208_872_772 - text - 56 * cross - rope_frequencies
    assert sum(math.prod(shape) for shape in shapes.values()) == expected == 904_066_592


def test_what_starts_at_zero():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = STDiT3(SMALL)
    zero = {name for name, p in model.named_parameters() if p.abs().max() == 0}
    weights = {name for name in zero if name.endswith("weight")}
    assert weights == {"fps_embedder.mlp.2.weight"} | {
        f"{kind}_blocks.{i}.{layer}.weight"
        for kind, layer in (
            ("spatial", "mlp.fc2"),
            ("temporal", "mlp.fc2"),
            ("temporal", "attn.proj"),
        )
        for i in range(2)
    }
    assert {n for n, _ in model.named_parameters() if n.endswith("bias")} <= zero
    qkv = model.spatial_blocks[0].attn.qkv.weight
    bound = math.sqrt(6 / (24 + 72))  # Xavier, uniform
    assert 0.95 * bound < qkv.abs().max() <= bound
    patch = model.x_embedder.proj.weight
    bound = math.sqrt(6 / (24 + 16))
    assert 0.9 * bound < patch.abs().max() <= bound


def test_patch_embedding_is_the_convolution(generator):
    module = PatchEmbedding((1, 2, 2), 3, 10)
    x = torch.randn(2, 3, 4, 6, 8, generator=generator)
    tokens = module(x)
    assert tokens.shape == (2, 4, 12, 10)
    convolved = nn.functional.conv3d(x, module.proj.weight, module.proj.bias, stride=(1, 2, 2))
    torch.testing.assert_close(tokens, convolved.flatten(3).permute(0, 2, 3, 1))


def test_unpatchify_puts_every_value_in_its_place():
    config = replace(SMALL, depth=1)
    model = STDiT3(config)
    B, T, rows, columns = 2, 3, 2, 3
    values = torch.arange(B * T * rows * columns * 32.0).view(B, T, rows * columns, 32)

    class Known(nn.Module):
        def forward(self, x, y, gate, time, noised):
            assert x.shape == (B, T, rows * columns, 24)
            return values

    model.final_layer = Known()
    out = model(torch.zeros(B, 4, T, 2 * rows, 2 * columns), torch.zeros(B))
    assert out.shape == (B, 8, T, 2 * rows, 2 * columns) and out.dtype == torch.float32
    for t in range(T):
        for row in range(2 * rows):
            for column in range(2 * columns):
                token = (row // 2) * columns + column // 2
                first = ((row % 2) * 2 + column % 2) * 8  # (1, 2, 2, C): channels fastest
                expected = values[:, t, token, first : first + 8]
                assert torch.equal(out[:, :, t, row, column], expected)


def by_hand(weights, config, x, times, fps, modulation):
    """The published forward pass in float64, frame by frame, head by head, for one clip."""
    w = {key: value.double() for key, value in weights.items()}
    C, H, D = config.width, config.heads, config.width // config.heads
    _, channels, T, height, width = x.shape
    rows, columns = height // 2, width // 2
    S = rows * columns

    def linear(name, v):
        return w[f"{name}.weight"] @ v + w[f"{name}.bias"]

    def silu(v):
        return v / (1 + torch.exp(-v))

    def embed(name, value):
        angles = [value * math.exp(-math.log(1e4) * i / 128) for i in range(128)]
        features = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        features = torch.tensor(features, dtype=torch.float64)
        return linear(f"{name}.mlp.2", silu(linear(f"{name}.mlp.0", features)))

    def norm(v):
        v = v - v.mean()
        return v / torch.sqrt((v * v).mean() + 1e-6)

    def rms(v, weight):
        return v / torch.sqrt((v * v).mean() + 1e-6) * weight

    def rotate(v, position):
        out = torch.empty_like(v)
        for i in range(D // 2):
            angle = position * 10_000 ** (-2 * i / D)
            a, b = v[2 * i], v[2 * i + 1]
            out[2 * i] = a * math.cos(angle) - b * math.sin(angle)
            out[2 * i + 1] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def attention(name, sequence, *, temporal):
        packed = [linear(f"{name}.qkv", v).view(3, H, D) for v in sequence]
        out = []
        for i in range(len(sequence)):
            heads = []
            for head in range(H):
                q, k, v = [], [], []
                for position, qkv in enumerate(packed):
                    q.append(rms(qkv[0, head], w[f"{name}.q_norm.weight"]))
                    k.append(rms(qkv[1, head], w[f"{name}.k_norm.weight"]))
                    if temporal:
                        q[-1], k[-1] = rotate(q[-1], position), rotate(k[-1], position)
                    v.append(qkv[2, head])
                seen = i + 1 if temporal and config.causal else len(sequence)
                score = torch.stack([(q[i] @ k[j]) / math.sqrt(D) for j in range(seen)])
                weight = torch.exp(score) / torch.exp(score).sum()
                heads.append(sum(weight[j] * v[j] for j in range(seen)))
            out.append(linear(f"{name}.proj", torch.cat(heads)))
        return out

    def mlp(name, v):
        h = linear(f"{name}.fc1", v)
        inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
        return linear(f"{name}.fc2", 0.5 * h * (1 + torch.tanh(inner)))

    time = [embed("t_embedder", 1000 * t.item()) + embed("fps_embedder", fps) for t in times[0]]
    base = [linear("t_block.1", silu(t)) for t in time]

    scale = math.sqrt(height * width) * config.pixels_per_latent / config.input_sq_size
    base_size = round(math.sqrt(S))
    h = {}
    for t in range(T):
        for row in range(rows):
            for column in range(columns):
                patch = x[0, :, t, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].double()
                kernel = w["x_embedder.proj.weight"][:, :, 0]
                token = (kernel * patch).sum((1, 2, 3)) + w["x_embedder.proj.bias"]
                position = []
                for place, size in ((column, columns), (row, rows)):
                    coordinate = place / scale * base_size / size
                    angles = [coordinate * 1e4 ** (-2 * k / (C // 2)) for k in range(C // 4)]
                    position += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                position = torch.tensor(position, dtype=torch.float64)
                h[t, row * columns + column] = token + position

    for pair in range(config.depth):
        for slot, kind in enumerate(("spatial_blocks", "temporal_blocks")):
            name = f"{kind}.{pair}"
            six = []
            for t in range(T):
                added = modulation[0, t, 2 * pair + slot].double()
                six.append(w[f"{name}.scale_shift_table"] + (base[t] + added).view(6, C))
            fed = {k: norm(v) * (1 + six[k[0]][1]) + six[k[0]][0] for k, v in h.items()}
            if slot == 0:
                sequences = [[(t, s) for s in range(S)] for t in range(T)]
            else:
                sequences = [[(t, s) for t in range(T)] for s in range(S)]
            for places in sequences:
                attended = attention(f"{name}.attn", [fed[p] for p in places], temporal=slot == 1)
                for place, value in zip(places, attended, strict=True):
                    h[place] = h[place] + six[place[0]][2] * value
            for (t, s), v in h.items():
                fed_mlp = norm(v) * (1 + six[t][4]) + six[t][3]
                h[t, s] = v + six[t][5] * mlp(f"{name}.mlp", fed_mlp)

    out = torch.empty(1, channels, T, height, width, dtype=torch.float64)
    values = channels * (2 if config.predict_sigma else 1)
    for (t, s), v in h.items():
        shift, scale_last = w["final_layer.scale_shift_table"] + time[t]
        token = linear("final_layer.linear", norm(v) * (1 + scale_last) + shift)
        token = token.view(2, 2, values)[:, :, :channels].permute(2, 0, 1)
        row, column = 2 * (s // columns), 2 * (s % columns)
        out[0, :, t, row : row + 2, column : column + 2] = token
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sigma", [True, False])
def test_velocity_equals_an_implementation_in_loops(causal, sigma, randomised):
    config = replace(SMALL, width=16, causal=causal, predict_sigma=sigma, clip_fps=True)
    model = randomised(STDiT3(config))
    x, times, modulation = clip(config, frames=3)
    x = torch.cat([x, x.flip(4)[..., :2]], dim=4)  # 4 x 6: columns and rows differ
    times[:, 0] = 0  # clean history
    with torch.no_grad():
        made = model.velocity(x, times, modulation=modulation, fps=7.5)
        expected = by_hand(model.state_dict(), config, x, times, 7.5, modulation)
    torch.testing.assert_close(made.double(), expected, atol=2e-4, rtol=2e-4)


def test_one_time_per_clip_is_that_time_in_every_frame(randomised):
    model = randomised(STDiT3(SMALL))
    x, _, _ = clip(SMALL, batch=2)
    time = torch.tensor([300.0, 800.0])
    with torch.no_grad():
        assert torch.equal(model(x, time), model(x, time[:, None].expand(2, 4)))
        assert (model(x, time) - model(x, time.flip(0))).abs().max() > 1e-3
        rates = torch.tensor([8.0, 24.0])
        each = torch.cat([model(x[i : i + 1], time[i : i + 1], fps=rates[i]) for i in range(2)])
        torch.testing.assert_close(model(x, time, fps=rates), each)


def test_velocity_reads_the_rate_of_clips_where_the_configuration_says_so(randomised):
    held = randomised(STDiT3(replace(SMALL, fps=24.0)))
    told = STDiT3(replace(SMALL, fps=24.0, clip_fps=True))
    told.load_state_dict(held.state_dict())
    x, times, _ = clip(SMALL, batch=2)
    rates = torch.tensor([8.0, 24.0])
    with torch.no_grad():
        plain = held.velocity(x, times)
        assert torch.equal(held.velocity(x, times, fps=rates), plain)
        assert torch.equal(told.velocity(x, times), plain)
        torch.testing.assert_close(told.velocity(x, times, fps=rates)[1], plain[1])
        assert (told.velocity(x, times, fps=rates)[0] - plain[0]).abs().max() > 1e-3


def test_a_temporal_patch_is_refused():
    with pytest.raises(ValueError, match=r"temporal patch must be 1, got 2"):
        STDiT3(replace(SMALL, patch=(2, 2, 2)))
