"""The latent action model of AdaWorld (arXiv 2503.18938), and DreamDojo's (arXiv 2602.06949), a larger one
in the same layout: continuous, a Gaussian of 32 numbers for each pair of frames.

    pair of frames -> patches, a learned token before those of each frame -> blocks of attention in space
    and in time -> the later frame's learned token -> mean of the Gaussian

What is computed was read from github.com/Little-Podi/AdaWorld (lam/) and github.com/NVIDIA/DreamDojo
(external/lam_project; its files name the Apache License 2.0, AdaWorld's repository has its own); the code here is
our own. Weights of both are published as pickles (lam.ckpt, LAM_400k.ckpt) and must be converted first, see docs/latent-action-models.md.
Not here: their decoders, which training needs and nothing else.

Shape legend: B clips, T frames, S tokens of a frame (patches + 1), C width, d width of the latent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.contracts import LatentActions
from colaworld.models.backbones.weights import Layout, WeightsError, files_of, header, load_weights
from colaworld.models.inputs import checked_frames
from colaworld.models.latent_action.published import Shapes
from colaworld.models.layers.rope import rope_tables

# Where its tensors stand: by themselves, in a Lightning checkpoint, in AdaWorld's whole world model.
_PLACES = r"(?:conditioner\.embedders\.\d+\.lam\.)?(?:lam\.)?"
_PROMPT = re.compile(rf"({_PLACES})action_prompt")
_DECODER = ("patch_up.*", "action_up.*", "decoder.*")  # rebuilds the later frame, in training


@dataclass(frozen=True)
class Preparation:
    """How frames are made ready: the largest centred box of the size's shape, resized to it."""

    size: tuple[int, int]  # height, width
    mode: Literal["bicubic", "bilinear"]
    blocks: int  # of the published model, by which the two are told apart

    def __call__(self, frames: Tensor) -> Tensor:
        """[M, 3, H, W] in [0, 1] -> [M, 3, *size]. Bicubic ones may overshoot [0, 1] a little."""
        (height, width), ratio = frames.shape[-2:], self.size[1] / self.size[0]
        if width / height > ratio:
            rows, columns = height, int(height * ratio)
        elif width / height < ratio:
            rows, columns = int(width / ratio), width
        else:
            rows, columns = height, width
        top, left = (height - rows) // 2, (width - columns) // 2
        box = frames[..., top : top + rows, left : left + columns]
        return box if box.shape[-2:] == self.size else F.interpolate(box, self.size, mode=self.mode)


ADAWORLD = Preparation((256, 256), "bicubic", blocks=16)
DREAMDOJO = Preparation((240, 320), "bilinear", blocks=24)


@dataclass(frozen=True)
class Sizes:
    """Read from the shapes of what is stored."""

    blocks: int
    width: int
    heads: int
    patch: int
    dim: int


