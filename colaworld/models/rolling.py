"""A world model's rollouts: whole videos, many candidates from one history, or frame by frame.

This file brings together tokenizer, actions, guidance and the generator's cache; the sliding window
is `flow/rollout.py`, what the cache saves and what it changes `flow/cached_rollout.py`.

Shape legend: B clips, n candidates per clip, T pixel frames, r the tokenizer's temporal stride,
N tokens per action, d token width. T = 1 + r (latent frames - 1).

With r > 1 a window that has slid begins with a latent of r pixel frames, where every window of
training began with a latent of one: what a generator makes of that was never trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from colaworld.contracts import Rollout
from colaworld.flow.cached_rollout import Memory, Remembered
from colaworld.flow.rollout import Context, Recomputed, Rolling, Steered, check_whole_frames
from colaworld.flow.rollout import rollout as roll_latents
from colaworld.flow.samplers import SamplerConfig, guided, guided_in_one
from colaworld.models.tokenizers.base import Tokenizer, latent_frames

if TYPE_CHECKING:
    from colaworld.models.world_model import WorldModel

# Asked for the next actions [B, k, N, d] (or one, [B, N, d]); None ends the rollout.
Policy = Callable[[Tensor], Tensor | None]
Actions = Tensor | Iterable[Tensor] | Policy


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, each module's own mode restored after it."""
    modules = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modules:
            module.training = training


