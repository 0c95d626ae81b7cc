"""Features of clips for the Frechet distance, by an I3D that the user's file holds.

Two published files are read:

    i3d_pretrained_400.pt   a state dict (VideoGPT, TATS, cd-fvd), or the same keys as safetensors
    i3d_torchscript.pt      a TorchScript archive (StyleGAN-V), which is code: it is opened only when
                            its sha256 is the published one; any other archive is refused

Only with those weights is the distance called FVD. Not here: the distance (`frechet.py`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.files import FileError
from colaworld.metrics.i3d import CLASSES, I3D
from colaworld.metrics.published import fill, is_torchscript, read_tensors

log = logging.getLogger(__name__)
SIDE: Final = 224
TORCHSCRIPT_SHA256: Final = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
# What tells the published weights in a state dict, whose files differ in their bytes: the squared
# distance of the logits of a black and a white clip, by the number of frames. Published in the README
# of JunyaoHu/common_metrics_on_video_quality as FVD of such clips, where the covariances vanish; at 30
# frames, TensorFlow's I3D gives 151.39 and the TorchScript one 151.26.
BLACK_TO_WHITE: Final = {10: 569.23, 16: 152.92}
TOLERANCE: Final = 0.02  # of these values, which are of other versions of torch, on GPUs


@dataclass(frozen=True)
class VideoEncoder:
    """Clips to features, and what a distance between them is called."""

    distance: str  # "FVD", or "Frechet distance (FILE)" for weights that are not the published ones
    network: nn.Module
    call: Callable[[Tensor], Tensor]  # [B, 3, T, 224, 224] in [-1, 1] -> [B, 400]
    source: Path

    @torch.no_grad()
    def features(self, clips: Tensor, *, at_once: int = 4) -> Tensor:
        """Logits of clips, before any softmax.

        Frames are rounded to 8 bits, as videos are stored, then resized to 224 x 224 by `resize`.

        Args:
            clips: [B, T, 3, H, W] float in [0, 1], T >= MIN_FRAMES of `i3d.py`.
            at_once: clips in one pass.

        Returns:
            [B, 400] float32, on the device of `clips`.
        """
        self.network.to(clips.device)
        found = [self.call(prepare(part)).float() for part in clips.split(at_once)]
        result = torch.cat(found)
        if result.shape != (len(clips), CLASSES):
            raise FileError(
                f"{self.source}: expected features [{len(clips)}, {CLASSES}], got "
                f"{list(result.shape)}"
            )
        return result


def prepare(clips: Tensor) -> Tensor:
    """[B, T, 3, H, W] in [0, 1] -> [B, 3, T, 224, 224] in [-1, 1].

    Bilinear without smoothing, and without keeping the ratio of the sides: as in the code of the FVD
    paper and in cd-fvd. (StyleGAN-V cuts the longer side instead; of square videos both are the same.)
    """
    frames = (clips.flatten(0, 1).float() * 255).round() / 255
    frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return (2 * frames - 1).unflatten(0, clips.shape[:2]).transpose(1, 2)


def load_video_encoder(path: Path) -> VideoEncoder:
    """The encoder in a file. Raises FileError, which names file and key, where it is none of those
    above, and on a TorchScript archive that is not the published one."""
    if path.is_file() and is_torchscript(path):
        return _torchscript(path)
    network = I3D()
    fill(network, read_tensors(path), path)
    encoder = VideoEncoder("FVD", network, network, path)
    found = {frames: black_to_white(encoder, frames) for frames in BLACK_TO_WHITE}
    if all(abs(found[n] / wanted - 1) <= TOLERANCE for n, wanted in BLACK_TO_WHITE.items()):
        return encoder
    told = ", ".join(
        f"{found[n]:.2f} instead of {v:.2f} at {n} frames" for n, v in BLACK_TO_WHITE.items()
    )
    log.warning(
        "%s: not the published I3D weights (from black to white: %s); its distances are not called FVD",
        path,
        told,
    )
    return VideoEncoder(f"Frechet distance ({path.stem})", network, network, path)


def black_to_white(encoder: VideoEncoder, frames: int) -> float:
    """Squared distance between the features of a black and a white clip."""
    shades = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(-1, frames, 3, 64, 64)
    black, white = encoder.features(shades).double()
    return float((black - white).square().sum())


def _torchscript(path: Path) -> VideoEncoder:
    content = path.read_bytes()  # what is compared is what is opened
    if (found := sha256(content).hexdigest()) != TORCHSCRIPT_SHA256:
        raise FileError(
            f"{path}: a TorchScript archive is code, and only StyleGAN-V's i3d_torchscript.pt is run: "
            f"expected sha256 {TORCHSCRIPT_SHA256}, got {found}; name i3d_pretrained_400.pt instead, a "
            "state dict"
        )
    network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()

    def call(clips: Tensor) -> Tensor:
        features: Tensor = network(clips, rescale=False, resize=False, return_features=True)
        return features

    return VideoEncoder("FVD", network, call, path)
