"""What a run on many GPUs would need: memory, traffic and time of a step, without running it.

    memory     a process's share of the generator's pieces, all of the rest, one block gathered at a time
    traffic    bytes that each process hands to collectives in an update, by kind
    time       operations over the card's peak and an assumed share of it, traffic over the links

Formulas stand beside the code and in docs/scale.md; what was assumed is part of the answer.
Not here: what a step needs alone (memory.py), the table a person reads (cli/plan_scale.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch._subclasses.fake_tensor import FakeTensorMode

from colaworld.config import ConfigError
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import PhaseMemory, built, plan_memory
from colaworld.training.blocks import blocks
from colaworld.training.cards import Card
from colaworld.training.phases import Phase
from colaworld.training.sharding import SHARDED, wants_shards
from colaworld.training.step import uses_bf16

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, as far as they are treated differently."""

    parts: dict[str, int]
    """Of each part."""
    blocks: int
    """Of the generator's blocks together."""
    largest_block: int
    """Of the largest of them."""
    sharded: bool
    """Whether the generator is kept in pieces."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process hands to collectives in an update: whole tensors, not what a ring sends."""

    all_reduce: int
    """Sums that all processes get."""
    all_gather: int
    """Results, of all pieces."""
    reduce_scatter: int
    """What is summed, of which each process keeps its piece."""

    def sent(self, shards: int, processes: int) -> float:
        """Bytes over each link, by ring algorithms: 2 (n - 1) / n of an all-reduce, (n - 1) / n of the
        others (Thakur et al. 2005)."""
        pieces = (shards - 1) / shards
        return 2 * (processes - 1) / processes * self.all_reduce + pieces * (
            self.all_gather + self.reduce_scatter
        )


@dataclass(frozen=True)
class Cluster:
    """Machines of equal GPUs."""

    card: Card
    gpus: int
    nodes: int
    network: float = 50.0
    """GB/s of each GPU to other machines, one way."""

    @property
    def link(self) -> float:
        """GB/s between the two neighbours of a ring that are worst connected."""
        return min(self.card.link, self.network) if self.nodes > 1 else self.card.link


@dataclass(frozen=True)
class PhaseScale:
    """One phase on a cluster."""

    phase: str
    memory: int
    """Bytes of a process at the moment of its step when they are most."""
    traffic: Traffic
    """Of an update."""
    flops: float
    """Of an update on one GPU."""
    compute: tuple[float, float]
    """Seconds of an update, at the higher and the lower share of the peak."""
    communication: float
    """Seconds of an update, if nothing hides it."""
    step: tuple[float, float]
    """Seconds of an update: all traffic behind work or none."""
    steps: int
    """Updates of the phase."""

    @property
    def days(self) -> tuple[float, float]:
        """Of the phase."""
        low, high = (seconds * self.steps / 86_400 for seconds in self.step)
        return low, high


def count(config: RunConfig, *, kind: str = "cuda") -> Counts:
    """Parameters of the run's model; nothing is allocated."""
    with FakeTensorMode():
        model = built(config)
        sizes = {
            name: sum(p.numel() for p in block.parameters())
            for name, block in blocks(model).items()
            if name.startswith(f"{SHARDED}.")
        }
        return Counts(
            {n: sum(p.numel() for p in part.parameters()) for n, part in model.named_children()},
            sum(sizes.values()),
            max(sizes.values(), default=0),
            wants_shards(model, config.training.parallel, kind),
        )


def traffic(
    config: RunConfig, phase: Phase, counts: Counts, *, processes: int, bf16: bool
) -> Traffic:
    """Of an update of `phase`. Left out, as a few kilobytes: means of losses, norms, statistics of the
    codebook and of latents, flags.

    Gradients of what is replicated: one all-reduce of float32 an update. Of the generator in pieces, in
    each pass: blocks gathered for forward, and again for backward where they were given up
    (`parallel.reshard`), in bf16 or float32; the rest of it in float32, twice; gradients in float32.
    Over replicas, the pieces' gradients are summed as well.
    """
    if processes == 1:
        return Traffic(0, 0, 0)
    parallel, passes = config.training.parallel, config.training.accumulate
    trained = {part: n for part, n in counts.parts.items() if part in phase.train}
    if not counts.sharded:
        return Traffic(FLOAT * sum(trained.values()), 0, 0)
    generator = counts.parts[SHARDED]
    learns = SHARDED in trained
    each = HALF if bf16 else FLOAT
    times = 2 if parallel.reshard else 1
    gathered = each * counts.blocks * times + FLOAT * (generator - counts.blocks) * 2
    replicated = FLOAT * sum(n for part, n in trained.items() if part != SHARDED)
    shards = processes // parallel.replicas
    pieces = passes * FLOAT * generator // shards if learns and parallel.replicas > 1 else 0
    return Traffic(
        replicated + pieces,
        passes * gathered,
        passes * FLOAT * generator if learns else 0,
    )


