"""Autoregressive rollout by a sliding window. Takes functions and knows no model.

A round generates the next few frames behind the last ones of the window (window 4, one frame a
round, G generated; what a round sees stands in brackets):

    round 1   [0 1 G]            the window fills up
    round 2   [0 1 2 G]
    round 3    0[1 2 3 G]        and slides: frame 1 is now the first, led into by nothing

With a temporal stride of r, r actions lead into each latent frame but the first.

Order of draws from `generator`: noise of the history if `history_noise` > 0; then in every round
the noise the new frames start from, and if `history_noise` > 0 the noise put on them afterwards.
How frames are remembered draws nothing, so it does not change the video.

Shape legend: B clips, T latent frames, r actions per latent frame, N tokens, d token width.
Not here: remembering frames instead of recomputing them (cached_rollout.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from colaworld.flow.path import interpolate
from colaworld.flow.samplers import SamplerConfig, Velocity, sample


class Steered(Protocol):
    """The generator under the actions of one window: a velocity, and where in the window it is."""

    def __call__(
        self,
        x: Tensor,  # [B, C, t, h, w]
        times: Tensor,  # [B, t]
        *,
        first: int = 0,  # index in the window of the first frame of x
        memory: object | None = None,  # of the `first` frames before them; None: there are none
        store: bool = False,  # remember these frames too
    ) -> Tensor: ...


# steer(codes [B, r (T - 1), N, d]) -> the generator under the actions within a window of T frames
Steer = Callable[[Tensor], Steered]


class Context(Protocol):
    """How a rollout gets the velocity of new frames behind those it has."""

    def velocity(self, past: Tensor, codes: Tensor, start: int) -> Velocity:
        """Of the frames that follow `past` [B, C, k, h, w].

        codes: [B, r (T - 1), N, d], of a window of T frames whose first k are `past`.
        start: number of the window's first frame within the video; never decreases.
        """
        ...

    def share(self, past: Tensor, codes: Tensor, start: int, count: int) -> None:
        """See the history [B, ...] once, then go on with `count` rows for each of its clips.

        codes: [B, r (k - 1), N, d], those that lead to the frames of `past`.
        """
        ...


class Recomputed:
    """The context that remembers nothing: every call runs the whole window."""

    def __init__(self, steer: Steer, *, level: float = 0.0) -> None:
        self.steer, self.level = steer, level

    def velocity(self, past: Tensor, codes: Tensor, start: int) -> Velocity:
        steered, held = self.steer(codes), past.shape[2]
        known = torch.full((past.shape[0], held), self.level, device=past.device)

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            window = torch.cat([past, x], dim=2)
            return steered(window, torch.cat([known, times], dim=1))[:, :, held:]

        return velocity

    def share(self, past: Tensor, codes: Tensor, start: int, count: int) -> None:
        """Nothing is remembered, so nothing is shared."""


class Rolling:
    """A rollout that has come so far; `step` goes on under the actions it is given.

    With `candidates` n > 1 every clip of the history goes on in n ways: codes given to `step` and
    frames it returns have B n rows, those of one clip together. The n start from the same noise
    (`shared_noise`), so that each is the rollout it would be alone; else each draws its own.
    """

    def __init__(
        self,
        context: Context,
        history: Tensor,  # [B, C, h, rows, columns] clean latents
        codes: Tensor,  # [B, r (h - 1), N, d]
        *,
        window: int,
        config: SamplerConfig,
        generator: torch.Generator,
        stride: int = 1,  # r
        candidates: int = 1,
        shared_noise: bool = True,
    ) -> None:
        self.context, self.window, self.stride = context, window, stride
        self.config, self.generator = config, generator
        self.candidates, self.shared_noise = candidates, shared_noise
        self._split = candidates == 1  # whether the history has its rows of every candidate
        expected = stride * (history.shape[2] - 1)
        if codes.shape[:2] != (history.shape[0], expected):
            raise ValueError(
                f"rollout: expected codes [{history.shape[0]}, {expected}, N, d] that lead through "
                f"{history.shape[2]} latent frames of history, got {tuple(codes.shape)}"
            )
        if candidates < 1:
            raise ValueError(f"rollout: expected candidates >= 1, got {candidates}")
        if not 0 <= config.history_noise < 1:
            raise ValueError(
                f"sampler.history_noise: expected a time in [0, 1), got {config.history_noise}"
            )
        self.frames = history.shape[2]  # of the video so far
        self._start = 0  # number of the first frame of _past
        self._past, self._codes = self._as_history(history), codes

    def step(self, codes: Tensor) -> Tensor:
        """Codes [B n, r new, N, d] -> the next latents [B n, C, new, rows, columns].

        Raises ValueError on actions that are not whole frames, or more frames than fit behind one
        frame of the window.
        """
        new, rest = divmod(codes.shape[1], self.stride)
        if rest or not 1 <= new < self.window:
            raise ValueError(
                f"rollout: expected the actions of 1 .. {self.window - 1} new latent frames, "
                f"{self.stride} each, got {codes.shape[1]}"
            )
        self._slide(max(0, self.frames + new - self.window))
        if not self._split:
            self.context.share(self._past, self._codes, self._start, self.candidates)
            self._past, self._codes = self._each(self._past), self._each(self._codes)
            self._split = True
        self._codes = torch.cat([self._codes, codes], dim=1)
        velocity = self.context.velocity(self._past, self._codes, self._start)
        noise = self._noise(self._past, new)
        made = sample(velocity, noise, None, self.config).to(self._past.dtype)
        self._past = torch.cat([self._past, self._as_history(made)], dim=2)
        self.frames += new
        return made

    def _slide(self, start: int) -> None:
        """Frames before number `start` leave, and the actions up to it."""
        leaving = start - self._start
        if leaving > 0:
            self._past = self._past[:, :, leaving:]
            self._codes = self._codes[:, self.stride * leaving :]
            self._start = start

    def _as_history(self, latents: Tensor) -> Tensor:
        """Latents as they are seen from now on: noised once where the config says so."""
        level = self.config.history_noise
        if level == 0:
            return latents
        noise = self._noise(latents, latents.shape[2])
        times = torch.full((latents.shape[0], latents.shape[2]), level, device=latents.device)
        return interpolate(latents, noise, times)

    def _noise(self, like: Tensor, frames: int) -> Tensor:
        """[rows of `like`, C, frames, rows, columns] from the generator."""
        rows = like.shape[0]
        shared = self._split and self.candidates > 1 and self.shared_noise
        shape = (rows // self.candidates if shared else rows, like.shape[1], frames)
        noise = torch.randn(
            *shape,
            *like.shape[3:],
            generator=self.generator,
            device=like.device,
            dtype=like.dtype,
        )
        return self._each(noise) if shared else noise

    def _each(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B n, ...]: every clip once for each of its candidates."""
        return x.repeat_interleave(self.candidates, dim=0)


