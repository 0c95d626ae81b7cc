"""A few clips rolled out during training, under the truth: what TensorBoard shows of a run.

The clips are held out where there are held-out episodes, and the same all along, as is the noise:
what changes from preview to preview is the model. Not here: when one is made (training).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from colaworld.contracts import ClipBatch
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.once import iterate_once
from colaworld.models.world import World

log = logging.getLogger(__name__)
Split = Literal["train", "heldout"]


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


def first_clips(
    data: DataConfig, *, clips: int, splits: Sequence[Split] = ("heldout", "train")
) -> ClipBatch | None:
    """About `clips` of them, of each set of a mixture, whose episodes are told apart; None: there is none.

    Of the first of `splits` that has clips, one per episode where it has as many. Reads beside the
    training loader, whose position does not move.
    """
    sets = data.sets().values()
    shown = [_first_clips(one, -(-clips // len(sets)), splits) for one in sets]
    kept = [
        replace(batch, episode=batch.episode * len(sets) + number)
        for number, batch in enumerate(shown)
        if batch is not None
    ]
    if not kept:
        return None
    rates = [batch.fps for batch in kept if batch.fps is not None]
    return ClipBatch(
        torch.cat([batch.frames for batch in kept]),
        torch.cat([batch.episode for batch in kept]),
        torch.cat([batch.start for batch in kept]),
        fps=torch.cat(rates) if len(rates) == len(kept) else None,
    )


def _first_clips(data: DataConfig, clips: int, splits: Sequence[Split]) -> ClipBatch | None:
    for split in splits:
        try:
            batches = iterate_once(
                replace(data, workers=0), batch_size=clips, limit=clips, split=split
            )
            batch = next(batches, None)
        except DataError as error:
            log.info("no clips of %s episodes to look at: %s", split, error)
            continue
        if batch is not None:
            return batch
    return None
