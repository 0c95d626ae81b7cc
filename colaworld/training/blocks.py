"""Blocks of a model: recomputed in the backward pass, or compiled one by one.

A block is an entry of a module list that a part of the model names in its `block_lists`: those of the
generator, the IDM, the conditioner, the forward model. Names in checkpoints do
not change, since only the blocks' `forward` is replaced. Not here: which parts are worth compiling whole
(`WorldModel.compile_parts`), or anything inside a block (models).

    none      forward keeps what every layer of every block needs for its gradient
    blocks    forward keeps the inputs of the blocks; backward runs each block again before it
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from colaworld.training.config import TrainingConfig


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of all parts of `model`, by name."""
    found = {}
    for part_name, part in model.named_children():
        for list_name in getattr(part, "block_lists", ()):
            for index, block in enumerate(getattr(part, list_name)):
                found[f"{part_name}.{list_name}.{index}"] = block
    return found


def recompute_blocks(model: nn.Module) -> int:
    """Keep only the inputs of each block for the backward pass. Returns how many blocks.

    Gradients are the same bits. A block must not draw random numbers or change state; ours do
    neither. Without gradients nothing changes. Raises ValueError where there is nothing to do.
    """
    return _replace(
        model, lambda forward: functools.partial(_recomputed, forward), what="recompute"
    )


def compile_blocks(model: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> int:
    """torch.compile each block as a full graph of fixed shapes. Returns how many blocks.

    Blocks of one kind and shape share one graph, so that 28 cost the compilation of one. Calls
    without gradients (previews, inferred actions) run as they are: their shapes change all the
    time. To recompute as well, call `recompute_blocks` afterwards.
    """

    def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
        graph = torch.compile(forward, fullgraph=True, dynamic=False, backend=backend)
        return functools.partial(_compiled, graph, forward)

    return _replace(model, compiled, what="compile")


def wrap_blocks(model: nn.Module, training: TrainingConfig) -> None:
    """Compile and recompute in place, as `training` says, so that names in checkpoints do not change.

    For "full" a model says by `compile_parts()` what is worth compiling; without one every part
    is, which torch refuses for a part that is a bare layer of its own (a Linear, say).
    """
    if training.compile == "blocks":
        compile_blocks(model)
    if training.recompute == "blocks":
        recompute_blocks(model)
    if training.compile != "full":
        return
    compile_parts: Any = getattr(model, "compile_parts", None)
    if compile_parts is not None:
        compile_parts()
        return
    for child in model.children():
        child.compile(fullgraph=True)


def _replace(
    model: nn.Module, made_of: Callable[[Callable[..., Any]], Callable[..., Any]], *, what: str
) -> int:
    found = blocks(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__}: nothing to {what}: expected parts that name their "
            "module lists of blocks in `block_lists`, found none"
        )
    for block in found.values():
        block.forward = made_of(block.forward)
    return len(found)


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    # Nothing random happens inside, so no state of a generator has to be kept and set back.
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)


def _compiled(
    graph: Callable[..., Any], forward: Callable[..., Any], *inputs: Any, **options: Any
) -> Any:
    return (graph if torch.is_grad_enabled() else forward)(*inputs, **options)
