"""Which latent actions a model gives, and which real ones its head makes of them: a hash over whatever
decides them.

Two models with one hash give the same actions for the same frames; a run and its export have one. The
video model has no say in it, so a world trained on under a frozen IDM and quantizer keeps its hash.
Not here: whose labels a data set has (data/labels.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from colaworld.config import to_dict

if TYPE_CHECKING:
    from colaworld.contracts import LatentActionModel
    from colaworld.models.world_model import WorldModel


def latent_action_hash(model: WorldModel) -> str:
    """sha256 over the tensors of IDM and quantizer, their configuration, and the window."""
    return _hash(model, ("idm", "quantizer"), {"window": model.config.window})


def published_hash(model: LatentActionModel, *, kind: str) -> str:
    """The same of a model of others: sha256 over all its tensors, its layout `kind`, and its `settings`, a
    property of what else decides its latents, where it has one.

    Raises ValueError on a model that is no nn.Module: nobody can tell its weights.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{kind}: expected an nn.Module, whose weights tell one model from another, got "
            f"{type(model).__name__}"
        )
    said = {"kind": kind, "settings": getattr(model, "settings", {}), "window": model.window}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    _add(digest, model, "")
    return digest.hexdigest()


def action_head_hash(model: WorldModel) -> str:
    """sha256 over the tensors of the head that goes from latent actions to real ones, and its
    configuration."""
    return _hash(model, ("action_head",), {})


def _hash(model: WorldModel, parts: Sequence[str], more: Mapping[str, Any]) -> str:
    said = {part: _said(model.config.of(part)) for part in parts}
    digest = hashlib.sha256(json.dumps({**said, **more}, sort_keys=True).encode())
    for part in parts:
        _add(digest, getattr(model, part), f"{part}.")
    return digest.hexdigest()


def _add(digest: hashlib._Hash, module: nn.Module, prefix: str) -> None:
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{prefix}{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _said(config: Any) -> dict[str, Any]:
    """A part's configuration without the fields that are younger than labels, where they say what held before."""
    before = getattr(config, "ADDED_KEYS", {})
    return {k: v for k, v in to_dict(config).items() if k not in before or v != before[k]}
