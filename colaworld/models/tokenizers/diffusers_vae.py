"""Autoencoders of the diffusers package as tokenizers: `kl` and `tiny` per frame, `wan` for video.

    kl    AutoencoderKL      Stable Diffusion, SDXL ...   latents scaled by the config's scale, shift
    tiny  AutoencoderTiny    TAESD ...                    the same, about 20 times cheaper
    wan   AutoencoderKLWan   Wan2.1                       time / 4, mean and deviation per channel

Needs diffusers (pip install colaworld[vae]), imported where it is used: it takes seconds.
Not here: the networks themselves, or Open-Sora's autoencoder, which is our own (opensora_vae.py).
Shape legend: B clips, T frames, C channels, H W pixels, T' h w latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colaworld.models.backbones.weights import Layout, load_weights
from colaworld.models.hub import local_folder
from colaworld.models.tokenizers.config import DiffusersVAEConfig, read_described, sizes_of
from colaworld.models.tokenizers.image_vae import posterior
from colaworld.models.tokenizers.vae import (
    VAE,
    in_passes,
    to_pixels,
)

_CLASSES = {"kl": "AutoencoderKL", "wan": "AutoencoderKLWan", "tiny": "AutoencoderTiny"}
_STEM = "diffusion_pytorch_model"
_FILE = f"{_STEM}.safetensors"
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_DEFAULTS: dict[str, dict[str, Any]] = {  # arguments of the published models, for planning
    "kl": {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "wan": {},
    "tiny": {},
}


class DiffusersVAE(VAE):
    """See the module's docstring.

    `module` is used in place of `config.path`: one of diffusers' modules, or the arguments to make
    one with random weights.
    """

    vae: Any  # one of diffusers' modules
    mean: Tensor  # [1, C, 1, 1, 1]
    std: Tensor  # [1, C, 1, 1, 1]

    not_hashed = (*VAE.not_hashed, "subfolder")

    def __init__(
        self, config: DiffusersVAEConfig, *, module: nn.Module | Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config)
        name = _CLASSES[config.family]
        if module is None:
            module = _load(config)
        elif isinstance(module, Mapping):
            module = getattr(_diffusers(), name)(**module)
        if type(module).__name__ != name:
            raise ValueError(
                f"diffusers_vae: family {config.family!r} is {name}, got {type(module).__name__}"
            )
        self.vae = module
        stored: Mapping[str, Any] = self.vae.config
        self.channels, self.temporal_stride, self.spatial_stride = sizes_of(config.family, stored)
        if config.family == "wan":
            if self.temporal_stride != 4:
                raise ValueError(
                    "diffusers_vae: AutoencoderKLWan encodes 4 frames at a time whatever its "
                    f"config says; got a temporal stride of {self.temporal_stride}"
                )
            mean, std = stored["latents_mean"], stored["latents_std"]
            for key, values in (("latents_mean", mean), ("latents_std", std)):
                if len(values) != self.channels:
                    raise ValueError(
                        f"diffusers_vae: {key} in its config has {len(values)} values, expected "
                        f"one for each of {self.channels} channels (z_dim)"
                    )
        else:
            factor = config.scale or stored["scaling_factor"]
            mean = [stored.get("shift_factor") or 0.0] * self.channels
            std = [1 / factor] * self.channels
        place = (1, -1, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(place), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(place), persistent=False)
        self._freeze()

    def _identity(self) -> Any:
        # Names that diffusers adds (_class_name, _name_or_path, version) say nothing of latents.
        return {k: v for k, v in self.vae.config.items() if not k.startswith("_")}

    def _encode(self, frames: Tensor, generator: torch.Generator | None) -> Tensor:
        B, T, _, H, W = frames.shape
        family, s = self.config.family, self.spatial_stride
        if family == "wan":
            latent = 1 + (T - 1) // self.temporal_stride
            noise = self._noise(B, (self.channels, latent, H // s, W // s), generator, frames)
            z = in_passes(self._video_moments, frames, 1)
            z = posterior(z, noise)
        else:
            size = self.config.frames_per_pass
            z = in_passes(self._image_moments, frames.flatten(0, 1), size, fill=True)
            if family == "kl":
                # The same for each frame too, whatever its place in a clip: a cache stores frames.
                noise = self._noise(B * T, (self.channels, H // s, W // s), generator, frames)
                z = posterior(z, noise)
            z = z.unflatten(0, (B, T)).transpose(1, 2)
        return (z.float() - self.mean) / self.std

    def _decode(self, latents: Tensor) -> Tensor:
        z = (latents * self.std + self.mean).to(self.dtype)
        if self.config.family == "wan":

            def video(one: Tensor) -> Tensor:
                return to_pixels(self.vae.decode(one, return_dict=False)[0].transpose(1, 2))

            return in_passes(video, z, 1)

        def image(part: Tensor) -> Tensor:
            return to_pixels(self.vae.decode(part, return_dict=False)[0])

        B, T = z.shape[0], z.shape[2]
        flat = in_passes(image, z.transpose(1, 2).flatten(0, 1), self.config.frames_per_pass)
        return flat.unflatten(0, (B, T))

    def _video_moments(self, frames: Tensor) -> Tensor:
        """[1, T, 3, H, W] -> [1, 2 C, T', h, w]; it walks through time 4 frames at a time itself."""
        video = self._to_network(frames).transpose(1, 2)
        return self.vae.encode(video, return_dict=False)[0].parameters

    def _image_moments(self, frames: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 2 C, h, w] (kl) or [N, C, h, w] (tiny)."""
        made = self.vae.encode(self._to_network(frames), return_dict=False)[0]
        return made if self.config.family == "tiny" else made.parameters


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "autoencoders of the diffusers package need it: pip install colaworld[vae]"
        ) from error
    return diffusers


def _load(config: DiffusersVAEConfig) -> nn.Module:
    if not config.path:
        raise ValueError(
            "DiffusersVAEConfig.path is empty: set it to a folder with config.json and safetensors "
            "weights, or to OWNER/NAME on the Hugging Face hub (model.tokenizer.path)"
        )
    kind = getattr(_diffusers(), _CLASSES[config.family])
    if torch.empty(0).is_meta:  # a caller that plans on the meta device: sizes, no weights
        file = Path(config.path).expanduser() / config.subfolder / "config.json"
        stored = read_described(file) if file.is_file() else _DEFAULTS[config.family]
        return kind.from_config(stored)
    prefix = f"{config.subfolder}/" if config.subfolder else ""
    wanted = ("config.json", _FILE, f"{_STEM}-*.safetensors", f"{_STEM}.safetensors.index.json")
    patterns = tuple(prefix + name for name in wanted)
    root = local_folder(config.path, patterns=patterns, what="model.tokenizer.path")
    folder = root / config.subfolder
    if not (folder / "config.json").is_file():
        inner = sorted(p.parent.name for p in folder.glob("*/config.json"))
        hint = f"; it has such folders: {', '.join(inner)} (set subfolder)" if inner else ""
        if config.subfolder and (root / "config.json").is_file():
            hint = f"; {root} has one itself: set model.tokenizer.subfolder to ''"
        raise ValueError(f"{folder}: expected a config.json of {kind.__name__} there{hint}")
    stored = read_described(folder / "config.json")
    if stored.get("_class_name", kind.__name__) != kind.__name__:
        raise ValueError(
            f"{folder}/config.json is of {stored['_class_name']}, but family {config.family!r} is "
            f"{kind.__name__}; set model.tokenizer.family"
        )
    try:
        with torch.device("meta"):  # nothing is drawn at random that is read next
            module = kind.from_config(stored)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{folder}/config.json: {kind.__name__} cannot be made of it: {error}"
        ) from error
    whole = folder / _FILE  # beside it there may be half-precision variants of other names
    load_weights(module, whole if whole.is_file() else folder, Layout(rename=_rename))
    return module


def _rename(key: str) -> str:
    """Attention's names in checkpoints of early releases of diffusers -> today's."""
    for old, new in _OLD_NAMES.items():
        key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return key
