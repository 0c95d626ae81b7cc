"""Two processes that train together, for test_distributed.py: `two_ranks.py OUT CASE...`.

For every case two are forked from this script. Each joins the other over gloo and a file, plays the
case of that name and writes what it found to OUT/<case>/rank<r>.json. Not here: any assertion.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from colaworld.config import ConfigError
from colaworld.contracts import ClipBatch
from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import (
    QUANTIZERS,
    EMAConfig,
    VQConfig,
    build_quantizer,
)
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel
from colaworld.runs.preview import RolloutPreview
from colaworld.training.blocks import compile_blocks
from colaworld.training.config import ObjectiveConfig, ParallelConfig, TrainingConfig
from colaworld.training.distributed import Distributed, whole_tensor, zero_rows
from colaworld.training.guard import LossGuard
from colaworld.training.objectives import ColaObjective
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.phases import Phase, enter_phase
from colaworld.training.protocols import RunFolderError
from colaworld.training.run_folder import RunFolder
from colaworld.training.step import apply_update, backward_pass
from colaworld.training.trainer import Trainer

PARTS = ("idm", "quantizer", "backbone")
PHASE = Phase("joint", "cola", PARTS, steps=8, learning_rate=1e-2, lr_warmup_steps=2)
TRAINING = TrainingConfig(
    seed=3,
    accumulate=2,
    ema_decay=0.9,
    checkpoint_every=3,
    health_every=2,
    health_window=24,
    log_every=3,
    tensorboard=False,
)
SECONDS = 450  # for one case


class Model(nn.Module):
    """A real quantizer between two layers; dropout draws from torch's global state."""

    def __init__(self, seed: int, *, dropout: float = 0.1, **quantizer: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.idm = nn.Linear(12, 4)
        config = VQConfig(codebook_size=8, reseed_every=2, reseed_below=0.9, **quantizer)
        self.quantizer = build_quantizer(config, 4)
        self.backbone = nn.Sequential(nn.Linear(4, 12), nn.Dropout(dropout))


class Objective:
    """Reconstruct a clip's mean frame through the codes; `hook(batch, loss)` sees each pass."""

    codebook_size, tokens = 8, 1

    def __init__(self, model: Model, hook=lambda batch, loss: loss) -> None:
        self.model, self.hook = model, hook

    def loss(self, batch, *, generator):
        x = batch.frames.float().flatten(2).mean(1) / 255  # [B, 12]
        quantized = self.model.quantizer(self.model.idm(x)[:, None], generator=generator)
        y = self.model.backbone(quantized.codes[:, 0])
        self.model.quantizer.observe(quantized, generator=generator)
        loss = (y - x).square().mean() + quantized.loss
        return self.hook(batch, loss), {"indices": quantized.indices}

    def before_phase(self, batches, *, generator):
        x = batches()[0].frames.float().flatten(2).mean(1) / 255
        with torch.no_grad():
            self.model.quantizer.start(self.model.idm(x)[:, None], generator=generator)

    def begin_step(self):
        self.model.quantizer.begin_step()

    def after_step(self, *, generator):
        return self.model.quantizer.after_step(generator=generator)


class Clips:
    """Endless clips; every process reads its own. The state needs those of all, as for real."""

    def __init__(self, rank: int = 0) -> None:
        self.rank, self.position = rank, 0

    def __next__(self) -> ClipBatch:
        made = batch(100 * self.rank + self.position, episode=self.position)
        self.position += 1
        return made

    def state_dict(self):
        return {"position": self.position, "rank": self.rank}

    def merge_states(self, states):
        return {str(state["rank"]): state["position"] for state in states}

    def load_state_dict(self, state):
        self.position = state[str(self.rank)]


def batch(seed: int, *, clips: int = 6, episode: int = 0) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (clips, 3, 3, 2, 2), generator=generator).to(torch.uint8)
    return ClipBatch(frames, torch.full((clips,), episode), torch.arange(clips))


def numbers(module: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in module.state_dict().items()}


# -- cases: (rank, folder that both share) -> what is to be looked at ------------------------------


