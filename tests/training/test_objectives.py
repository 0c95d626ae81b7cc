"""What each objective minimises, which parts its gradient reaches, and what it draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colaworld.config import ConfigError
from colaworld.contracts import ClipBatch, to_float
from colaworld.flow.config import TimestepConfig
from colaworld.models.adapters.config import ActionHeadConfig, TableAdapterConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import AlignerConfig, FDMConfig, IDMConfig
from colaworld.models.latent_action.quantizers import QUANTIZERS
from colaworld.models.world_model import WorldModel
from colaworld.rng import ClipGenerator
from colaworld.training.config import OBJECTIVES, ObjectiveConfig
from colaworld.training.objectives import BaseObjective, Term, dropped
from colaworld.training.phases import Phase, enter_phase
from colaworld.training.protocols import Objective

LAM = ("idm", "quantizer", "conditioner")
PHASES = {
    "pretrain": Phase("pretrain", "flow", ("backbone",), steps=1),
    "warmup": Phase("warmup", "cola", LAM, steps=1),
    "joint": Phase("joint", "cola", (*LAM, "backbone"), steps=1),
    "aligned": Phase("aligned", "aligned", (*LAM, "aligner"), steps=1),
    "lam": Phase("lam", "reconstruction", ("idm", "quantizer", "fdm"), steps=1),
    "world": Phase("world", "world", ("conditioner", "backbone"), steps=1),
}
CONFIG = ObjectiveConfig(start_clips=8)
HEAD = ActionHeadConfig(discrete=True, size=3, hidden=8)


def build(*, kind: str = "vq", dropout: float = 0.5, trained: bool = True) -> WorldModel:
    """A tiny model; `trained`: no weight is zero, so that every path carries a gradient."""
    settings = {"codebook_size": 4, "levels": (4, 3), "reseed_every": 1}
    taken = {k: v for k, v in settings.items() if hasattr(QUANTIZERS[kind].config, k)}
    config = ModelConfig(
        backbone=STDiT3Config(depth=1, width=16, heads=2),
        idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=2),
        quantizer=QUANTIZERS[kind].config(**taken),
        conditioner=ConditionerConfig(depth=1, heads=2, dropout=dropout),
        fdm=FDMConfig(depth=1, width=16, heads=2),
        parts={
            "adapter": TableAdapterConfig(size=3),
            "action_head": HEAD,
            "aligner": AlignerConfig(width=16, heads=2),
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel(config, parts=(*LAM, "fdm", "aligner", "adapter", "action_head"))
        if trained:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def batch(clips: int = 4, length: int = 4, seed: int = 1) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (clips, length, 3, 8, 8), generator=generator)
    actions = torch.randint(0, 3, (clips, length - 1), generator=generator)
    number = torch.arange(clips)
    return ClipBatch(frames.to(torch.uint8), number, number, actions)


def supply(batches):
    """Batches as a trainer hands them to `before_phase`."""

    def one():
        made = batches()
        return made, ClipGenerator("cpu", 0, clips=len(made))

    return one


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reached(model: WorldModel) -> set[str]:
    """Parts of which some parameter has a gradient that is not zero."""
    return {
        name
        for name, part in model.named_children()
        if any(p.grad is not None and p.grad.any() for p in part.parameters())
    }


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_gradients_reach_what_the_phase_trains_and_nothing_else(phase):
    model = build()
    enter_phase(model, phase)
    objective = OBJECTIVES[phase.objective](model, CONFIG)
    assert isinstance(objective, Objective)
    loss, metrics = objective.loss(batch(), generator=seeded())
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    assert reached(model) == set(phase.train)
    assert not any(v.requires_grad for v in metrics.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_state_moves_only_in_the_parts_that_train(phase):
    """Buffers of frozen parts (running statistics, use of codes) stand still too."""
    model = build()
    enter_phase(model, phase)
    objective = OBJECTIVES[phase.objective](model, CONFIG)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    objective.loss(batch(), generator=seeded())[0].backward()
    optimizer.step()
    objective.after_step(generator=seeded())
    after = model.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == set(phase.train)


def test_the_flow_loss_alone_reaches_the_idm():
    """Not only the quantizer's own loss: with its weight at zero the IDM still learns."""
    model = build()
    enter_phase(model, PHASES["warmup"])
    objective = OBJECTIVES["cola"](model, replace(CONFIG, quantizer_weight=0.0))
    objective.loss(batch(), generator=seeded())[0].backward()
    assert reached(model) == {"idm", "conditioner"}  # plain VQ: codes pass the encoder's gradient


