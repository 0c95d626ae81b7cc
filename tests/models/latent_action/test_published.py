"""Latent action models of others: their keys, what is computed from them, and what is refused.

The keys and shapes are written out here, the formulas again in float64; no published file is at hand.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from colaworld.config import ConfigError
from colaworld.contracts import LatentActionModel
from colaworld.models.backbones.weights import WeightsError
from colaworld.models.latent_action.published import (
    PUBLISHED,
    load_published,
    register_latent_action_model,
)
from colaworld.models.latent_action.published.adaworld import (
    ADAWORLD,
    DREAMDOJO,
    AdaWorldLatents,
    recognise_adaworld,
    recognise_dreamdojo,
)
from colaworld.models.latent_action.published.villa_x import VillaXConfig, VillaXLatents

VILLA = dict(
    resolution=8,
    patch_size=4,
    d_t=3,
    mlp_ratio=1.5,
    encoder_depth=2,
    encoder_embed_dim=12,
    encoder_n_heads=3,
    action_latent_dim=5,
    num_learned_tokens=2,
    map_heads=2,
    n_codes=7,
)


def adaworld_shapes(width: int, heads: int, blocks: int, patch: int, dim: int, decoder: int):
    """Keys and shapes of a LatentActionModel of AdaWorld (lam/lam/modules)."""
    pixels = 3 * patch**2
    shapes = {"action_prompt": [1, 1, 1, pixels]}

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = [out, into]
        shapes.update({f"{name}.bias": [out]} if bias else {})

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.weight": [size], f"{name}.bias": [size]})

    def transformer(name: str, into: int, out: int, count: int, axes: tuple[str, ...]) -> None:
        norm(f"{name}.ffn.0", into)
        linear(f"{name}.ffn.1", width, into)
        norm(f"{name}.ffn.2", width)
        for i in range(count):
            block = f"{name}.transformer_blocks.{i}"
            for axis in axes:
                for part in "qkv":
                    linear(f"{block}.{axis}_attn.to_{part}", width, width, bias=False)
                linear(f"{block}.{axis}_attn.to_out.0", width, width)
            if "temporal" in axes:
                freqs = f"{block}.temporal_attn.rotary_embedding.freqs"
                shapes[freqs] = [width // heads // 2]
            linear(f"{block}.ffn.0", 4 * width, width)
            linear(f"{block}.ffn.3", width, 4 * width)
            for number in range(1, len(axes) + 2):
                norm(f"{block}.norm{number}", width)
        linear(f"{name}.out", out, width)

    transformer("encoder", pixels, width, blocks, ("spatial", "temporal"))
    linear("fc", 2 * dim, width)
    linear("patch_up", width, pixels)
    linear("action_up", width, dim)
    transformer("decoder", width, pixels, decoder, ("spatial",))
    return shapes


def villa_x_shapes(config: VillaXConfig) -> dict[str, list[int]]:
    """Keys and shapes of an IgorModel of villa-X (lam/)."""
    C, p, d = config.encoder_embed_dim, config.patch_size, config.action_latent_dim
    hidden, side = int(C * config.mlp_ratio), config.resolution // p
    shapes = {"vq.embedding.weight": [config.n_codes, d], "decoder.pe": [1, 4, 6]}

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": [out, into], f"{name}.bias": [out]})

    shapes |= {"encoder.embed.proj.weight": [C, 3, p, p], "encoder.embed.proj.bias": [C]}
    shapes |= {
        "encoder.pe_spatial": [1, side**2, C],
        "encoder.pe_temporal": [1, config.d_t, C],
        "encoder.norm.g": [C],
    }
    for i in range(config.encoder_depth):
        layer = f"encoder.layers.{i}"
        shapes[f"{layer}.scale_shift_table"] = [6, C]
        for attention in ("attn", "attn_temp"):
            linear(f"{layer}.{attention}.qkv", 3 * C, C)
            linear(f"{layer}.{attention}.proj", C, C)
            for name in ("q_norm", "k_norm") if config.st_use_qk_norm else ():
                for part in ("weight", "bias"):
                    shapes[f"{layer}.{attention}.{name}.{part}"] = [C // config.encoder_n_heads]
        linear(f"{layer}.mlp.fc1", hidden, C)
        linear(f"{layer}.mlp.fc2", C, hidden)
    pool = "encoder.map_block"
    shapes |= {f"{pool}.latents": [config.num_learned_tokens, C]}
    shapes |= {f"{pool}.attn_norm.g": [C], f"{pool}.mlp_norm.g": [C]}
    linear(f"{pool}.pre_projection", C, C)
    linear(f"{pool}.attn.q", C, C)
    linear(f"{pool}.attn.kv", 2 * C, C)
    linear(f"{pool}.attn.proj", C, C)
    linear(f"{pool}.mlp.0.project", 2 * hidden, C)
    linear(f"{pool}.mlp.1", C, hidden)
    linear(f"{pool}.final_proj.0", d, C)
    return shapes


def drawn(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {k: 0.4 * torch.randn(shape, generator=generator) for k, shape in shapes.items()}
    for key in made:
        if key.endswith("freqs"):
            pairs = made[key].numel()
            made[key] = torch.tensor([10_000 ** (-i / pairs) for i in range(pairs)])
        elif made[key].ndim == 1 and key.endswith(("weight", ".g")):
            made[key] += 1
    return made


@pytest.fixture
def saved(tmp_path):
    """saved(tensors) -> the file with them; of villa-X's configuration too, its folder."""

    def write(tensors: dict, config: dict | None = None) -> Path:
        save_file(tensors, tmp_path / "model.safetensors")
        if config is None:
            return tmp_path / "model.safetensors"
        described = {"architecture": "IgorModel", "version": 0, "config": config}
        (tmp_path / "model_config.json").write_text(json.dumps(described))
        return tmp_path

    return write


