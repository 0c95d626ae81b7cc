"""A few clips rolled out during training, under the truth: what TensorBoard shows of a run.

The clips are held out where there are held-out episodes, and the same all along, as is the noise:
what changes from preview to preview is the model. Not here: when one is made (training).
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.loader import iterate_once
from colaworld.models.world import World

log = logging.getLogger(__name__)


class RolloutPreview:
    """Rolls clips out from their first frame under the actions inferred from them.

    Args:
        world: rolled out as its model stands when called; its modes are restored.
        frames: clips, uint8 [n, T, 3, H, W].
        seed: of the noise, drawn from a generator of its own.
    """

    def __init__(self, world: World, frames: Tensor, *, seed: int) -> None:
        self.world, self.frames, self.seed = world, frames, seed

    @torch.no_grad()
    def __call__(self, step: int, phase: str) -> Tensor:
        """uint8 [n, T, 2 H, W, 3]: the truth above, the rollout below."""
        model = self.world.model
        device = next(model.parameters()).device
        truth = self.frames.to(device).float() / 255
        codes = None
        if hasattr(model, "conditioner"):  # a plain video model predicts without actions
            codes = self.world.infer_actions(truth).codes
        rollout = self.world.rollout(
            truth[:, :1],
            codes,
            generator=torch.Generator(device=device).manual_seed(self.seed),
            frames=truth.shape[1],
        )
        both = torch.cat([truth, rollout.frames.to(truth.dtype)], dim=-2)  # [n, T, 3, 2 H, W]
        return (both.clamp(0, 1) * 255).round().to(torch.uint8).movedim(2, -1).cpu()


def first_clips(data: DataConfig, *, clips: int) -> Tensor | None:
    """uint8 [n, T, 3, H, W], about `clips` of them, of each set of a mixture; None: there is no clip."""
    sets = data.sets().values()
    shown = [_first_clips(one, clips=-(-clips // len(sets))) for one in sets]
    kept = [frames for frames in shown if frames is not None]
    return torch.cat(kept) if kept else None


def _first_clips(data: DataConfig, *, clips: int) -> Tensor | None:
    """uint8 [n, T, 3, H, W], one clip per held-out episode; None where a set has not one clip.

    Of the training episodes where none is held out. Reads beside the training loader, whose
    position does not move.
    """
    for split in ("heldout", "train"):
        try:
            batches = iterate_once(
                replace(data, workers=0), batch_size=clips, limit=clips, split=split
            )
            batch = next(batches, None)
        except DataError as error:
            log.info("no previews of %s episodes: %s", split, error)
            continue
        if batch is not None:
            return batch.frames
    return None
