"""Rollouts of a world: cached or not, guided in one pass or two, forked, stepped.

With random weights in every part; STDiT3 with two temporal layers, so that what a frame holds
depends on the frames before it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.guidance import ConditionedVelocity, GuidedCache
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel
from colaworld.rng import ClipGenerator

GENERATORS = {
    "stdit3": STDiT3Config(depth=2, width=16, heads=2),
    "wan": WanConfig(layers=2, heads=2, head_dim=12, ffn=32),
}
SMALL = ModelConfig(
    idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=4),
    quantizer=VQConfig(codebook_size=4),
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
        World(model, sampler).rollout(frames, codes, generator=seeded(), chunk=chunk)
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
    for more in ({}, {"guidance": 4.0}, {"method": "heun"}, {"context_noise": 0.2}):
        cached, plain = (
            latents_of(model, frames, codes, replace(TWO, cache=cache, **more), chunk=chunk)
            for cache in ("on", "off")
        )
        assert plain.std() > 0.1
        assert_equal(cached, plain)


@pytest.mark.parametrize("more", [{}, {"guidance": 4.0}, {"method": "heun", "on_slide": "keep"}])
def test_wan_is_cached_alike(build, more):
    for chunk in (1, 2):
        model = build(5, kind="wan")
        frames, codes = drawn(history=2, new=3 if "on_slide" in more else 6)
        cached, plain = (
            latents_of(model, frames, codes, replace(TWO, cache=cache, **more), chunk=chunk)
            for cache in ("on", "off")
        )
        assert plain.std() > 0.1
        assert_equal(cached, plain)
        if "on_slide" in more:  # and goes on behind the window
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
        World(alone, replace(TWO, cache=cache))
        .rollout(frames, None, generator=seeded(), frames=9)
        .generated
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
            latents_of(model, frames, codes, replace(sampler, on_slide=slide), chunk=chunk)
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
        World(model, replace(TWO, on_slide=s))
        .rollout(frames, None, frames=12, generator=seeded(), chunk=chunk)
        .generated
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
                World(model, sampler).rollout(frames, codes, generator=seeded())
            assert count.passes == [(rows, history), *[(rows, 1)] * 5]
    with Counting(model) as count:
        World(model, replace(TWO, cache="off")).rollout(frames, codes, generator=seeded())
    assert count.passes == [(2, 8), (2, 8), (2, 9), (2, 9)]


@pytest.mark.parametrize("more", [{}, {"guidance": 4.0}, {"context_noise": 0.1}, {"cache": "off"}])
def test_candidates_are_the_rollouts_they_would_be_alone(build, more):
    for window in (3, 6):
        model = build(window)
        frames, codes = drawn(history=2, new=4)
        many = torch.stack([codes, codes.flip(1), -codes], 1)
        given = codes[:, :1]
        sampler = replace(TWO, **more)
        made = World(model, sampler).rollout_candidates(
            frames, many[:, :, 1:], context_codes=given, generator=seeded()
        )
        assert made.shape == (2, 3, 4, 3, 8, 8)
        for index in range(3):
            whole = torch.cat([given, many[:, index, 1:]], 1)
            alone = World(model, sampler).rollout(frames, whole, generator=seeded())
            assert_equal(made[:, index], alone.generated)
        assert (made[:, 0] - made[:, 1]).abs().max() > 1e-3


def test_candidates_encode_their_history_once(build):
    model = build(8)
    frames, codes = drawn(history=5, new=2, clips=1)
    many = codes[:, None, 4:].expand(-1, 64, -1, -1, -1)
    with Counting(model) as count:
        World(model, SamplerConfig.planning()).rollout_candidates(
            frames, many, context_codes=codes[:, :4], generator=seeded()
        )
    # As the paper plans: 3 steps; one frame each is stored in between.
    assert count.passes == [(1, 5), *[(64, 1)] * 3, (64, 1), *[(64, 1)] * 3]


def test_candidates_with_noise_of_their_own(build):
    model = build()
    frames, codes = drawn(history=1, new=2)
    many = codes[:, None].expand(-1, 2, -1, -1, -1)
    for shared in (True, False):
        made = World(model, TWO).rollout_candidates(
            frames, many, generator=seeded(), shared_noise=shared
        )
        assert torch.equal(made[:, 0], made[:, 1]) is shared


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("more", [{}, {"guidance": 4.0, "context_noise": 0.1}, {"cache": "off"}])
def test_steps_show_the_frames_of_the_rollout(build, more, chunk):
    world = World(build(4), replace(TWO, **more))
    frames, codes = drawn(history=2, new=5)
    expected = world.rollout(frames, codes, generator=seeded(), chunk=chunk).generated
    state = world.begin(frames, codes[:, :1], generator=seeded())
    parts = [state.step(part) for part in codes[:, 1:].split(chunk, dim=1)]
    assert [part.shape[1] for part in parts] == ([1] * 5 if chunk == 1 else [2, 2, 1])
    assert_equal(torch.cat(parts, 1), expected)


def test_between_steps_the_model_is_as_it_was(build):
    model = build(3)
    model.train()
    frames, codes = drawn(history=1, new=3, clips=1)
    state = World(model, TWO).begin(frames, generator=seeded())
    for code in codes.split(1, dim=1):
        assert model.training and torch.is_grad_enabled()
        assert not state.step(code).requires_grad
    assert model.training


def test_without_actions_a_rollout_has_no_end(build):
    world = World(build(3, parts=()), TWO)
    frames, _ = drawn(history=2, new=0)
    state = world.begin(frames, generator=seeded(), conditioned=False)
    made = torch.cat([state.step() for _ in range(5)], 1)
    assert_equal(made, world.rollout(frames, None, frames=7, generator=seeded()).generated)


@pytest.mark.parametrize(
    "more", [{}, {"guidance": 4.0, "guidance_passes": "two"}, {"cache": "off"}]
)
@pytest.mark.parametrize("kind", GENERATORS)
def test_forks_go_their_own_ways_and_leave_the_state_alone(build, kind, more):
    """A tree: after one frame three ways on, and from the second of them two more."""
    world = World(build(4, kind=kind), replace(TWO, **more))
    frames, codes = drawn(history=2, new=4)
    expected = world.rollout(frames, codes, generator=seeded()).generated
    state = world.begin(frames, codes[:, :1], generator=seeded())
    made = [state.step(codes[:, 1:2])]
    three = state.fork(3)
    ways = torch.stack([codes, -codes, codes.flip(1)], 1)  # [B, 3, steps, N, d]
    shown = three.step(ways[:, :, 2:3].flatten(0, 1)).unflatten(0, (2, 3))
    six = three.fork(2)
    many = ways[:, :, None].expand(-1, -1, 2, -1, -1, -1).flatten(0, 2)
    last = six.step(many[:, 3:4]).unflatten(0, (2, 3, 2))
    made += [state.step(part) for part in codes[:, 2:].split(1, dim=1)]
    assert_equal(torch.cat(made, 1), expected)  # the state it all came from is where it was
    for index in range(3):
        whole = torch.cat([codes[:, :2], ways[:, index, 2:4]], 1)
        alone = world.rollout(frames, whole, generator=seeded()).generated
        assert_equal(shown[:, index], alone[:, 1:2])
        for way in range(2):
            assert_equal(last[:, index, way], alone[:, 2:3])


@pytest.mark.parametrize("shared", [True, False])
def test_a_clip_has_noise_of_its_own_whatever_it_is_rolled_out_beside(build, shared):
    world = World(build(), sampler=replace(TWO, context_noise=0.1))
    frames, codes = drawn(history=2, new=2, clips=3)

    def roll(clips):
        noise = ClipGenerator("cpu", 5, clips=3, slots=clips)
        state = world.begin(frames[clips], codes[clips, :1], generator=noise)
        first = state.step(codes[clips, 1:2])
        fork = state.fork(2, shared_noise=shared)  # from a copy of the generator
        ways = fork.step(codes[clips, 2:].repeat_interleave(2, dim=0))
        assert torch.equal(
            ways,
            state.fork(2, shared_noise=shared).step(codes[clips, 2:].repeat_interleave(2, dim=0)),
        )
        return first, ways.unflatten(0, (-1, 2))

    together, apart = roll([0, 1, 2]), [roll(clips) for clips in ([0, 1], [2])]
    for made, parts in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), made, rtol=0, atol=1e-5)
    assert torch.equal(together[1][:, 0], together[1][:, 1]) is shared


def test_a_copy_is_a_place_to_come_back_to(build):
    world = World(build(3), replace(TWO, context_noise=0.2))
    frames, codes = drawn(history=1, new=5)
    state = world.begin(frames, generator=seeded())
    state.step(codes[:, :1])
    place = state.fork()
    first = torch.cat([state.step(part) for part in codes[:, 1:].split(1, dim=1)], 1)
    again = torch.cat([place.step(part) for part in codes[:, 1:].split(1, dim=1)], 1)
    assert torch.equal(first, again)


def test_64_forks_hold_their_context_once_and_a_second_context_costs_the_first_nothing(build):
    model = build(9)
    world = World(model, SamplerConfig.planning())
    frames, codes = drawn(history=5, new=3, clips=1)
    state = world.begin(frames, codes[:, :4], generator=seeded())
    many = codes.expand(64, -1, -1, -1)
    with Counting(model) as count:
        forks = state.fork(64)
        forks.step(many[:, 4:5])
        other = world.begin(frames + 0.1, codes[:, :4], generator=seeded())
        other.step(codes[:, 4:5])
        forks.step(many[:, 5:6])
    # The context with one row, then new frames; the second context between them changes nothing.
    assert count.passes == [
        *[(1, 5), (64, 1), (64, 1), (64, 1)],
        *[(1, 5), (1, 1), (1, 1), (1, 1)],
        *[(64, 1), (64, 1), (64, 1), (64, 1)],
    ]
    for layer in forks._rollout._cache.layers:
        assert [part.keys.shape[:2] for part in layer.parts] == [(1, 5), (64, 1)]


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_that_sees_the_future_is_rolled_out_without_a_cache(build, kind):
    model = build(causal=False, kind=kind)
    frames, codes = drawn(history=2, new=3)
    auto, off = (
        latents_of(model, frames, codes, replace(TWO, cache=cache)) for cache in ("auto", "off")
    )
    assert torch.equal(auto, off)
    with pytest.raises(ValueError, match=r"sampler.cache is on: (STDiT3|Wan): a cache needs"):
        latents_of(model, frames, codes, replace(TWO, cache="on"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cache": "yes"}, r"sampler.cache: expected one of 'auto', 'on', 'off', got 'yes'"),
        ({"on_slide": "fast"}, r"sampler.on_slide: expected one of 'exact', 'keep', got 'fast'"),
        (
            {"guidance_passes": "2"},
            r"sampler.guidance_passes: expected one of 'one', 'two', got '2'",
        ),
        ({"context_noise": -0.1}, r"sampler.context_noise: expected >= 0, got -0.1"),
    ],
)
def test_settings_that_nobody_has_are_named(build, config, message):
    frames, codes = drawn(history=1, new=1)
    with pytest.raises(ValueError, match=message):
        World(build(), replace(TWO, **config)).rollout(frames, codes, generator=seeded())


def test_what_does_not_fit_is_named(build):
    world = World(build(4), TWO)
    frames, codes = drawn(history=2, new=2)
    many = codes[:, None, 1:]
    with pytest.raises(ValueError, match=r"2 context frames need codes \[2, 1, N, d\]"):
        world.rollout_candidates(frames, many, generator=seeded())
    with pytest.raises(ValueError, match=r"2 context frames need codes"):
        world.begin(frames, generator=seeded())
    with pytest.raises(ValueError, match=r"expected codes \[2, 3, N, d\] that lead through 4"):
        world.rollout(frames.repeat(1, 2, 1, 1, 1), codes[:, :2], generator=seeded())
    for wrong in (codes, many[:1], many[:, :0], many[:, :, :0]):
        with pytest.raises(
            ValueError, match=r"codes: expected (codes \[2, n, steps, 2|n and steps)"
        ):
            world.rollout_candidates(frames, wrong, generator=seeded())
    for chunk in (0, 4):
        with pytest.raises(ValueError, match=rf"1 <= chunk < window = 4, got {chunk}"):
            world.rollout(frames, codes, generator=seeded(), chunk=chunk)
    state = world.begin(frames[:, :1], generator=seeded())
    for wrong in (None, codes[:1, :1], codes[:, 0], codes[..., :1]):
        with pytest.raises(ValueError, match=r"expected codes \[2, 1 k, 2, 4\], got"):
            state.step(wrong)
    with pytest.raises(ValueError, match=r"actions of 1 \.\. 3 new latent frames"):
        state.step(codes[:, :1].expand(-1, 4, -1, -1))
    with pytest.raises(ValueError, match=r"decode_context: expected a whole number >= 1, got 0"):
        world.begin(frames[:, :1], generator=seeded(), decode_context=0)


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
    for more in ({}, {"passes": "two"}):
        with torch.no_grad():
            velocity = ConditionedVelocity(model, codes, guidance=4.0, **more)
            held = model.backbone.new_cache if cache == "on" else None
            if held is not None:
                held = GuidedCache(held(), held()) if more else held()
                velocity(past, torch.zeros(2, 3), cache=held, store=True)
            x, times = past[:, :, :1], torch.full((2, 1), 0.5)
            with Waits() as waits:
                velocity(x, times, first=0 if held is None else 3, cache=held)
            assert waits.calls == []
    with waits:  # that the test can fail
        torch.tensor(1.0).item()
    assert len(waits.calls) >= 2


def test_a_rollout_tells_the_video_model_the_frame_rate(randomised):
    """The one it was trained on, or the world's; in every round, cached or not, guided or not."""
    backbone = STDiT3Config(depth=1, width=16, heads=2, fps=10.0, clip_fps=True)
    model = randomised(WorldModel(replace(SMALL, backbone=backbone))).eval()
    frames, codes = drawn(history=2, new=4)
    for sampler in (TWO, replace(TWO, cache="off"), replace(TWO, guidance=2.0)):
        world = World(model, sampler)
        trained = world.rollout(frames, codes, generator=seeded()).frames
        told = replace(world, fps=10.0).rollout(frames, codes, generator=seeded()).frames
        other = replace(world, fps=3.0).rollout(frames, codes, generator=seeded()).frames
        assert torch.equal(trained, told)
        assert (trained - other).abs().max() > 1e-3
    alone = [
        replace(world, fps=fps).rollout(frames, None, generator=seeded(), frames=4).frames
        for fps in (None, 10.0, 3.0)
    ]
    assert torch.equal(alone[0], alone[1]) and not torch.equal(alone[0], alone[2])


