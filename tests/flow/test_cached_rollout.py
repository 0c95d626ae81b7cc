"""Cached frames: the same video as without a cache, at the cost of the new frames alone; forks.

The toy generator has two layers of causal attention with weights that depend on the distance, so
that what a frame holds depends on every earlier one; its cache is real. In float64.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from colaworld.flow.config import SamplerConfig
from colaworld.flow.rollout import LatentRollout


class ToyCache:
    """What each layer has stored, and how many frames ever were."""

    def __init__(self) -> None:
        self.layers = [[], []]
        self.seen = 0

    def forget(self, frames):
        self.layers = [layer[frames:] for layer in self.layers]

    def copy(self):
        copy = ToyCache()
        copy.layers, copy.seen = [list(layer) for layer in self.layers], self.seen
        return copy


class Toy:
    """`condition` of a rollout; `passes` counts (clips, frames) of each call of the generator.

    shallow: one layer that holds nothing of the actions, so that nothing a frame holds depends on
    the window: then forgetting a frame is all there is to a window that slides.
    """

    def __init__(self, *, stride: int = 1, shallow: bool = False) -> None:
        self.stride, self.shallow, self.passes = stride, shallow, []

    def __call__(self, codes):
        packed = codes.flatten(2).unflatten(1, (-1, self.stride)).flatten(2)
        weights = torch.linspace(0.5, 1.5, packed.shape[2], dtype=packed.dtype)
        action = (packed @ weights).cumsum(1) / 2  # [B, T - 1]
        told = torch.cat([action.new_full((codes.shape[0], 1), 0.7), action], 1)

        def velocity(x, times, *, first=0, cache=None, store=False):
            self.passes.append((x.shape[0], x.shape[2]))
            cache = cache or ToyCache()
            assert len(cache.layers[0]) == first, "the cache is not what comes before"
            rows = x.shape[0]
            layers = [
                [held.repeat_interleave(rows // held.shape[0], 0) for held in layer]
                for layer in cache.layers
            ]
            out = []
            for t in range(x.shape[2]):
                m = told[:, first + t, None, None, None]
                seen = x[:, :, t] if self.shallow else x[:, :, t] + m
                h = torch.tanh(seen + 0.3 * times[:, t, None, None, None])
                layers[0].append(h)
                h = h + self.attend(layers[0])
                if not self.shallow:
                    layers[1].append(torch.tanh(h))
                    h = h + self.attend(layers[1])
                out.append(h + 0.2 * m - 0.5 * x[:, :, t])
            if store:
                cache.layers, cache.seen = layers, cache.seen + x.shape[2]
            return torch.stack(out, 2)

        return velocity

    @staticmethod
    def attend(layer):
        weights = [0.8**distance for distance in reversed(range(len(layer)))]
        return sum(w * x for w, x in zip(weights, layer, strict=True)) / sum(weights)


def drawn(*, history: int, new: int, stride: int = 1, clips: int = 2):
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(clips, 3, history, 2, 2, generator=g, dtype=torch.float64)
    steps = stride * (history + new - 1)
    return latents, torch.randn(clips, steps, 1, 2, generator=g, dtype=torch.float64)


def roll(toy, latents, codes, *, window, chunk=1, stride=1, seed=3, cached=True, **config):
    known = stride * (latents.shape[2] - 1)
    state = LatentRollout(
        toy,
        latents,
        codes[:, :known],
        window=window,
        sampler=SamplerConfig(steps=2, **config),
        generator=torch.Generator().manual_seed(seed),
        stride=stride,
        new_cache=ToyCache if cached else None,
    )
    steps = codes[:, known:].split(stride * chunk, dim=1)
    return torch.cat([latents, *(state.step(part) for part in steps)], dim=2)


def close(made, expected):
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("history", [1, 3, 7])
@pytest.mark.parametrize(
    ("window", "chunk"), [(w, c) for w, c in itertools.product((2, 3, 5, 9), (1, 2, 3)) if c < w]
)
def test_exact_is_what_recomputing_gives(window, chunk, history):
    latents, codes = drawn(history=history, new=7)
    for more in ({}, {"method": "heun"}, {"context_noise": 0.2}):
        made, expected = (
            roll(Toy(), latents, codes, window=window, chunk=chunk, cached=cached, **more)
            for cached in (True, False)
        )
        close(made, expected)
        assert (expected[:, :, history:] - latents[:, :, -1:]).abs().min() > 1e-6


@pytest.mark.parametrize("stride", [2, 4])
def test_exact_with_several_actions_per_frame(stride):
    latents, codes = drawn(history=2, new=6, stride=stride)
    expected, made = (
        roll(Toy(stride=stride), latents, codes, window=4, stride=stride, cached=cached)
        for cached in (False, True)
    )
    close(made, expected)


def test_keep_is_exact_until_the_window_slides_and_then_not():
    latents, codes = drawn(history=2, new=8)
    exact, kept = (
        roll(Toy(), latents, codes, window=5, on_slide=slide) for slide in ("exact", "keep")
    )
    close(kept[:, :, :5], exact[:, :, :5])
    moved = (kept - exact).abs().amax((0, 1, 3, 4))
    assert (moved[5:] > 1e-4).all()


@pytest.mark.parametrize(("window", "chunk"), [(2, 1), (4, 1), (4, 2), (5, 3)])
def test_keep_is_exact_where_no_frame_holds_what_left(window, chunk):
    """Then only the bookkeeping could differ: which frames are held, and where they stand."""
    latents, codes = drawn(history=3, new=9)
    exact, kept = (
        roll(Toy(shallow=True), latents, codes, window=window, chunk=chunk, **more)
        for more in ({"cached": False}, {"on_slide": "keep"})
    )
    close(kept, exact)


def begun(toy, latents, codes, *, window, **config) -> LatentRollout:
    """Cached, with the actions of the history alone."""
    return LatentRollout(
        toy,
        latents,
        codes[:, : latents.shape[2] - 1],
        window=window,
        sampler=SamplerConfig(**{"steps": 2} | config),
        generator=torch.Generator().manual_seed(3),
        new_cache=ToyCache,
    )


def frames_per_round(slide: str, *, history: int, new: int, window: int, chunk: int = 1):
    toy = Toy()
    latents, codes = drawn(history=history, new=new)
    state = begun(toy, latents, codes, window=window, steps=3, on_slide=slide)
    counts = []
    for part in codes[:, history - 1 :].split(chunk, dim=1):
        toy.passes.clear()
        state.step(part)
        counts.append(sum(frames for _, frames in toy.passes))
    return counts


def test_a_new_frame_costs_one_frame_up_to_the_window():
    """3 steps: 3 frames denoised, 1 stored; the first round stores the history."""
    for slide in ("exact", "keep"):
        for history in (1, 2, 5, 11):
            counts = frames_per_round(slide, history=history, new=12 - history, window=12)
            assert counts == [history + 3] + [1 + 3] * (11 - history)


def test_cost_after_the_window_is_constant():
    filled, slid = [1 + 3] * 4, 5
    assert frames_per_round("keep", history=1, new=9, window=5) == filled + [1 + 3] * slid
    assert frames_per_round("exact", history=1, new=9, window=5) == filled + [4 + 3] * slid
    assert frames_per_round("keep", history=9, new=2, window=5) == [4 + 3, 1 + 3]
    # Chunks of two: the window holds three clean frames and two new ones.
    assert frames_per_round("exact", history=1, new=8, window=5, chunk=2) == [
        1 + 6,
        2 + 6,
        3 + 6,
        3 + 6,
    ]


@pytest.mark.parametrize("window", [3, 9])
@pytest.mark.parametrize("cached", [True, False])
def test_forks_are_the_rollouts_they_would_be_alone(cached, window):
    latents, codes = drawn(history=3, new=4)
    other = codes + 0.5
    toy = Toy()
    state = begun(toy, latents, codes, window=window)
    if not cached:
        state.new_cache = state._cache = None
    both = torch.stack([codes, other], 1)[:, :, 2:].flatten(0, 1)  # [B n, 4, N, d]
    fork = state.fork(2)
    made = torch.cat([fork.step(part) for part in both.split(1, dim=1)], 2).unflatten(0, (2, 2))
    if cached:  # the history went through once, with one row for each clip
        assert toy.passes[0] == (2, min(3, window - 1))
        assert all(clips == 4 for clips, _ in toy.passes[1:])
    for index, mine in enumerate((codes, other)):
        mine = torch.cat([codes[:, :2], mine[:, 2:]], 1)
        close(made[:, index], roll(Toy(), latents, mine, window=window)[:, :, 3:])


@pytest.mark.parametrize("slide", ["exact", "keep"])
@pytest.mark.parametrize("window", [3, 9])
def test_forks_of_a_fork_leave_what_they_came_from_alone(window, slide):
    """Two ways after one frame, three of each after the next: six rollouts, and the first goes on."""
    latents, codes = drawn(history=2, new=4, clips=1)
    state = begun(Toy(), latents, codes, window=window, on_slide=slide, context_noise=0.1)
    ways = codes + torch.arange(6).view(6, 1, 1, 1) / 7  # [6, 5, N, d]
    first = state.step(codes[:, 1:2])
    pair = state.fork(2)
    second = pair.step(ways[::3, 2:3])
    six = pair.fork(3)
    rest = torch.cat([six.step(part) for part in ways[:, 3:].split(1, dim=1)], 2)
    for index in range(6):
        mine = torch.cat([codes[:, :2], ways[index // 3 * 3, 2:3][None], ways[index, 3:][None]], 1)
        alone = roll(Toy(), latents, mine, window=window, on_slide=slide, context_noise=0.1)
        made = torch.cat([first, second[index // 3][None], rest[index][None]], 2)
        close(made, alone[:, :, 2:])
    later = torch.cat([state.step(part) for part in codes[:, 2:].split(1, dim=1)], 2)
    alone = roll(Toy(), latents, codes, window=window, on_slide=slide, context_noise=0.1)
    close(later, alone[:, :, 3:])


def test_forks_with_noise_of_their_own_differ_under_equal_actions():
    latents, codes = drawn(history=1, new=2, clips=1)
    for shared, equal in ((True, True), (False, False)):
        state = begun(Toy(), latents, codes, window=4, context_noise=0.1)
        fork = state.fork(2, shared_noise=shared)
        for part in codes.expand(2, -1, -1, -1).split(1, dim=1):
            made = fork.step(part)
            assert torch.equal(made[0], made[1]) is equal
