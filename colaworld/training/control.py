"""Do the codes steer? Paired flow losses on held-out clips, while training.

    inferred    under the latent actions of the clips themselves
    shuffled    under those of clips of other episodes
    null        under the learned "no action"

All three predict the same frames from the same noise at the same times, so they differ by the action
alone. `control` = 1 - inferred / shuffled: 0 where codes mean nothing, whatever their entropy.
Not here: when it is measured (trainer.py), what gate and alarm make of it (codebook_monitor.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colaworld.contracts import ClipBatch, to_float
from colaworld.flow.loss import flow_matching_loss
from colaworld.models.world_model import WorldModel, evaluating
from colaworld.rng import ClipGenerator
from colaworld.training.config import ObjectiveConfig, TrainingConfig
from colaworld.training.objectives import FlowObjective
from colaworld.training.step import uses_bf16


class ControlMeter:
    """Called without arguments, it measures the model as it stands; modes are restored.

    Args:
        model: with IDM, quantizer and conditioner.
        clips: held out, on the CPU, of two episodes at least; always the same ones.
        objective: history and times, as in training.
        training: batch size, arithmetic and seed of the noise.

    Raises:
        ValueError: all clips are of one episode.
    """

    needs = ("idm", "quantizer", "conditioner")
    """Parts that a model must have to be measured."""

    def __init__(
        self,
        model: WorldModel,
        clips: ClipBatch,
        objective: ObjectiveConfig,
        training: TrainingConfig,
    ) -> None:
        self.model, self.clips, self.training = model, clips, training
        self.other = others(clips.episode)
        self._flow = FlowObjective(model, objective)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The three losses and `control`."""
        device = next(self.model.parameters()).device
        bf16 = uses_bf16(self.training.autocast, device)
        with evaluating(self.model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            codes = torch.cat(
                [self.model.infer_actions(to_float(part, device)).codes for part in self._parts()]
            )
            sums = torch.zeros(3, dtype=torch.float64)
            for first, part in zip(self._starts(), self._parts(), strict=True):
                rows = slice(first, first + len(part))
                losses = self._losses(first, part.to(device), codes[rows], codes[self.other[rows]])
                sums += losses.double().cpu() * len(part)
        inferred, shuffled, null = (sums / len(self.clips)).tolist()
        control = 1 - inferred / shuffled if shuffled > 0 else 0.0
        return {"inferred": inferred, "shuffled": shuffled, "null": null, "control": control}

    def _starts(self) -> range:
        return range(0, len(self.clips), self.training.batch_size)

    def _parts(self) -> Iterator[Tensor]:
        yield from self.clips.frames.split(self.training.batch_size)

    def _losses(self, first: int, frames: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """[3]: inferred, shuffled, null, of one batch."""
        slots = range(first, first + len(frames))  # noise and times belong to clips, not to batches
        noise = ClipGenerator(
            frames.device, self.training.seed, "control", clips=len(self.clips), slots=slots
        )
        noised = self._flow._noised(to_float(frames), None, noise)
        fps = self.clips.fps
        if fps is not None:
            fps = fps[first : first + len(frames)].to(frames.device)
        none = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
        return torch.stack(
            [
                flow_matching_loss(
                    self.model.velocity(noised.x_t, noised.times, codes, drop, fps=fps),
                    noised.target,
                    noised.predict,
                    average="clips",
                )
                for codes, drop in ((own, None), (other, None), (own, none))
            ]
        )


def others(episodes: Tensor) -> Tensor:
    """For each clip [M] the number of one of another episode, half a round on where that is one.

    Raises ValueError where there is one episode alone.
    """
    count = len(episodes)
    if len(episodes.unique()) < 2:
        raise ValueError(f"control: expected clips of 2 episodes or more, got {count} of one")
    turned = [torch.arange(count).roll(-(count // 2) - n) for n in range(count)]
    choices = torch.stack(turned)  # [tries, M]
    fits = episodes[choices] != episodes
    return choices.gather(0, fits.int().argmax(dim=0, keepdim=True))[0]