@contextmanager
def _going_on(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no compilation: every length of a cache would be a graph of its own,
    more than a compiled generator's limit. A graph that is there and fits is used."""
    with evaluating(model), torch.compiler.set_stance("eager_on_recompile"):
        yield


class TwoMemories:
    """What the generator remembers under the actions and, apart, under the null action."""

    def __init__(self, conditional: Memory, unconditional: Memory) -> None:
        self.conditional, self.unconditional = conditional, unconditional

    def forget(self, frames: int) -> None:
        """See `flow.cached_rollout.Memory.forget`."""
        self.conditional.forget(frames)
        self.unconditional.forget(frames)

    def repeat_interleave(self, count: int) -> TwoMemories:
        """See `flow.cached_rollout.Memory.repeat_interleave`."""
        return TwoMemories(
            self.conditional.repeat_interleave(count), self.unconditional.repeat_interleave(count)
        )


def steer(
    model: WorldModel,
    codes: Tensor | None,  # [B, r (T' - 1), N, d]; None = the plain generator
    *,
    guidance: float = 1.0,
    passes: str = "one",
) -> Steered:
    """The generator under these actions, which are embedded once.

    Guidance is v_u + guidance (v_c - v_u) with v_u under null actions in every frame, the history's
    too; with one pass both run as one batch of 2 B clips and share one memory of as many.
    """
    if passes not in ("one", "two"):
        raise ValueError(f"sampler.guidance_passes: expected 'one' or 'two', got {passes!r}")
    if codes is None:
        return _under(model, None)
    modulation = model.conditioner(codes)
    if guidance == 1.0:
        return _under(model, modulation)
    null = model.conditioner.null_modulation(codes[:1]).expand_as(modulation)
    if passes == "one":
        both = _under(model, torch.cat([modulation, null]))

        def in_one(x, times, *, first=0, memory=None, store=False):
            def run(x: Tensor, times: Tensor) -> Tensor:
                return both(x, times, first=first, memory=memory, store=store)

            return guided_in_one(run, guidance)(x, times)

        return in_one
    conditional, unconditional = _under(model, modulation), _under(model, null)

    def in_two(x, times, *, first=0, memory=None, store=False):
        mine = (None, None) if memory is None else (memory.conditional, memory.unconditional)

        def run(steered: Steered, part: object):
            return lambda x, times: steered(x, times, first=first, memory=part, store=store)

        return guided(run(conditional, mine[0]), run(unconditional, mine[1]), guidance)(x, times)

    return in_two


def _under(model: WorldModel, modulation: Tensor | None) -> Steered:
    def steered(x, times, *, first=0, memory=None, store=False):
        part = None if modulation is None else modulation[:, first : first + x.shape[2]]
        if memory is None:
            return model.backbone.velocity(x, times, modulation=part)
        return model.backbone.velocity(x, times, modulation=part, cache=memory, store=store)

    return steered


def context(model: WorldModel, sampler: SamplerConfig, *, conditioned: bool) -> Context:
    """How the sampler's settings have the past remembered.

    Raises ValueError where `cache` is "on" and the generator cannot be cached, and on values that
    a setting does not have.
    """
    for name, allowed in (("cache", ("auto", "on", "off")), ("slide", ("exact", "keep"))):
        if getattr(sampler, name) not in allowed:
            raise ValueError(
                f"sampler.{name}: expected one of {', '.join(allowed)}, got "
                f"{getattr(sampler, name)!r}"
            )
    guidance, passes, level = sampler.guidance, sampler.guidance_passes, sampler.history_noise

    def steered(codes: Tensor) -> Steered:
        return steer(model, codes if conditioned else None, guidance=guidance, passes=passes)

    pair = conditioned and guidance != 1.0 and passes == "two"
    new = model.backbone.new_cache

    def memory() -> Memory:
        return TwoMemories(new(), new()) if pair else new()

    if sampler.cache == "off":
        return Recomputed(steered, level=level)
    try:
        new()
    except ValueError as refusal:
        if sampler.cache == "on":
            raise ValueError(f"sampler.cache is on: {refusal}") from refusal
        return Recomputed(steered, level=level)
    return Remembered(steered, memory, slide=sampler.slide, level=level)


def roll(
    model: WorldModel,
    history: Tensor,
    codes: Tensor | None,
    *,
    generator: torch.Generator,
    sampler: SamplerConfig,
    frames: int | None,
    chunk: int,
) -> Rollout:
    """See `WorldModel.rollout`."""
    stride, given = model.tokenizer.temporal_stride, history.shape[1]
    _check_history(given, stride)
    conditioned = codes is not None
    if codes is None:
        if frames is None or frames < given:
            raise ValueError(f"rollout without codes needs frames >= {given}, got {frames}")
        codes = history.new_zeros(history.shape[0], frames - 1, 1, 1)
    with _going_on(model):
        start = model.tokenizer.encode(history)
        latents = roll_latents(
            context(model, sampler, conditioned=conditioned),
            start,
            codes,
            window=latent_window(model),
            config=sampler,
            generator=generator,
            stride=stride,
            chunk=chunk,
        )
        new = latents.shape[2] - start.shape[2]
        if not new:
            return Rollout(history, given)
        video = decode_last(model.tokenizer, latents, new)
    return Rollout(torch.cat([history, video.to(history.dtype)], dim=1), given)


def roll_candidates(
    model: WorldModel,
    history: Tensor,
    codes: Tensor,
    *,
    generator: torch.Generator,
    history_codes: Tensor | None,
    sampler: SamplerConfig,
    chunk: int,
    shared_noise: bool,
    decode: bool,
) -> Tensor:
    """See `WorldModel.rollout_candidates`."""
    if codes.ndim != 5 or codes.shape[0] != history.shape[0] or not codes[:, :, :, 0, 0].numel():
        raise ValueError(
            f"rollout_candidates: expected codes [{history.shape[0]}, n, steps, N, d], none of "
            f"them 0, got {tuple(codes.shape)}"
        )
    count, stride = codes.shape[1], model.tokenizer.temporal_stride
    check_whole_frames(codes.shape[2], stride)
    with _going_on(model):
        rolling, start = _begin(
            model,
            history,
            history_codes,
            conditioned=True,
            generator=generator,
            sampler=sampler,
            chunk=chunk,
            candidates=count,
            shared_noise=shared_noise,
        )
        rounds = codes.flatten(0, 1).split(stride * chunk, dim=1)
        made = torch.cat([rolling.step(part) for part in rounds], dim=2)  # [B n, C, new, h, w]
        if decode:
            latents = torch.cat([start.repeat_interleave(count, dim=0), made], dim=2)
            made = decode_last(model.tokenizer, latents, made.shape[2]).to(history.dtype)
    return made.unflatten(0, (-1, count))


def roll_stream(
    model: WorldModel,
    history: Tensor,
    actions: Actions | None,
    *,
    generator: torch.Generator,
    history_codes: Tensor | None,
    sampler: SamplerConfig,
    chunk: int,
    decode_context: int | None,
) -> Iterator[Tensor]:
    """See `WorldModel.rollout_stream`."""
    stride = model.tokenizer.temporal_stride
    if decode_context is not None and decode_context < 1:
        raise ValueError(f"rollout_stream: expected decode_context >= 1, got {decode_context}")
    kept = 0 if stride == 1 else decode_context
    pending = Pending(actions, history, _action_size(model, actions is not None))
    with torch.no_grad(), _going_on(model):
        rolling, start = _begin(
            model,
            history,
            history_codes,
            conditioned=actions is not None,
            generator=generator,
            sampler=sampler,
            chunk=chunk,
        )

    def frames() -> Iterator[Tensor]:
        latents, shown = start, history
        while True:
            # The caller's code runs outside of evaluation mode, and so does what it does with
            # the frames it is given.
            codes = pending.take(stride * chunk, shown)
            if codes is None:
                return
            check_whole_frames(codes.shape[1], stride)
            with torch.no_grad(), _going_on(model):
                new = rolling.step(codes)
                if kept is not None:
                    latents = latents[:, :, max(0, latents.shape[2] - kept) :]
                latents = torch.cat([latents, new], dim=2)
                shown = decode_last(model.tokenizer, latents, new.shape[2]).to(history.dtype)
            yield shown

    return frames()


class Pending:
    """Actions as the caller gives them, taken by whole rounds and asked for as late as possible."""

    def __init__(
        self, actions: Actions | None, history: Tensor, size: tuple[int, int] = (1, 1)
    ) -> None:
        self.size = size  # N, d of an action
        self.clips, self.held = history.shape[0], torch.empty(0)
        self._policy = actions if callable(actions) else None
        self._parts: Iterator[Tensor] = iter(())
        if isinstance(actions, Tensor):
            self._parts = iter((actions,))
        elif actions is None:  # the plain generator goes on without end
            self._parts = repeat(history.new_zeros(self.clips, 1, 1, 1))
        elif self._policy is None:
            self._parts = iter(actions)

    def take(self, count: int, shown: Tensor) -> Tensor | None:
        """Codes [B, up to `count`, N, d], fewer only at the end; None: there are no more.

        shown: the frames made last, which a policy is given.
        """
        while not self.held.numel() or self.held.shape[1] < count:
            part = next(self._parts, None) if self._policy is None else self._policy(shown)
            if part is None:
                break
            if not isinstance(part, Tensor):
                raise ValueError(
                    f"rollout_stream: expected actions as tensors of codes, got {part!r}; look "
                    "indices up first"
                )
            part = part[:, None] if part.ndim == 3 else part
            if (
                part.ndim != 4
                or part.shape[0] != self.clips
                or tuple(part.shape[2:]) != self.size
                or not part.shape[1]
            ):
                N, d = self.size
                raise ValueError(
                    f"rollout_stream: expected actions [{self.clips}, {N}, {d}] or [{self.clips}, k, "
                    f"{N}, {d}] with k >= 1 (None ends it), got {tuple(part.shape)}"
                )
            self.held = torch.cat([self.held, part], dim=1) if self.held.numel() else part
        if not self.held.numel():
            return None
        taken, self.held = self.held[:, :count], self.held[:, count:]
        return taken


def _begin(
    model: WorldModel,
    history: Tensor,  # [B, T, 3, H, W]
    history_codes: Tensor | None,  # [B, T - 1, N, d]
    *,
    conditioned: bool,
    generator: torch.Generator,
    sampler: SamplerConfig,
    chunk: int,
    candidates: int = 1,
    shared_noise: bool = True,
) -> tuple[Rolling, Tensor]:
    """A rollout that has seen the history, and the history's latents [B, C, T', h, w]."""
    B, T = history.shape[:2]
    window, stride = latent_window(model), model.tokenizer.temporal_stride
    _check_history(T, stride)
    if not 1 <= chunk < window:
        raise ValueError(f"rollout: expected 1 <= chunk < window = {window}, got {chunk}")
    if history_codes is None:
        if T > 1 and conditioned:
            raise ValueError(
                f"rollout: a history of {T} frames needs history_codes [{B}, {T - 1}, N, d], the "
                "actions between its frames; see infer_actions"
            )
        history_codes = history.new_zeros(B, T - 1, *_action_size(model, conditioned))
    latents = model.tokenizer.encode(history)
    rolling = Rolling(
        context(model, sampler, conditioned=conditioned),
        latents,
        history_codes,
        window=window,
        config=sampler,
        generator=generator,
        stride=stride,
        candidates=candidates,
        shared_noise=shared_noise,
    )
    return rolling, latents


def _action_size(model: WorldModel, conditioned: bool) -> tuple[int, int]:
    """N and d of an action; (1, 1) where nothing reads it."""
    return (model.conditioner.tokens, model.conditioner.dim) if conditioned else (1, 1)


def latent_window(model: WorldModel) -> int:
    """Latent frames the generator sees at once: those of `model.window` pixel frames."""
    try:
        return latent_frames(model.config.window, model.tokenizer.temporal_stride)
    except ValueError as error:
        raise ValueError(f"model.window: {error}") from error


def decode_last(tokenizer: Tokenizer, latents: Tensor, new: int) -> Tensor:
    """Frames [B, r new, 3, H, W] of the last `new` latents of [B, C, T', h, w].

    Without a temporal stride a latent is a frame of its own; with one the frames are decoded along
    with all latents given, since they may depend on those before.
    """
    stride = tokenizer.temporal_stride
    if stride == 1:
        return tokenizer.decode(latents[:, :, -new:])
    return tokenizer.decode(latents)[:, -stride * new :]


def _check_history(frames: int, stride: int) -> None:
    try:
        latent_frames(frames, stride)
    except ValueError as error:
        raise ValueError(f"rollout: history: {error}") from error
