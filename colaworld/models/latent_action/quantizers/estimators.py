"""How a gradient passes a choice: the value of the codes, the gradient for the latents.

Both are exact in value: an action looked up by its index equals the inferred one to the last bit,
which z + (codes - z) would not. Not here: losses and codebooks.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 1e-6  # a norm below this has no direction in float32


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """The value of `codes` with the gradient of `z`, all [..., d].

    Source: van den Oord et al. 2017, section 3.2.
    """
    return codes.detach() + (z - z.detach())


def rotation(z: Tensor, codes: Tensor) -> Tensor:
    """The value of `codes`; the gradient goes to `z` turned and scaled as z is to become codes.

    With e = z/|z|, q = codes/|codes| and r = (e + q)/|e + q| the codes are the image of z under

        |codes|/|z| (I - 2 r r' + 2 q e')

    which counts as a constant: the gradient is multiplied by its transpose. A gradient thus keeps
    its angle to the vector it belongs to, where straight-through keeps its direction in space.

    Departures where the map is not defined: a z without a direction (|z| below 1e-6) receives the
    gradient unchanged; for opposite vectors r is 0, and the map is a reflection.

    Args:
        z, codes: [..., d]; no gradient reaches `codes`.

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick",
    section 4, equations 3 and 4.
    """
    with torch.no_grad():
        z_norm = z.norm(dim=-1, keepdim=True)
        code_norm = codes.norm(dim=-1, keepdim=True)
        e = z / z_norm.clamp(min=_SMALL)
        q = codes / code_norm.clamp(min=_SMALL)
        r = e + q
        length = r.norm(dim=-1, keepdim=True)
        r = torch.where(length > _SMALL, r / length, torch.zeros_like(r))
        scale = code_norm / z_norm.clamp(min=_SMALL)
        known = z_norm > _SMALL
    along_r = (z * r).sum(-1, keepdim=True)
    along_e = (z * e).sum(-1, keepdim=True)
    image = scale * (z - 2 * along_r * r + 2 * along_e * q)
    return straight_through(torch.where(known, image, z), codes)


ESTIMATORS = {"straight_through": straight_through, "rotation": rotation}
