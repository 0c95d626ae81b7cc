"""What a world is given is looked at: one ValueError that names argument, wanted and given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.inputs import checked_frames, checked_indices
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import NoneConfig, VQConfig
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel

SMALL = ModelConfig(
    backbone=STDiT3Config(depth=1, width=16, heads=2),
    idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=4),
    quantizer=VQConfig(codebook_size=4),
    conditioner=ConditionerConfig(depth=1, heads=2),
)
FRAMES = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CODES = torch.randn(2, 4, 2, 4, generator=torch.Generator().manual_seed(2))
CALLS = ("infer_actions", "begin", "rollout", "rollout_candidates")


@pytest.fixture(scope="module")
def world(randomised) -> World:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomised(WorldModel(SMALL)).eval()
    return World(model, SamplerConfig(steps=1), frame_size=(8, 8))


def call(world: World, name: str, frames, codes=CODES):
    """The pixels or codes that a call gives for these frames."""
    rng = torch.Generator().manual_seed(0)
    if name == "infer_actions":
        return world.infer_actions(frames).codes
    if name == "begin":
        return world.begin(frames, codes[:, :2], generator=rng).step(codes[:, 2:3])
    if name == "rollout":
        return world.rollout(frames, codes, generator=rng).generated
    return world.rollout_candidates(
        frames, codes[:, None, 2:], context_codes=codes[:, :2], generator=rng
    )


@pytest.mark.parametrize("name", CALLS)
def test_bytes_are_the_frames_they_stand_for(world, name):
    frames = (FRAMES * 255).round().byte()
    assert torch.equal(call(world, name, frames), call(world, name, frames.float() / 255))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (FRAMES[0], r"\[B, T, 3, H, W\].*got float32 \[3, 3, 8, 8\]; add a batch dimension"),
        (FRAMES.movedim(2, -1), r"got float32 \[2, 3, 8, 8, 3\]; channels come before height"),
        (FRAMES[:, :, :1], r"got float32 \[2, 3, 1, 8, 8\]$"),
        (FRAMES[:0], r"got float32 \[0, 3, 3, 8, 8\]$"),
        (FRAMES[:, :0], r"got float32 \[2, 0, 3, 8, 8\]$"),
        (FRAMES.long(), r"floating-point in \[0, 1\] or uint8, got int64 \[2, 3, 3, 8, 8\]"),
        (FRAMES > 0.5, r"or uint8, got bool \[2, 3, 3, 8, 8\]"),
        (FRAMES.tolist(), r"as a tensor, got list"),
        (None, r"as a tensor, got None"),
        (FRAMES.to("meta"), r"as a tensor, got meta float32 \[2, 3, 3, 8, 8\]"),
        (FRAMES.to_sparse(), r"as a tensor, got sparse float32 \[2, 3, 3, 8, 8\]"),
        (
            torch.nested.nested_tensor(list(FRAMES), layout=torch.jagged),
            r"as a tensor, got a nested tensor",
        ),
        (FRAMES.to(torch.float8_e4m3fn), r"or uint8, got float8_e4m3fn \[2, 3, 3, 8, 8\]"),
        (
            FRAMES * 255,
            r"expected frames in \[0, 1\], got values from .* divide those of 0 \.\. 255",
        ),
        (FRAMES * 2 - 1, r"expected frames in \[0, 1\], got values from -0\.9"),
        (FRAMES.masked_fill(FRAMES > 0.9, float("nan")), r"in \[0, 1\], got values from nan"),
        (FRAMES[..., :4], r"expected frames of 8x8 px .*got 8x4; resize them.*frame_size=None"),
    ],
)
def test_frames_that_are_none_are_named(world, name, wrong, message):
    argument = "frames" if name == "infer_actions" else "context_frames"
    with pytest.raises(ValueError, match=rf"{name}: {argument}: .*{message}"):
        call(world, name, wrong)


def test_a_little_outside_is_what_decoders_give(world):
    assert checked_frames(FRAMES * 1.2 - 0.1, "x") is not None
    other = replace(world, frame_size=None)
    assert call(other, "rollout", FRAMES[..., :4]).shape == (2, 2, 3, 8, 4)


@pytest.mark.parametrize("name", CALLS[1:])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (CODES.long(), r"got int64 .*; world\.lookup\(indices\) gives the codes"),
        (CODES[..., :3], r"2, 4\], got float32 .*3\]"),
        (CODES[:1], r"expected codes \[2, .*got float32 \[1"),
        (CODES.to("meta"), r"expected codes \[2, .*got meta float32 \[2"),
        (CODES.to(torch.float8_e4m3fn), r"expected codes \[2, .*got float8_e4m3fn \[2"),
        (CODES / 0, r"got some that are not finite"),
    ],
)
def test_codes_that_are_none_are_named(world, name, wrong, message):
    with pytest.raises(ValueError, match=rf"{name}: (context_)?codes: .*{message}"):
        call(world, name, FRAMES, wrong)


def test_latents_that_are_none_are_named(world):
    state = world.begin(FRAMES[:, :1], generator=torch.Generator())
    made = state.advance(CODES[:, :1])
    for wrong in (
        None,
        made[:0],
        made[..., :1],
        made[0],
        made.byte(),
        made.to(torch.float8_e4m3fn),
    ):
        with pytest.raises(ValueError, match=r"^decode: expected latents \[2, 12, k, 4, 4\], got "):
            state.decode(wrong)
    assert state.decode(made).shape == (2, 1, 3, 8, 8)


@pytest.mark.parametrize("name", CALLS[1:])
@pytest.mark.parametrize("wrong", [None, 0, np.random.default_rng(0)])
def test_noise_that_could_not_be_repeated_is_refused(world, name, wrong):
    codes = CODES[:, None, 2:] if name == "rollout_candidates" else CODES[:, :2]
    before = {"context_codes": CODES[:, :2]} if name == "rollout_candidates" else {}
    said = rf"{name}: generator: expected a torch\.Generator on cpu, got {type(wrong).__name__}"
    with pytest.raises(ValueError, match=said):
        getattr(world, name)(FRAMES, codes, generator=wrong, **before)


@pytest.mark.parametrize("wrong", [2.0, "2", [2], torch.ones(2), 0, -1, float("nan")])
def test_numbers_that_count_nothing_are_named(world, wrong):
    rng, one = torch.Generator(), FRAMES[:, :1]
    for argument, call in (
        ("chunk", lambda: world.rollout(one, CODES, generator=rng, chunk=wrong)),
        ("frames", lambda: world.rollout(one, None, generator=rng, frames=wrong)),
        ("decode_context", lambda: world.begin(one, generator=rng, decode_context=wrong)),
        ("fork", lambda: world.begin(one, generator=rng).fork(wrong)),
    ):
        with pytest.raises(ValueError, match=rf"{argument}.*got "):
            call()


@pytest.mark.parametrize("wrong", ["False", None, 1, torch.tensor(True)])
def test_what_is_neither_yes_nor_no_is_named(world, wrong):
    rng, one = torch.Generator(), FRAMES[:, :1]
    for argument, call in (
        ("begin: conditioned", lambda: world.begin(one, generator=rng, conditioned=wrong)),
        (
            "fork: shared_noise",
            lambda: world.begin(one, generator=rng).fork(2, shared_noise=wrong),
        ),
    ):
        with pytest.raises(ValueError, match=rf"{argument}: expected True or False, got "):
            call()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("fps", ["10", -1.0, 0, float("nan"), [10.0], True]),
        ("frame_size", [8, "88", (8,), (8.0, 8), (0, 8), [8, 8, 3]]),
        ("sampler", [None, {"steps": 2}]),
    ],
)
def test_a_world_is_made_of_what_it_says(world, field, wrong):
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^World: {field}: expected .*, got "):
            replace(world, **{field: value})


def test_a_step_is_not_taken_with_entries_of_the_codebook(world):
    state = world.begin(FRAMES[:, :1], generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"expected codes \[2, 1 k, 2, 4\], got int64"):
        state.step(CODES[:, :1].long())
    with pytest.raises(ValueError, match=r"rollout: codes: expected codes .*, got list"):
        world.rollout(FRAMES, CODES.tolist(), generator=torch.Generator())


def test_a_video_model_without_actions_takes_none():
    alone = World(WorldModel(SMALL, parts=()))
    with pytest.raises(ValueError, match="a video model without actions; expected codes None"):
        call(alone, "rollout", FRAMES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[0, 1]], r"as a tensor, got list; torch\.as_tensor makes one"),
        (torch.zeros(1, 2), r"integers \[\.\., 2\], got float32 \[1, 2\]"),
        (torch.zeros(1, 2).bool(), r"got bool \[1, 2\]"),
        (torch.zeros(1, 3).long(), r"got int64 \[1, 3\]"),
        (torch.tensor(1), r"got int64 \[\]"),
        (torch.tensor([[0, 4]]), r"expected indices 0 \.\. 3, .*got 4"),
        (torch.tensor([[-1, 0]]), r"expected indices 0 \.\. 3, .*got -1"),
    ],
)
def test_entries_that_no_codebook_has_are_named(world, wrong, message):
    with pytest.raises(ValueError, match=rf"^lookup: .*{message}"):
        world.lookup(wrong)


def test_the_model_below_reads_no_values(world):
    """They would be waited for on a GPU; the world has read them. Meta tensors have none."""
    with pytest.raises(ValueError, match=r"lookup: .*got float32"):
        world.model.lookup(torch.zeros(1, 2))
    with FakeTensorMode():  # reading a value raises
        assert checked_indices(torch.zeros(1, 2).long(), tokens=2, size=4, values=False).ndim == 2


def test_entries_are_integers_of_any_width(world):
    indices = torch.tensor([[0, 3], [2, 1]])
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(world.lookup(indices.to(dtype)), world.lookup(indices))
    assert world.lookup(torch.zeros(0, 2).long()).shape == (0, 2, 4)


def test_continuous_actions_have_no_entries():
    world = World(WorldModel(replace(SMALL, quantizer=NoneConfig())))
    with pytest.raises(ValueError, match="lookup: these latent actions are continuous"):
        world.lookup(torch.zeros(1, 2).long())
