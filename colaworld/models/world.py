"""A world to act in: a world model and how it is sampled.

Everything that rolls a model out uses this object: evaluation, previews, `colaworld sample`, your own
loop. Not here: how a run becomes a world (runs/load.py, runs/pretrained.py).

    state = world.begin(context_frames, codes, generator=g)    # the context is encoded once
    frames = state.step(next_codes)                            # as long as you like
    ways = state.fork(64)                                      # 64 futures of this moment
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor

from colaworld.action_contract import ActionContract
from colaworld.contracts import LatentActions, Rollout
from colaworld.flow.config import SamplerConfig
from colaworld.flow.rollout import check_whole_frames
from colaworld.models.adapters.adapter import Adapter
from colaworld.models.inputs import (
    check_codes,
    check_contract_fits,
    check_count,
    check_flag,
    check_generator,
    checked_actions,
    checked_frames,
    checked_indices,
)
from colaworld.models.rollout import RolloutState, action_size, latent_window
from colaworld.models.world_model import WorldModel, evaluating


@dataclass(frozen=True)
class World:
    """Shape legend: B clips, h context frames, n ways on, T frames, N tokens, d token width, r the
    tokenizer's temporal stride. Frames are [.., 3, H, W], floats in [0, 1] or uint8. What is given is
    checked (inputs.py): a ValueError names the argument, what was expected and what came."""

    model: WorldModel
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How frames are generated: a run's own, or `dataclasses.replace(world, sampler=...)`."""

    fps: Tensor | float | None = None
    """Frame rate the video model is told, where it listens to one: of all clips, or of each, [B]; None:
    that of its training."""
    frame_size: tuple[int, int] | None = None
    """Height and width of the frames it was trained on, the only ones it takes; None: not known."""
    actions: ActionContract | None = None
    """What the real actions are that it was trained on; None: it knows none."""

    def __post_init__(self) -> None:
        rate, size = self.fps, self.frame_size
        number = isinstance(rate, Real) and not isinstance(rate, bool) and 0 < rate < math.inf
        pixels = isinstance(size, tuple) and len(size) == 2
        pixels = pixels and all(isinstance(n, Integral) and n > 0 for n in size)
        for name, wanted, fits in (
            ("sampler", "a SamplerConfig", isinstance(self.sampler, SamplerConfig)),
            (
                "fps",
                "a number, a tensor [B] or None",
                number or rate is None or isinstance(rate, Tensor),
            ),
            ("frame_size", "(height, width) or None", pixels or size is None),
            (
                "actions",
                "an ActionContract or None",
                isinstance(self.actions, ActionContract | None),
            ),
        ):
            if not fits:
                raise ValueError(
                    f"World: {name}: expected {wanted}, got {getattr(self, name)!r:.60}"
                )
        adapter = getattr(self.model, "adapter", None)
        if self.actions is not None and isinstance(adapter, Adapter):
            check_contract_fits(adapter.config, self.actions)

    @property
    def codebook_size(self) -> int | None:
        """Entries of the codebook; None for continuous latent actions."""
        return self.model.codebook_size

    @property
    def tokens(self) -> int:
        """N, tokens per action."""
        return self.model.tokens

    @property
    def dim(self) -> int:
        """d, width of a token."""
        return self.model.config.idm.dim

    @property
    def window(self) -> int:
        """Pixel frames that the model sees at once."""
        return self.model.config.window

    @property
    def stride(self) -> int:
        """r, pixel frames per latent frame: actions of a rollout come in multiples of it."""
        return self.model.tokenizer.temporal_stride

    @property
    def null_action(self) -> Tensor | None:
        """[N, d], what stands for an action that is not known: codes of it lead where dropped ones do.

        It is what the conditioner learns for actions dropped in training, and guidance leans on. None
        where none are dropped (`model.conditioner.dropout` 0), since it then has learnt nothing.
        """
        conditioner = getattr(self.model, "conditioner", None)
        if conditioner is None or conditioner.config.dropout == 0:
            return None
        return conditioner.null.detach().unflatten(0, action_size(self.model))

    def infer_actions(self, frames: Tensor) -> LatentActions:
        """The latent actions between frames [B, T, 3, H, W]; see `WorldModel.infer_actions`."""
        return self.model.infer_actions(
            checked_frames(frames, "infer_actions: frames", size=self.frame_size)
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes [..., N, d] of codebook indices [..., N].

        Raises ValueError on what is no entry of the codebook.
        """
        size = self.codebook_size
        return self.model.lookup(checked_indices(indices, tokens=self.tokens, size=size))

    @property
    def obeys(self) -> bool:
        """Whether it acts on real actions: it was adapted to those of a contract."""
        return isinstance(getattr(self.model, "adapter", None), Adapter) and bool(self.actions)

    def encode_actions(self, actions: Tensor, frames: Tensor | None = None) -> LatentActions:
        """The latent actions that real ones stand for, continuous, and the codes nearest to them.

        Args:
            actions: integers [B, T - 1], classes; or floats [B, T - 1, A] in the data's units, where A
                counts the numbers of all recorded actions between two frames.
            frames: [B, T, 3, H, W], or the first T - 1 of them; where the adapter looks at frames.

        Raises ValueError where this world knows no real actions, and on others than it knows. Values
        outside what was recorded are warned of.
        """
        adapter = self._adapter("encode_actions")
        made = checked_actions(actions, "encode_actions: actions", adapter.config, self.actions)
        if adapter.looks:
            frames = checked_frames(frames, "encode_actions: frames", size=self.frame_size)
            steps = made.shape[1]
            if frames.shape[0] != made.shape[0] or frames.shape[1] not in (steps, steps + 1):
                raise ValueError(
                    f"encode_actions: frames: expected [{made.shape[0]}, {steps} or {steps + 1}, 3, H, "
                    f"W], one before each action, got {list(frames.shape)}"
                )
        device = next(adapter.buffers()).device
        with torch.no_grad(), evaluating(self.model):
            return self.model.encode_actions(made.to(device), frames)

    def decode_actions(self, codes: Tensor) -> Tensor:
        """The real actions that latent ones stand for, as estimated: classes int64 [B, T - 1], or
        floats [B, T - 1, A] in the data's units, of codes [B, T - 1, N, d].

        Raises ValueError where this world knows no real actions, and on codes of another shape.
        """
        self._adapter("decode_actions")
        check_codes(codes, "decode_actions: codes", ("B", "T - 1", *action_size(self.model)))
        device = next(self.model.action_head.parameters()).device
        with torch.no_grad(), evaluating(self.model):
            return self.model.action_head.decode(codes.to(device))

    def follow(
        self, context_frames: Tensor, actions: Tensor, *, generator: torch.Generator
    ) -> Rollout:
        """A rollout under real actions.

        Args:
            context_frames: [B, h, 3, H, W], h = 1 + r j.
            actions: those that lead from frame to frame, between the context frames first: integers
                [B, T - 1] or floats [B, T - 1, A], see `encode_actions`.
            generator: see `begin`. Noise is that of `rollout` under as many actions.

        Returns:
            A Rollout of T frames, the context's first. An adapter that looks at frames sees those
            that were generated so far.

        Raises ValueError as `encode_actions` and `rollout` do.
        """
        frames = self._checked("follow", context_frames)
        given = frames.shape[1]
        adapter = self._adapter("follow")
        made = checked_actions(actions, "follow: actions", adapter.config, self.actions)
        if made.shape[0] != frames.shape[0] or made.shape[1] < given - 1:
            raise ValueError(
                f"follow: actions: expected those of {frames.shape[0]} clips, at least the {given - 1} "
                f"between the context frames, got {list(made.shape)}"
            )
        if not adapter.looks:
            return self.rollout(frames, self.encode_actions(made).codes, generator=generator)
        before = None
        if given > 1:
            before = self.encode_actions(made[:, : given - 1], frames).codes
        state = self.begin(frames, before, generator=generator)
        check_whole_frames(made.shape[1] - given + 1, state.stride)
        shown = [frames]
        for actions_now in made[:, given - 1 :].split(state.stride, dim=1):
            latest = shown[-1][:, -1:].expand(-1, actions_now.shape[1], -1, -1, -1)
            shown.append(state.step(self.encode_actions(actions_now, latest).codes))
        return Rollout(torch.cat(shown, dim=1), given)

    def _adapter(self, call: str) -> Adapter:
        adapter = getattr(self.model, "adapter", None)
        if not isinstance(adapter, Adapter):
            raise ValueError(
                f"{call}: this world knows no real actions: colaworld adapt RUN --data SRC teaches it a "
                "robot's own"
            )
        return adapter

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
        context_frames = self._checked("begin", context_frames)
        check_generator(generator, "begin: generator", context_frames.device)
        check_flag(conditioned, "begin: conditioned")
        if codes is not None and conditioned:
            shape = (context_frames.shape[0], "h - 1", *action_size(self.model))
            check_codes(codes, "begin: codes", shape)
        return self._begin(
            context_frames,
            codes,
            generator=generator,
            conditioned=conditioned,
            decode_context=decode_context,
        )

    def _checked(self, call: str, context_frames: Tensor) -> Tensor:
        return checked_frames(context_frames, f"{call}: context_frames", size=self.frame_size)

    def _begin(
        self,
        context_frames: Tensor,
        codes: Tensor | None,
        *,
        generator: torch.Generator,
        conditioned: bool = True,
        decode_context: int | None = None,
    ) -> RolloutState:
        """`begin` of what was checked."""
        return RolloutState(
            self.model,
            context_frames,
            codes,
            sampler=self.sampler,
            generator=generator,
            conditioned=conditioned,
            decode_context=decode_context,
            fps=self.fps,
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
        context_frames = self._checked("rollout", context_frames)
        check_generator(generator, "rollout: generator", context_frames.device)
        given, conditioned = context_frames.shape[1], codes is not None
        if codes is not None:
            shape = (context_frames.shape[0], "T - 1", *action_size(self.model))
            check_codes(codes, "rollout: codes", shape)
        if codes is None:
            check_count(frames, "rollout: frames, which it needs without codes", given)
            codes = context_frames.new_zeros(context_frames.shape[0], frames - 1, 1, 1)
        elif frames not in (None, codes.shape[1] + 1):
            raise ValueError(
                f"rollout: {codes.shape[1]} actions lead through {codes.shape[1] + 1} frames, got "
                f"frames={frames}; leave it out"
            )
        state = self._begin(
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
        context_frames = self._checked("rollout_candidates", context_frames)
        check_generator(generator, "rollout_candidates: generator", context_frames.device)
        B, size = context_frames.shape[0], action_size(self.model)
        check_codes(codes, "rollout_candidates: codes", (B, "n", "steps", *size))
        if not codes.numel():
            raise ValueError(
                f"rollout_candidates: codes: expected n and steps of 1 or more, got {list(codes.shape)}"
            )
        if context_codes is not None:
            check_codes(context_codes, "rollout_candidates: context_codes", (B, "h - 1", *size))
        state = self._begin(context_frames, context_codes, generator=generator)
        state = state.fork(codes.shape[1], shared_noise=shared_noise, generator=generator)
        made = [state.advance(part) for part in self._rounds(codes.flatten(0, 1), chunk)]
        return state.decode(torch.cat(made, dim=2)).unflatten(0, (B, -1))

    def _rounds(self, codes: Tensor, chunk: int) -> tuple[Tensor, ...]:
        """Codes [B, steps, N, d] of `chunk` latent frames at a time; none where there are no codes."""
        window, stride = latent_window(self.model), self.model.tokenizer.temporal_stride
        if not isinstance(chunk, int) or not 1 <= chunk < window:
            raise ValueError(f"rollout: expected 1 <= chunk < window = {window}, got {chunk}")
        check_whole_frames(codes.shape[1], stride)
        return codes.split(stride * chunk, dim=1) if codes.shape[1] else ()
