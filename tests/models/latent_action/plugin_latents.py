"""A latent action model from outside, in a layout of its own: the change of the mean colour, projected.

It stands for what a user writes in one file; see test_published.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from colaworld.contracts import LatentActions
from colaworld.models.backbones.weights import header, load_weights
from colaworld.models.latent_action.published import Shapes, register_latent_action_model


class MeanColour(nn.Module):
    """`mean.weight` [d, 3] times the change of the mean colour."""

    codebook_size, tokens, frame_size, window = None, 1, None, 2

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.mean = dim, nn.Linear(3, dim, bias=False)

    @torch.no_grad()
    def infer_actions(self, frames: Tensor) -> LatentActions:
        return LatentActions(self.mean(frames.mean((-2, -1)).diff(dim=1))[:, :, None])


def recognise(shapes: Shapes) -> bool:
    return set(shapes) == {"mean.weight"}


def load(path: Path, *, device: torch.device | str = "cpu") -> MeanColour:
    model = MeanColour(header(path)["mean.weight"][0][0])
    load_weights(model, path)
    return model.to(device)


register_latent_action_model("mean", recognise=recognise, load=load)
