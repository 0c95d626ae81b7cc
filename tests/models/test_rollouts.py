"""A world model's rollouts: cached or not, guided in one pass or two, candidates, streams.

With random weights in every part; STDiT3 with two temporal layers, so that what a frame holds
depends on the frames before it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from colaworld.flow.rollout import Recomputed
from colaworld.flow.samplers import SamplerConfig
from colaworld.models import rolling
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.conditioning import ConditionerConfig
from colaworld.models.latent_action.idm import IDMConfig
from colaworld.models.latent_action.quantizers import QuantizerConfig
from colaworld.models.world_model import ModelConfig, WorldModel

GENERATORS = {
    "stdit3": STDiT3Config(depth=2, width=16, heads=2),
    "wan": WanConfig(layers=2, heads=2, head_dim=12, ffn=32),
}
SMALL = ModelConfig(
    idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=4),
    quantizer=QuantizerConfig(codebook_size=4),
    conditioner=ConditionerConfig(depth=1, heads=2),
)
TWO = SamplerConfig(steps=2)


@pytest.fixture(scope="module")
def build(randomised):
    """(window, causal, generator) -> a world with random weights in every part."""

    def make(window: int = 4, *, causal: bool = True, kind: str = "stdit3", **more) -> WorldModel:
        backbone = replace(GENERATORS[kind], causal=causal)
        config = replace(SMALL, window=window, backbone=backbone)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return randomised(WorldModel(config, **more)).eval()

    return make


def drawn(*, history: int, new: int, clips: int = 2):
    g = torch.Generator().manual_seed(1)
    frames = torch.rand(clips, history, 3, 8, 8, generator=g)
    return frames, torch.randn(clips, history + new - 1, 2, 4, generator=g)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(model, frames, codes, sampler, *, chunk=1):
    """Latents, not pixels, which are clamped: an error could hide behind 0 and 1."""
    made = []
    decode = model.tokenizer.decode
    model.tokenizer.decode = lambda z: made.append(z) or decode(z)
    try:
        model.rollout(frames, codes, generator=seeded(), sampler=sampler, chunk=chunk)
    finally:
        del model.tokenizer.decode
    return made[0]


def assert_equal(made, expected, bound=1e-5):
    gap = ((made - expected).norm() / expected.norm()).item()
    assert gap <= bound, f"off by {gap:.1e}"


@pytest.mark.parametrize(
    ("window", "chunk"), [(w, c) for w, c in itertools.product((2, 3, 4, 7), (1, 2, 3)) if c < w]
)
def test_a_cached_rollout_is_the_uncached_one(build, window, chunk):
    model = build(window)
    frames, codes = drawn(history=2, new=6)
    for more in ({}, {"guidance": 4.0}, {"method": "heun"}, {"history_noise": 0.2}):
        cached, plain = (
            latents_of(model, frames, codes, replace(TWO, cache=cache, **more), chunk=chunk)
            for cache in ("on", "off")
        )
        assert plain.std() > 0.1
        assert_equal(cached, plain)


@pytest.mark.parametrize("more", [{}, {"guidance": 4.0}, {"method": "heun", "slide": "keep"}])
def test_wan_is_cached_alike(build, more):
    for chunk in (1, 2):
        model = build(5, kind="wan")
        frames, codes = drawn(history=2, new=3 if "slide" in more else 6)
        cached, plain = (
            latents_of(model, frames, codes, replace(TWO, cache=cache, **more), chunk=chunk)
            for cache in ("on", "off")
        )
        assert plain.std() > 0.1
        assert_equal(cached, plain)
        if "slide" in more:  # and goes on behind the window
            frames, codes = drawn(history=2, new=8)
            kept = latents_of(model, frames, codes, replace(TWO, **more), chunk=chunk)
            assert kept.isfinite().all() and kept.shape[2] == 8


def test_a_long_history_and_none_of_the_actions(build):
    model = build(3)
    frames, codes = drawn(history=6, new=3)
    cached, plain = (
        latents_of(model, frames, codes, replace(TWO, cache=cache)) for cache in ("on", "off")
    )
    assert_equal(cached, plain)
    alone = build(3, parts=())
    cached, plain = (
        alone.rollout(
            frames, None, generator=seeded(), frames=9, sampler=replace(TWO, cache=cache)
        ).generated
        for cache in ("on", "off")
    )
    assert_equal(cached, plain)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_in_half_precision_a_cache_changes_what_rounding_changes(build, kind, how):
    model = build(4, kind=kind)
    frames, codes = drawn(history=2, new=5)
    exact = latents_of(model, frames, codes, TWO)
    if how == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        cached, plain = (
            latents_of(model, frames, codes, replace(TWO, cache=cache)) for cache in ("on", "off")
        )
    rounding = (plain - exact).norm()
    assert rounding > 0 and (cached - plain).norm() < 2 * rounding < 0.6 * exact.norm()


@pytest.mark.parametrize("cache", ["on", "off"])
def test_guidance_in_one_pass_is_guidance_in_two(build, cache):
    model = build(4)
    frames, codes = drawn(history=2, new=5)
    one, two, plain = (
        latents_of(model, frames, codes, replace(TWO, cache=cache, **more))
        for more in (
            {"guidance": 4.0},
            {"guidance": 4.0, "guidance_passes": "two"},
            {"guidance": 1.0},
        )
    )
    assert_equal(one, two)
    assert (one - plain).abs().max() > 1e-2


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_keep_changes_frames_behind_the_window_only(build, guidance):
    for passes, chunk, window in (("one", 1, 4), ("two", 2, 5)):
        model = build(window)
        frames, codes = drawn(history=2, new=window + 2)
        sampler = replace(TWO, guidance=guidance, guidance_passes=passes)
        exact, kept = (
            latents_of(model, frames, codes, replace(sampler, slide=slide), chunk=chunk)
            for slide in ("exact", "keep")
        )
        moved = (exact - kept).abs().amax((0, 1, 3, 4))  # of frames 2 ..
        same = 2  # with chunks of two the third frame comes along with one behind the window
        assert moved[:same].max() <= 1e-5 and (moved[same + 1 :] > 1e-5).all(), moved


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(("window", "chunk"), [(3, 1), (5, 2)])
def test_keep_forgets_the_right_frames_and_knows_where_the_others_stand(
    randomised, kind, window, chunk
):
    """With one layer and no actions nothing that a frame holds depends on other frames."""
    one = {"stdit3": {"depth": 1}, "wan": {"layers": 1}}[kind]
    config = replace(SMALL, backbone=replace(GENERATORS[kind], **one), window=window)
    model = randomised(WorldModel(config, parts=())).eval()
    frames, _ = drawn(history=2, new=0)
    exact, kept = (
        model.rollout(
            frames, None, frames=12, generator=seeded(), sampler=replace(TWO, slide=s), chunk=chunk
        ).generated
        for s in ("exact", "keep")
    )
    assert exact.std() > 0.1
    assert_equal(kept, exact)


class Counting:
    """Clips and frames of every call of a backbone's `velocity`."""

    def __init__(self, model) -> None:
        self.model, self.passes, self.velocity = model, [], model.backbone.velocity

    def __enter__(self):
        def counted(latents, times, **more):
            self.passes.append((latents.shape[0], latents.shape[2]))
            return self.velocity(latents, times, **more)

        self.model.backbone.velocity = counted
        return self

    def __exit__(self, *_):
        del self.model.backbone.velocity

    def frames(self) -> int:
        return sum(clips * frames for clips, frames in self.passes)