def memory_of_one(
    config: RunConfig,
    alone: PhaseMemory,
    phase: Phase,
    counts: Counts,
    *,
    processes: int,
    bf16: bool,
) -> int:
    """Bytes of one process, from those of one that holds all (`alone`, of its share of the clips).

    The generator's parameters, gradients, moments and average shrink to a piece; two blocks are gathered
    at a time (the next while one runs), and one block's gradients are whole before they are summed.
    """
    if not counts.sharded or processes == 1:
        return alone.total
    shards = processes // config.training.parallel.replicas
    generator, learns = counts.parts[SHARDED], SHARDED in phase.train
    kinds = 1 + (3 * learns) + (1 if learns and config.training.ema_decay else 0)
    saved = FLOAT * generator * kinds * (1 - 1 / shards)
    each = HALF if bf16 else FLOAT
    gathered = 2 * each * counts.largest_block + FLOAT * (generator - counts.blocks)
    return round(alone.total - saved + gathered + (FLOAT * counts.largest_block if learns else 0))


def plan_scale(
    config: RunConfig,
    cluster: Cluster,
    *,
    utilisation: tuple[float, float] = (0.2, 0.4),
    kind: str = "cuda",
) -> tuple[PhaseScale, ...]:
    """Every phase of a run on a cluster.

    Args:
        config: the run; `training.batch_size` clips of a pass are dealt out to all GPUs.
        cluster: the machines.
        utilisation: the least and the most share of the card's peak that products of matrices reach,
            an assumption.
        kind: "cuda", or "cpu" for what processes on a CPU would need.

    Raises:
        ConfigError: clips or shards that cannot be dealt out evenly; sizes that do not fit.
    """
    training, processes = config.training, cluster.gpus
    if training.batch_size % processes:
        raise ConfigError(
            f"training.batch_size: expected a multiple of the {processes} GPUs, got "
            f"{training.batch_size}; {_deals(training.batch_size * training.accumulate, processes)}"
        )
    if processes % training.parallel.replicas:
        raise ConfigError(
            f"training.parallel.replicas: expected a divisor of the {processes} GPUs, got "
            f"{training.parallel.replicas}"
        )
    counts, bf16 = count(config, kind=kind), uses_bf16(training.autocast, kind)
    share = replace(config, training=replace(training, batch_size=training.batch_size // processes))
    shards = processes // training.parallel.replicas
    made = []
    for alone in plan_memory(share, device=kind):
        phase = config.phases[alone.phase]
        handed = traffic(config, phase, counts, processes=processes, bf16=bf16)
        flops = alone.flops * training.accumulate
        low, high = (flops / (1e12 * cluster.card.tflops * part) for part in reversed(utilisation))
        wait = handed.sent(shards, processes) / (1e9 * cluster.link)
        made.append(
            PhaseScale(
                phase.name,
                memory_of_one(config, alone, phase, counts, processes=processes, bf16=bf16),
                handed,
                flops,
                (low, high),
                wait,
                (max(low, wait), high + wait),
                phase.capped(training.max_steps).steps,
            )
        )
    return tuple(made)


def _deals(clips: int, processes: int) -> str:
    fits = [n for n in range(processes, clips + 1, processes) if clips % n == 0]
    if not fits:
        return f"an update of {clips} clips is too small for them, or no multiple of their number"
    return f"the {clips} clips of an update fit as " + " or ".join(
        f"--training.batch-size {n} --training.accumulate {clips // n}" for n in fits[:3]
    )
