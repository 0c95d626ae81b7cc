"""Features of frames by a frozen encoder of the transformers package: DINOv2, DINOv3, ViT, MAE ...

Read from a local folder alone, in safetensors, and without code of its own: config.json,
preprocessor_config.json and model.safetensors, as the hub has them. The features are those of the last
layer at each patch, as in DINO-WM (Zhou et al. 2024, arXiv 2411.04983). Needs transformers (pip install
'colaworld[features]'), imported where it is used. Not here: the distance between features (costs.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.files import FileError, read_json


@dataclass(frozen=True)
class Encoder:
    """Frames to features."""

    network: nn.Module
    side: int
    """Pixels per side that it sees; frames are resized to it."""
    mean: Tensor  # [3, 1, 1]
    std: Tensor  # [3, 1, 1]
    patch: int | None
    """Pixels per side of a patch; None: it has none, and all its outputs count."""

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """[rows, 3, H, W] in [0, 1] -> [rows, P, D], one vector a patch, without class and register tokens."""
        size = (self.side, self.side)
        sized = F.interpolate(frames.float(), size, mode="bilinear", antialias=True)
        out = self.network(pixel_values=(sized - self.mean) / self.std).last_hidden_state
        if self.patch is None:
            return out.flatten(1, -2) if out.ndim > 3 else out
        return out[:, -((self.side // self.patch) ** 2) :]


def load_encoder(folder: Path, *, device: torch.device | str = "cpu") -> Encoder:
    """The encoder in a folder, frozen.

    Raises FileError, which names what is missing or no vision model, and ImportError without the extra.
    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileError(
                f"{folder}: expected an encoder of transformers with {name}, found none; a folder as the hub "
                "has it, facebook/dinov2-small say"
            )
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ImportError(
            "--encoder: encoders of the transformers package need it: pip install 'colaworld[features]'"
        ) from error
    said = read_json(folder / "preprocessor_config.json")
    try:
        side = _side(said.get("crop_size") or said["size"])
        mean, std = (
            torch.tensor(said[k]).float().view(3, 1, 1) for k in ("image_mean", "image_std")
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise FileError(
            f"{folder / 'preprocessor_config.json'}: expected crop_size or size, and image_mean and image_std of "
            "three numbers"
        ) from None
    try:
        network: Any = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"{folder}: no encoder to read: {str(error).splitlines()[0]}") from None
    network = network.to(device).eval().requires_grad_(False)
    patch = getattr(network.config, "patch_size", None)
    encoder = Encoder(network, side, mean.to(device), std.to(device), patch)
    try:
        encoder(torch.zeros(1, 3, side, side, device=device))
    except (TypeError, AttributeError, ValueError) as error:
        raise FileError(
            f"{folder}: {type(network).__name__} takes no pictures alone, or gives no last_hidden_state: {error}"
        ) from None
    return encoder


def _side(size: Any) -> int:
    """Pixels of {"height": 224}, {"shortest_edge": 256} or 224."""
    if isinstance(size, dict):
        size = size["height"] if "height" in size else size["shortest_edge"]
    return int(size)
