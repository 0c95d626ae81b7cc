"""The same runs by several processes, for test_equality.py: `equal_runs.py OUT CONFIG...`.

Each CONFIG is a YAML of a run. OUT/<name>-<processes>/ is its run folder by 1, 2 and 4 processes forked from
this script; 2 sharded: the video model in pieces. A run named cola is also stopped in the middle of its second
phase on 2 processes and goes on on 1 and on 4. Not here: any assertion.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from colaworld.config import load_yaml
from colaworld.runs.build import build_trainer
from colaworld.runs.config import RunConfig
from colaworld.training.config import ParallelConfig


def train(config: RunConfig, out: Path, *, resume: bool = False) -> None:
    torch.manual_seed(0)
    result = build_trainer(config, out=out, resume=resume).run()
    assert result.status == "finished", result.message


def by(count: int, config: RunConfig, out: Path, *, resume: bool = False) -> None:
    """Fork `count` processes that train; raise where one fails."""
    if count == 1:
        train(config, out, resume=resume)
        return
    meet, children = out.with_suffix(f".meet{resume}"), []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            try:
                where = f"file://{meet}"
                dist.init_process_group("gloo", init_method=where, rank=rank, world_size=count)
                train(config, out, resume=resume)
                dist.barrier()
                dist.destroy_process_group()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes


def main() -> None:
    import rich.console  # noqa: F401
    import torch._dynamo  # the optimizer imports it; once here, not in every fork
    import torch.distributed.tensor

    torch.set_num_threads(1)
    out, *files = map(Path, sys.argv[1:])
    for file in files:
        config = load_yaml(file, RunConfig)
        for count in (4, 2):
            by(count, config, out / f"{file.stem}-{count}")
        if file.stem == "cola":
            training = replace(config.training, parallel=ParallelConfig(shard="blocks"))
            by(2, replace(config, training=training), out / "cola-2-sharded")
            phases = dict(config.phases)
            phases["joint"] = replace(phases["joint"], steps=2)
            by(2, replace(config, phases=phases), out / "half")
            for count in (4, 1):
                shutil.copytree(out / "half", out / f"half-{count}")
                by(count, config, out / f"half-{count}", resume=True)
        by(1, config, out / f"{file.stem}-1")  # last: threads that it starts must not be forked
        cut = replace(config.training, batch_size=4, accumulate=2 * config.training.accumulate)
        by(1, replace(config, training=cut), out / f"{file.stem}-cut")


if __name__ == "__main__":
    main()
