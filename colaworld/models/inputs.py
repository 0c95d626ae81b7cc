"""What a `World` is given, looked at in one place: frames, codes, entries of the codebook.

A refusal is a ValueError that names the argument, what was expected and what came. Values are read, so
a call waits for the device: this is for what people call (world.py, rollout.py), not for training.
"""

from __future__ import annotations

import logging
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from colaworld.contracts import to_float

if TYPE_CHECKING:
    from colaworld.action_contract import ActionContract
    from colaworld.models.adapters import AdapterConfig

log = logging.getLogger(__name__)

# Decoders and filters overshoot [0, 1] a little; another scale (0 .. 255, -1 .. 1) goes far beyond.
_LOWEST, _HIGHEST = -0.5, 1.5


def checked_frames(frames: Any, argument: str, *, size: tuple[int, int] | None = None) -> Tensor:
    """Frames [B, T, 3, H, W] as floats in [0, 1]; uint8 ones are scaled.

    `size` is the height and width they must have, None: any. Raises ValueError on anything else.
    """
    wanted = f"{argument}: expected frames [B, T, 3, H, W], floating-point in [0, 1] or uint8"
    if not isinstance(frames, Tensor) or not _dense(frames):
        raise ValueError(f"{wanted}, as a tensor, got {_what(frames)}")
    if frames.ndim != 5 or frames.shape[2] != 3 or not frames.numel():
        hint = ""
        if frames.ndim == 4:
            hint = "; add a batch dimension: frames[None]"
        elif frames.ndim == 5 and frames.shape[-1] == 3:
            hint = "; channels come before height and width: frames.movedim(-1, 2)"
        raise ValueError(f"{wanted}, got {_what(frames)}{hint}")
    if frames.dtype != torch.uint8 and not _is_float(frames):
        raise ValueError(f"{wanted}, got {_what(frames)}")
    height, width = frames.shape[-2:]
    if size not in (None, (height, width)):
        raise ValueError(
            f"{argument}: expected frames of {size[0]}x{size[1]} px (height x width), which this world "
            f"was trained on, got {height}x{width}; resize them, or say otherwise: "
            "dataclasses.replace(world, frame_size=None)"
        )
    if frames.dtype == torch.uint8:
        return to_float(frames)
    low, high = torch.stack(frames.aminmax()).tolist()
    if not (low >= _LOWEST and high <= _HIGHEST):  # not a number is neither
        raise ValueError(
            f"{argument}: expected frames in [0, 1], got values from {low:g} to {high:g}; divide those of "
            "0 .. 255 by 255, or give uint8"
        )
    return frames


def check_codes(
    codes: Any,
    argument: str,
    shape: tuple[int | str, ...],
    *,
    values: bool = True,
    what: str = "codes",
) -> None:
    """ValueError unless `codes` are floating-point, of this shape, and finite.

    A string in `shape` names a dimension of any length. `values=False` does not read them.
    """
    wanted = f"{argument}: expected {what} [{', '.join(map(str, shape))}]"
    fits = isinstance(codes, Tensor) and _dense(codes) and codes.ndim == len(shape)
    if not fits or any(
        isinstance(n, int) and n != m for n, m in zip(shape, codes.shape, strict=True)
    ):
        raise ValueError(f"{wanted}, got {_what(codes)}")
    if not _is_float(codes):
        hint = "; world.lookup(indices) gives the codes of entries" if what == "codes" else ""
        raise ValueError(f"{wanted}, got {_what(codes)}{hint}")
    if values and not codes.isfinite().all():
        raise ValueError(f"{wanted}, got some that are not finite")


def checked_indices(indices: Any, *, tokens: int, size: int | None, values: bool = True) -> Tensor:
    """Entries of the codebook [.., tokens], as int64. Raises ValueError on what none is.

    `values=False` does not read them, which would wait for the device.
    """
    if size is None:
        raise ValueError(
            "lookup: these latent actions are continuous: they have no entries to look up, their codes "
            "are used as they are"
        )
    wanted = f"lookup: expected indices 0 .. {size - 1}, integers [.., {tokens}]"
    if not isinstance(indices, Tensor) or not _dense(indices):
        raise ValueError(f"{wanted}, as a tensor, got {_what(indices)}; torch.as_tensor makes one")
    whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
    if not whole or not indices.ndim or indices.shape[-1] != tokens:
        raise ValueError(f"{wanted}, got {_what(indices)}")
    if values and indices.numel():
        low, high = _ends(indices)
        if low < 0 or high >= size:
            raise ValueError(f"{wanted}, got {low if low < 0 else high}")
    return indices.long()