def layer_norm(x, eps=1e-5, weight=None, bias=None):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x if weight is None else x * weight + bias


def attend(q, k, v, heads, *, causal=False):
    """[L, C] to [M, C], head by head and token by token."""
    out = torch.zeros_like(q)
    size = q.shape[-1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(q)):
            seen = i + 1 if causal else len(k)
            weight = (k[:seen, part] @ q[i, part] / math.sqrt(size)).softmax(0)
            out[i, part] = weight @ v[:seen, part]
    return out


def turned(x, heads):
    """[L, C]: each pair of neighbours of a head by position x 10000^(-pair / pairs)."""
    L, C = x.shape
    pairs = C // heads // 2
    angle = torch.tensor(
        [[t * 10_000 ** (-i / pairs) for i in range(pairs)] for t in range(L)], dtype=x.dtype
    )
    z = torch.view_as_complex(x.reshape(L, heads, pairs, 2).contiguous())
    return torch.view_as_real(z * torch.exp(1j * angle)[:, None]).reshape(L, C)


def adaworld_by_hand(w, first, later, *, heads, blocks, patch):
    """The mean of one pair of prepared frames [3, H, W]."""
    w = {key: value.double() for key, value in w.items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(name, x):
        return layer_norm(x, 1e-5, w[f"{name}.weight"], w[f"{name}.bias"])

    def tokens(frame):
        rows = [w["action_prompt"].flatten()]
        for y in range(0, frame.shape[1], patch):
            for x in range(0, frame.shape[2], patch):
                box = frame[:, y : y + patch, x : x + patch].double()
                rows.append(torch.stack([box[:, r, c] for r in range(patch) for c in range(patch)]))
        return torch.stack([row.flatten() for row in rows])

    x = torch.stack([tokens(first), tokens(later)])  # [2, S, 3 p p]
    x = norm("encoder.ffn.2", linear("encoder.ffn.1", norm("encoder.ffn.0", x)))
    _, S, C = x.shape
    for s in range(S):
        for i in range(C):
            angle = s * 10_000 ** (-(i // 2 * 2) / C)
            x[:, s, i] += math.cos(angle) if i % 2 else math.sin(angle)
    for number in range(blocks):
        block = f"encoder.transformer_blocks.{number}"

        def attention(axis, h, turn, block=block):
            q, k, v = (linear(f"{block}.{axis}_attn.to_{part}", h) for part in "qkv")
            q, k = (turned(q, heads), turned(k, heads)) if turn else (q, k)
            return linear(f"{block}.{axis}_attn.to_out.0", attend(q, k, v, heads))

        h = norm(f"{block}.norm1", x)
        x = x + torch.stack([attention("spatial", frame, False) for frame in h])
        h = norm(f"{block}.norm2", x)
        x = x + torch.stack([attention("temporal", h[:, s], True) for s in range(S)], dim=1)
        h = linear(f"{block}.ffn.0", norm(f"{block}.norm3", x))
        x = x + linear(f"{block}.ffn.3", h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))
    moments = linear("fc", linear("encoder.out", x[1, 0]))
    return moments[: len(moments) // 2]


TINY = dict(width=12, heads=3, blocks=16, patch=80, dim=4, decoder=1)


def test_adaworld_equals_its_formulas_and_sees_two_frames_alone(saved) -> None:
    tensors = drawn(adaworld_shapes(**TINY))
    model = load_published(saved({f"lam.{key}": value for key, value in tensors.items()}))
    assert isinstance(model, LatentActionModel)
    assert (model.codebook_size, model.tokens, model.dim, model.frame_size) == (None, 1, 4, None)
    assert model.prepare is ADAWORLD
    frames = torch.rand(2, 3, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    codes = model.infer_actions(frames).codes
    assert codes.shape == (2, 2, 1, 4)
    whole = frames[..., :240, :240]  # three patches of 80 fit into 256 pixels
    expected = adaworld_by_hand(tensors, *whole[1, 1:], heads=3, blocks=16, patch=80)
    torch.testing.assert_close(codes[1, 1, 0].double(), expected, rtol=2e-4, atol=2e-5)
    other = frames.clone()
    other[:, 2] = 0
    assert torch.equal(model.infer_actions(other).codes[:, 0], codes[:, 0])
    assert (model.infer_actions(other).codes[:, 1] - codes[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("place", ["", "lam.", "conditioner.embedders.2.lam.lam."])
def test_adaworld_is_found_where_it_is_published(saved, place) -> None:
    tensors = {place + k: v for k, v in drawn(adaworld_shapes(**TINY)).items()}
    if place.startswith("conditioner"):  # its whole world model, of which nothing else is read
        tensors["model.diffusion_model.out.weight"] = torch.full((2,), torch.nan)
    model = load_published(saved(tensors))
    assert torch.equal(model.fc.weight, tensors[f"{place}fc.weight"])
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_frames_are_prepared_as_each_was_trained() -> None:
    columns = torch.arange(320.0).expand(1, 3, 240, 320) / 320
    assert torch.equal(DREAMDOJO(columns), columns)
    wide = torch.arange(500.0).expand(1, 3, 240, 500) / 500  # columns 90 .. 409 are its middle
    assert torch.equal(DREAMDOJO(wide), wide[..., 90:410])
    high = torch.arange(1000.0)[:, None].expand(1, 3, 1000, 320) / 1000
    assert torch.equal(DREAMDOJO(high), high[:, :, 380:620])
    wide = torch.arange(300.0).expand(1, 3, 256, 300) / 300
    assert torch.equal(ADAWORLD(wide), wide[..., 22:278])
    small = ADAWORLD(torch.arange(64.0).square().expand(1, 3, 64, 64))
    assert small.shape == (1, 3, 256, 256)
    # Column 40 of 256 lies at 9.625 of 64: cubic convolution (Keys 1981, a = -3/4) of 8 .. 11.
    weights = [-0.75 * d**3 + 3.75 * d**2 - 6 * d + 3 for d in (1.625, 1.375)]
    weights[1:1] = [1.25 * d**3 - 2.25 * d**2 + 1 for d in (0.625, 0.375)]
    expected = sum(w * column**2 for w, column in zip(weights, range(8, 12), strict=True))
    assert small[0, 0, 128, 40].item() == pytest.approx(expected, rel=1e-5)


def test_the_published_sizes() -> None:
    """DreamDojo's 24 + 24 blocks of width 1024 have the 710 M parameters that are published."""
    shapes = adaworld_shapes(1024, 16, 24, 16, 32, 24)
    assert sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(710e6, rel=2e-3)
    assert recognise_dreamdojo(shapes) and not recognise_adaworld(shapes)
    shapes = {f"lam.{k}": v for k, v in adaworld_shapes(1024, 16, 16, 16, 32, 16).items()}
    assert recognise_adaworld(shapes) and not recognise_dreamdojo(shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.out.bias": None}, "missing encoder.out.bias"),
        ({"encoder.out.scale": [12]}, "left over encoder.out.scale"),
        ({"vq.codebook": [3]}, "left over vq.codebook"),
        ({"fc.bias": [7]}, r"fc.bias: expected \[8\], got \[7\]"),
        (
            {"encoder.transformer_blocks.3.temporal_attn.rotary_embedding.freqs": [2]},
            "blocks.3.temporal_attn.rotary_embedding.freqs: not the values that this model has",
        ),
        ({"fc.weight": [7, 12]}, "width 12, 2 rotary frequencies, 19200 numbers a patch and 7"),
    ],
)
def test_adaworld_is_read_strictly(saved, change, message) -> None:
    tensors = drawn(adaworld_shapes(**TINY))
    for key, shape in change.items():
        tensors.pop(key, None)
        tensors.update({} if shape is None else {key: torch.full(shape, 0.5)})
    with pytest.raises(WeightsError, match=message):
        load_published(saved(tensors))


def test_a_depth_that_was_not_published_must_be_named(saved) -> None:
    """It could be either's, whose frames are prepared differently."""
    file = saved(drawn(adaworld_shapes(**TINY | {"blocks": 2})))
    with pytest.raises(WeightsError, match=r"no layout recognises its .* keys.* Name the one"):
        load_published(file)
    assert load_published(file, kind="dreamdojo").prepare is DREAMDOJO
    with pytest.raises(ValueError, match=r"no layout of latent action models 'lapa' is registered"):
        load_published(file, kind="lapa")
    with pytest.raises(WeightsError, match=r"model_config.json: missing"):
        load_published(file, kind="villa-x")


def villa_x_by_hand(w, frames, config):
    """Latents of prepared frames [T <= d_t, 3, H, W] in float64: [T - 1, N, d]."""
    w = {key: value.double() for key, value in w.items()}
    p, T = config.patch_size, len(frames)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def rms(name, x):
        return x / x.square().mean(-1, keepdim=True).sqrt() * w[f"{name}.g"]

    def silu(x):
        return x / (1 + torch.exp(-x))

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def self_attention(name, x, *, causal):
        heads = config.encoder_n_heads
        q, k, v = linear(f"{name}.qkv", x).chunk(3, dim=-1)

        def normed(part, y):
            head = y.unflatten(-1, (heads, -1))
            scale = w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"]
            return layer_norm(head, 1e-5, *scale).flatten(-2)

        q, k = normed("q_norm", q), normed("k_norm", k)
        return linear(f"{name}.proj", attend(q, k, v, heads, causal=causal))

    side = config.resolution // p
    kernel = w["encoder.embed.proj.weight"].flatten(1)
    x = torch.stack(
        [
            torch.stack(
                [
                    kernel @ frame.double()[:, p * r : p * r + p, p * c : p * c + p].reshape(-1)
                    + w["encoder.embed.proj.bias"]
                    for r in range(side)
                    for c in range(side)
                ]
            )
            for frame in frames
        ]
    )
    x = x + w["encoder.pe_spatial"]  # [T, S, C]
    for number in range(config.encoder_depth):
        layer = f"encoder.layers.{number}"
        table = w[f"{layer}.scale_shift_table"]
        h = layer_norm(x, 1e-6) * (1 + table[1]) + table[0]
        x = x + table[2] * torch.stack(
            [self_attention(f"{layer}.attn", frame, causal=False) for frame in h]
        )
        h = x + (w["encoder.pe_temporal"][0, :T, None] if number == 0 else 0)
        seen = [
            self_attention(f"{layer}.attn_temp", h[:, s], causal=True) for s in range(x.shape[1])
        ]
        x = x + table[2] * torch.stack(seen, dim=1)
        h = layer_norm(x, 1e-6) * (1 + table[4]) + table[3]
        x = x + table[5] * linear(f"{layer}.mlp.fc2", gelu(linear(f"{layer}.mlp.fc1", h)))
    x = rms("encoder.norm", x)
    pool, made = "encoder.map_block", []
    for pair in (x[1:] + x[:-1]) / 2:
        y = w[f"{pool}.latents"]
        k, v = linear(f"{pool}.attn.kv", linear(f"{pool}.pre_projection", pair)).chunk(2, dim=-1)
        seen = attend(linear(f"{pool}.attn.q", y), k, v, config.map_heads)
        y = rms(f"{pool}.attn_norm", y + linear(f"{pool}.attn.proj", seen))
        value, gate = linear(f"{pool}.mlp.0.project", y).chunk(2, dim=-1)
        y = rms(f"{pool}.mlp_norm", y + linear(f"{pool}.mlp.1", value * silu(gate)))
        made.append(linear(f"{pool}.final_proj.0", y))
    return torch.stack(made)


def test_villa_x_equals_its_formulas_in_a_sliding_window(saved) -> None:
    config = VillaXConfig(**VILLA)
    tensors = drawn(villa_x_shapes(config))
    model = load_published(saved(tensors, {**VILLA, "decoder_depth": 8, "augment_type": "none"}))
    assert isinstance(model, VillaXLatents) and isinstance(model, LatentActionModel)
    assert (model.codebook_size, model.tokens, model.dim, model.frame_size) == (7, 2, 5, None)
    generator = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (1, 5, 3, 8, 8), dtype=torch.uint8, generator=generator)
    found = model.infer_actions(frames)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ready = ((frames[0].movedim(1, -1) / 255 - mean) / std).movedim(-1, 1)
    first, *later = (villa_x_by_hand(tensors, ready[t : t + 3], config) for t in range(3))
    expected = torch.cat([first, *(window[-1:] for window in later)])
    torch.testing.assert_close(model.latents(frames)[0].double(), expected, rtol=1e-4, atol=1e-4)
    book = tensors["vq.embedding.weight"]
    nearest = torch.cdist(expected, book.double()).argmin(-1)
    assert nearest.unique().numel() > 2
    assert torch.equal(found.indices[0], nearest) and torch.equal(found.codes[0], book[nearest])


def test_villa_x_resizes_to_bytes() -> None:
    model = VillaXLatents(VillaXConfig(**VILLA))
    frames = torch.zeros(1, 1, 3, 16, 16)
    frames[..., ::2] = 1.0  # stripes of one pixel: half of 255 everywhere, to the next byte
    inner = model.prepare(frames)[0, 0, 0, :, 1:-1] * 0.229 + 0.485
    assert (inner * 255).unique().tolist() == pytest.approx([128.0], abs=1e-3)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"map_heads": 5}, WeightsError, "map_heads: expected a divisor of encoder_embed_dim 12"),
        ({"n_codes": 9}, WeightsError, r"vq.embedding.weight: expected \[9, 5\], got \[7, 5\]"),
        ({"encoder_depth": 0}, ConfigError, "encoder_depth"),
    ],
)
def test_villa_x_refuses_what_does_not_fit(saved, config, error, message) -> None:
    folder = saved(drawn(villa_x_shapes(VillaXConfig(**VILLA))), VILLA | config)
    with pytest.raises(error, match=message):
        load_published(folder)