def test_a_frame_costs_the_same_behind_any_history_up_to_the_window(build):
    """The generator runs each new frame `steps` times and each old one once."""
    model = build(9)
    for sampler, rows in ((TWO, 2), (replace(TWO, guidance=4.0), 4)):
        for history in (1, 4, 7):
            frames, codes = drawn(history=history, new=2)
            with Counting(model) as count:
                model.rollout(frames, codes, generator=seeded(), sampler=sampler)
            assert count.passes == [(rows, history), *[(rows, 1)] * 5]
    with Counting(model) as count:
        model.rollout(frames, codes, generator=seeded(), sampler=replace(TWO, cache="off"))
    assert count.passes == [(2, 8), (2, 8), (2, 9), (2, 9)]


@pytest.mark.parametrize("more", [{}, {"guidance": 4.0}, {"history_noise": 0.1}, {"cache": "off"}])
def test_candidates_are_the_rollouts_they_would_be_alone(build, more):
    for window in (3, 6):
        model = build(window)
        frames, codes = drawn(history=2, new=4)
        many = torch.stack([codes, codes.flip(1), -codes], 1)
        given = codes[:, :1]
        sampler = replace(TWO, **more)
        made = model.rollout_candidates(
            frames, many[:, :, 1:], history_codes=given, generator=seeded(), sampler=sampler
        )
        assert made.shape == (2, 3, 4, 3, 8, 8)
        for index in range(3):
            whole = torch.cat([given, many[:, index, 1:]], 1)
            alone = model.rollout(frames, whole, generator=seeded(), sampler=sampler)
            assert_equal(made[:, index], alone.generated)
        assert (made[:, 0] - made[:, 1]).abs().max() > 1e-3
        latents = model.rollout_candidates(
            frames,
            many[:, :, 1:],
            history_codes=given,
            generator=seeded(),
            sampler=sampler,
            decode=False,
        )
        assert latents.shape == (2, 3, 12, 4, 4, 4)
        assert torch.equal(model.tokenizer.decode(latents.flatten(0, 1)), made.flatten(0, 1))