def checked_actions(
    actions: Any, argument: str, known: AdapterConfig, contract: ActionContract | None
) -> Tensor:
    """Real actions as an adapter takes them: int64 [B, T - 1] classes or float32 [B, T - 1, A].

    Raises ValueError on another shape or dtype, classes that do not exist and values that are not
    finite; warns of values that lie outside those recorded by more than a tenth of their range.
    """
    names = contract.names if contract is not None else ()
    listed = f" ({', '.join(names)})" if names else ""
    if known.discrete:
        wanted = f"{argument}: expected classes 0 .. {known.size - 1}{listed}, integers [B, T - 1]"
        fits = isinstance(actions, Tensor) and _dense(actions) and actions.ndim == 2
        if not fits or _is_float(actions) or actions.dtype == torch.bool or actions.is_complex():
            raise ValueError(f"{wanted}, got {_what(actions)}")
        if actions.numel():
            low, high = _ends(actions)
            if low < 0 or high >= known.size:
                raise ValueError(f"{wanted}, got {low if low < 0 else high}")
        return actions.long()
    check_codes(actions, argument, ("B", "T - 1", known.size), what=f"actions{listed}")
    if not actions.float().isfinite().all():
        raise ValueError(f"{argument}: expected actions{listed} within float32, got larger ones")
    if contract is not None and contract.normaliser.low and actions.numel():
        _warn_of_range(actions, argument, contract)
    return actions.float()


def check_contract_fits(known: AdapterConfig, contract: ActionContract) -> None:
    """ValueError where real actions of `contract` are none that an adapter takes."""
    there, here = (
        f"{size} {'classes' if discrete else 'numbers of a transition'}"
        for size, discrete in (
            (known.size, known.discrete),
            (contract.size, contract.kind == "discrete"),
        )
    )
    if here != there:
        raise ValueError(
            f"World: actions: expected a contract of {there}, which its adapter takes, got one of {here}"
        )


def _warn_of_range(actions: Tensor, argument: str, contract: ActionContract) -> None:
    copies = actions.shape[-1] // contract.size
    values = actions.detach().float().cpu().unflatten(-1, (copies, contract.size)).flatten(0, -2)
    low, high = (torch.tensor(getattr(contract.normaliser, end)) for end in ("low", "high"))
    slack = 0.1 * (high - low) + 1e-6
    outside = (values.amin(0) < low - slack) | (values.amax(0) > high + slack)
    for at in outside.nonzero().flatten().tolist():
        name = contract.names[at] if contract.names else f"channel {at}"
        log.warning(
            "%s: %s: values from %g to %g, recorded were %g to %g; are the units the same?",
            *(argument, name, values[:, at].min(), values[:, at].max(), low[at], high[at]),
        )


def check_generator(generator: Any, argument: str, device: torch.device) -> None:
    """ValueError unless noise can be drawn from it, and drawn again."""
    if not isinstance(generator, torch.Generator) or generator.device.type != device.type:
        where = f" on {generator.device}" if isinstance(generator, torch.Generator) else ""
        raise ValueError(
            f"{argument}: expected a torch.Generator on {device.type}, got "
            f"{type(generator).__name__}{where}"
        )


def check_count(value: Any, argument: str, least: int = 1) -> None:
    """ValueError unless it is a whole number from `least` on."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument}: expected a whole number >= {least}, got {value!r:.60}")


def check_flag(value: Any, argument: str) -> None:
    """ValueError unless it is True or False: any text, "False" too, would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument}: expected True or False, got {value!r:.60}")


def _ends(integers: Tensor) -> tuple[int, int]:
    """The smallest and the largest; torch knows no order of unsigned ones beyond 8 bits."""
    if not integers.dtype.is_signed and integers.dtype != torch.uint8:
        values = integers.cpu().numpy()
        return int(values.min()), int(values.max())
    low, high = torch.stack(integers.aminmax()).tolist()
    return low, high


def _dense(value: Tensor) -> bool:
    """Whether there are values to read: not so on the meta device, or in a sparse tensor."""
    return value.layout is torch.strided and not (value.is_meta or value.is_nested)


def _is_float(value: Tensor) -> bool:
    """Whether torch computes with it: it only stores numbers of 8 bits."""
    return value.is_floating_point() and value.element_size() > 1


def _what(value: Any) -> str:
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor):
        kind = "" if _dense(value) else "meta " if value.is_meta else "sparse "
        return kind + f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
    return "None" if value is None else type(value).__name__
