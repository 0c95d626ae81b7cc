"""LPIPS, the learned perceptual distance of two images (Zhang et al. 2018, arXiv 1801.03924), v0.1.

    d = sum over 5 layers of mean over places of sum_c w_c (f_c / |f| - g_c / |g|)^2

f, g [C, h, w] are the layer's activations of both images, |f| their length over channels at a place,
w >= 0 the layer's linear head. Weights come from the files that the authors and torchvision publish;
neither package is imported. Not here: the means over clips (`evaluation/measures/lpips.py`).
Shape legend: ... any leading dimensions, B images, C channels, H W pixels, h w places.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from colaworld.files import FileError, sha256_of
from colaworld.metrics.published import fill, read_tensors

Trunk = Literal["alex", "vgg"]
# sha256 of the published files: the linear heads of lpips 0.1.4 (PyPI), and the first digits of
# torchvision's trunks, which it writes into their names.
_PUBLISHED: Final = {
    "alex": ("df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", "7be5be79"),
    "vgg": ("a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", "397923af"),
}
_TRUNK_FILES: Final = {"alex": "alexnet*", "vgg": "vgg16*"}
# Images are in [-1, 1] when these are taken off: the means and deviations of ImageNet, rounded.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TAPPED: Final = {
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
}  # the ReLUs that are compared
CHANNELS: Final = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
MIN_SIDE: Final = {"alex": 31, "vgg": 16}  # pixels; below, a layer has no place left


def _conv(
    inside: int, outside: int, kernel: int = 3, stride: int = 1, pad: int = 1
) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, kernel, stride, pad), nn.ReLU()]


def _alexnet() -> nn.Sequential:
    """Up to its last ReLU, numbered as torchvision's `features` are."""
    return nn.Sequential(
        *_conv(3, 64, 11, 4, 2),
        nn.MaxPool2d(3, 2),
        *_conv(64, 192, 5, 1, 2),
        nn.MaxPool2d(3, 2),
        *_conv(192, 384),
        *_conv(384, 256),
        *_conv(256, 256),
    )


def _vgg16() -> nn.Sequential:
    """Up to relu5_3, numbered as torchvision's `features` are."""
    layers: list[nn.Module] = []
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for i, (inside, outside) in enumerate(pairwise(widths), start=1):
        layers += _conv(inside, outside)
        if i in (2, 4, 7, 10):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _head(channels: int) -> nn.Module:
    """w of one layer, under the name it is published by: model.1.weight (0 was dropout)."""
    return nn.ModuleDict(
        {"model": nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))}
    )


class LPIPS(nn.Module):
    """The distance with untrained weights; `load_lpips` fills it."""

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.features = _alexnet() if trunk == "alex" else _vgg16()
        self.heads = nn.ModuleDict({f"lin{i}": _head(c) for i, c in enumerate(CHANNELS[trunk])})
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def _activations(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [0, 1] -> 5 x [B, C, h, w], of length 1 over channels."""
        x, found = (2 * images - 1 - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPPED[self.trunk]:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def forward(self, prediction: Tensor, target: Tensor, *, at_once: int = 16) -> Tensor:
        """The distance of each pair of images, >= 0; the same both ways round, 0 of equal ones.

        Args:
            prediction, target: [..., 3, H, W] float in [0, 1], H and W at least MIN_SIDE.
            at_once: images in one pass through the trunk.

        Returns:
            [...] float32.
        """
        *lead, channels, height, width = prediction.shape
        least = MIN_SIDE[self.trunk]
        if prediction.shape != target.shape or channels != 3 or min(height, width) < least:
            raise ValueError(
                f"LPIPS ({self.trunk}): expected two images of one shape [..., 3, H, W], H and W >= "
                f"{least}, got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        pairs = zip(
            prediction.reshape(-1, 3, height, width).float().split(at_once),
            target.reshape(-1, 3, height, width).float().split(at_once),
            strict=True,
        )
        return torch.cat([self._distance(x, y) for x, y in pairs]).reshape(lead)

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        """[B, 3, H, W] twice -> [B]."""
        heads = self.heads.parameters()  # 5 x [1, C, 1, 1]
        layers = zip(self._activations(x), self._activations(y), heads, strict=True)
        return torch.stack(
            [((f - g).square() * head).sum(1).mean((1, 2)) for f, g, head in layers]
        ).sum(0)


def load_lpips(folder: Path, trunk: Trunk) -> tuple[LPIPS, bool]:
    """LPIPS with the weights in `folder`, and whether they are the published ones (by sha256).

    The folder holds two files, of the lpips package (0.1) and of torchvision, under their published
    names, or as safetensors with the same keys:

        alex   alex.pth, alexnet-owt-7be5be79.pth
        vgg    vgg.pth,  vgg16-397923af.pth

    Raises FileError, which names file and key, where one is missing or is something else.
    """
    heads_file = _the_file(folder, f"{trunk}.*", f"{trunk}.pth of lpips/weights/v0.1")
    trunk_file = _the_file(folder, _TRUNK_FILES[trunk], "the trunk, as torchvision publishes it")
    network = LPIPS(trunk)
    features = nn.ModuleDict({"features": network.features})
    fill(features, read_tensors(trunk_file), trunk_file, ignore=("classifier.",))
    fill(network.heads, read_tensors(heads_file), heads_file)
    for key, head in network.heads.named_parameters():
        if head.min() < 0:
            raise FileError(
                f"{heads_file}: {key}: expected weights >= 0, got {float(head.min()):g}"
            )
    heads_sum, trunk_sum = _PUBLISHED[trunk]
    known = sha256_of(heads_file) == heads_sum and sha256_of(trunk_file).startswith(trunk_sum)
    return network, known


def _the_file(folder: Path, pattern: str, what: str) -> Path:
    """The one .pth, .pt or .safetensors in `folder` of that name."""
    found = [p for p in sorted(folder.glob(pattern)) if p.suffix in (".pth", ".pt", ".safetensors")]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise FileError(f"{folder}: expected one file {pattern} ({what}), found {names}")
    return found[0]