def values(rank: int, out: Path) -> dict[str, Any]:
    """Each method by itself."""
    from torch.distributed.tensor import Shard, distribute_tensor

    both = Distributed()
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[1.0, 10.0]]) * (rank + 1)
    half = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    half.grad = torch.full((2,), 4.0 * rank, dtype=torch.bfloat16)
    turned = nn.Parameter(torch.zeros(3, 2))
    turned.grad = (torch.arange(6.0).view(2, 3) + rank).T
    both.average_gradients([layer.weight, nn.Parameter(torch.zeros(1)), half, turned])

    def fail():
        raise RunFolderError(f"refused by {rank}")

    try:
        both.on_main(fail)
        said = "nothing"
    except RunFolderError as error:
        said = str(error)

    class Odd(Exception):
        def __init__(self, name: str, wrong: int) -> None:
            super().__init__(f"{name} is {wrong}")

    def fail_oddly():
        raise Odd("the disk", 7)

    try:
        both.on_main(fail_oddly)
        odd = "nothing"
    except RunFolderError as error:
        odd = str(error)
    table = distribute_tensor(torch.arange(1.0, 11.0).view(5, 2), both.mesh, [Shard(0)])
    zero_rows(table, torch.tensor([1, 4]))
    columns = distribute_tensor(torch.arange(1.0, 11.0).view(5, 2), both.mesh, [Shard(1)])
    zero_rows(columns, torch.tensor([0]))
    state = {"table": whole_tensor(table), "columns": whole_tensor(columns)}
    quantizer = build_quantizer(VQConfig(codebook_size=8), 4)
    quantizer.codebook = nn.Parameter(distribute_tensor(torch.ones(8, 4), both.mesh, [Shard(0)]))
    try:
        quantizer.set_process_group(both.group)
        refused = None
    except TypeError as error:
        refused = str(error)
    with mock.patch.object(dist, "new_group", wraps=dist.new_group) as made:
        both.beside(77.0)
    return {
        "waits": made.call_args.kwargs["timeout"].total_seconds(),
        "started": started(both),
        "ranks": [both.rank, both.world_size, both.is_main, both.mesh.size()],
        "agreed": [both.agree(rank == 1), both.agree(False)],
        "mean": both.mean(torch.tensor([float(rank), 1.0])).tolist(),
        "rows": both.gather_rows(torch.tensor([[rank, 10 * rank]])).tolist(),
        "gathered": both.gather({"rank": rank}),
        "halves": half.grad.tolist(),
        "turned": turned.grad.tolist(),
        "gradient": layer.weight.grad.tolist(),
        "on_main": both.on_main(lambda: f"by {rank}"),
        "said": said,
        "odd": odd,
        "state": {name: value.tolist() for name, value in state.items()},
        "refused": refused,
    }


def started(both: Distributed) -> list[Any]:
    """Codebooks set from data, before the first step and behind the continuous stretch, where sums of the
    clusters come out a rounding apart."""
    made, where = [], "colaworld.models.latent_action.quantizers.codebook"

    def apart(z, count, generator):
        return z[:count] + 1e-6 * both.rank

    with mock.patch(f"{where}.kmeans_pp", apart), mock.patch(f"{where}.kmeans", apart):
        for config in (VQConfig(codebook_size=4), EMAConfig(codebook_size=4, unquantized_steps=1)):
            quantizer = both.shard(build_quantizer(config, 2))
            quantizer.start(
                torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(both.rank))
            )
            quantizer.begin_step()
            z = torch.arange(8.0).reshape(4, 1, 2) + both.rank
            quantizer.observe(quantizer(z), generator=torch.Generator().manual_seed(1))
            quantizer.after_step()
            made.append(numbers(quantizer))
    return made


def train_by_hand(distributed: Distributed | None, seed: int, rows: slice) -> dict[str, Any]:
    """Five steps of `backward_pass` and `apply_update` on some clips of each batch, no Trainer.

    Without what makes half a batch differ from half of a batch: dropout and batch statistics.
    """
    model = Model(seed, dropout=0.0, kind="vq", normalise=False, reseed=False)
    if distributed is not None:
        distributed.shard(model)
    phase, objective = dataclasses.replace(PHASE, train=PARTS), Objective(model)
    enter_phase(model, phase)
    optimizer, guard, gradients = PhaseOptimizer(model, phase, TRAINING), LossGuard(TRAINING), {}
    updates = []
    for number in range(1, 6):
        halves = []
        for micro in range(2):
            whole = batch(2 * number + micro)
            halves.append(ClipBatch(whole.frames[rows], whole.episode[rows], whole.start[rows]))
        optimizer.zero_grad()
        key = (number,)
        terms = backward_pass(
            objective, optimizer, halves, passes=2, key=key, distributed=distributed
        )
        gradients = gradients or {n: p.grad.tolist() for n, p in optimizer.parameters.items()}
        update = apply_update(
            objective,
            optimizer,
            terms,
            number=number,
            key=key,
            clip_norm=0.5,
            guard=guard,
            distributed=distributed,
        )
        updates.append([update.loss, update.grad_norm])
    return {"gradients": gradients, "updates": updates, "model": numbers(model)}


def step(rank: int, out: Path) -> dict[str, Any]:
    """Half of each batch here, the other half there; the second process starts elsewhere."""
    return train_by_hand(Distributed(), seed=rank, rows=slice(3 * rank, 3 * rank + 3))


