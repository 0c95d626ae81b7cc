"""AdamW for one phase: a group per part of the model, vectors and codebooks undecayed, moments by
name.

A phase has its own optimizer and its own ramp. Parameters that also trained in the phase before
keep their moments (their scale is still right; starting them from zero would make Adam's first
steps large), newly thawed ones begin without. Not here: clipping, skipping (step.py, guard.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from colaworld.training.config import TrainingConfig
from colaworld.training.distributed import zero_rows
from colaworld.training.phases import Phase
from colaworld.training.protocols import CheckpointError

Moments = dict[str, dict[str, Tensor]]  # parameter name -> exp_avg, exp_avg_sq, step


def moments_of(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], *, source: str
) -> Moments:
    """Moments of `parameters` that a checkpoint holds as "<parameter>/<kind>".

    Raises CheckpointError, which begins with `source`, where they do not fit: AdamW does not look, and
    would write beside a shorter one.
    """
    moments: Moments = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        moments.setdefault(name, {})[kind] = value
    for name, held in moments.items():
        own = parameters.get(name)
        of_own = None if own is None else (own.dtype, own.shape)
        wanted = {"step": (torch.float32, torch.Size()), "exp_avg": of_own, "exp_avg_sq": of_own}
        found = {kind: (value.dtype, value.shape) for kind, value in held.items()}
        if found != wanted:
            like = "a parameter" if own is None else f"{own.dtype} {list(own.shape)}"
            raise CheckpointError(
                f"{source}: {name}: expected step, exp_avg and exp_avg_sq of {like}, got "
                + ", ".join(f"{k} {v.dtype} {list(v.shape)}" for k, v in sorted(held.items()))
            )
    return moments


class PhaseOptimizer:
    """AdamW over the parts that train in `phase`.

    Args:
        model: its direct children are the parts; those of the phase must be thawed.
        phase: which parts train, at which rates.
        training: weight decay and betas.
        moments: state to begin from, by parameter name; names that do not train are ignored.
    """

    def __init__(
        self,
        model: nn.Module,
        phase: Phase,
        training: TrainingConfig,
        *,
        moments: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.phase = phase
        self.parameters: dict[str, nn.Parameter] = {}
        groups = []
        # A module names in `undecayed` what only looks like a matrix: entries of a codebook are
        # points, and decay would pull those that nobody chose towards zero.
        spared = {
            id(getattr(module, name))
            for module in model.modules()
            for name in getattr(module, "undecayed", ())
        }
        for part in phase.train:
            split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
            for name, parameter in model.get_submodule(part).named_parameters():
                if any(parameter is known for known in self.parameters.values()):
                    continue  # tied to a parameter of an earlier part, which steps it
                self.parameters[f"{part}.{name}"] = parameter
                split[parameter.ndim > 1 and id(parameter) not in spared].append(parameter)
            for decayed, members in split.items():
                if members:
                    groups.append(
                        {
                            "params": members,
                            "lr": phase.rate(part),
                            "weight_decay": training.weight_decay if decayed else 0.0,
                            "rate": phase.rate(part),
                            "part": part,
                        }
                    )
        if not groups:
            raise ValueError(
                f"phase {phase.name!r}: the parts {', '.join(phase.train)} have no parameters"
            )
        fused = all(p.is_floating_point() for p in self.parameters.values())
        self.adamw = torch.optim.AdamW(groups, betas=training.betas, fused=fused)
        for name, state in (moments or {}).items():
            if name in self.parameters:
                parameter = self.parameters[name]
                self.adamw.state[parameter] = {
                    key: value.detach().to(parameter.device, copy=True)
                    for key, value in state.items()
                }

    def gradients(self, part: str | None = None) -> list[Tensor]:
        """Gradients there are, of one part or of all."""
        prefix = "" if part is None else f"{part}."
        return [
            parameter.grad
            for name, parameter in self.parameters.items()
            if parameter.grad is not None and name.startswith(prefix)
        ]

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def step(self, number: int) -> None:
        """Update with the rate of update `number` of the phase (1 is the first)."""
        factor = self.phase.lr_factor(number)
        for group in self.adamw.param_groups:
            group["lr"] = group["rate"] * factor
        self.adamw.step()

    def forget(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Zero the moments of rows [M] that were set anew; what is not trained here is ignored.

        The step count stays, so the first update of such a row is (1 - b1) / sqrt(1 - b2) rates
        long: 1 with the default betas.
        """
        for value in self.adamw.state.get(parameter, {}).values():
            if value.shape == parameter.shape:
                zero_rows(value, rows)

    def moments(self) -> Moments:
        """The state by parameter name (the live tensors, not copies)."""
        return {
            name: dict(self.adamw.state[parameter])
            for name, parameter in self.parameters.items()
            if self.adamw.state.get(parameter)
        }
