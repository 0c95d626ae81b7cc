"""The video generator in pieces, one on each process: FSDP2, block by block.

Each block's parameters are gathered before its forward and backward pass and given up behind them;
gradients arrive in pieces, averaged, and moments and averaged weights are kept in pieces. Forward sees
plain tensors. All else of the model is replicated. Not here: how many processes there are and what
they agree on (distributed.py), what a checkpoint holds of a piece (checkpoint.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from colaworld.config import ConfigError
from colaworld.training.blocks import blocks
from colaworld.training.config import ParallelConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SHARDED = "backbone"  # the part that is worth it
_LARGE = 500_000_000  # parameters from which "auto" shards: 8 GB of weights, gradients and moments


def wants_shards(model: nn.Module, parallel: ParallelConfig, kind: str) -> bool:
    """Whether several processes on devices of a `kind` (cpu, cuda) keep the generator of `model` in pieces.

    Raises ConfigError where it was asked for and there are no blocks.
    """
    part = getattr(model, SHARDED, None)
    found = part is not None and bool(getattr(part, "block_lists", ()))
    if parallel.shard == "blocks" and not found:
        raise ConfigError(
            f"training.parallel.shard: blocks, but {type(model).__name__} has no {SHARDED} that names its "
            "module lists of blocks in `block_lists`; use no"
        )
    if parallel.shard != "auto":
        return parallel.shard == "blocks"
    if part is None or not found or kind == "cpu":
        return False
    return sum(p.numel() for p in part.parameters()) >= _LARGE


def shard_generator(
    model: nn.Module, mesh: DeviceMesh, parallel: ParallelConfig, *, bf16: bool
) -> None:
    """Split the generator of `model` over `mesh`, in place; its tensors go to the mesh's device.

    Args:
        model: its blocks may be compiled and recomputed, before or after this.
        mesh: one dimension, or (replicas, shards).
        parallel: what of FSDP2 is used.
        bf16: passes are in bfloat16: blocks are gathered so. Their pieces, and the few parameters
            outside of blocks, stay in float32; gradients are summed in it.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # Blocks return views; nothing changes them in place, which is what it warns of at each first use.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    part = getattr(model, SHARDED)
    half = torch.bfloat16 if bf16 else None
    # Inputs are left as they are: diffusion times do not survive bfloat16.
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    offload = (
        CPUOffloadPolicy() if parallel.offload and mesh.device_type != "cpu" else OffloadPolicy()
    )
    for name, block in blocks(model).items():
        if name.startswith(f"{SHARDED}."):
            fully_shard(
                block,
                mesh=mesh,
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=parallel.reshard,
            )
    outside = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
    # Given up behind forward too: behind a preview there is no backward pass to do it.
    fully_shard(
        part, mesh=mesh, mp_policy=outside, offload_policy=offload, reshard_after_forward=True
    )
    if type(part).forward is nn.Module.forward:  # its method is not a way to a forward pass
        register_fsdp_forward_method(part, "velocity")


def require_gradients(part: nn.Module, trains: bool) -> None:
    """Thaw or freeze a part, also where it is in pieces: then by all processes, since FSDP2 keeps
    gathered parameters whose flag it reads once."""
    changes = any(p.requires_grad != trains for p in part.parameters())
    part.requires_grad_(trains)
    if not changes:
        return
    for module in _sharded_modules(part):
        module.unshard()
        module.requires_grad_(trains)
        module.reshard()


def give_up(model: nn.Module) -> None:
    """Give up what a forward pass without a backward pass has left gathered."""
    for module in _sharded_modules(model):
        module.reshard()


def _sharded_modules(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "set_reshard_after_forward")]


def is_sharded(value: Any) -> bool:
    """Whether a tensor is in pieces."""
    return hasattr(value, "full_tensor")  # a DTensor, whose import takes seconds


def own_pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each, as plain tensors that share its memory."""
    pieces: list[Tensor] = []
    for tensor in tensors:
        whole: Any = tensor
        pieces.append(whole.to_local() if is_sharded(whole) else tensor)
    return pieces


@torch.no_grad()
def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """2-norm of all tensors together, equal on every process; collective where some are in pieces."""
    whole: list[Tensor] = []
    sharded: list[Any] = []
    for tensor in tensors:
        (sharded if is_sharded(tensor) else whole).append(tensor)
    norm = torch.nn.utils.get_total_norm(whole)
    if not sharded:
        return norm
    first = sharded[0]
    squared = torch.nn.utils.get_total_norm(own_pieces(sharded)).float().square()
    squared = squared.to(first.device_mesh.device_type)
    for dimension, placement in enumerate(first.placements):
        if placement.is_shard():
            torch.distributed.all_reduce(squared, group=first.device_mesh.get_group(dimension))
    return (norm.to(squared).square() + squared).sqrt()


@torch.no_grad()
def scale_to(tensors: Iterable[Tensor], limit: float, norm: Tensor) -> None:
    """Scale tensors whose `total_norm` is `norm` so that it is at most `limit`."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    by_device: dict[torch.device, list[Tensor]] = {}
    for piece in own_pieces(tensors):
        by_device.setdefault(piece.device, []).append(piece)
    for device, pieces in by_device.items():
        torch._foreach_mul_(pieces, factor.to(device))
