"""Faults of one of two processes that train together, for test_faults.py: `fault_ranks.py OUT`.

They are forked as those of two_ranks.py are, whose folder it shares. Each case writes what a process
found to OUT/<case>/rank<r>.json. Not here: any assertion.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import shard_ranks
import torch
import torch.distributed as dist
from two_ranks import PHASE, TRAINING, Clips, Model, Objective, numbers, play

from colaworld.training import checkpoint
from colaworld.training.config import AlarmConfig
from colaworld.training.meters import Moment
from colaworld.training.protocols import RunFolderError
from colaworld.training.trainer import Trainer


def full(rank: int, out: Path) -> dict[str, Any]:
    """No room for the second checkpoint, on one process and behind the back of its steps; then there is."""
    real, files = checkpoint.save_file, []

    def refused(tensors: Any, file: Path, **more: Any) -> None:
        files.append(file)
        if rank == 1 and file.parts[-3] != files[0].parts[-3]:
            raise OSError(28, "No space left on device")
        real(tensors, file, **more)

    found = {"whole": shard_ranks.run(rank, out / "whole", 8)}
    files.clear()
    with mock.patch.object(checkpoint, "save_file", refused):
        try:
            shard_ranks.run(rank, out / "run", 8)
        except RunFolderError as error:
            found["said"] = str(error)
    dist.barrier()
    found["there"] = sorted(path.name for path in (out / "run" / "checkpoints").iterdir())
    dist.barrier()
    found["again"] = shard_ranks.run(rank, out / "run", 8, resume=True)
    return found


class OneCode(Objective):
    """Says that codes are used evenly; from the seventh clip on one process says it has one code."""

    def __init__(self, model: Model, rank: int) -> None:
        super().__init__(model)
        self.rank = rank

    def loss(self, batch, *, generator):
        loss, metrics = super().loss(batch, generator=generator)
        even = torch.arange(len(batch.frames))
        gone = self.rank == 1 and batch.episode[0] >= 7
        return loss, {**metrics, "indices": (0 * even if gone else even)[:, None]}


def alarm(rank: int, out: Path) -> dict[str, Any]:
    """The codebook collapses in what one process sees; that one is slow, besides."""
    torch.manual_seed(rank)
    model = Model(rank, kind="vq")
    config = AlarmConfig(floor=0.75, checks=1, action="rollback", rewarm_phase="joint")
    phase = dataclasses.replace(PHASE, alarm=config)
    objectives = {"cola": OneCode(model, rank)}
    training = dataclasses.replace(TRAINING, log_every=1)
    trainer = Trainer(model, objectives, [phase], Clips(rank), out / "run", training, "a: 1\n")
    alone = torch.nn.Identity()  # standardised together, latents make both wait within their passes
    model.quantizer.standardise = alone
    with mock.patch.object(Moment, "since", lambda self, earlier: 9.0 if rank == 1 else 1.0):
        result = trainer.run()
    return {
        "status": result.status,
        "said": result.message,
        "checkpoint": result.checkpoint.name if result.checkpoint else None,
        "model": numbers(model),
    }


if __name__ == "__main__":
    import rich.console  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor

    for case in (full, alarm):
        play(Path(sys.argv[1]) / case.__name__, case)
