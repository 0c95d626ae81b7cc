"""What more than one op does with its arguments. Not here: checks of a single op (its own file)."""

from __future__ import annotations

from torch import Tensor


def check_beside(
    name: str, tensor: Tensor, shape: tuple[int, ...], leading_name: str, leading: Tensor
) -> None:
    """ValueError unless `tensor` has `shape` and stands on the device of the leading tensor."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != leading.device:
        raise ValueError(
            f"{name}: expected on {leading.device} as {leading_name} is, got {tensor.device}"
        )


def constants(*tables: Tensor) -> tuple[Tensor, ...]:
    """Tables that receive no gradient, whatever they ask for."""
    return tuple(table.detach() if table.requires_grad else table for table in tables)
