"""Alone, the seam for several processes changes nothing; two processes really add up."""

from __future__ import annotations

import multiprocessing

import torch

from colaworld.training import parallel


def test_alone_it_does_nothing():
    value = torch.tensor([1.0, 2.0])
    assert (parallel.rank(), parallel.world_size(), parallel.active()) == (0, 1, False)
    assert torch.equal(parallel.all_reduce_sum(value), torch.tensor([1.0, 2.0]))
    assert parallel.all_gather_rows(value) is value


def _process(rank, file, results):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    total = parallel.all_reduce_sum(torch.tensor([rank + 1]))
    rows = parallel.all_gather_rows(torch.tensor([[rank, 10 * rank]]))
    results.put((parallel.rank(), parallel.world_size(), total.tolist(), rows.tolist()))
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, tmp_path / "meet", results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    got = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert got == [(0, 2, [3], [[0, 0], [1, 10]]), (1, 2, [3], [[0, 0], [1, 10]])]