def test_another_model_s_description_is_refused(saved) -> None:
    folder = saved(drawn(villa_x_shapes(VillaXConfig(**VILLA))), VILLA)
    (folder / "model_config.json").write_text('{"architecture": "Other", "config": {}}')
    with pytest.raises(WeightsError, match=r'expected {"architecture": "IgorModel"'):
        load_published(folder)


def test_both_say_what_frames_they_need(saved) -> None:
    adaworld = load_published(saved(drawn(adaworld_shapes(**TINY))))
    villa = VillaXLatents(VillaXConfig(**VILLA))
    for model in (adaworld, villa):
        with pytest.raises(ValueError, match=r"a latent action needs two frames, got T = 1"):
            model.infer_actions(torch.rand(1, 1, 3, 8, 8))
        with pytest.raises(ValueError, match=r"expected frames in \[0, 1\], got values from"):
            model.infer_actions(255 * torch.rand(1, 2, 3, 8, 8))


def test_a_layout_from_outside(saved, from_outside) -> None:
    from_outside(Path(__file__).with_name("plugin_latents.py"))
    model = load_published(saved({"mean.weight": torch.eye(3)[:2]}))
    frames = torch.zeros(1, 2, 3, 4, 4)
    frames[:, 1, 1] = 0.5
    assert model.infer_actions(frames).codes.tolist() == [[[[0.0, 0.5]]]]
    with pytest.raises(ValueError, match=re.escape("'mean': there is one of this name already")):
        register_latent_action_model("mean", recognise=lambda shapes: True, load=None)
    assert "mean" in PUBLISHED


def test_keys_that_two_layouts_recognise_must_be_told_apart(saved, from_outside) -> None:
    from_outside(Path(__file__).with_name("plugin_latents.py"))
    register_latent_action_model(
        "twin", recognise=lambda shapes: "mean.weight" in shapes, load=None
    )
    file = saved({"mean.weight": torch.eye(3)[:2]})
    with pytest.raises(WeightsError, match=r"mean and twin both recognise its keys"):
        load_published(file)
    assert load_published(file, kind="mean").dim == 2


def test_weights_go_where_they_are_asked_to(saved) -> None:
    file = saved({k: v.half() for k, v in drawn(adaworld_shapes(**TINY)).items()})
    model = load_published(file, device="cpu")
    assert isinstance(model, AdaWorldLatents)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