@pytest.mark.parametrize(
    "change", [{}, {"cache": "off"}, {"guidance": 2.0}, {"guidance": 2.0, "guidance_passes": "two"}]
)
def test_each_clip_may_have_a_rate_of_its_own(randomised, change):
    """Also behind a fork, where the ways of one clip lie together."""
    backbone = STDiT3Config(depth=1, width=16, heads=2, fps=10.0, clip_fps=True)
    model = randomised(WorldModel(replace(SMALL, backbone=backbone))).eval()
    world = World(model, replace(TWO, **change))
    frames, codes = drawn(history=1, new=2)
    rates = torch.tensor([3.0, 10.0])
    ways = torch.stack([codes, codes.flip(1)], dim=1)

    def made(fps):
        told = replace(world, fps=fps)
        yield told.rollout(frames, codes, generator=seeded()).frames
        yield told.rollout_candidates(frames, ways, generator=seeded())

    for both, slow, fast in zip(made(rates), made(3.0), made(10.0), strict=True):
        assert torch.allclose(both[0], slow[0], atol=1e-5)
        assert torch.allclose(both[1], fast[1], atol=1e-5)
        assert not torch.allclose(slow[1], fast[1], atol=1e-5)
    with pytest.raises(ValueError, match=r"fps: expected one rate or \[2\], got \[3\]"):
        replace(world, fps=torch.ones(3)).begin(frames, generator=seeded())


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_video_model_that_holds_to_one_rate_hears_no_other(build, kind):
    frames, codes = drawn(history=1, new=2)
    world = World(build(kind=kind), TWO)
    made = [
        replace(world, fps=fps).rollout(frames, codes, generator=seeded()).frames
        for fps in (None, 3.0)
    ]
    assert torch.equal(*made)


