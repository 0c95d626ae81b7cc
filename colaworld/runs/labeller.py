"""Who labels a data set: a world, or a latent action model of others, and what is kept of whose labels they
are.

Not here: reading either (latents.py), the labels (label.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from colaworld.config import to_dict
from colaworld.contracts import LatentActionModel, LatentActions, to_float
from colaworld.evaluation.rollouts import read_actions
from colaworld.models.latent_action.identity import latent_action_hash, published_hash
from colaworld.models.world import World


@dataclass(frozen=True)
class Labeller:
    """A latent action model that is known by a hash."""

    model: LatentActionModel
    hash: str
    """Of two with one hash all labels are equal (`models/latent_action/identity.py`)."""
    named: str
    """What it is, for messages: "a run of nano.cola"."""
    about: Mapping[str, Any]
    """What more meta/latent_actions.json says of it."""

    @classmethod
    def of_world(cls, world: World, *, recipe: str) -> Labeller:
        """A run's or an export's; `recipe`: what it was trained by."""
        model = world.model.config
        about = {"recipe": recipe, "idm": to_dict(model.idm), "quantizer": to_dict(model.quantizer)}
        return cls(world, latent_action_hash(world.model), f"a run of {recipe}", about)

    @classmethod
    def of_others(cls, model: LatentActionModel, *, kind: str) -> Labeller:
        """A model of others; `kind`: the layout it was published in. Raises ValueError where its weights
        cannot be told."""
        about = {"layout": kind, "settings": dict(getattr(model, "settings", {}))}
        named = f"a published model, {kind}"
        return cls(model, published_hash(model, kind=kind), named, about)

    @property
    def discrete(self) -> bool:
        """Whether its actions are entries of a codebook."""
        return self.model.codebook_size is not None

    def infer(self, frames: Tensor) -> LatentActions:
        """uint8 frames [B, T, 3, H, W], T up to the model's window -> its latent actions, on the CPU."""
        return read_actions(self.model, to_float(frames))

    def said(self) -> dict[str, Any]:
        """Of the provenance: whose labels they are."""
        model = self.model
        sizes = {
            name: getattr(model, name) for name in ("codebook_size", "tokens", "dim", "window")
        }
        return {"hash": self.hash, "named": self.named, **sizes, **self.about}