def test_before_training_the_conditioner_opens_first():
    """Its last layer starts at zero: the first flow gradient can reach that layer alone."""
    model = build(trained=False)
    enter_phase(model, PHASES["joint"])
    objective = OBJECTIVES["cola"](model, replace(CONFIG, quantizer_weight=0.0))
    objective.loss(batch(), generator=seeded())[0].backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.idm.parameters())
    opened = {
        n for n, p in model.conditioner.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert opened == {"out.weight", "out.bias"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_generators_give_equal_losses(name):
    """Pairing: the same seed is the same noise, times, history, crop and drops."""
    objective = OBJECTIVES[name](build(), CONFIG)
    first, second, other = (
        objective.loss(batch(), generator=seeded(seed))[0].item() for seed in (0, 0, 1)
    )
    assert first == second
    assert (first != other) == (name != "adapter")  # which draws nothing


@pytest.mark.parametrize("name", ["flow", "cola", "world"])
def test_the_flow_loss_is_a_mean_over_what_is_asked(name):
    objective = OBJECTIVES[name](build(), replace(CONFIG, average="clips", augment=False))
    made = objective.forward(batch(), generator=seeded())
    assert made.predict.sum(1).unique().numel() > 1
    error = (made.velocity - made.target).square().mean(dim=(1, 3, 4))
    each = (error * made.predict).sum(1) / made.predict.sum(1)
    torch.testing.assert_close(objective.terms[0].value(made), each.mean())


@pytest.mark.parametrize("name", ["flow", "cola", "world"])
def test_the_video_model_hears_the_rate_of_each_clip_where_it_listens(name):
    rated = replace(batch(), fps=torch.tensor([5.0, 10.0, 24.0, 30.0]))
    for listens in (False, True):
        model = build()
        model.backbone.config = replace(model.backbone.config, clip_fps=listens)
        objective = OBJECTIVES[name](model, replace(CONFIG, augment=False))
        plain, told = (objective.forward(b, generator=seeded()).velocity for b in (batch(), rated))
        assert torch.equal(plain, told) != listens


def test_a_frozen_video_model_is_shown_the_history_it_knows():
    model = build()
    objective = OBJECTIVES["cola"](model, replace(CONFIG, history=(2, 3), frozen_history=(1, 1)))
    for phase, held in (("warmup", {1}), ("joint", {2, 3})):
        enter_phase(model, PHASES[phase])
        made = objective.forward(batch(clips=16), generator=seeded())
        assert set((~made.predict).sum(1).tolist()) == held
    enter_phase(model, PHASES["warmup"])
    for config, name in (
        (replace(CONFIG, frozen_history=(0, 2)), "frozen_history"),
        (replace(CONFIG, history=(0, 2)), "history"),
    ):
        with pytest.raises(ValueError, match=rf"objective\.{name}: \(0, 2\) leaves nothing"):
            OBJECTIVES["cola"](model, config).loss(batch(), generator=seeded())


def test_cola_and_world_under_the_same_seed_are_paired():
    """Without augmentation both draw history, times, noise and drops alike."""
    model = build()
    model.eval()
    config = replace(CONFIG, augment=False)
    made = [
        OBJECTIVES[n](model, config).loss(batch(), generator=seeded()) for n in ("cola", "world")
    ]
    assert made[0][1]["flow"] == made[1][1]["flow"]
    assert torch.equal(made[0][1]["indices"], made[1][1]["indices"])


def test_loss_is_flow_plus_weighted_quantizer():
    objective = OBJECTIVES["cola"](build(), replace(CONFIG, quantizer_weight=3.0))
    loss, metrics = objective.loss(batch(), generator=seeded())
    expected = metrics["flow"] + 3.0 * metrics["quantizer"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["quantizer"] > 0


def test_indices_are_one_row_per_action():
    metrics = OBJECTIVES["cola"](build(), CONFIG).loss(batch(4, 4), generator=seeded())[1]
    assert metrics["indices"].shape == (4, 3, 2) and metrics["indices"].dtype == torch.int64
    metrics = OBJECTIVES["cola"](build(kind="gaussian"), CONFIG).loss(batch(), generator=seeded())[
        1
    ]
    assert "indices" not in metrics


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", ["vq", "gaussian"])
def test_health_is_declared_where_there_is_a_codebook(name, kind):
    objective = OBJECTIVES[name](build(kind=kind), CONFIG)
    expected = None if name == "flow" or kind == "gaussian" else 4
    assert objective.codebook_size == expected


def test_world_holds_the_latent_action_model_still_by_itself():
    """Even thawed and in training mode it gets no gradient, and its statistics stay."""
    model = build()
    model.train()
    before = {key: value.clone() for key, value in model.quantizer.state_dict().items()}
    OBJECTIVES["world"](model, CONFIG).loss(batch(), generator=seeded())[0].backward()
    assert reached(model) == {"conditioner", "backbone"}
    assert all(torch.equal(v, model.quantizer.state_dict()[k]) for k, v in before.items())


# -- what is noised ----------------------------------------------------------------------------


class Seen:
    """Writes down what the video model is given, and answers with zero velocity."""

    def __init__(self, model: WorldModel) -> None:
        self.calls = []
        model.velocity = self  # type: ignore[method-assign]

    def __call__(self, latents, times, codes=None, drop=None, *, fps=None):
        self.calls.append((latents, times, codes, drop))
        return torch.zeros_like(latents)


def test_history_is_clean_at_time_zero_and_the_rest_is_one_time_per_clip():
    model = build()
    seen = Seen(model)
    clips = batch(64)
    OBJECTIVES["flow"](model, replace(CONFIG, history=(1, 2))).loss(clips, generator=seeded())
    latents, times, codes, _ = seen.calls[0]
    clean = model.tokenizer.encode(to_float(clips.frames))
    given = (times == 0).sum(1)
    assert set(given.tolist()) == {1, 2} and codes is None
    for clip, count in enumerate(given.tolist()):
        assert torch.equal(latents[clip, :, :count], clean[clip, :, :count])
        rest = times[clip, count:]
        assert (rest == rest[0]).all() and 0 < rest[0] < 1
        assert (latents[clip, :, count:] - clean[clip, :, count:]).abs().min(0).values.max() > 0
    assert len(times.amax(1).unique()) == 64  # each clip its own time


def test_loss_is_over_the_noised_frames_against_x0_minus_noise():
    """With zero velocity the loss is the mean square of the target, which x_t and x0 give away:
    x_t = x0 - t v, so v = (x0 - x_t) / t."""
    model = build()
    seen = Seen(model)
    clips = batch(3)
    objective = OBJECTIVES["flow"](model, CONFIG)
    loss, _ = objective.loss(clips, generator=seeded())
    latents, times, _, _ = seen.calls[0]
    clean = model.tokenizer.encode(to_float(clips.frames))
    errors = []
    for clip in range(3):
        for frame in range(4):
            t = times[clip, frame]
            if t > 0:
                v = (clean[clip, :, frame] - latents[clip, :, frame]) / t
                errors.append(v.square().mean().item())
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_history_is_capped_by_the_clip_and_an_impossible_one_is_an_error():
    model = build()
    seen = Seen(model)
    flow = OBJECTIVES["flow"]
    flow(model, replace(CONFIG, history=(1, 9))).loss(batch(32, 3), generator=seeded())
    assert set((seen.calls[0][1] == 0).sum(1).tolist()) == {1, 2}
    for history in ((4, 5), (0, 2), (3, 2)):
        objective = flow(model, replace(CONFIG, history=history))
        with pytest.raises(ValueError, match=r"objective.history: .* clip of 4 latent frames"):
            objective.loss(batch(), generator=seeded())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_clip_of_one_frame_is_an_error(name):
    with pytest.raises(ValueError, match=r"1 latent frames|needs two frames"):
        OBJECTIVES[name](build(), CONFIG).loss(batch(2, 1), generator=seeded())


def test_times_follow_the_configuration():
    model = build()
    means = []
    for shift in (1.0, 4.0):
        seen = Seen(model)
        config = replace(CONFIG, times=TimestepConfig(std=0.1, shift=shift))
        OBJECTIVES["flow"](model, config).loss(batch(32), generator=seeded())
        means.append(seen.calls[0][1].amax(1).mean().item())
    # The median .5 becomes 4 x .5 / (1 + 3 x .5) = .8 under shift 4.
    assert means == pytest.approx([0.5, 0.8], abs=0.02)


def test_actions_are_dropped_at_the_stated_share():
    for dropout in (0.0, 0.25):
        model = build(dropout=dropout)
        seen = Seen(model)
        for name in ("cola", "world"):
            OBJECTIVES[name](model, CONFIG).loss(batch(64), generator=seeded())
            drop = seen.calls[-1][3]
            if dropout == 0:
                assert drop is None
            else:
                assert drop.shape == (64, 3)
                assert drop.float().mean().item() == pytest.approx(0.25, abs=0.1)  # 3.2 sigma


def test_augmentation_crops_what_both_models_see_alike():
    """The world model's target is the crop that the latent action model saw."""
    model = build()
    seen, given = Seen(model), []
    model.idm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    clips = batch(8)
    for augment in (True, False):
        objective = OBJECTIVES["cola"](model, replace(CONFIG, augment=augment, history=(3, 3)))
        objective.loss(clips, generator=seeded())
        latents = seen.calls[-1][0]
        assert torch.equal(latents[:, :, :3], model.tokenizer.encode(given[-1])[:, :, :3])
        assert torch.equal(given[-1], to_float(clips.frames)) == (not augment)
    OBJECTIVES["world"](model, replace(CONFIG, augment=True)).loss(clips, generator=seeded())
    assert torch.equal(
        given[-1], to_float(clips.frames)
    )  # the latent action model is fixed: no crop


def test_reconstruction_is_four_times_the_pixel_error():
    """Pixels in [-1, 1] are twice as far apart as in [0, 1]."""
    model = build()
    model.fdm.forward = lambda frames, codes: torch.zeros_like(frames)
    objective = OBJECTIVES["reconstruction"](model, replace(CONFIG, augment=False))
    _, metrics = objective.loss(batch(), generator=seeded())
    expected = 4 * to_float(batch().frames)[:, 1:].square().mean()
    assert metrics["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-5)


# -- the start of the quantizer ----------------------------------------------------------------


def rows_of(clips: ClipBatch, slots) -> ClipBatch:
    taken = list(slots)
    return ClipBatch(
        clips.frames[taken], clips.episode[taken], clips.start[taken], clips.actions[taken]
    )


@pytest.mark.parametrize("average", ["frames", "clips"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_update_does_not_depend_on_how_it_is_cut(name, average):
    """Eight clips in one pass, in four, and by two processes in two passes each: the same gradients.

    But for the standardisation, whose statistics are those of a pass. The means over clips come with all that
    draws for a clip: views that differ, tokens left out.
    """
    config = replace(CONFIG, average=average, history=(1, 3))
    if average == "clips":
        config = replace(config, idm_view="shift")
    found = []
    for processes, passes in ((1, 1), (1, 4), (2, 2)):
        model = build()
        model.quantizer.standardise = torch.nn.Identity()
        if average == "clips":
            model.conditioner.config = replace(model.conditioner.config, nested_dropout=0.5)
        objective, clips, share = OBJECTIVES[name](model, config), batch(8), 8 // passes
        objective.begin_step()
        total = 0.0
        for first in range(0, 8, share):
            for rank in range(processes):
                slots = range(first + rank, first + share, processes)
                own = ClipGenerator("cpu", 5, clips=8, slots=slots)
                loss, _ = objective.loss(rows_of(clips, slots), generator=own)
                (loss / (passes * processes)).backward()
                total += loss.item() / (passes * processes)
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((total, grads))
    (loss, grads), *others = found
    assert any(g.abs().max() > 1e-3 for g in grads.values())
    for other, cut in others:
        assert other == pytest.approx(loss, rel=1e-5) and cut.keys() == grads.keys()
        for key, value in grads.items():
            assert (cut[key] - value).norm() <= 2e-5 * value.norm() + 1e-7, key


@pytest.mark.parametrize("name", ["cola", "reconstruction"])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_before_phase_starts_the_quantizer_exactly_once(name, kind):
    model = build(kind=kind)
    objective = OBJECTIVES[name](model, CONFIG)
    asked = []

    def batches():
        asked.append(1)
        return batch(4, seed=len(asked))

    objective.before_phase(supply(batches), generator=seeded())
    assert len(asked) == 2  # 4 + 4 clips reach start_clips = 8
    assert model.quantizer.started
    before = {key: value.clone() for key, value in model.state_dict().items()}
    objective.before_phase(supply(batches), generator=seeded(1))
    OBJECTIVES["cola"](model, CONFIG).before_phase(supply(batches), generator=seeded(2))
    assert len(asked) == 2
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_the_start_takes_codes_from_real_latents():
    model = build()
    config = replace(CONFIG, augment=False, start_clips=4)
    OBJECTIVES["cola"](model, config).before_phase(supply(batch), generator=seeded())
    with torch.no_grad():
        z = model.quantizer.eval().standardise(model.idm(to_float(batch().frames))).flatten(0, 2)
    distance = torch.cdist(model.quantizer.codebook.detach(), z).amin(1)
    assert distance.max() < 1e-4 and len(model.quantizer.codebook.unique(dim=0)) == 4


@pytest.mark.parametrize("name", ["flow", "world"])
def test_other_objectives_ask_for_no_batch(name):
    def never():
        raise AssertionError("nothing to prepare")

    objective = OBJECTIVES[name](build(), CONFIG)
    objective.before_phase(never, generator=seeded())
    objective.begin_step()
    assert objective.after_step(generator=seeded()) == ({}, [])


def test_after_step_is_the_quantizers():
    model = build()
    objective = OBJECTIVES["cola"](model, CONFIG)
    with torch.no_grad():
        model.quantizer.codebook[3] = 100.0
        model.quantizer.use[3] = 0.0
    objective.loss(batch(), generator=seeded())
    metrics, moved = objective.after_step(generator=seeded())
    assert metrics == {"reseeded": 1.0}
    assert [(p is model.quantizer.codebook, rows.tolist()) for p, rows in moved] == [(True, [3])]
    assert model.quantizer.codebook[3].abs().max() < 50


@pytest.mark.parametrize("name", ["flow", "cola", "world"])
def test_stored_latents_take_the_place_of_encoding(name):
    """The same latents, the same loss to the bit; other latents are what is learned from."""
    objective = OBJECTIVES[name](build(), replace(CONFIG, augment=False))
    clips = batch()
    latents = objective.model.tokenizer.encode(to_float(clips.frames))
    fresh, _ = objective.loss(clips, generator=seeded())
    stored, _ = objective.loss(replace(clips, latents=latents), generator=seeded())
    other, _ = objective.loss(replace(clips, latents=latents + 1), generator=seeded())
    assert torch.equal(fresh, stored) and not torch.equal(fresh, other)


def test_a_crop_is_encoded_though_latents_are_stored():
    objective, clips = OBJECTIVES["cola"](build(), replace(CONFIG, augment=True)), batch()
    latents = objective.model.tokenizer.encode(to_float(clips.frames))
    fresh, _ = objective.loss(clips, generator=seeded())
    beside, _ = objective.loss(replace(clips, latents=latents + 9), generator=seeded())
    assert torch.equal(fresh, beside)


def test_a_shift_of_none_is_the_generators_own():
    model = build()
    own = model.backbone.time_shift(4, 4, 4)
    losses = []
    for shift in (None, own, 2 * own):
        config = replace(CONFIG, times=TimestepConfig(shift=shift))
        losses.append(OBJECTIVES["flow"](model, config).loss(batch(), generator=seeded())[0])
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_terms_have_names_of_their_own():
    for names in (("flow", "flow"), ("loss",), ("flow", "indices")):
        terms = tuple(Term(name, lambda made: made) for name in names)
        objective = type("Wrong", (BaseObjective,), {"terms": terms})
        with pytest.raises(ConfigError, match=r"Wrong.terms: expected names that differ"):
            objective(build(), CONFIG)


# -- other views, alignment, nested dropout ------------------------------------------------------


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("view", ["same", "shift", "crop"])
@pytest.mark.parametrize("name", ["cola", "aligned", "adapted_lam", "reconstruction"])
def test_the_idm_sees_its_own_view_of_what_the_video_model_sees(name, view, augment):
    model = build()
    given, predicted = [], []
    model.idm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.fdm.register_forward_pre_hook(lambda _, inputs: predicted.append(inputs[0]))
    encode = model.tokenizer.encode
    model.tokenizer.encode = lambda frames: (predicted.append(frames), encode(frames))[1]
    clips = batch(8)
    objective = OBJECTIVES[name](model, replace(CONFIG, augment=augment, idm_view=view))
    objective.loss(clips, generator=seeded())
    own, other = given[0], predicted[0]
    shared = own[:, : other.shape[1]]
    assert torch.equal(shared, other) == (view == "same")
    # The video model's view is what it would be without another one for the IDM.
    predicted.clear()
    OBJECTIVES[name](model, replace(CONFIG, augment=augment)).loss(clips, generator=seeded())
    assert torch.equal(predicted[0], other)
    assert torch.equal(other, to_float(clips.frames)[:, : other.shape[1]]) == (not augment)


def test_the_quantizer_starts_from_the_view_of_the_idm():
    given = []
    for view in ("same", "shift"):
        model = build()
        model.idm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        config = replace(CONFIG, augment=False, idm_view=view, start_clips=4)
        OBJECTIVES["cola"](model, config).before_phase(supply(batch), generator=seeded())
    assert torch.equal(given[0], to_float(batch().frames)) and not torch.equal(*given)


def test_alignment_is_the_error_of_the_predicted_change():
    model = build()
    model.aligner.forward = lambda latents, codes: torch.zeros_like(latents[:, :, 1:])
    config = replace(CONFIG, augment=False, alignment_weight=3.0)
    loss, metrics = OBJECTIVES["aligned"](model, config).loss(batch(), generator=seeded())
    latents = model.tokenizer.encode(to_float(batch().frames))
    expected = (latents[:, :, 1:] - latents[:, :, :-1]).square().mean()
    torch.testing.assert_close(metrics["alignment"], expected)
    plain, terms = OBJECTIVES["cola"](model, config).loss(batch(), generator=seeded())
    assert terms["flow"] == metrics["flow"] and "alignment" not in terms
    torch.testing.assert_close(loss, plain + 3 * expected)


def test_alignment_alone_reaches_the_idm_past_the_video_model():
    model = build()
    enter_phase(model, PHASES["aligned"])
    objective = OBJECTIVES["aligned"](model, replace(CONFIG, quantizer_weight=0.0))
    objective.terms = objective.terms[2:]
    objective.loss(batch(), generator=seeded())[0].backward()
    assert reached(model) == {"idm", "aligner"}


def test_nested_dropout_leaves_out_later_tokens_alone():
    config = ConditionerConfig(dropout=0.25, nested_dropout=0.5)
    codes = torch.zeros(4000, 3, 4, 2)
    drop = dropped(codes, config, seeded())
    assert drop.shape == (4000, 3, 4) and drop.dtype == torch.bool
    assert not (
        drop[..., :-1] & ~drop[..., 1:]
    ).any()  # whoever is dropped takes the later ones along
    counts = torch.stack([(drop.sum(-1) == n).float().mean() for n in range(5)])
    share = 0.75 * 0.5 / 3  # not dropped as a whole, and one of three lengths
    torch.testing.assert_close(
        counts, torch.tensor([0.375, share, share, share, 0.25]), atol=0.02, rtol=0
    )
    # Whole actions are dropped as without it.
    plain = dropped(codes, replace(config, nested_dropout=0.0), seeded())
    assert torch.equal(drop.all(-1), plain) and plain.shape == (4000, 3)
    alone = dropped(codes, replace(config, dropout=0.0), seeded())
    assert not alone.all(-1).any() and alone.any()
    assert dropped(codes, ConditionerConfig(dropout=0.0), seeded()) is None


def test_nested_dropout_is_told_to_the_video_model_in_training_alone():
    model = build()
    model.conditioner.config = replace(model.conditioner.config, nested_dropout=0.99, dropout=0.0)
    seen = Seen(model)
    OBJECTIVES["cola"](model, CONFIG).loss(batch(), generator=seeded())
    drop = seen.calls[-1][3]
    assert drop.shape == (4, 3, 2) and drop[..., 1].all() and not drop[..., 0].any()