def test_a_length_that_is_not_that_of_the_codes_is_refused(build):
    frames, codes = drawn(history=1, new=2)
    with pytest.raises(ValueError, match=r"2 actions lead through 3 frames, got frames=7"):
        World(build(), TWO).rollout(frames, codes, generator=seeded(), frames=7)


def test_codes_of_the_null_action_are_what_dropped_ones_become(build):
    model = build()
    world = World(model, TWO)
    frames, codes = drawn(history=1, new=3)
    null = world.null_action
    assert null.shape == (2, 4) and world.stride == 1
    dropped = model.conditioner(codes, torch.ones(codes.shape[:2], dtype=torch.bool))
    assert torch.equal(model.conditioner(null.expand_as(codes)), dropped)
    # so guidance between the action and the null action has nothing to amplify
    made = [
        World(model, replace(TWO, guidance=g)).rollout(
            frames, null.expand_as(codes), generator=seeded()
        )
        for g in (1.0, 4.0)
    ]
    torch.testing.assert_close(made[0].frames, made[1].frames)


def test_without_dropped_actions_there_is_no_null_action():
    config = replace(SMALL, conditioner=replace(SMALL.conditioner, dropout=0.0))
    assert World(WorldModel(config)).null_action is None
    assert World(WorldModel(config, parts=())).null_action is None  # a video model without actions
