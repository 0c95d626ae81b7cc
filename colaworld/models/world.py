"""A world to act in: a world model and how it is sampled.

Everything that rolls a model out uses this object: evaluation, previews, `colaworld sample`, your own
loop. Not here: how a run becomes a world (runs/load.py, runs/pretrained.py).

    state = world.begin(context_frames, codes, generator=g)    # the context is encoded once
    frames = state.step(next_codes)                            # as long as you like
    ways = state.fork(64)                                      # 64 futures of this moment
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from colaworld.contracts import LatentActions, Rollout
from colaworld.flow.rollout import check_whole_frames
from colaworld.flow.samplers import SamplerConfig
from colaworld.models.rollout import RolloutState, latent_window
from colaworld.models.world_model import WorldModel


@dataclass(frozen=True)
class World:
    """Shape legend: B clips, h context frames, n ways on, T frames, N tokens, d token width, r the
    tokenizer's temporal stride. Frames are float [.., 3, H, W] in [0, 1]."""

    model: WorldModel
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How frames are generated: a run's own, or `dataclasses.replace(world, sampler=...)`."""

    @property
    def codebook_size(self) -> int | None:
        """Entries of the codebook; None for continuous latent actions."""
        return self.model.codebook_size

    @property
    def tokens(self) -> int:
        """N, tokens per action."""
        return self.model.tokens

    def infer_actions(self, frames: Tensor) -> LatentActions:
        """The latent actions between frames [B, T, 3, H, W]; see `WorldModel.infer_actions`."""
        return self.model.infer_actions(frames)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes [..., N, d] of codebook indices [..., N]; see `WorldModel.lookup`."""
        return self.model.lookup(indices)

    def begin(
        self,
        context_frames: Tensor,
        codes: Tensor | None = None,
        *,
        generator: torch.Generator,
        conditioned: bool = True,
        decode_context: int | None = None,
    ) -> RolloutState:
        """A rollout that begins with the given frames.

        Args:
            context_frames: [B, h, 3, H, W], h = 1 + r j.
            codes: [B, h - 1, N, d], the actions between them; not needed for one frame.
            generator: of all noise. Equal states give equal videos, cached or not (up to rounding).
            conditioned: False: the video model without actions.
            decode_context: with r > 1, how many latents before the new ones are decoded along. None:
                all so far, whose number grows; fewer cost less and may show seams.

        Raises ValueError on frames that the stride does not divide (it says what fits), on codes of
        another shape, and where the sampler asks for a cache that the backbone does not have.
        """
        return RolloutState(
            self.model,
            context_frames,
            codes,
            sampler=self.sampler,
            generator=generator,
            conditioned=conditioned,
            decode_context=decode_context,
        )

    def rollout(
        self,
        context_frames: Tensor,
        codes: Tensor | None,
        *,
        generator: torch.Generator,
        frames: int | None = None,
        chunk: int = 1,
    ) -> Rollout:
        """Generate the frames after the context.

        Args:
            context_frames: [B, h, 3, H, W].
            codes: [B, T - 1, N, d], those between the context frames first; None: without actions.
            generator: see `begin`.
            frames: T, needed when codes is None; else it follows from the codes.
            chunk: latent frames a round, below the window.

        Returns:
            A Rollout of T = 1 + r k frames, the context's first.

        Raises ValueError as `begin` does, and on a chunk that does not fit the window.
        """
        given, conditioned = context_frames.shape[1], codes is not None
        if codes is None:
            if frames is None or frames < given:
                raise ValueError(f"rollout without codes needs frames >= {given}, got {frames}")
            codes = context_frames.new_zeros(context_frames.shape[0], frames - 1, 1, 1)
        elif frames not in (None, codes.shape[1] + 1):
            raise ValueError(
                f"rollout: {codes.shape[1]} actions lead through {codes.shape[1] + 1} frames, got "
                f"frames={frames}; leave it out"
            )
        state = self.begin(
            context_frames, codes[:, : given - 1], generator=generator, conditioned=conditioned
        )
        made = [state.advance(part) for part in self._rounds(codes[:, given - 1 :], chunk)]
        if not made:
            return Rollout(context_frames, given)
        new = state.decode(torch.cat(made, dim=2))
        return Rollout(torch.cat([context_frames, new], dim=1), given)

    def rollout_candidates(
        self,
        context_frames: Tensor,
        codes: Tensor,
        *,
        generator: torch.Generator,
        context_codes: Tensor | None = None,
        chunk: int = 1,
        shared_noise: bool = True,
    ) -> Tensor:
        """Many ways on from one context, which is encoded once.

        Args:
            context_frames: [B, h, 3, H, W].
            codes: [B, n, steps, N, d]; the first action leads on from frame h - 1.
            generator: see `begin`.
            context_codes: [B, h - 1, N, d]; not needed for one frame.
            chunk: latent frames a round.
            shared_noise: candidate i is what `rollout` gives for codes[:, i] from the same
                generator state, so candidates differ by their actions alone; else each draws its own.

        Returns:
            The generated frames alone, [B, n, steps, 3, H, W].

        Raises ValueError as `rollout` does.
        """
        B = context_frames.shape[0]
        if codes.ndim != 5 or codes.shape[0] != B or not codes[:, :, :, 0, 0].numel():
            raise ValueError(
                f"rollout_candidates: expected codes [{B}, n, steps, N, d], none of them 0, got "
                f"{tuple(codes.shape)}"
            )
        state = self.begin(context_frames, context_codes, generator=generator)
        state = state.fork(codes.shape[1], shared_noise=shared_noise, generator=generator)
        made = [state.advance(part) for part in self._rounds(codes.flatten(0, 1), chunk)]
        return state.decode(torch.cat(made, dim=2)).unflatten(0, (B, -1))

    def _rounds(self, codes: Tensor, chunk: int) -> tuple[Tensor, ...]:
        """Codes [B, steps, N, d] of `chunk` latent frames at a time; none where there are no codes."""
        window, stride = latent_window(self.model), self.model.tokenizer.temporal_stride
        if not 1 <= chunk < window:
            raise ValueError(f"rollout: expected 1 <= chunk < window = {window}, got {chunk}")
        check_whole_frames(codes.shape[1], stride)
        return codes.split(stride * chunk, dim=1) if codes.shape[1] else ()
