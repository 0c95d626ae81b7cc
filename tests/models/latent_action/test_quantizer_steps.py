"""What a quantizer learns from one optimiser step: of several passes, repeated ones, processes."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from colaworld.models.latent_action.quantizers import (
    QUANTIZERS,
    build_quantizer,
)
from colaworld.models.latent_action.quantizers.step_stats import StepStats, offered
from colaworld.rng import ClipGenerator

DIM = 4
TRACKING = ("vq", "ema", "nsvq", "residual")


def build(kind: str, *, seed: int = 0, **changes):
    settings = {"codebook_size": 8, "levels": (4, 3, 2, 5), "reseed_every": 2} | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = QUANTIZERS[kind].config
        taken = {k: v for k, v in settings.items() if hasattr(config, k)}
        return build_quantizer(config(**taken), DIM)


def latents(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 1, DIM, generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(quantizer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def assert_equal_states(left, right) -> None:
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


def step(quantizer, *batches, seed: int = 0):
    quantizer.begin_step()
    for z in batches:
        quantizer.observe(quantizer(z, generator=seeded(seed)), generator=seeded(seed))
    return quantizer.after_step(generator=seeded(seed))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_forward_pass_changes_no_state(kind):
    quantizer = build(kind)
    before = state(quantizer)
    quantizer(latents(20), generator=seeded())
    after = quantizer.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert quantizer.after_step() == ({}, [])  # nothing was observed


@pytest.mark.parametrize("kind", TRACKING)
def test_several_passes_count_as_their_union(kind):
    """Two halves of a batch teach what the whole batch does (up to the order of a sum)."""
    z = latents(60)
    whole, halves = build(kind, normalise=False), build(kind, normalise=False)
    for quantizer in (whole, halves):
        quantizer.start(latents(64, seed=3), generator=seeded())
    for number in range(4):
        z = latents(60, seed=10 + number)
        step(whole, z, seed=number)
        step(halves, z[:24], z[24:], seed=number)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(value, halves.state_dict()[key], rtol=1e-5, atol=1e-6)


def test_every_pass_is_counted():
    quantizer = build("vq", codebook_size=2, normalise=False, decay=0.9)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0] * DIM, [10.0] * DIM]))
    near, far = torch.zeros(3, 1, DIM), torch.full((1, 1, DIM), 10.0)
    step(quantizer, near, far)  # of four latents, three and one
    torch.testing.assert_close(quantizer.use, torch.tensor([0.45 + 0.075, 0.45 + 0.025]))
    assert quantizer.age == 1


def test_running_statistics_move_once_towards_the_mean_of_the_passes():
    quantizer = build("none")
    one, two = latents(30, seed=1) + 5, 3 * latents(30, seed=2)
    step(quantizer, one, two)
    means = [z.reshape(-1, DIM).mean(0) for z in (one, two)]
    scales = [(z.reshape(-1, DIM).var(0, correction=0) + 1e-5).sqrt() for z in (one, two)]
    torch.testing.assert_close(quantizer.standardise.mean, 0.3 * sum(means) / 2)
    torch.testing.assert_close(quantizer.standardise.scale, 0.7 + 0.3 * sum(scales) / 2)


@pytest.mark.parametrize("kind", TRACKING)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_pass_is_not_counted_again(kind, reentrant):
    """Activation checkpointing runs the forward pass twice."""
    plain, recomputed = build(kind), build(kind)
    calls = []

    def forward(z):
        calls.append(z)
        made = recomputed(z, generator=seeded())
        return made.codes, made.loss, made

    for number in range(4):
        z = latents(40, seed=number).requires_grad_()
        step(plain, z, seed=number)
        recomputed.begin_step()
        codes, loss, made = checkpoint(
            forward, z, use_reentrant=reentrant, preserve_rng_state=False
        )
        recomputed.observe(made, generator=seeded(number))
        (codes.square().sum() + loss).backward()
        recomputed.after_step(generator=seeded(number))
    assert len(calls) == 8  # each pass ran twice
    assert_equal_states(plain, recomputed)


@pytest.mark.parametrize("kind", TRACKING)
def test_an_abandoned_step_leaves_nothing(kind):
    quantizer, other = build(kind), build(kind)
    quantizer.observe(quantizer(100 * latents(30, seed=9), generator=seeded()))
    step(quantizer, latents(30), seed=1)
    step(other, latents(30), seed=1)
    assert_equal_states(quantizer, other)


def test_nothing_pending_is_in_the_state():
    quantizer = build("ema", reseed_every=1)
    keys = set(quantizer.state_dict())
    quantizer.observe(quantizer(latents(30), generator=seeded()))
    assert set(quantizer.state_dict()) == keys


def test_a_latent_that_is_not_finite_is_no_candidate():
    quantizer = build("vq", normalise=False, decay=0.9, reseed_every=1, reseed_below=0.99)
    z = latents(12)
    z[::2] = torch.inf
    metrics, moved = step(quantizer, z)
    assert metrics["reseeded"] >= 1 and len(moved) == 1
    assert quantizer.codebook.isfinite().all()
    quantizer = build("vq", normalise=False, decay=0.9, reseed_every=1, reseed_below=0.99)
    assert step(quantizer, torch.full((3, 1, DIM), torch.nan)) == ({"reseeded": 0.0}, [])


# -- the latents kept --------------------------------------------------------------------------


def test_all_latents_are_kept_while_there_is_room():
    pending = StepStats(capacity=50)
    generator = seeded()
    pending.add_latents(torch.arange(20.0)[:, None], generator)
    pending.add_latents(torch.arange(20.0, 50.0)[:, None], generator)
    assert sorted(pending.latents.flatten().tolist()) == list(range(50))


def test_beyond_that_they_are_a_uniform_sample():
    """Every latent stays equally often, whichever pass it came with."""
    stayed = torch.zeros(60)
    for seed in range(600):
        pending, generator = StepStats(capacity=10), seeded(seed)
        for part in torch.arange(60).split(25):
            pending.add_latents(part[:, None].float(), generator)
            assert len(pending.latents) == 10
        kept = pending.latents.flatten().long()
        assert len(kept.unique()) == 10
        stayed[kept] += 1
    # 600 draws of probability 1/6: 100 with a deviation of 9.1; 60 values stay within 4 of them
    assert (stayed - 100).abs().max() < 37


def test_memory_is_bounded_in_a_step_of_many_passes():
    quantizer = build("ema", reseed_every=1)
    quantizer.begin_step()
    for seed in range(5):
        quantizer.observe(quantizer(latents(700, seed=seed)), generator=seeded(seed))
    pending = quantizer._pending
    assert pending.latents.shape == (1024, DIM) and pending.statistics.shape == (8, DIM + 1)
    assert pending.statistics[:, -1].sum() == 3500
    quantizer.after_step(generator=seeded())
    assert pending.latents is None and pending.statistics is None


@pytest.mark.parametrize("cut", [(1, 1), (1, 4), (2, 1), (4, 2)], ids=str)
def test_the_sample_does_not_depend_on_how_a_step_is_cut(cut):
    """The same latents in the same order from any number of processes and passes."""
    processes, passes = cut
    z = torch.arange(48.0).view(16, 3, 1)  # 16 clips of three latents
    z[5, 1] = torch.nan
    tables = []
    for rank in range(processes):
        pending = StepStats(capacity=9)
        for first in range(0, 16, 16 // passes):
            slots = list(range(first + rank, first + 16 // passes, processes))
            own = ClipGenerator("cpu", 3, clips=16, slots=slots)
            pending.add_latents(z[slots].flatten(0, 1), own)
        tables.append(pending.offer(9, Group(rank, processes)))
    assert all(table.shape == (processes, 9, 3) for table in tables)
    alone = StepStats(capacity=48)
    alone.add_latents(z.flatten(0, 1), ClipGenerator("cpu", 3, clips=16))
    assert len(offered(alone.offer(48, None))) == 47  # all but what is not a number
    assert offered(sum(tables)).tolist() == alone.latents[:9].tolist()


# -- several processes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """In place of a process group whose reductions are played by hand."""

    number: int
    processes: int

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.processes


def test_one_reduction_a_step(monkeypatch):
    seen = []
    monkeypatch.setattr(dist, "all_reduce", lambda packed, group: seen.append(packed.shape))
    for kind in TRACKING:
        quantizer = build(kind, reseed_every=1)
        quantizer.set_process_group(Group(0, 1))
        step(quantizer, latents(20), latents(20, seed=2))
        assert len(seen) == 1 and len(seen.pop()) == 1


LEARN = [
    ("vq", {}),
    ("ema", {"decay": 0.9, "reseed_below": 0.95}),
    ("ema", {"unquantized_steps": 2}),
    ("residual", {"decay": 0.9, "reseed_below": 0.95}),
]


def _train(rank: int, size: int, group) -> dict[str, tuple[dict[str, torch.Tensor], float]]:
    """Six steps of two passes of 24 clips, of which each process sees every `size`-th."""
    states = {}
    for kind, changes in LEARN:
        quantizer = build(kind, **changes)
        quantizer.set_process_group(group)
        quantizer.start(latents(64, seed=50)[rank::size], generator=seeded())
        reseeded = 0.0
        for number in range(6):
            quantizer.begin_step()
            for part in range(2):
                slots = range(24 * part + rank, 24 * part + 24, size)
                own = ClipGenerator("cpu", number, clips=48, slots=slots)
                z = (1 + part) * latents(24, seed=100 * number + part)[rank::size]
                quantizer.observe(quantizer(z, generator=own), generator=own)
            reseeded += quantizer.after_step(generator=seeded(number))[0].get("reseeded", 0.0)
        states[f"{kind} {changes}"] = dict(quantizer.state_dict()), reseeded
    return states


def _process(rank: int, size: int, file: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    states = _train(rank, size, dist.group.WORLD)
    results.put(
        (rank, {k: ({n: v.tolist() for n, v in s.items()}, r) for k, (s, r) in states.items()})
    )
    dist.destroy_process_group()


def test_two_processes_learn_the_codebook_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, 2, str(tmp_path / "meet"), results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    got = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert got[0] == got[1]  # bit for bit
    for key, (alone, reseeded) in _train(0, 1, None).items():
        found, moved = got[0][key]
        assert moved == reseeded and (reseeded > 0 or "0.95" not in key)
        for name, value in alone.items():
            close = torch.tensor(found[name]).to(value.dtype)
            torch.testing.assert_close(close, value, rtol=1e-5, atol=1e-6, msg=f"{key}: {name}")


def test_two_processes_learn_what_one_would_from_both(monkeypatch):
    """A reduction played by hand: each process's pieces summed with the other's."""
    kind, z = "ema", (latents(30, seed=5), latents(30, seed=6))
    alone = build(kind, normalise=False, reseed=False)
    step(alone, *z)
    pair = [build(kind, normalise=False, reseed=False) for _ in range(2)]
    for quantizer, batch in zip(pair, z, strict=True):
        quantizer.observe(quantizer(batch))
    parts = [quantizer._local_stats(None)[0].flatten() for quantizer in pair]
    both = parts[0] + parts[1]
    monkeypatch.setattr(dist, "all_reduce", lambda packed, group: packed.copy_(both))
    for rank, quantizer in enumerate(pair):
        quantizer.set_process_group(Group(rank, 2))
        quantizer.after_step()
        assert_equal_states(quantizer, alone)


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [("vq", "straight_through"), ("ema", "rotation"), ("residual", "rotation")],
)
def test_a_compiled_pass_is_one_graph_and_is_observed_like_another(kind, estimator):
    torch._dynamo.reset()
    plain, compiled = build(kind, estimator=estimator), build(kind, estimator=estimator)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for quantizer, call in ((plain, plain), (compiled, run)):
        quantizer.observe(call(latents(20)))
        quantizer.after_step(generator=seeded())
    assert_equal_states(plain, compiled)