def learn(kind: str, distributed: Distributed | None, rows: slice, **changes) -> dict[str, Any]:
    """A quantizer that sees rows of 24 latents in each of four steps; the last may re-seed."""
    torch.manual_seed(7)
    settings = {"codebook_size": 8, "normalise": False, "decay": 0.9, "reseed_every": 4}
    quantizer = build_quantizer(QUANTIZERS[kind].config(**{**settings, **changes}), 4)
    if distributed is not None:
        distributed.shard(quantizer)
    found: dict[str, Any] = {}
    for number in range(4):
        z = torch.randn(24, 1, 4, generator=torch.Generator().manual_seed(number))
        z[:, :, 1:] *= 0.2  # some codes are of no use
        quantizer.begin_step()
        quantizer.observe(quantizer(z[rows]), generator=torch.Generator().manual_seed(number))
        metrics, moved = quantizer.after_step(generator=torch.Generator().manual_seed(number))
        found = {"reseeded": metrics.get("reseeded"), "moved": [r.tolist() for _, r in moved]}
    return {**found, "state": numbers(quantizer), "last": z[:, 0].tolist()}


CODEBOOKS = {
    "ema": ("ema", {"reseed": False}),
    "ema re-seeded": ("ema", {"reseed_below": 0.8}),
    "vq re-seeded": ("vq", {"reseed_below": 0.8}),
    "residual": ("residual", {"reseed": False}),
}


def codebook(rank: int, out: Path) -> dict[str, Any]:
    """Twelve of the latents here, the other twelve there."""
    both, rows = Distributed(), slice(12 * rank, 12 * rank + 12)
    return {name: learn(kind, both, rows, **more) for name, (kind, more) in CODEBOOKS.items()}


def run(out: Path, rank: int, *, hook=lambda batch, loss: loss, **more) -> dict[str, Any]:
    model = Model(rank, kind="vq")
    torch.manual_seed(rank)  # what dropout draws differs, as it should
    trainer = Trainer(
        model,
        {"cola": Objective(model, hook)},
        [PHASE],
        Clips(rank),
        out,
        TRAINING,
        "a: 1\n",
        **more,
    )
    result = trainer.run()
    return {
        "status": result.status,
        "step": result.step,
        "checkpoint": None if result.checkpoint is None else result.checkpoint.name,
        "message": result.message,
        "model": numbers(model),
    }


def skip(rank: int, out: Path) -> dict[str, Any]:
    """A loss that is not a number, in the second pass of step 3, on one process."""

    def poisoned(batch, loss):
        last = rank == 1 and batch.episode[0] == 6  # batch 0 went to before_phase
        return loss + float("nan") if last else loss  # its gradients are numbers

    return run(out / "run", rank, hook=poisoned)


def interrupt(rank: int, out: Path) -> dict[str, Any]:
    """One undisturbed run; one that a signal to one process ends at step 5, and that goes on."""

    def signalled(batch, loss):
        if rank == 1 and batch.episode[0] == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    found = {"whole": run(out / "whole", rank)}
    found["first"] = run(out / "run", rank, hook=signalled)
    dist.barrier()
    found["there"] = sorted(p.name for p in (out / "run" / "checkpoints").iterdir())
    dist.barrier()
    found["second"] = run(out / "run", rank, resume=True)
    try:
        run(out / "run", rank)
    except RunFolderError as error:
        found["again"] = str(error)
    return found


LAM = ("idm", "quantizer", "conditioner")
PHASES = (
    Phase("warmup", "cola", LAM, steps=2, learning_rate=1e-2, lr_warmup_steps=0),
    Phase("joint", "cola", (*LAM, "backbone"), steps=3, learning_rate=1e-2, lr_warmup_steps=0),
)