def test_candidates_encode_their_history_once(build):
    model = build(8)
    frames, codes = drawn(history=5, new=2, clips=1)
    many = codes[:, None, 4:].expand(-1, 64, -1, -1, -1)
    with Counting(model) as count:
        model.rollout_candidates(frames, many, history_codes=codes[:, :4], generator=seeded())
    # The default is SamplerConfig.planning(): 3 steps; one frame each is stored in between.
    assert count.passes == [(1, 5), *[(64, 1)] * 3, (64, 1), *[(64, 1)] * 3]


def test_candidates_with_noise_of_their_own(build):
    model = build()
    frames, codes = drawn(history=1, new=2)
    many = codes[:, None].expand(-1, 2, -1, -1, -1)
    for shared in (True, False):
        made = model.rollout_candidates(
            frames, many, generator=seeded(), sampler=TWO, shared_noise=shared
        )
        assert torch.equal(made[:, 0], made[:, 1]) is shared


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("more", [{}, {"guidance": 4.0, "history_noise": 0.1}, {"cache": "off"}])
def test_a_stream_shows_the_frames_of_the_rollout(build, more, chunk):
    model = build(4)
    frames, codes = drawn(history=2, new=5)
    sampler = replace(TWO, **more)
    expected = model.rollout(
        frames, codes, generator=seeded(), sampler=sampler, chunk=chunk
    ).generated
    sources = {
        "tensor": codes[:, 1:],
        "one by one": iter(codes[:, 1:].unbind(1)),
        "in parts": [codes[:, 1:4], codes[:, 4], codes[:, 5:]],
    }
    for name, actions in sources.items():
        stream = model.rollout_stream(
            frames,
            actions,
            history_codes=codes[:, :1],
            generator=seeded(),
            sampler=sampler,
            chunk=chunk,
        )
        parts = list(stream)
        assert [part.shape[1] for part in parts] == ([1] * 5 if chunk == 1 else [2, 2, 1]), name
        assert_equal(torch.cat(parts, 1), expected)


def test_a_player_sees_a_frame_before_choosing_the_next_action(build):
    model = build(3)
    model.train()
    frames, codes = drawn(history=1, new=4, clips=1)
    shown = []

    def player(last):
        assert model.training and torch.is_grad_enabled() == grad  # it is the caller's code
        shown.append(last)
        return None if len(shown) > 3 else (1 if last.mean() > 0.5 else -1) * codes[:, len(shown)]

    grad = torch.is_grad_enabled()
    stream = model.rollout_stream(frames, player, generator=seeded(), sampler=TWO)
    made = []
    for frame in stream:
        assert model.training and not frame.requires_grad
        assert len(shown) == len(made) + 1  # not asked for the next one yet
        made.append(frame)
    assert len(made) == 3 and torch.equal(shown[0], frames)
    for given, frame in zip(shown[1:], made, strict=True):
        assert torch.equal(given, frame)
    assert (made[0] - made[1]).abs().max() > 1e-4


