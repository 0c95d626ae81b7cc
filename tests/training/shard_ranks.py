"""Processes that save and load sharded checkpoints, for test_shard_files.py: `shard_ranks.py OUT`.

They are forked as those of two_ranks.py are, whose folder it shares. Each case writes what a process
found to OUT/<case>/rank<r>.json. Not here: any assertion.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from two_ranks import PHASE, TRAINING, Clips, Model, Objective, play

from colaworld.training import checkpoint
from colaworld.training.config import TrainingConfig
from colaworld.training.distributed import Distributed, whole_tensor
from colaworld.training.protocols import RunFolderError
from colaworld.training.run_folder import RunFolder
from colaworld.training.sharding import is_sharded
from colaworld.training.trainer import Trainer

DIMENSIONS = {"rows": 0, "columns": 1, "few": 0, "half": 0, "flags": 0, "longer": 0}


def whole() -> dict[str, torch.Tensor]:
    """What the processes hold together: odd sizes, several types, some of it not sharded."""
    generator = torch.Generator().manual_seed(1)
    return {
        "rows": torch.randn(5, 3, generator=generator),
        "columns": torch.randn(2, 7, generator=generator),
        "few": torch.randn(1, 4, generator=generator),  # some processes have none of it
        "half": torch.randn(6, generator=generator).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "longer": torch.arange(9).view(9, 1, 1),
        "step": torch.tensor(3.0),
        "count": torch.tensor([1, 2]),
    }


def sharded(values: dict[str, torch.Tensor], processes: Distributed) -> dict[str, torch.Tensor]:
    return {
        name: distribute_tensor(value, processes.mesh, [Shard(DIMENSIONS[name])])
        if name in DIMENSIONS
        else value.clone()
        for name, value in values.items()
    }


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, bool]:
    """Whether this process's parts are equal, bit for bit."""

    def equal(a, b) -> bool:
        if isinstance(a, DTensor) != isinstance(b, DTensor) or a.shape != b.shape:
            return False
        a, b = (t.to_local() if isinstance(t, DTensor) else t for t in (a, b))
        return a.dtype == b.dtype and torch.equal(a, b)

    return {name: name in found and equal(found[name], value) for name, value in wanted.items()}


def save(rank: int, out: Path) -> dict[str, Any]:
    """Sharded tensors into a checkpoint; which files, also of what is replicated."""
    processes = Distributed()
    one = {"model": sharded(whole(), processes), "rng": {"cpu": torch.arange(3)}}
    files, headers = checkpoint.own_files(one, rank)
    state = {"progress": {"global_step": 1}}
    path = out / "step_0_0000001"
    checkpoint.write_checkpoint(path, files, state, headers=headers, processes=processes)
    copies = distribute_tensor(torch.ones(4), processes.mesh, [Replicate()])
    files, headers = checkpoint.own_files({"model": {"copies": copies}}, rank)
    return {"files": sorted(files), "copies": [sorted(values) for values in files.values()]}


def load(rank: int, out: Path) -> dict[str, Any]:
    """What two processes wrote, and what one wrote, into as many as there are."""
    processes, found = Distributed(), {}
    wanted = sharded(whole(), processes)
    zeros = {name: torch.zeros_like(value) for name, value in wanted.items()}
    for name in ("save/step_0_0000001", "alone/step_0_0000001"):
        path = out.parent / name
        read = checkpoint.latest_checkpoint(path.parent, processes=processes)
        found[name] = same(read.tensors("model", zeros.get), wanted)
    reader = HuggingFaceStorageReader(str(out.parent / "save" / "step_0_0000001" / "model"))
    dcp.load(zeros, storage_reader=reader)
    return {**found, "dcp": same(zeros, wanted)}


def load4(rank: int, out: Path) -> dict[str, Any]:
    """The same in four, and what is sharded over two and replicated over two."""
    processes = Distributed()
    mesh = dist.init_device_mesh("cpu", (2, 2))
    rows = whole()["rows"]
    tensors = {"model": {"rows": distribute_tensor(rows, mesh, [Replicate(), Shard(0)])}}
    files, headers = checkpoint.own_files(tensors, rank)
    state = {"progress": {"global_step": 1}}
    path = out / "step_0_0000001"
    written = checkpoint.write_checkpoint(path, files, state, headers=headers, processes=processes)
    parts = {file: [list(v.shape) for v in values.values()] for file, values in files.items()}
    whole_again = torch.equal(written.tensors("model")["rows"], rows)
    return {**load(rank, out), "parts": parts, "replicated": whole_again}


