"""A rollout in pixels that has come so far: step it, fork it, or leave it for later.

Brings together tokenizer, actions, guidance and the backbone's cache. The sliding window, and what a
cache saves, are in `flow/rollout.py`.

Shape legend: B clips, n forks per clip, T pixel frames, r the tokenizer's temporal stride, N tokens
per action, d token width. T = 1 + r (latent frames - 1).

With r > 1 a window that has slid begins with a latent of r pixel frames, where every window of
training began with a latent of one: what a video model makes of that was never trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from colaworld.flow.config import SamplerConfig
from colaworld.flow.rollout import Cache, LatentRollout, check_whole_frames
from colaworld.models.guidance import ConditionedVelocity, GuidedCache
from colaworld.models.inputs import check_codes, check_count, check_flag, check_generator
from colaworld.models.tokenizers.tokenizer import latent_frames
from colaworld.models.world_model import WorldModel, evaluating


class RolloutState:
    """Where a rollout is; `World.begin` makes one.

    It holds all there is of the rollout: stepping it changes neither the model nor another state.
    Inside a step the model is in evaluation mode; afterwards it is in the mode it was in.
    `rows` is B n, how many rollouts it holds; `stride` is r.
    """

    def __init__(
        self,
        model: WorldModel,
        context_frames: Tensor,  # [B, h, 3, H, W] in [0, 1]
        codes: Tensor | None,  # [B, h - 1, N, d]
        *,
        sampler: SamplerConfig,
        generator: torch.Generator,
        conditioned: bool,
        decode_context: int | None,
        fps: Tensor | float | None = None,  # one rate or [B]
    ) -> None:
        B, given = context_frames.shape[:2]
        if isinstance(fps, Tensor):
            if fps.ndim and fps.shape != (B,):
                raise ValueError(f"rollout: fps: expected one rate or [{B}], got {list(fps.shape)}")
            fps = fps.to(context_frames.device)
        stride = model.tokenizer.temporal_stride
        try:
            latent_frames(given, stride)
        except ValueError as error:
            raise ValueError(f"rollout: context_frames: {error}") from error
        if decode_context is not None:
            check_count(decode_context, "rollout: decode_context")
        if codes is None:
            if given > 1 and conditioned:
                raise ValueError(
                    f"rollout: {given} context frames need codes [{B}, {given - 1}, N, d], the "
                    "actions between them; see infer_actions"
                )
            codes = context_frames.new_zeros(
                B, given - 1, *action_size(model, conditioned=conditioned)
            )
        condition = (
            partial(
                ConditionedVelocity,
                model,
                guidance=sampler.guidance,
                passes=sampler.guidance_passes,
                fps=fps,
            )
            if conditioned
            else lambda codes: ConditionedVelocity(model, None, fps=fps)
        )
        self.model, self.conditioned, self.stride = model, conditioned, stride
        self.rows = B
        self._dtype = context_frames.dtype
        with torch.no_grad(), _going_on(model):
            latents = model.tokenizer.encode(context_frames)
        self._rollout = LatentRollout(
            condition,
            latents,
            codes,
            window=latent_window(model),
            sampler=sampler,
            generator=generator,
            stride=stride,
            new_cache=_new_cache(model, sampler, conditioned=conditioned),
        )
        # Latents that later ones are decoded along with; without a stride each is decoded alone.
        self._kept = decode_context if stride > 1 else 0
        self._latents = latents if stride > 1 else latents[:, :, :0]

    @torch.no_grad()
    def step(self, codes: Tensor | None = None) -> Tensor:
        """Generate the next frames.

        Args:
            codes: [B n, r k, N, d], the actions that lead into the next k latent frames, k below the
                window; None, in a rollout without actions: one more latent frame.

        Returns:
            [B n, r k, 3, H, W] in [0, 1].

        Raises ValueError on actions that are not whole latent frames, or do not fit the window.
        """
        return self.decode(self.advance(codes))

    @torch.no_grad()
    def advance(self, codes: Tensor | None = None) -> Tensor:
        """`step` without decoding: the next latents [B n, C, k, h, w]."""
        if codes is None and not self.conditioned:
            codes = self._latents.new_zeros(self.rows, self.stride, 1, 1)
        size = action_size(self.model, conditioned=self.conditioned)
        check_codes(codes, "rollout", (self.rows, f"{self.stride} k", *size), values=False)
        check_whole_frames(codes.shape[1], self.stride)
        with _going_on(self.model):
            made = self._rollout.step(codes)
        before = self._latents.repeat_interleave(self.rows // self._latents.shape[0], dim=0)
        if self._kept is not None:
            before = before[:, :, max(0, before.shape[2] - self._kept) :]
        if self.stride > 1:
            self._latents = torch.cat([before, made], dim=2)
        return made

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B n, r k, 3, H, W] of the latents [B n, C, k, h, w] that were made last.

        Raises ValueError where, with a `decode_context`, those before them are not held any more.
        """
        _, C, _, h, w = self._latents.shape
        check_codes(latents, "decode", (self.rows, C, "k", h, w), values=False, what="latents")
        new, most = latents.shape[2], self._latents.shape[2] - 1
        if self.stride > 1:  # what a latent shows may depend on those before it
            if not 1 <= new <= most:
                raise ValueError(
                    f"rollout: decode: expected the last 1 .. {most} latent frames, got {new}"
                )
            latents = torch.cat([self._latents[:, :, :-new], latents], dim=2)
        with _going_on(self.model):
            frames = self.model.tokenizer.decode(latents)
        return frames[:, -self.stride * new :].to(self._dtype)

    def fork(
        self,
        count: int = 1,
        *,
        shared_noise: bool = True,
        generator: torch.Generator | None = None,
    ) -> RolloutState:
        """A state that goes on from here in `count` ways for each row; this one stays as it is.

        What is cached so far is held once and serves all. `fork()` is a copy to come back to. See
        `flow.rollout.LatentRollout.fork` for the arguments; codes and frames of the fork have
        [B n] rows, those of one clip together.
        """
        check_flag(shared_noise, "fork: shared_noise")
        if generator is not None:
            check_generator(generator, "fork: generator", self._latents.device)
        fork = copy.copy(self)
        fork._rollout = self._rollout.fork(count, shared_noise=shared_noise, generator=generator)
        fork.rows = self.rows * count
        return fork


