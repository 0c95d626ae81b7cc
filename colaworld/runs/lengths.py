"""A run that is asked to be shorter keeps its shape: what is timed in steps shrinks with its phase.

Also where codes start. Pure functions of a configuration, asked once, when a run begins: what they
give is saved with it. Not here: which lengths a recipe has, or what a learning rate does with them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from colaworld.config import ConfigError
from colaworld.runs.config import RunConfig
from colaworld.training.phases import Phase


def shortened(
    config: RunConfig, base: RunConfig, given: Collection[str]
) -> tuple[RunConfig, list[str]]:
    """`config` with ramps, cooldowns, gates and the start of codes in the proportions of `base`.

    Args:
        config: the run as asked for; phases as long as in `base` or longer stay as they are.
        base: the run as it was before its length was changed: its recipe.
        given: keys that were said outright ("phases.joint.cooldown_steps"); they are kept.

    Returns:
        The run, and a line for each value that changed: "joint.cooldown_steps 300 -> 69".
    """
    said: list[str] = []
    first = starting_phase(config)
    for phase in config.scheduled():
        whole = base.phases.get(phase.name)
        if whole is None:
            continue
        steps = phase.capped(config.training.max_steps).steps
        own = whole.capped(base.training.max_steps).steps
        if steps >= own:
            continue

        def scaled(where: str, name: str, holder: Any, least: int = 0, *, n=steps, of=own) -> Any:
            """`holder` with its field `name` times n / of, rounded down, unless it was given."""
            value: int = getattr(holder, name)
            less = max(value * n // of, min(value, least))
            if f"{where}.{name}" in given or less == value:
                return holder
            said.append(f"{where.removeprefix('phases.')}.{name} {value} -> {less}")
            return replace(holder, **{name: less})

        where = f"phases.{phase.name}"
        shorter = scaled(where, "lr_warmup_steps", phase)
        shorter = scaled(where, "cooldown_steps", shorter)
        if phase.gate is not None:
            gate = scaled(f"{where}.gate", "min_steps", phase.gate)
            # Health is measured so often, and a level line needs three points.
            gate = scaled(f"{where}.gate", "window", gate, 2 * config.training.health_every)
            shorter = replace(shorter, gate=gate)
        config = replace(config, phases=config.phases | {phase.name: shorter})
        if phase.name == first and _unquantized(config):
            quantizer = scaled("model.quantizer", "unquantized_steps", config.model.quantizer)
            config = replace(config, model=replace(config.model, quantizer=quantizer))
    return config, said


def check_gates(config: RunConfig) -> None:
    """ConfigError on a gate that never sees the three measurements that it fits a line through."""
    between = config.training.health_every
    for phase in config.scheduled():
        if phase.gate and phase.gate.window <= between:
            raise ConfigError(
                f"phases.{phase.name}.gate.window: expected more steps than lie between two looks at "
                f"the codebook (training.health_every {between}), since the gate fits a line through "
                f"three of them, got {phase.gate.window}"
            )


def starting_phase(config: RunConfig) -> str | None:
    """The phase in which latents are first learned; None where no phase trains the quantizer."""
    return next((phase.name for phase in _learning(config)), None)


def _learning(config: RunConfig) -> list[Phase]:
    return [phase for phase in config.scheduled() if "quantizer" in phase.train]


def _unquantized(config: RunConfig) -> int:
    return getattr(config.model.quantizer, "unquantized_steps", 0)


def codes_start(config: RunConfig) -> str | None:
    """Where latents begin to pass as codes, in words; None where they do from the first step on."""
    left, phases = _unquantized(config), _learning(config)
    if not left or not phases:
        return None
    for phase in phases:
        steps = phase.capped(config.training.max_steps).steps
        if left < steps:
            late = "" if phase is phases[0] else f": not within {phases[0].name}, which has none"
            return f"start at step {left + 1} of {phase.name}{late}"
        left -= steps
    return (
        f"NEVER: this run ends before they start (model.quantizer.unquantized_steps "
        f"{_unquantized(config)}), so it cannot be evaluated; lower that or train longer"
    )
