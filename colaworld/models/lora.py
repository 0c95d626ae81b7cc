"""LoRA on the video model: a low-rank addition to each of its linear layers, trained in its place.

    y = W x + b + (alpha / rank) B A x          (Hu et al. 2022, section 4.1)

B is zero at the start, so that outputs are equal bit for bit. The addition is a forward hook of each
`nn.Linear`, so that names and values of the video model's own weights do not change, and it also works
where blocks are recomputed, compiled or held in pieces. Convolutions and layers whose weight is read
directly (the patch embedding) have none. Not here: which phases train it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colaworld.config import Checked, Positive, Size
from colaworld.models.parts import Part, register_part
from colaworld.registry import Later


@dataclass(frozen=True)
class LoRAConfig(Checked, at="model.parts.lora."):
    """How large the addition to each linear layer is."""

    rank: Size = 16
    """Rows of A and columns of B."""
    alpha: Positive | None = None
    """The addition is scaled by alpha / rank; None: alpha is the rank."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def _build(config: LoRAConfig, model: Any) -> Any:
    return Later("colaworld.models.low_rank:LowRank")(config, model.backbone)


register_part(Part("lora", LoRAConfig, _build))
