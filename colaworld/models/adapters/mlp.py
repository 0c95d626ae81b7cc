"""Two layers from a real action to a latent one, as in the paper's adaptation experiment."""

from __future__ import annotations

from torch import Tensor

from colaworld.models.adapters.adapter import Adapter
from colaworld.models.adapters.config import MLPAdapterConfig
from colaworld.models.layers.mlp import MLP


class MLPAdapter(Adapter):
    """Linear, GELU, Linear."""

    def __init__(self, config: MLPAdapterConfig, *, tokens: int, dim: int, patch: int = 1) -> None:
        super().__init__(config, tokens=tokens, dim=dim)
        self.mlp = MLP(config.size, config.hidden, tokens * dim)

    def _codes(self, actions: Tensor, frames: Tensor | None) -> Tensor:
        return self.mlp(self._numbers(actions))