def world_model() -> WorldModel:
    """A tiny one of which no weight is zero, so that every path carries a gradient."""
    config = ModelConfig(
        backbone=STDiT3Config(depth=2, width=16, heads=2),
        idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=2),
        quantizer=VQConfig(codebook_size=8, reseed=False),
        conditioner=ConditionerConfig(depth=1, heads=2, dropout=0.3),
    )
    torch.manual_seed(0)
    model = WorldModel(config, parts=LAM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


class Slots:
    """Endless batches of four clips, shared as a loader shares them: row i is clip i * size + rank."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.position = rank, size, 0

    def __next__(self) -> ClipBatch:
        generator = torch.Generator().manual_seed(self.position)
        self.position += 1
        frames = torch.randint(0, 256, (4, 4, 3, 8, 8), generator=generator).to(torch.uint8)
        own = slice(self.rank, None, self.size)
        numbers = torch.arange(4)[own]
        return ClipBatch(frames[own], numbers, numbers)

    def state_dict(self):
        return {"position": self.position}

    def merge_states(self, states):
        return states[0]

    def load_state_dict(self, state):
        self.position = state["position"]


def generate(
    out: Path,
    rank: int = 0,
    size: int = 1,
    *,
    training=None,
    phases=PHASES,
    resume: bool = False,
    **parallel,
) -> dict[str, Any]:
    """Warm-up, then joint training of a world model, with a preview in each phase."""
    settings = dict(accumulate=2, ema_decay=0.5, clip_norm=0.5, health_every=1, sample_every=2)
    settings |= dict(checkpoint_every=100, tensorboard=False, seed=5)
    config = TrainingConfig(
        batch_size=4, parallel=ParallelConfig(**parallel), **settings | (training or {})
    )
    model, shown, pieces = world_model(), [], []
    preview = RolloutPreview(World(model, SamplerConfig(steps=1)), next(Slots(0, 1)).frames, seed=1)
    open_logs = RunFolder._open_logs

    def video(folder, name, frames, step) -> None:
        shown.append(frames.float().mean().item())
        pieces.append(sum(hasattr(p, "full_tensor") for p in model.backbone.parameters()))

    compiled = functools.partial(compile_blocks, backend="aot_eager")
    with (
        mock.patch("colaworld.training.blocks.compile_blocks", compiled),
        mock.patch.object(RunFolder, "_open_logs", lambda *call: bool(open_logs(*call)) or True),
        mock.patch.object(RunFolder, "video", video),
    ):
        objective = ColaObjective(model, ObjectiveConfig(start_clips=4))
        loader = Slots(rank, size)
        trainer = Trainer(
            model,
            {"cola": objective},
            phases,
            loader,
            out,
            config,
            "a: 1\n",
            preview=preview,
            resume=resume,
        )
        status = trainer.run().status
    own = [p for p in model.backbone.parameters() if hasattr(p, "full_tensor")]
    return {
        "status": status,
        "shown": shown,
        "sharded": len(own),
        "of": len(list(model.backbone.parameters())),
        "held": sum(p.to_local().numel() for p in own),
        "whole": sum(p.numel() for p in own),
        "flags": sorted({p.requires_grad for p in model.backbone.parameters()}),
    }


def sharded(rank: int, out: Path) -> dict[str, Any]:
    """In pieces, and on from there replicated."""
    shorter = (PHASES[0], dataclasses.replace(PHASES[1], steps=2))
    found = {"first": generate(out / "again", rank, 2, phases=shorter, shard="blocks")}
    dist.barrier()
    if rank == 0:
        for copy in ("alone", "blocks"):
            shutil.copytree(out / "again", out / copy)
    dist.barrier()
    found["again"] = generate(out / "again", rank, 2, resume=True, shard="no")
    try:
        generate(out / "full", rank, 2, training={"compile": "full"}, shard="blocks")
    except ConfigError as error:
        found["refused"] = str(error)
    return found


def pieces(rank: int, out: Path) -> dict[str, Any]:
    """What else may be asked of pieces."""
    half = {"autocast": "bf16", "recompute": "blocks"}
    return {
        "no": generate(out / "no", rank, 2, shard="no"),
        "replicas": generate(out / "replicas", rank, 2, shard="blocks", replicas=2),
        "kept": generate(out / "kept", rank, 2, shard="blocks", reshard=False),
        "half": generate(out / "half", rank, 2, training=half, shard="blocks"),
        "compiled": generate(
            out / "compiled", rank, 2, training={"compile": "blocks"}, shard="blocks"
        ),
    }


# -- two processes ---------------------------------------------------------------------------------


def process(rank: int, out: Path, case: Callable, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{out / 'meet'}", rank=rank, world_size=count
    )
    found = case(rank, out)
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def play(out: Path, case: Callable, count: int = 2) -> None:
    """Fork `count` processes and wait for them; none is left when one fails or the time is over."""
    out.mkdir()
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            try:
                process(rank, out, case, count)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    end, failed = time.monotonic() + SECONDS, False
    while children and not failed and time.monotonic() < end:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                failed = failed or status != 0
        time.sleep(0.02)
    for child in children:
        print(f"{case.__name__}: process {child} was still there", file=sys.stderr)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main() -> None:
    import rich.console  # noqa: F401
    import torch._dynamo  # the optimizer imports it; once here, not in every fork
    import torch.distributed.tensor  # noqa: F401

    out, *cases = sys.argv[1:]
    Path(out).mkdir(exist_ok=True)
    for case in cases:
        play(Path(out) / case, globals()[case])


if __name__ == "__main__":
    main()
