"""Are two sequences of latent actions the same? Codes by their indices, continuous ones by direction.

Not here: which sequences are compared (`transfer.py`, `segments.py`).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from colaworld.contracts import LatentActions


def said(latent: LatentActions) -> Tensor:
    """What is compared of actions: indices [b, n, N], or codes [b, n, N, d] where there are none."""
    return latent.codes if latent.indices is None else latent.indices


def agreement(a: np.ndarray, b: np.ndarray, *, about: np.ndarray) -> np.ndarray:
    """[...] of how far actions a and b are the same.

    Of indices [..., N]: 1 where all N tokens are equal, else 0. Of codes [..., N, d]: the cosine of
    whole actions about the mean of `about` [..., N, d]: what all actions share counts for nothing.
    """
    if not _continuous(a):
        return (a == b).all(axis=-1).astype(float)
    return (_directions(a, about) * _directions(b, about)).sum(axis=-1)


def by_chance(a: np.ndarray, b: np.ndarray, *, about: np.ndarray) -> float:
    """The mean agreement of actions a with unrelated ones out of b: [R, N] indices or [R, N, d] codes."""
    if not len(a):
        return float("nan")
    if _continuous(a):
        return float(_directions(a, about).mean(axis=0) @ _directions(b, about).mean(axis=0))
    kinds = np.unique(np.concatenate([a, b]), axis=0, return_inverse=True)[1].ravel()
    one, two = (
        np.bincount(k, minlength=kinds.max() + 1) for k in (kinds[: len(a)], kinds[len(a) :])
    )
    return float((one / len(a)) @ (two / len(b)))


def differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[M, n] bool: where the actions [M, n, ...] are not the same."""
    return (a != b).reshape(*a.shape[:2], -1).any(axis=2)


def _continuous(actions: np.ndarray) -> bool:
    return bool(np.issubdtype(actions.dtype, np.floating))


def _directions(codes: np.ndarray, about: np.ndarray) -> np.ndarray:
    """[..., N, d] -> [..., N d] of length 1; 0 for the mean itself."""
    flat = codes.reshape(*codes.shape[:-2], -1).astype(float)
    flat = flat - about.reshape(-1, flat.shape[-1]).mean(axis=0)
    size = np.linalg.norm(flat, axis=-1, keepdims=True)
    return np.divide(flat, size, out=np.zeros_like(flat), where=size > 1e-12)
