"""The matrices of LoRA and how they act on the layers of a video model. What LoRA is: lora.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.lora import LoRAConfig


class LowRank(nn.Module):
    """A [rank, in] and B [out, rank] for each `nn.Linear` of a module, by its name.

    Hooks are set on the layers when it is built, and read its matrices when they run.
    """

    def __init__(self, config: LoRAConfig, target: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleDict()
        for name, layer in target.named_modules():
            if isinstance(layer, nn.Linear):
                self.layers[_key(name)] = added = _Added(layer, config)
                layer.register_forward_hook(added.add)


class _Added(nn.Module):
    """What is added to one layer."""

    def __init__(self, layer: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.a = nn.Parameter(torch.empty(config.rank, layer.in_features))
        self.b = nn.Parameter(torch.zeros(layer.out_features, config.rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The layer's output [..., out] with the addition, in its dtype."""
        (x,) = inputs
        low = F.linear(x.to(self.a.dtype), self.a)
        return output + (self.scale * F.linear(low, self.b)).to(output.dtype)


def _key(name: str) -> str:
    """A layer's name without dots, which a ModuleDict does not take."""
    return name.replace(".", "/")


def merged(weights: Mapping[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """The tensors of a whole model with its part `lora` multiplied out into the weights of the backbone.

    Computed in float32 and rounded once to the dtype of the weight. Raises ValueError on an addition
    to a layer that is not there.
    """
    made = {key: value for key, value in weights.items() if not key.startswith("lora.")}
    for key, a in weights.items():
        if not key.startswith("lora.layers.") or not key.endswith(".a"):
            continue
        name = key.removeprefix("lora.layers.").removesuffix(".a").replace("/", ".")
        target: Any = f"backbone.{name}.weight"
        if target not in made:
            raise ValueError(f"lora: an addition to {target}, which is not there")
        b, weight = weights[key.removesuffix("a") + "b"], made[target]
        made[target] = (weight.float() + config.scale * (b.float() @ a.float())).to(weight.dtype)
    return made
