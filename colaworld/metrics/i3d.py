"""I3D on RGB (Carreira and Zisserman 2017, arXiv 1705.07750), trained on Kinetics-400: 400 logits.

The network behind FVD, with the keys and shapes of `i3d_pretrained_400.pt`, which VideoGPT converted
from DeepMind's weights and which TATS and cd-fvd use. Padding is TensorFlow's "same": what is over goes
behind. Not here: weights and how frames are prepared (`video_encoder.py`).
Shape legend: B clips, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES: Final = 400
MIN_FRAMES: Final = 9  # of which 2 are left at the last pooling, which takes 2
# Width in, then of the branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 behind the pooling (table 1 and
# figure 3 of the paper; Inception-v1 with each 5x5 a 3x3x3).
_MIXED: Final = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around [B, C, T, H, W], so that ceil(size / stride) places are left on each side."""
    pad: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pad += [total // 2, total - total // 2]
    return F.pad(x, pad)


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inside, outside, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outside, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(_same(x, self.kernel, self.stride))))


class _Pool(nn.Module):
    """Maximum over values >= 0, for which padding by zeros is padding by nothing."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Four branches over one input, joined along the channels."""

    def __init__(self, inside: int, *widths: int) -> None:
        super().__init__()
        self.b0 = _Unit(inside, widths[0])
        self.b1a, self.b1b = _Unit(inside, widths[1]), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(inside, widths[3]), _Unit(widths[3], widths[4], 3)
        self.pool, self.b3b = _Pool((3, 3, 3), (1, 1, 1)), _Unit(inside, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.b0(x),
            self.b1b(self.b1a(x)),
            self.b2b(self.b2a(x)),
            self.b3b(self.pool(x)),
        )
        return torch.cat(branches, dim=1)


class I3D(nn.Module):
    """Untrained; its state dict has the published keys."""

    def __init__(self) -> None:
        super().__init__()
        flat, deep = (1, 3, 3), (3, 3, 3)
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": _Unit(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": _Pool(flat, (1, 2, 2)),
            "Conv3d_2b_1x1": _Unit(64, 64),
            "Conv3d_2c_3x3": _Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": _Pool(flat, (1, 2, 2)),
        }
        for name, widths in _MIXED.items():
            if name == "Mixed_4b":
                layers["MaxPool3d_4a_3x3"] = _Pool(deep, (2, 2, 2))
            if name == "Mixed_5b":
                layers["MaxPool3d_5a_2x2"] = _Pool((2, 2, 2), (2, 2, 2))
            layers[name] = _Mixed(*widths)
        self.order = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, T, 224, 224] in [-1, 1], T >= MIN_FRAMES -> [B, 400], the mean over time."""
        for name in self.order:
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), 1)
        return self.logits["conv3d"](x).mean(dim=(2, 3, 4))
