"""Autoregressive rollout by a sliding window. Takes functions and knows no model.

A round generates the next few frames behind the last ones of the window (window 4, one frame a
round, G generated; what a round sees stands in brackets):

    round 1   [0 1 G]            the window fills up
    round 2   [0 1 2 G]
    round 3    0[1 2 3 G]        and slides: frame 1 is now the first, led into by nothing

With a temporal stride of r, r actions lead into each latent frame but the first.

Frames passed through the video model in one round, for `new` frames and s calls of a sampler (Euler:
its steps), in a window of W:

    without a cache      up to W s
    while it fills up    s new, and once the frames made in the round before
    slid, on_slide=exact    s new, and once the W - new that stay
    slid, on_slide=keep     s new, and once the frames made in the round before

exact gives what no cache gives. keep does not: the frames that stay still hold what they took from
frames that left, and from actions before the window's first frame. Every frame is seen with the
actions that led to it from the start of the window in which it was stored, and never again
differently; a new frame has its place in the window, as with exact, so that the action path sees
sequences as long as in training. Positions go on counting (rotary embeddings tell differences only;
in float32 they are good for some 10^5 frames). A cache is only for a model in which no frame sees a
later one.

Order of draws from `generator`: noise of the context frames if `context_noise` > 0; then in every
round the noise the new frames start from, and if `context_noise` > 0 the noise put on them
afterwards. A cache draws nothing, so it does not change the video. From a `rng.ClipGenerator` each clip
has noise of its own, whatever it is rolled out beside.

Shape legend: B clips, T latent frames, r actions per latent frame, N tokens, d token width.
Not here: what is cached (models/layers/kv_cache.py), pixels (models/rollout.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from colaworld.flow.config import SamplerConfig
from colaworld.flow.path import interpolate
from colaworld.flow.samplers import Velocity, sample
from colaworld.rng import draw


class Cache(Protocol):
    """Keys and values of the frames a video model has seen; it alone writes them."""

    def forget(self, frames: int) -> None:
        """The first `frames` of those held leave."""
        ...

    def copy(self) -> Cache:
        """One that goes its own way from here, and serves n times as many rows as well."""
        ...


class ConditionedVelocity(Protocol):
    """The video model under the actions of one window, told where in the window the frames are."""

    def __call__(
        self,
        x: Tensor,  # [B, C, t, h, w]
        times: Tensor,  # [B, t]
        *,
        first: int = 0,  # index in the window of the first frame of x
        cache: Cache | None = None,  # of the `first` frames before them; None: there are none
        store: bool = False,  # cache these frames too
    ) -> Tensor: ...


# codes [B, r (T - 1), N, d] of a window of T frames -> the video model under them
Condition = Callable[[Tensor], ConditionedVelocity]


class LatentRollout:
    """A rollout of latents; `step` generates the next frames, `fork` goes on in several ways.

    Args:
        condition: the video model under a window's actions.
        context: [B, C, h, rows, columns] clean latents to begin with.
        codes: [B, r (h - 1), N, d], the actions that lead through them.
        window: latent frames the model sees at once.
        sampler: how frames are generated.
        generator: of all noise, drawn in the order above.
        stride: r.
        new_cache: makes an empty cache; None: every call runs the whole window.

    Raises ValueError on codes that do not lead through the context.
    """

    def __init__(
        self,
        condition: Condition,
        context: Tensor,
        codes: Tensor,
        *,
        window: int,
        sampler: SamplerConfig,
        generator: torch.Generator,
        stride: int = 1,
        new_cache: Callable[[], Cache] | None = None,
    ) -> None:
        expected = stride * (context.shape[2] - 1)
        if codes.shape[:2] != (context.shape[0], expected):
            raise ValueError(
                f"rollout: expected codes [{context.shape[0]}, {expected}, N, d] that lead through "
                f"{context.shape[2]} latent frames of context, got {tuple(codes.shape)}"
            )
        self.condition, self.new_cache = condition, new_cache
        self.window, self.stride = window, stride
        self.sampler, self.generator = sampler, generator
        self.frames = context.shape[2]  # of the video so far
        self._clips = context.shape[0]
        self._ways = 1  # for each row there is now, from the next step on
        self._shared = 1  # rows in a row that start from the same noise
        self._start = 0  # number of the first frame of _past
        self._past, self._codes = self._as_seen(context), codes
        self._cache = None if new_cache is None else new_cache()
        self._cached = 0  # how many of _past are

    def step(self, codes: Tensor) -> Tensor:
        """Codes [B, r new, N, d] -> the next latents [B, C, new, rows, columns].

        After `fork(n)` both have B n rows. Raises ValueError on actions that are not whole frames,
        or more frames than fit behind one frame of the window.
        """
        new, rest = divmod(codes.shape[1], self.stride)
        if rest or not 1 <= new < self.window:
            raise ValueError(
                f"rollout: expected the actions of 1 .. {self.window - 1} new latent frames, "
                f"{self.stride} each, got {codes.shape[1]}"
            )
        self._slide(max(0, self.frames + new - self.window))
        if self._ways > 1:  # the past is cached once, then serves every way
            self._store(self.condition(self._codes))
            self._past = self._past.repeat_interleave(self._ways, dim=0)
            self._codes = self._codes.repeat_interleave(self._ways, dim=0)
            self._ways = 1
        self._codes = torch.cat([self._codes, codes], dim=1)
        velocity = self._behind_past(self.condition(self._codes))
        noise = self._noise(self._past, new)
        made = sample(velocity, noise, None, self.sampler).to(self._past.dtype)
        self._past = torch.cat([self._past, self._as_seen(made)], dim=2)
        self.frames += new
        return made

    def fork(
        self,
        count: int = 1,
        *,
        shared_noise: bool = True,
        generator: torch.Generator | None = None,
    ) -> LatentRollout:
        """A rollout that goes on from here in `count` ways for each row; this one stays as it is.

        Nothing is copied: what is cached so far is held once and serves all.

        Args:
            count: n >= 1. Rows of one clip stand together: [B n, ...].
            shared_noise: the n ways start from the same noise, so that each is the rollout it would
                be alone; else every row draws its own.
            generator: of the noise from here on; None: a copy of this rollout's, so that both go on
                from the same noise.
        """
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"fork: expected a whole count >= 1, got {count!r}")
        fork = copy.copy(self)
        fork.generator = self.generator.clone_state() if generator is None else generator
        fork._cache = None if self._cache is None else self._cache.copy()
        fork._ways = self._ways * count
        fork._shared = self._shared * count if shared_noise else 1
        return fork

    def _behind_past(self, conditioned: ConditionedVelocity) -> Velocity:
        """The velocity of new frames that follow the past."""
        past, held = self._past, self._past.shape[2]
        if self._cache is not None:
            self._store(conditioned)
            return partial(conditioned, first=held, cache=self._cache)
        level = self.sampler.context_noise
        known = torch.full((past.shape[0], held), level, device=past.device)

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            window, all_times = torch.cat([past, x], dim=2), torch.cat([known, times], dim=1)
            return conditioned(window, all_times)[:, :, held:]

        return velocity

    def _store(self, conditioned: ConditionedVelocity) -> None:
        """Cache what is not yet."""
        missing = self._past[:, :, self._cached :]
        if self._cache is None or not missing.shape[2]:
            return
        shape, level = (missing.shape[0], missing.shape[2]), self.sampler.context_noise
        times = torch.full(shape, level, device=missing.device)
        conditioned(missing, times, first=self._cached, cache=self._cache, store=True)
        self._cached = self._past.shape[2]

    def _slide(self, start: int) -> None:
        """Frames before number `start` leave, and the actions up to it."""
        leaving = start - self._start
        if leaving <= 0:
            return
        self._past = self._past[:, :, leaving:]
        self._codes = self._codes[:, self.stride * leaving :]
        self._start = start
        if self._cache is None or self.new_cache is None:
            return
        if self.sampler.on_slide == "exact" or leaving >= self._cached:
            self._cache, self._cached = self.new_cache(), 0
        else:
            self._cache.forget(leaving)
            self._cached -= leaving

    def _as_seen(self, latents: Tensor) -> Tensor:
        """Latents as they are seen from now on: noised once where the sampler says so."""
        level = self.sampler.context_noise
        if level == 0:
            return latents
        noise = self._noise(latents, latents.shape[2])
        times = torch.full((latents.shape[0], latents.shape[2]), level, device=latents.device)
        return interpolate(latents, noise, times)

    def _noise(self, like: Tensor, frames: int) -> Tensor:
        """[rows of `like`, C, frames, rows, columns] from the generator."""
        own = like.shape[0] // self._shared // self._clips  # rows of a clip that draw
        shape = (self._clips, own, like.shape[1], frames, *like.shape[3:])
        about = {"device": like.device, "dtype": like.dtype}
        noise = draw(torch.randn, shape, self.generator, large=True, **about).flatten(0, 1)
        return noise.repeat_interleave(self._shared, dim=0)


def check_whole_frames(actions: int, stride: int) -> None:
    """Raises ValueError unless `actions` are whole latent frames of `stride` actions each."""
    if actions % stride:
        low = actions - actions % stride
        fits = f"{low} or {low + stride}" if low else f"{stride}"
        raise ValueError(
            f"rollout: {actions} actions after the context are not whole latent frames of {stride} "
            f"actions; pass {fits}"
        )
