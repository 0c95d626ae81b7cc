"""The configuration of each tokenizer; `kind` tells them apart. Imports no torch.

Not here: the tokenizers, a file each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from colaworld.config import Checked, Count, Layers, Positive, Range, Seed, Size

Posterior = Literal["mean", "sample"]
DType = Literal["float32", "bfloat16", "float16"]
PUBLISHED = {"kl": (4, 1, 8), "wan": (16, 4, 8), "tiny": (4, 1, 8)}  # C, temporal, spatial


@dataclass(frozen=True)
class PixelTokenizerConfig(Checked, at="model.tokenizer."):
    """Space-to-depth: each patch of pixels becomes the channels of one latent location."""

    kind: Literal["pixels"] = field(default="pixels", kw_only=True)
    """Which tokenizer this is; the recipe decides it."""
    patch: Annotated[int, Range(ge=1, le=128)] = 2
    """Pixels per side of a patch; latents have 3 * patch^2 channels."""
    mean: Annotated[float, Range(ge=-1000, le=1000)] = 0.0
    """Subtracted after pixels are mapped to [-1, 1]."""
    std: Annotated[float, Range(gt=0, le=1000)] = 0.5
    """Divided by; pixels of natural video in [-1, 1] have a deviation near this value."""

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return 3 * self.patch**2

    @property
    def spatial_stride(self) -> int:
        """Pixels per side of one latent location."""
        return self.patch

    @property
    def temporal_stride(self) -> int:
        """Actions that lead into one latent frame."""
        return 1


@dataclass(frozen=True)
class OpenSoraVAEConfig(Checked, at="model.tokenizer."):
    """Open-Sora VAE v1.2; the sizes are the published ones."""

    kind: Literal["opensora_vae"] = field(default="opensora_vae", kw_only=True)
    """Which tokenizer this is; the recipe decides it."""
    path: str = ""
    """Its weights: a folder or .safetensors file, else the name of a repository on the Hugging
    Face hub (hpcai-tech/OpenSora-VAE-v1.2). Empty: random weights, for tests."""
    posterior: Posterior = "mean"
    """mean of the encoded distribution, or a sample of it (the original samples)."""
    seed: Seed = 0
    """Of the noise of a sample, where no generator is given."""
    dtype: DType = "float32"
    """What it computes in."""
    frames_per_pass: Count = 4
    """Frames that go through the 2-D part at once: memory against speed (published: 4)."""
    chunk: Count = 17
    """Frames of the first chunk in time, 1 + 4 k; later ones have one frame less."""
    channels: Size = 4
    """Of a latent."""
    image_widths: tuple[Size, ...] = (128, 256, 512, 512)
    """Filters of the 2-D part, per resolution."""
    image_layers: Layers = 2
    """Residual blocks of the 2-D part, per resolution."""
    image_scale: Positive = 0.18215
    """Latents between the two parts are multiplied by it (not SDXL's .13025)."""
    temporal_width: Size = 128
    """Filters of the temporal part's first stage."""
    temporal_multipliers: tuple[Size, ...] = (1, 2, 2, 4)
    """Filters of its stages, in units of that."""
    temporal_layers: Layers = 4
    """Residual blocks per stage."""
    temporal_halve: tuple[bool, ...] = (False, True, True)
    """Between which stages time is halved."""
    groups: Size = 32
    """Of every GroupNorm."""
    shift: tuple[Annotated[float, Range(ge=-1e6, le=1e6)], ...] = (-0.10, 0.34, 0.27, 0.98)
    """Mean of each latent channel over the original's training data; replaced by stored weights."""
    scale: tuple[Positive, ...] = (3.85, 2.32, 2.33, 3.06)
    """Deviation of each latent channel; likewise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = self.temporal_stride
        if self.chunk % stride != 1 % stride:
            raise ValueError(
                f"OpenSoraVAEConfig.chunk: expected 1 + {stride} k frames, got {self.chunk}"
            )
        for name in ("shift", "scale"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f"OpenSoraVAEConfig.{name}: expected {self.channels} values, one per channel, "
                    f"got {len(getattr(self, name))}"
                )

    @property
    def spatial_stride(self) -> int:
        """Pixels per side of one latent location."""
        return 2 ** (len(self.image_widths) - 1)

    @property
    def temporal_stride(self) -> int:
        """Actions that lead into one latent frame."""
        return 2 ** sum(self.temporal_halve)


@dataclass(frozen=True)
class DiffusersVAEConfig(Checked, at="model.tokenizer."):
    """An autoencoder of the diffusers package."""

    kind: Literal["diffusers_vae"] = field(default="diffusers_vae", kw_only=True)
    """Which tokenizer this is; the recipe decides it."""
    family: Literal["kl", "wan", "tiny"] = "kl"
    """kl: AutoencoderKL, per frame; tiny: AutoencoderTiny, per frame; wan: AutoencoderKLWan."""
    path: str = ""
    """A folder with config.json and safetensors weights, else OWNER/NAME on the Hugging Face hub."""
    subfolder: str = ""
    """Where within it, for example vae of a whole pipeline."""
    posterior: Posterior = "mean"
    """mean of the encoded distribution, or a sample of it. (tiny has no distribution.)"""
    seed: Seed = 0
    """Of the noise of a sample, where no generator is given."""
    dtype: DType = "float32"
    """What it computes in."""
    frames_per_pass: Count = 8
    """kl, tiny: frames that go through at once. wan: its own 4 frames of one clip."""
    scale: Positive | None = None
    """kl, tiny: factor on the latents in place of the stored scaling_factor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and self.family == "wan":
            raise ValueError(
                "DiffusersVAEConfig.scale: expected a positive factor for kl or tiny, or none (wan "
                f"has a deviation per channel), got {self.scale} for {self.family}"
            )

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self._sizes()[0]

    @property
    def temporal_stride(self) -> int:
        """Actions that lead into one latent frame."""
        return self._sizes()[1]

    @property
    def spatial_stride(self) -> int:
        """Pixels per side of one latent location."""
        return self._sizes()[2]

    def _sizes(self) -> tuple[int, int, int]:
        """From config.json where it is on this machine, else those of the published models."""
        file = Path(self.path).expanduser() / self.subfolder / "config.json"
        if not self.path or not file.is_file():
            return PUBLISHED[self.family]
        return sizes_of(self.family, read_described(file))


def sizes_of(family: str, stored: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, temporal and spatial stride of a module with this config.json."""
    if family == "wan":
        patch = stored.get("patch_size") or 1
        widths = stored.get("dim_mult", (1, 2, 4, 4))
        temporal = stored.get("temperal_downsample", (False, True, True))  # diffusers' spelling
        return stored.get("z_dim", 16), 2 ** sum(temporal), 2 ** (len(widths) - 1) * patch
    key = "block_out_channels" if family == "kl" else "encoder_block_out_channels"
    widths = stored.get(key, (64, 64, 64, 64) if family == "tiny" else (64,))
    return stored.get("latent_channels", 4), 1, 2 ** (len(widths) - 1)


def read_described(file: Path) -> Mapping[str, Any]:
    """A config.json. Raises ValueError on one that is none."""
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not readable JSON: {error}") from None
    if not isinstance(stored, Mapping):
        raise ValueError(f"{file}: expected an object, got {type(stored).__name__}")
    return stored


TokenizerConfig = PixelTokenizerConfig | OpenSoraVAEConfig | DiffusersVAEConfig