def faults(rank: int, out: Path) -> dict[str, Any]:
    """A write that fails on one process; shards that are damaged; an error before a load."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("colaworld").addHandler(handler)
    processes, found = Distributed(), {}
    tensors = {"model": sharded(whole(), processes)}
    training = TrainingConfig(tensorboard=False)

    def opened() -> RunFolder:
        folder = RunFolder(out / "run", processes)
        latest = folder.take("", resume=True)
        found.setdefault("taken", []).append(None if latest is None else latest.path.name)
        folder.write_config("a: 1")
        folder.open_logs(training, after=0, total=1)
        return folder

    def save(step: int) -> None:
        if rank == 0:
            folder._jsonl.row({"global_step": step})
        state = {"progress": {"global_step": step}, "healthy": True, "config": ""}
        name = f"step_0_{step:07d}"
        folder.save(name, tensors, state, keep=2, background=True)
        folder.wait()

    def said(call) -> str:
        try:
            call()
        except RunFolderError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    folder = opened()
    save(1)
    real = checkpoint.save_file

    def refused(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    if rank == 1:
        checkpoint.save_file = refused
    found["refused"] = said(lambda: save(2))
    checkpoint.save_file = real
    found["left"] = folder.healthy().path.name
    processes.barrier()
    found["there"] = sorted(p.name for p in (out / "run" / "checkpoints").iterdir())
    processes.barrier()
    save(3)
    save(4)
    shard = out / "run" / "checkpoints" / "step_0_0000004" / "model" / "rank_0001.safetensors"
    for damage in ("flipped", "short", "missing"):
        folder.close()
        if rank == 0:
            data = bytearray(shard.read_bytes()) if shard.exists() else bytearray(1)
            data[-1] ^= 1
            shard.write_bytes(data[:-1] if damage == "short" else data)
            if damage == "missing":
                shard.unlink()
        processes.barrier()
        folder = opened()
    found["warned"] = [text for text in records if "ignored" in text]
    found["weights"] = same(
        folder.healthy().tensors("model", tensors["model"].get), tensors["model"]
    )

    def fails() -> None:
        if rank == 1:
            raise KeyError("its state")

    found["each"] = said(lambda: processes.on_each(fails)) if rank == 0 else None
    if rank == 1:
        try:
            processes.on_each(fails)
        except KeyError as error:
            found["each"] = repr(error)
    folder.close()
    return found


class AnyClips(Clips):
    """Goes on from the start where the state is of fewer processes."""

    def load_state_dict(self, state):
        self.position = state.get(str(self.rank), 0)


def run(rank: int, out: Path, steps: int, *, pieces: bool = True, resume: bool = False):
    """A run of the model of two_ranks.py, whose backbone is in pieces; what it ends with."""
    model = Model(rank, kind="vq")
    torch.manual_seed(rank)
    training = dataclasses.replace(TRAINING, max_steps=steps)
    objectives = {"cola": Objective(model)}
    clips = AnyClips(rank)
    trainer = Trainer(model, objectives, [PHASE], clips, out, training, "a: 1\n", resume=resume)
    if pieces:
        fully_shard(model.backbone, mesh=trainer.distributed.mesh)
    result, state = trainer.run(), model.state_dict()
    return {
        "said": f"{result.status}: {result.message}",
        "sharded": sorted(name for name, value in state.items() if is_sharded(value)),
        "model": {name: whole_tensor(value).tolist() for name, value in state.items()},
    }


def one(rank: int, out: Path) -> dict[str, Any]:
    return {"run": run(rank, out.parent / "of_one", 3, pieces=False)}


def two(rank: int, out: Path) -> dict[str, Any]:
    """Undisturbed; ended after five steps and resumed; and what one process left."""
    return {
        "whole": run(rank, out.parent / "whole", 8),
        "first": run(rank, out.parent / "of_two", 5),
        "second": run(rank, out.parent / "of_two", 8, resume=True),
        "of_one": run(rank, out.parent / "of_one", 3, resume=True),
    }


def killed(rank: int, out: Path) -> dict[str, Any]:
    """One process dies while it writes its part of the second checkpoint."""
    real, files = checkpoint.save_file, []

    def dies(tensors: Any, file: Path, **more: Any) -> None:
        files.append(file.parts[-3])
        if files[-1] != files[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        real(tensors, file, **more)

    if rank == 1:
        checkpoint.save_file = dies
    return run(rank, out.parent / "killed", 8)


def again(rank: int, out: Path) -> dict[str, Any]:
    there = sorted(path.name for path in (out.parent / "killed" / "checkpoints").iterdir())
    Distributed().barrier()
    return {"there": there, **run(rank, out.parent / "killed", 8, resume=True)}


def four(rank: int, out: Path) -> dict[str, Any]:
    return {
        "of_two": run(rank, out.parent / "of_two", 8, resume=True),
        "copies": run(rank, out.parent / "of_two", 8, pieces=False, resume=True),
    }


def main() -> None:
    import rich.console  # noqa: F401
    import torch._dynamo  # noqa: F401 (once here, not in every fork)

    out = Path(sys.argv[1])
    state = {"progress": {"global_step": 1}}
    checkpoint.write_checkpoint(out / "alone" / "step_0_0000001", {"model": whole()}, state)
    play(out / "save", save)
    play(out / "load2", load)
    play(out / "load4", load4, 4)
    play(out / "faults", faults)
    play(out / "one", one, 1)
    play(out / "two", two)
    play(out / "four", four, 4)
    play(out / "dies", killed)
    play(out / "again", again)


if __name__ == "__main__":
    main()
