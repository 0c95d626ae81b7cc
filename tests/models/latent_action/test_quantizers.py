"""Every quantizer through one contract, then each one's own formula by hand."""

from __future__ import annotations

import pytest
import torch

from colaworld.config import ConfigError, from_dict
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.quantizers import (
    QUANTIZERS,
    Standardise,
    VQConfig,
    build_quantizer,
    straight_through,
)

DIM = 4
WITH_CODES = [kind for kind in QUANTIZERS if kind not in ("gaussian", "none")]
OWN_TABLE = ("vq", "ema", "nsvq")


def build(kind: str, *, dim: int = DIM, seed: int = 0, **changes):
    settings = {"codebook_size": 8, "levels": (4, 3, 2, 5)[:dim], "reseed_every": 3} | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = QUANTIZERS[kind].config
        taken = {k: v for k, v in settings.items() if hasattr(config, k)}
        return build_quantizer(config(**taken), dim)


def latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(quantizer, *batches: torch.Tensor, seed: int = 0, reseeded: float | None = ...) -> None:
    """An optimiser step of one forward pass per batch; `reseeded` is compared when given."""
    quantizer.begin_step()
    for z in batches:
        quantizer.observe(quantizer(z, generator=seeded()), generator=seeded(seed))
    metrics, _ = quantizer.after_step(generator=seeded(seed))
    if reseeded is not ...:
        assert metrics.get("reseeded") == reseeded


