"""`update_codebook`: running means of what a codebook's entries saw become the codebook, in place.

The public function and its checks, and what the compiler must know of the op. The meaning is in
`reference.py`, the kernel in `kernels/vector_quantize.py`. It is K x d work beside the N x K x d of a
search, so a launch is what it costs: Triton has it in one, PyTorch in about ten.
Not here: the sums and counts (`code_statistics.py`), re-seeding (the quantizer modules).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from colaworld.ops import _dispatch, _triton, reference
from colaworld.ops._checks import check_beside
from colaworld.ops.code_statistics import triton_refuses

_TWIN = "colaworld::update_codebook_triton"


def _launch(
    codebook: Tensor, count: Tensor, total: Tensor, packed: Tensor, decay: float, eps: float
) -> None:
    from colaworld.kernels import vector_quantize as kernels

    kernels.update(codebook, count, total, packed, decay=decay, eps=eps)
    torch.autograd.graph.increment_version((codebook, count, total))  # a kernel tells nobody


def _define() -> Any:
    """The op by Triton. It writes to its arguments and has no gradient, so `_registry.Op` is not for it."""
    if not _triton.INSTALLED:
        return None
    torch.library.define(
        _TWIN,
        "(Tensor(a!) codebook, Tensor(b!) count, Tensor(c!) total, Tensor packed, float decay, "
        "float eps) -> ()",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    torch.library.register_fake(_TWIN, lambda *_: None)
    torch.library.impl(_TWIN, _triton.DEVICES, _launch)
    return torch.ops.colaworld.update_codebook_triton.default


def _on(device: str):
    """The predicate of plain PyTorch under the name of the device whose kernels it calls."""
    return lambda facts: None if facts.device == device else f"the tensors are on {facts.device}"


_dispatch.register(
    "update_codebook",
    (
        _dispatch.Implementation("triton", _define(), triton_refuses),
        # What there is beside Triton, so that forcing "cuda" or "cpu" means all ops of a quantizer.
        _dispatch.Implementation("cuda", reference.update_codebook, _on("cuda")),
        _dispatch.Implementation("cpu", reference.update_codebook, _on("cpu")),
        _dispatch.Implementation("reference", reference.update_codebook, _dispatch.always),
    ),
    example=(4, 32),
)


@torch.no_grad()
def update_codebook(
    codebook: Tensor,
    count: Tensor,
    total: Tensor,
    packed: Tensor,
    *,
    decay: float,
    eps: float = 1e-5,
) -> None:
    """Running means of the latents become the codebook, **in place** (all three tensors).

        count <- decay count + (1 - decay) counts        total <- decay total + (1 - decay) sums
        codebook = total / smoothed count

    Laplace smoothing moves the counts towards each other by `eps`, keeping their sum, so that an
    entry without rows does not divide by zero. Everything read is `packed` and the running state:
    processes that hold equal states and reduced the same `packed` end with equal codebooks.

    Args:
        codebook: [K, d] entries, overwritten; any strides, as the others.
        count: [K] running counts, updated.
        total: [K, d] running sums, updated.
        packed: [K, d + 1] from `code_statistics`, summed over processes and forward passes.
        decay: part of the running statistics that stays, in [0, 1].
        eps: added to each count.

    Raises:
        ValueError: an argument of a wrong shape, dtype, device or value; a forced implementation refuses.

    Source: van den Oord et al. 2017, appendix A.1; smoothing as in their published code.
    """
    if codebook.ndim != 2:
        raise ValueError(f"codebook: expected [K, d], got {list(codebook.shape)}")
    K, d = codebook.shape
    check_beside("count", count, (K,), "codebook", codebook)
    check_beside("total", total, (K, d), "codebook", codebook)
    check_beside("packed", packed, (K, d + 1), "codebook", codebook)
    tensors = {"codebook": codebook, "count": count, "total": total, "packed": packed}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected in [0, 1], got {decay}")
    if not eps > 0:
        raise ValueError(f"eps: expected > 0, got {eps}")
    _dispatch.select("update_codebook", codebook)(codebook, count, total, packed, decay, eps)