def rollout(
    context: Context,
    history: Tensor,  # [B, C, h, rows, columns] clean latents
    codes: Tensor,  # [B n, r (T - 1), N, d]; entry t leads from pixel frame t to t + 1; T >= h
    *,
    window: int,
    config: SamplerConfig,
    generator: torch.Generator,
    stride: int = 1,  # r, actions per latent frame
    chunk: int = 1,
) -> Tensor:
    """Latents [B, C, T, rows, columns]: the history, then T - h generated frames.

    Each round generates up to `chunk` frames behind the last `window - chunk` ones.
    """
    if not 1 <= chunk < window:
        raise ValueError(f"rollout: expected 1 <= chunk < window = {window}, got {chunk}")
    known = stride * (history.shape[2] - 1)
    if codes.shape[1] < known:
        raise ValueError(
            f"rollout: {codes.shape[1]} actions do not cover {history.shape[2]} history frames"
        )
    check_whole_frames(codes.shape[1] - known, stride)
    rolling = Rolling(
        context,
        history,
        codes[:, :known],
        window=window,
        config=config,
        generator=generator,
        stride=stride,
    )
    steps = codes[:, known:].split(stride * chunk, dim=1) if codes.shape[1] > known else ()
    return torch.cat([history, *(rolling.step(part) for part in steps)], dim=2)


def check_whole_frames(actions: int, stride: int) -> None:
    """Raises ValueError unless `actions` are whole latent frames of `stride` actions each."""
    if actions % stride:
        low = actions - actions % stride
        fits = f"{low} or {low + stride}" if low else f"{stride}"
        raise ValueError(
            f"rollout: {actions} actions after the history are not whole latent frames of {stride} "
            f"actions; pass {fits}"
        )