class SelfAttention(nn.Module):
    """Of [M, L, C] along L; with rotary tables where there is an order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        if tables is not None:
            q, k = _rotated(q, *tables), _rotated(k, *tables)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[.., L, D] turned in interleaved pairs by the angles of [L, D / 2]."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class Block(nn.Module):
    """Attention in space, then in time (all frames see each other), then an MLP; norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.spatial_attn = SelfAttention(width, heads)
        self.temporal_attn = SelfAttention(width, heads)
        self.ffn = nn.Sequential(  # the stored names count a dropout between the two
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """[B, T, S, C] -> the same shape."""
        B, T, S, _ = x.shape
        x = x + self.spatial_attn(self.norm1(x).flatten(0, 1)).unflatten(0, (B, T))
        over_time = self.norm2(x).transpose(1, 2).flatten(0, 1)
        x = x + self.temporal_attn(over_time, tables).unflatten(0, (B, S)).transpose(1, 2)
        return x + self.ffn(self.norm3(x))


class Encoder(nn.Module):
    """Tokens of some frames [B, T, S, 3 p p] -> features [B, T, S, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, pixels = sizes.width, 3 * sizes.patch**2
        self.head_dim = width // sizes.heads
        self.ffn = nn.Sequential(
            nn.LayerNorm(pixels), nn.Linear(pixels, width), nn.LayerNorm(width)
        )
        self.transformer_blocks = nn.ModuleList(
            Block(width, sizes.heads) for _ in range(sizes.blocks)
        )
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.ffn(tokens)
        x = x + position_table(x.shape[2], x.shape[3], device=x.device)
        tables = rope_tables(x.shape[1], self.head_dim, device=x.device)
        for block in self.transformer_blocks:
            x = block(x, tables)
        return self.out(x)


def position_table(length: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """[length, width]: sine and cosine of each frequency next to each other (arXiv 1706.03762, section 3.5)."""
    pair = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    angle = place * torch.exp(-math.log(10_000.0) / width * pair)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class AdaWorldLatents(nn.Module):
    """Pairs of neighbouring frames to the mean of their latent: a `contracts.LatentActionModel`.

    Each transition is read from its two frames alone, as the model was trained, so no latent sees a
    third one.
    """

    codebook_size = None
    tokens = 1
    frame_size = None
    window = 2

    def __init__(self, sizes: Sizes, prepare: Preparation) -> None:
        super().__init__()
        self.sizes, self.prepare, self.dim = sizes, prepare, sizes.dim
        self.action_prompt = nn.Parameter(torch.empty(1, 1, 1, 3 * sizes.patch**2))
        self.encoder = Encoder(sizes)
        self.fc = nn.Linear(sizes.width, 2 * sizes.dim)  # mean, and log variance, which is not used

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a latent beside the weights."""
        return {"sizes": asdict(self.sizes), "prepare": asdict(self.prepare)}

    def tokens_of(self, frames: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, T, S, 3 p p], the learned token first; colours of a pixel together."""
        B, T, _, H, W = frames.shape
        p = self.sizes.patch
        whole = frames[..., : H // p * p, : W // p * p]
        patches = whole.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # [B, T, 3, h, p, w, p]
        patches = patches.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(2, 3)
        return torch.cat([self.action_prompt.expand(B, T, -1, -1), patches], dim=2)

    @torch.no_grad()
    def infer_actions(self, frames: Tensor) -> LatentActions:
        """frames [B, T, 3, H, W] of any size, floats in [0, 1] or uint8 -> codes [B, T - 1, 1, d]."""
        frames = checked_frames(frames, "infer_actions: frames")
        B, T = frames.shape[:2]
        if T < 2:
            raise ValueError(f"infer_actions: a latent action needs two frames, got T = {T}")
        tokens = self.tokens_of(self.prepare(frames.flatten(0, 1)).unflatten(0, (B, T)))
        codes = []
        for t in range(T - 1):  # one transition of all clips at a time: S grows with the frame
            seen = self.encoder(tokens[:, t : t + 2])[:, 1, :1]  # [B, 1, C]
            codes.append(self.fc(seen).chunk(2, dim=-1)[0])
        return LatentActions(torch.stack(codes, dim=1))


def _place_of(keys: Iterable[str]) -> str | None:
    """What stands before the keys of the latent action model; None where there is none."""
    found = [match[1] for key in keys if (match := _PROMPT.fullmatch(key))]
    return found[0] if len(found) == 1 else None


def _blocks(shapes: Shapes, place: str) -> int:
    pattern = re.compile(re.escape(place) + r"encoder\.transformer_blocks\.(\d+)\.norm3\.weight")
    return sum(pattern.fullmatch(key) is not None for key in shapes)


def _recognise(shapes: Shapes, prepare: Preparation) -> bool:
    place = _place_of(shapes)
    wanted = ("encoder.ffn.1.weight", "fc.weight", _frequencies(0))
    return (
        place is not None
        and all(place + key in shapes for key in wanted)
        and _blocks(shapes, place) == prepare.blocks
    )


def recognise_adaworld(shapes: Shapes) -> bool:
    """Its keys, with 16 blocks as published."""
    return _recognise(shapes, ADAWORLD)


def recognise_dreamdojo(shapes: Shapes) -> bool:
    """The same keys with 24 blocks. One of another depth may be prepared either way: name its kind."""
    return _recognise(shapes, DREAMDOJO)


def _frequencies(block: int) -> str:
    return f"encoder.transformer_blocks.{block}.temporal_attn.rotary_embedding.freqs"


def _sizes(shapes: Shapes, place: str, path: Path) -> Sizes:
    """Raises WeightsError where they are not there or make no model."""

    def shape(key: str, dims: int) -> list[int]:
        found = shapes.get(place + key)
        if found is None or len(found) != dims or not all(found):
            raise WeightsError(
                f"{path}: {place}{key}: expected a tensor of {dims} dimensions, got "
                f"{'none' if found is None else found}: not the layout of AdaWorld's latent action model"
            )
        return found

    width, pixels = shape("encoder.ffn.1.weight", 2)
    (pairs,) = shape(_frequencies(0), 1)
    moments = shape("fc.weight", 2)[0]
    patch = math.isqrt(pixels // 3)
    if width % (2 * pairs) or 3 * patch**2 != pixels or moments % 2:
        raise WeightsError(
            f"{path}: width {width}, {pairs} rotary frequencies, {pixels} numbers a patch and {moments} "
            "moments make no AdaWorld latent action model (expected 2 x frequencies to divide the "
            "width, 3 x side^2 numbers, an even number of moments)"
        )
    return Sizes(_blocks(shapes, place), width, width // (2 * pairs), patch, moments // 2)


def _load(path: Path, prepare: Preparation, device: torch.device | str) -> AdaWorldLatents:
    shapes = {key: shape for file in files_of(path) for key, (shape, _) in header(file).items()}
    place = _place_of(shapes)
    if place is None:
        raise WeightsError(
            f"{path}: expected one key action_prompt (or lam.action_prompt, or AdaWorld's whole world "
            f"model), found {', '.join(list(shapes)[:3]) or 'nothing'}, ..."
        )
    sizes = _sizes(shapes, place, path)
    pairs = torch.arange(0, sizes.width // sizes.heads, 2, dtype=torch.float32)
    frequency = 10_000.0 ** (-pairs * sizes.heads / sizes.width)
    whole = place.startswith("conditioner.")  # a whole world model: the rest of it is not read
    rest = "(world model)."

    def rename(key: str) -> str:
        return key.removeprefix(place) if key.startswith(place) or not whole else rest + key

    layout = Layout(
        rename=rename,
        drop=(*_DECODER, rest + "*") if whole else _DECODER,
        constants={_frequencies(block): frequency for block in range(sizes.blocks)},
    )
    with torch.device("meta"):
        model = AdaWorldLatents(sizes, prepare)
    load_weights(model, path, layout, device=device, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def load_adaworld(path: Path, *, device: torch.device | str = "cpu") -> AdaWorldLatents:
    """Frames: a centred square, bicubic to 256 x 256. See `load_published`."""
    return _load(path, ADAWORLD, device)


def load_dreamdojo(path: Path, *, device: torch.device | str = "cpu") -> AdaWorldLatents:
    """Frames: a centred 4:3 box, bilinear to 240 x 320. See `load_published`."""
    return _load(path, DREAMDOJO, device)