def test_an_endless_stream_of_the_plain_generator(build):
    model = build(3, parts=())
    frames, _ = drawn(history=2, new=0)
    stream = model.rollout_stream(frames, None, generator=seeded(), sampler=TWO)
    made = torch.cat(list(itertools.islice(stream, 5)), 1)
    expected = model.rollout(frames, None, frames=7, generator=seeded(), sampler=TWO)
    assert_equal(made, expected.generated)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_that_sees_the_future_is_rolled_out_without_a_cache(build, kind):
    model = build(causal=False, kind=kind)
    frames, codes = drawn(history=2, new=3)
    auto, off = (
        latents_of(model, frames, codes, replace(TWO, cache=cache)) for cache in ("auto", "off")
    )
    assert torch.equal(auto, off)
    assert isinstance(rolling.context(model, TWO, conditioned=True), Recomputed)
    with pytest.raises(ValueError, match=r"sampler.cache is on: (STDiT3|Wan): a cache needs"):
        latents_of(model, frames, codes, replace(TWO, cache="on"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cache": "yes"}, r"sampler.cache: expected one of auto, on, off, got 'yes'"),
        ({"slide": "fast"}, r"sampler.slide: expected one of exact, keep, got 'fast'"),
        ({"guidance_passes": "2"}, r"sampler.guidance_passes: expected 'one' or 'two', got '2'"),
        ({"history_noise": -0.1}, r"sampler.history_noise: expected a time in \[0, 1\), got -0.1"),
    ],
)
def test_settings_that_nobody_has_are_named(build, config, message):
    frames, codes = drawn(history=1, new=1)
    with pytest.raises(ValueError, match=message):
        build().rollout(frames, codes, generator=seeded(), sampler=replace(TWO, **config))


def test_what_does_not_fit_is_named(build):
    model = build(4)
    frames, codes = drawn(history=2, new=2)
    many = codes[:, None, 1:]
    with pytest.raises(ValueError, match=r"history of 2 frames needs history_codes \[2, 1, N, d\]"):
        model.rollout_candidates(frames, many, generator=seeded())
    with pytest.raises(ValueError, match=r"history of 2 frames needs history_codes"):
        model.rollout_stream(frames, codes, generator=seeded())
    for wrong in (codes, many[:1], many[:, :0], many[:, :, :0]):
        with pytest.raises(ValueError, match=r"expected codes \[2, n, steps, N, d\]"):
            model.rollout_candidates(frames, wrong, generator=seeded())
    with pytest.raises(ValueError, match=r"1 <= chunk < window = 4, got 4"):
        model.rollout_stream(frames[:, :1], codes, generator=seeded(), chunk=4)
    stream = model.rollout_stream(frames[:, :1], [codes[:1, 0]], generator=seeded())
    with pytest.raises(ValueError, match=r"expected actions \[2, 2, 4\] .* got \(1, 1, 2, 4\)"):
        next(stream)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_compiled_generator_is_not_compiled_for_every_length(build, cache):
    model = build(12)
    frames, codes = drawn(history=1, new=13)
    sampler = replace(TWO, cache=cache)
    expected = latents_of(model, frames, codes, sampler)
    torch.compiler.reset()
    model.backbone.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    assert_equal(latents_of(model, frames, codes, sampler), expected)
    assert graphs["unique_graphs"] == before


class Waits(TorchDispatchMode):
    """Counts reads of a tensor's value by Python, and tensors made from Python's numbers by copy:
    on a device the first waits and the second cannot be captured in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        waiting = (aten._local_scalar_dense, aten.nonzero, aten.lift_fresh, aten.lift_fresh_copy)
        if func.overloadpacket in waiting:
            self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("cache", ["on", "off"])
def test_no_denoising_step_waits_for_the_device(build, cache, kind):
    model = build(4, kind=kind)
    _, codes = drawn(history=3, new=1)
    past = torch.randn(2, 12, 3, 4, 4, generator=seeded())
    for more in ({"guidance": 4.0}, {"guidance": 4.0, "guidance_passes": "two"}):
        with torch.no_grad():
            context = rolling.context(model, replace(TWO, cache=cache, **more), conditioned=True)
            velocity = context.velocity(past, codes, 0)
            x, times = past[:, :, :1], torch.full((2, 1), 0.5)
            with Waits() as waits:
                velocity(x, times)
            assert waits.calls == []
    with waits:  # that the test can fail
        torch.tensor(1.0).item()
    assert len(waits.calls) >= 2