@contextmanager
def _going_on(model: WorldModel) -> Iterator[None]:
    """Evaluation mode, and no compilation: every length of a cache would be a graph of its own,
    more than a compiled backbone's limit. A graph that is there and fits is used."""
    with evaluating(model), torch.compiler.set_stance("eager_on_recompile"):
        yield


def _new_cache(
    model: WorldModel, sampler: SamplerConfig, *, conditioned: bool
) -> Callable[[], Cache] | None:
    """What makes an empty cache; None where the sampler or the backbone has none.

    Raises ValueError where the sampler's cache is "on" and the backbone cannot be cached.
    """
    new = model.backbone.new_cache
    if sampler.cache == "off":
        return None
    try:
        new()
    except ValueError as refusal:
        if sampler.cache == "on":
            raise ValueError(f"sampler.cache is on: {refusal}") from refusal
        return None
    if conditioned and sampler.guidance != 1.0 and sampler.guidance_passes == "two":
        return lambda: GuidedCache(new(), new())
    return new


def action_size(model: WorldModel, *, conditioned: bool = True) -> tuple[int, int]:
    """N and d of an action; (1, 1) where nothing reads it. ValueError where the model takes none."""
    if not conditioned:
        return 1, 1
    if not hasattr(model, "conditioner"):
        raise ValueError("rollout: this is a video model without actions; expected codes None")
    return model.conditioner.tokens, model.conditioner.dim


def latent_window(model: WorldModel) -> int:
    """Latent frames the backbone sees at once: those of `model.window` pixel frames."""
    try:
        return latent_frames(model.config.window, model.tokenizer.temporal_stride)
    except ValueError as error:
        raise ValueError(f"model.window: {error}") from error