def snapshot(quantizer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


# -- the contract ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("training", [True, False])
def test_shapes_and_dtypes(kind, training):
    quantizer = build(kind).train(training)
    made = quantizer(latents(2, 3, 2), generator=seeded())
    assert made.codes.shape == (2, 3, 2, DIM) and made.codes.dtype == torch.float32
    assert made.loss.shape == () and made.loss.dtype == torch.float32
    if kind in WITH_CODES:
        size = quantizer.codebook_size
        assert made.indices.shape == (2, 3, 2) and made.indices.dtype == torch.int64
        assert made.indices.min() >= 0 and made.indices.max() < size
    else:
        assert made.indices is None and quantizer.codebook_size is None


def test_sizes_of_codebooks():
    sizes = {kind: build(kind).codebook_size for kind in (*OWN_TABLE, "fsq", "residual")}
    assert sizes == dict.fromkeys(OWN_TABLE, 8) | {"fsq": 4 * 3 * 2 * 5, "residual": 64}


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("normalise", [True, False])
def test_gradient_reaches_the_encoder(kind, normalise):
    quantizer = build(kind, normalise=normalise)
    z = latents(6, 2).requires_grad_()
    made = quantizer(z, generator=seeded())
    (made.codes * latents(6, 2, seed=2)).sum().backward()  # the codes alone, not the loss
    assert z.grad.isfinite().all() and (z.grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("kind", ["vq", "nsvq", "residual"])
def test_gradient_reaches_every_codebook(kind):
    quantizer = build(kind)
    quantizer.start(latents(64, 1), generator=seeded())
    made = quantizer(latents(64, 1), generator=seeded())
    (made.codes.square().sum() + made.loss).backward()
    tables = [p for n, p in quantizer.named_parameters() if n.endswith("codebook")]
    assert len(tables) == (2 if kind == "residual" else 1)
    for place, table in enumerate(tables):
        entry = made.indices // 8**place % 8
        used = torch.bincount(entry.flatten(), minlength=8) > 0
        assert torch.equal(table.grad.abs().amax(1) > 0, used)


@pytest.mark.parametrize("kind", WITH_CODES)
def test_lookup_of_the_indices_is_the_codes_exactly(kind):
    quantizer = build(kind)
    quantizer.start(latents(64, 2), generator=seeded())
    quantizer.eval()
    made = quantizer(latents(16, 2, seed=3))
    assert torch.equal(quantizer.lookup(made.indices), made.codes)
    assert len(made.indices.unique()) > 3


@pytest.mark.parametrize("kind", ["gaussian", "none"])
def test_no_codebook_no_lookup(kind):
    with pytest.raises(TypeError, match=r"has no codebook"):
        build(kind).lookup(torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_evaluation_changes_no_state_and_draws_nothing(kind):
    quantizer = build(kind)
    quantizer.start(latents(64, 1), generator=seeded())
    quantizer.eval()
    before = snapshot(quantizer)
    generator = seeded()
    first = quantizer(latents(5, 1), generator=generator)
    alone = quantizer(latents(5, 1)[:1], generator=generator)
    quantizer.observe(first, generator=generator)
    assert first.seen is None and quantizer.after_step(generator=generator) == ({}, [])
    assert torch.equal(generator.get_state(), seeded().get_state())
    torch.testing.assert_close(alone.codes, first.codes[:1])  # no batch statistics either
    after = quantizer.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_resuming_gives_the_same_next_steps(kind):
    """Five steps, state saved, five more; a fresh quantizer with that state does the same five."""

    def steps(quantizer, optimizer, first, count):
        rows = []
        for step in range(first, first + count):
            made = quantizer(latents(6, 1, seed=step), generator=seeded(step))
            loss = made.loss + made.codes.square().mean()
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            quantizer.begin_step()
            quantizer.observe(made, generator=seeded(200 + step))
            metrics, moved = quantizer.after_step(generator=seeded(100 + step))
            assert len(moved) == 0 or metrics["reseeded"] == sum(len(rows) for _, rows in moved)
            rows.append((loss.item(), metrics, made.codes, made.indices))
        return rows

    def optimizer_of(quantizer):
        parameters = list(quantizer.parameters())
        return torch.optim.SGD(parameters, lr=0.1) if parameters else None

    whole = build(kind, decay=0.5, reseed_below=0.9)
    whole.start(latents(64, 1, seed=50), generator=seeded())
    steps(whole, optimizer_of(whole), 0, 5)
    resumed = build(kind, seed=9, decay=0.5, reseed_below=0.9)
    resumed.load_state_dict(snapshot(whole))
    assert resumed.started
    expected = steps(whole, optimizer_of(whole), 5, 5)
    got = steps(resumed, optimizer_of(resumed), 5, 5)
    if kind in (*OWN_TABLE, "residual"):
        assert sum(metrics.get("reseeded", 0.0) for _, metrics, _, _ in expected) > 0
    for one, other in zip(expected, got, strict=True):
        assert one[:2] == other[:2]
        assert torch.equal(one[2], other[2])
        assert one[3] is None or torch.equal(one[3], other[3])
    left, right = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_start_is_remembered_and_takes_the_statistics(kind):
    quantizer = build(kind)
    assert not quantizer.started
    z = 3 * latents(50, 2) + 7
    quantizer.start(z, generator=seeded())
    assert quantizer.started and "started" in quantizer.state_dict()
    flat = z.reshape(-1, DIM)
    torch.testing.assert_close(quantizer.standardise.mean, flat.mean(0))
    assert quantizer.training  # as before the start


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_half_precision_latents_are_computed_in_float32(kind):
    z = latents(7, 2).bfloat16()
    expected = build(kind)(z.float(), generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        made = build(kind)(z, generator=seeded())
    assert made.codes.dtype == made.loss.dtype == torch.float32
    assert torch.equal(made.codes, expected.codes) and torch.equal(made.loss, expected.loss)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_wrong_width_is_named(kind):
    with pytest.raises(ValueError, match=r"expected z \[..., 4\], got \(2, 1, 3\)"):
        build(kind)(torch.zeros(2, 1, 3))


def test_an_unknown_kind_is_named():
    message = r"model.quantizer.kind: expected one of 'vq', 'ema', .* got 'vqq'"
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, {"quantizer": {"kind": "vqq"}}, where="model")


def test_a_field_of_another_kind_is_refused_but_for_what_early_runs_wrote():
    old = {"kind": "vq", "codebook_size": 6, "levels": [4, 2], "depth": 2, "normalise": True}
    assert from_dict(ModelConfig, {"quantizer": old}).quantizer == VQConfig(codebook_size=6)
    for key, value in (("levels", [8, 8]), ("depth", 3), ("estimater", "rotation")):
        with pytest.raises(ConfigError, match=rf"unknown key 'quantizer.{key}'"):
            from_dict(ModelConfig, {"quantizer": {"kind": "vq", key: value}})


# -- standardisation ---------------------------------------------------------------------------


def test_standardise_by_hand():
    """A mean and a scale for each channel."""
    layer = Standardise(2, momentum=0.25, eps=0.0)
    z = torch.tensor([[1.0, 10.0], [3.0, 16.0]])  # means 2 and 13; deviations 1 and 3
    torch.testing.assert_close(layer(z), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert not layer.mean.any()  # a forward pass changes nothing
    layer.update(*layer.with_moments(z)[1])
    torch.testing.assert_close(layer.mean, torch.tensor([0.5, 3.25]))
    torch.testing.assert_close(layer.scale, torch.tensor([1.0, 0.75 + 0.25 * 3]))
    layer.eval()
    torch.testing.assert_close(layer(z), (z - torch.tensor([0.5, 3.25])) / layer.scale)
    torch.testing.assert_close(layer.mean, torch.tensor([0.5, 3.25]))
    layer.start(z)
    torch.testing.assert_close(layer.mean, torch.tensor([2.0, 13.0]))
    torch.testing.assert_close(layer.scale, torch.tensor([1.0, 3.0]))


def test_standardise_passes_gradients_through_the_statistics():
    """Shifting or scaling a channel of the whole batch changes nothing: no gradient that way."""
    z = latents(9, 1).requires_grad_()
    (Standardise(DIM, eps=0.0)(z) * latents(9, 1, seed=2)).sum().backward()
    torch.testing.assert_close(z.grad.sum((0, 1)), torch.zeros(DIM), atol=1e-5, rtol=0)
    along = (z.grad * (z - z.mean((0, 1)))).sum((0, 1)).detach()
    torch.testing.assert_close(along, torch.zeros(DIM), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale, held", [(1.0, False), (0.2, False), (0.02, True)])
def test_latents_are_kept_from_shrinking(scale, held):
    """Which nothing else would: where little moves they shrank below what standardisation can tell from nothing."""
    z = scale * latents(64, 1)
    losses = {}
    for floor in (0.0, 0.1):
        quantizer = build("vq", scale_floor=floor)
        quantizer.start(z, generator=seeded())
        given = z.clone().requires_grad_()
        losses[floor] = quantizer.train()(given).loss
        (grad,) = torch.autograd.grad(losses[floor], given)
        grows = (grad * (z - z.mean((0, 1)))).sum()
        assert (grows < -1e-3) == (held and floor > 0)
    assert (losses[0.1] > losses[0.0]) == held
    if held:
        spread = z.std((0, 1), unbiased=False)
        missing = (0.1 / (spread.square() + 1e-5).sqrt()).log().square().mean()
        torch.testing.assert_close(losses[0.1] - losses[0.0], missing)


def test_running_statistics_follow_latents_that_wander():
    """A tenth of the deviation a step, as where little moves: within half a deviation of where they are."""
    layer = Standardise(DIM)
    for step in range(50):
        z = latents(64, 1) + 0.1 * step
        layer.update(*layer.with_moments(z)[1])
    assert ((layer.mean - z.mean((0, 1))).abs() < 0.5).all()


# -- codebooks ---------------------------------------------------------------------------------


def clusters(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(z [40 count, 1, d] around `count` far apart centres, the cluster of each row)."""
    generator = seeded(3)
    centres = 20 * torch.randn(count, DIM, generator=generator)
    label = torch.arange(count).repeat(40)
    z = centres[label] + 0.01 * torch.randn(len(label), DIM, generator=generator)
    return z[:, None], label


@pytest.mark.parametrize("kind", OWN_TABLE)
def test_start_puts_one_code_into_every_cluster(kind):
    quantizer = build(kind)
    z, label = clusters(8)
    quantizer.start(z, generator=seeded())
    indices = quantizer.eval()(z).indices[:, 0]
    assert len(indices.unique()) == 8
    pairs = {(a, b) for a, b in zip(label.tolist(), indices.tolist(), strict=True)}
    assert len(pairs) == 8  # one cluster, one code


def test_start_of_the_residual_quantizer_spreads_both_codebooks():
    quantizer = build("residual")
    z, _ = clusters(30)
    quantizer.start(z, generator=seeded())
    made = quantizer.eval()(z)
    first, second = made.indices % 8, made.indices // 8
    assert len(first.unique()) == 8 and len(second.unique()) >= 6
    standard = quantizer.standardise(z)
    coarse = quantizer.layers[0].lookup(first)
    assert (standard - made.codes).square().mean() < 0.5 * (standard - coarse).square().mean()


@pytest.mark.parametrize("kind", OWN_TABLE)
def test_without_a_data_start_the_codebook_stays_small_and_uniform(kind):
    quantizer = build(kind, data_start=False)
    before = quantizer.codebook.clone()
    assert before.abs().max() <= 1 / 8 and before.abs().max() > 0.9 / 8
    quantizer.start(latents(64, 1), generator=seeded())
    assert torch.equal(quantizer.codebook, before) and quantizer.started


@pytest.mark.parametrize("kind", OWN_TABLE)
def test_a_restarted_codebook_starts_from_data_whatever_its_start_was(kind):
    quantizer = build(kind, data_start=False)
    quantizer.start(latents(64, 1), generator=seeded())
    quantizer.restart()
    assert not quantizer.started
    with torch.no_grad():
        quantizer.use.fill_(0.0)
    z = latents(64, 1)
    quantizer.start(z, generator=seeded())
    assert quantizer.started and torch.equal(quantizer.use, torch.full((8,), 1 / 8))
    rows = quantizer.standardise.eval()(z.float()).reshape(-1, z.shape[-1])
    nearest = torch.cdist(quantizer.codebook, rows).min(dim=1).values
    assert nearest.max() < 1e-5  # each code is one of the latents
    again = quantizer.codebook.clone()
    quantizer.restart()
    quantizer.start(latents(64, 1, seed=9), generator=seeded())
    assert not torch.equal(quantizer.codebook, again)


def test_restarted_layers_start_from_data_too():
    quantizer = build("residual", data_start=False)
    quantizer.start(latents(64, 1), generator=seeded())
    before = [layer.codebook.clone() for layer in quantizer.layers]
    quantizer.restart()
    quantizer.start(latents(64, 1), generator=seeded())
    for layer, was in zip(quantizer.layers, before, strict=True):
        assert not torch.equal(layer.codebook, was)


def unused(kind: str, **changes):
    """A quantizer of which entries 2 and 5 are far away and fell out of use; all z are near 0."""
    quantizer = build(kind, normalise=False, decay=0.9, **changes)
    with torch.no_grad():
        quantizer.codebook.copy_(0.1 * latents(8, seed=4))
        quantizer.codebook[[2, 5]] = 100.0
        quantizer.use[[2, 5]] = 0.01 / 8
        if kind == "ema":
            quantizer.total.copy_(quantizer.codebook)
            quantizer.count[[2, 5]] = 1e-3
            quantizer.total[[2, 5]] *= 1e-3
    return quantizer


@pytest.mark.parametrize("kind", OWN_TABLE)
def test_dead_codes_move_onto_latents_when_it_is_time(kind):
    quantizer = unused(kind)
    for step in (1, 2, 3):
        z = latents(40, 1, seed=10 + step)
        quantizer.observe(quantizer(z, generator=seeded()))
        metrics, moved = quantizer.after_step(generator=seeded(step))
        if step < 3:  # reseed_every = 3
            assert metrics == {} and moved == [] and (quantizer.codebook[[2, 5]] > 50).all()
    assert metrics == {"reseeded": 2.0}
    if kind == "ema":  # a buffer: no optimizer knows it
        assert moved == []
    else:
        assert [(p is quantizer.codebook, rows.tolist()) for p, rows in moved] == [(True, [2, 5])]
    rows = {tuple(row) for row in z[:, 0].tolist()}
    for entry in (2, 5):
        assert tuple(quantizer.codebook[entry].tolist()) in rows
        assert quantizer.use[entry].item() == pytest.approx(1 / 8)
    if kind == "ema":  # its running sums moved along: the next update keeps the entry near
        torch.testing.assert_close(
            quantizer.total[2] / quantizer.count[2], quantizer.codebook[2].detach()
        )
        assert quantizer.count[2].item() > 0.1


def test_two_dead_codes_do_not_land_on_the_same_latent():
    for seed in range(20):
        quantizer = unused("vq", reseed_every=1)
        step(quantizer, latents(2, 1), seed=seed, reseeded=2.0)
        assert not torch.equal(quantizer.codebook[2], quantizer.codebook[5])


def test_more_dead_codes_than_latents_is_no_error():
    quantizer = unused("vq", reseed_every=1)
    with torch.no_grad():
        quantizer.use.fill_(0.0)
    quantizer.observe(quantizer(latents(2, 1), generator=seeded()))
    assert quantizer.after_step(generator=seeded())[0]["reseeded"] >= 6.0


def test_without_reseeding_dead_codes_stay():
    quantizer = unused("vq", reseed=False)
    for _ in range(6):
        step(quantizer, latents(40, 1), reseeded=None)
    assert (quantizer.codebook[[2, 5]] > 50).all()


def test_use_is_smoothed_and_a_step_is_counted_once():
    quantizer = build("vq", codebook_size=2, normalise=False, decay=0.9)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0] * DIM, [10.0] * DIM]))
    z = torch.zeros(4, 1, DIM)
    z[0] = 10.0  # shares .75 and .25
    step(quantizer, z)
    expected = torch.tensor([0.9 * 0.5 + 0.1 * 0.75, 0.9 * 0.5 + 0.1 * 0.25])
    torch.testing.assert_close(quantizer.use, expected)
    assert quantizer.after_step() == ({}, [])  # nothing new was seen
    torch.testing.assert_close(quantizer.use, expected)
    assert quantizer.age == 1


def test_a_codebook_needs_two_entries():
    with pytest.raises(ValueError, match=r"codebook_size: expected >= 2, got 1"):
        build("vq", codebook_size=1)


# -- a continuous stretch first ----------------------------------------------------------------


@pytest.mark.parametrize("kind", OWN_TABLE)
def test_latents_pass_until_the_codebook_starts_from_their_clusters(kind):
    quantizer = build(kind, unquantized_steps=3, normalise=False)
    z, label = clusters(8)
    for step in range(3):
        given = z.clone().requires_grad_()
        made = quantizer(given, generator=seeded())
        assert torch.equal(made.codes, z) and made.indices is None and made.loss == 0
        made.codes.sum().backward()
        assert torch.equal(given.grad, torch.ones_like(z))
        assert quantizer.continuous
        quantizer.observe(made)
        quantizer.after_step(generator=seeded(step))
    assert not quantizer.continuous
    centres = torch.stack([z[label == k, 0].mean(0) for k in range(8)])
    assert torch.cdist(centres, quantizer.codebook.detach()).amin(1).max() < 0.05
    assert len(quantizer(z, generator=seeded()).indices.unique()) == 8
    if kind == "ema":
        assert torch.equal(quantizer.total, quantizer.codebook)


def test_the_latest_latents_decide_where_the_codebook_starts():
    """More latents than are kept: what passed first is forgotten."""
    quantizer = build("vq", unquantized_steps=4, normalise=False)
    old, new = 50 + latents(600, 1), latents(600, 1)
    for z in (old, old, new, new):
        step(quantizer, z)
    assert quantizer.codebook.abs().max() < 10


def test_a_run_resumes_within_the_continuous_stretch():
    whole = build("vq", unquantized_steps=4)
    resumed = build("vq", unquantized_steps=4, seed=9)
    for number in range(4):
        if number == 2:
            resumed.load_state_dict(snapshot(whole))
        for quantizer in (whole, resumed):
            step(quantizer, latents(32, 1, seed=number), seed=number)
    assert torch.equal(whole.codebook, resumed.codebook) and not resumed.continuous


def test_residual_codebooks_have_no_continuous_stretch_of_their_own():
    quantizer = build("residual", unquantized_steps=3)
    assert quantizer(latents(5, 1)).indices.shape == (5, 1)


# -- one by one --------------------------------------------------------------------------------


def test_straight_through_has_the_value_of_codes_and_the_gradient_of_z():
    z = latents(200).requires_grad_()
    codes = latents(200, seed=2)
    made = straight_through(z, codes)
    assert torch.equal(made, codes)  # exactly, not to rounding
    made.backward(latents(200, seed=3))
    assert torch.equal(z.grad, latents(200, seed=3))


def test_vq_loss_and_gradient_by_hand():
    quantizer = build("vq", codebook_size=2, normalise=False, beta=0.25)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0] * DIM, [4.0] * DIM]))
    z = torch.tensor([[1.0] * DIM, [3.5] * DIM])[:, None].requires_grad_()
    made = quantizer(z)
    assert made.indices.flatten().tolist() == [0, 1]
    distance = (1.0 + 0.25) / 2
    assert made.loss.item() == pytest.approx(1.25 * distance)
    made.loss.backward()
    # d/dz of beta * mean (z - e)^2 over 8 values; d/de of mean (e - z)^2
    torch.testing.assert_close(z.grad[:, 0, 0], 0.25 * 2 * torch.tensor([1.0, -0.5]) / 8)
    torch.testing.assert_close(quantizer.codebook.grad[:, 0], 2 * torch.tensor([-1.0, 0.5]) / 8)


def test_ema_moves_in_after_step_by_hand():
    quantizer = build("ema", codebook_size=2, normalise=False, decay=0.75, beta=0.5)
    assert not list(quantizer.parameters())
    table = torch.tensor([[0.0] * DIM, [4.0] * DIM])
    quantizer.codebook.copy_(table)
    quantizer.total.copy_(table)
    z = torch.tensor([1.0, 3.0, 5.0])[:, None, None].expand(3, 1, DIM)
    made = quantizer(z)
    assert made.loss.item() == pytest.approx(0.5 * (1 + 1 + 1) / 3)  # commitment alone
    quantizer.observe(made)
    assert torch.equal(quantizer.codebook, table)  # not in the forward pass
    quantizer.after_step()
    # counts .75 x 1 + .25 x {1, 2}; totals .75 x {0, 4} + .25 x {1, 3 + 5}
    torch.testing.assert_close(quantizer.count, torch.tensor([1.0, 1.25]))
    expected = torch.tensor([0.25 / 1.0, 5.0 / 1.25])[:, None].expand(2, DIM)
    torch.testing.assert_close(quantizer.codebook, expected, atol=1e-4, rtol=1e-4)


def test_nsvq_replaces_the_error_by_noise_of_its_size():
    quantizer = build("nsvq", normalise=False)
    z = latents(50, 1)
    made = quantizer(z, generator=seeded())
    codes = quantizer.lookup(made.indices)
    torch.testing.assert_close((made.codes - z).norm(dim=-1), (codes - z).norm(dim=-1))
    assert not torch.allclose(made.codes, codes)
    assert torch.equal(made.codes, quantizer(z, generator=seeded()).codes)
    assert not torch.equal(made.codes, quantizer(z, generator=seeded(1)).codes)
    assert made.loss == 0


def test_fsq_levels_by_hand():
    quantizer = build("fsq", dim=2, normalise=False, levels=(4, 3))
    # sigmoid(2 z) of these is about 0, .2689, .7311 and 1
    z = torch.tensor([[-20.0, -20.0], [-0.5, -0.5], [0.5, 0.5], [20.0, 20.0]])
    made = quantizer(z)
    # four levels at 0 .. 3: .807 -> 1, 2.193 -> 2; three at 0 .. 2: .538 -> 1, 1.462 -> 1
    digits = [[0, 0], [1, 1], [2, 1], [3, 2]]
    assert made.indices.tolist() == [a + 4 * b for a, b in digits]
    expected = [[2 * a / 3 - 1, 2 * b / 2 - 1] for a, b in digits]
    torch.testing.assert_close(made.codes, torch.tensor(expected))
    table = quantizer.lookup(torch.arange(12))
    assert len({tuple(row) for row in table.tolist()}) == 12
    assert table.min() == -1 and table.max() == 1


def test_fsq_refuses_levels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"levels: expected 4 .*, got 3; set --model.idm.dim 3"):
        build("fsq", levels=(4, 3, 2))
    with pytest.raises(ValueError, match=r"quantizer.levels\[2\]: expected >= 2, got 1"):
        build("fsq", levels=(4, 3, 1, 2))


def test_residual_index_is_a_mixed_radix_number():
    quantizer = build("residual", normalise=False, codebook_size=3, depth=2)
    assert quantizer.codebook_size == 9
    coarse = torch.tensor([0.0, 10.0, 20.0])[:, None].expand(3, DIM)
    fine = torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, DIM)
    with torch.no_grad():
        quantizer.layers[0].codebook.copy_(coarse)
        quantizer.layers[1].codebook.copy_(fine)
    z = torch.tensor([9.1, 20.8, 0.2])[:, None, None].expand(3, 1, DIM)
    made = quantizer.eval()(z)
    assert made.indices.flatten().tolist() == [1 + 3 * 0, 2 + 3 * 2, 0 + 3 * 1]
    torch.testing.assert_close(made.codes[:, 0, 0], torch.tensor([9.0, 21.0, 0.0]))
    assert quantizer.lookup(torch.tensor([7]))[0, 0] == 10 + 1  # 7 = 1 + 3 x 2
    # each layer's loss: 1.25 x the squared error it leaves
    errors = [0.9**2 + 0.8**2 + 0.2**2, 0.1**2 + 0.2**2 + 0.2**2]
    assert made.loss.item() == pytest.approx(1.25 * sum(errors) / 3, rel=1e-5)


def test_gaussian_kl_by_hand():
    quantizer = build("gaussian", dim=1, levels=(2,), normalise=False, beta=0.1)
    with torch.no_grad():
        quantizer.moments.weight.copy_(torch.tensor([[2.0], [0.0]]))  # mean = 2 z
        quantizer.moments.bias.copy_(torch.tensor([0.0, torch.log(torch.tensor(0.25))]))
    z = torch.tensor([0.5, -1.0])[:, None, None]
    made = quantizer(z, generator=seeded())
    kl = [0.5 * (mean**2 + 0.25 - 1 - torch.log(torch.tensor(0.25)).item()) for mean in (1, -2)]
    assert made.loss.item() == pytest.approx(0.1 * sum(kl) / 2, rel=1e-5)
    noise = torch.randn(2, 1, 1, generator=seeded())
    torch.testing.assert_close(made.codes, 2 * z + 0.5 * noise)
    torch.testing.assert_close(quantizer.eval()(z).codes, 2 * z)


def test_none_passes_the_latents():
    z = latents(5, 2)
    made = build("none", normalise=False)(z)
    assert torch.equal(made.codes, z) and made.loss == 0


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_builds_on_the_meta_device(kind):
    real = build_quantizer(QUANTIZERS[kind].config(), 2)
    with torch.device("meta"):
        quantizer = build_quantizer(QUANTIZERS[kind].config(), 2)
    assert quantizer.codebook_size == real.codebook_size
