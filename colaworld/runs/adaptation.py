"""A trained world is taught a robot's own actions: the run that does it, and the table it ends with.

    adapter    actions -> latent actions, everything else frozen
    adapted    the world model under the adapter's codes

The run is an ordinary one: `build_trainer` wires it, it resumes, and it is a world like any other. Not
here: adapters, objectives, the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from colaworld.action_contract import ActionContract
from colaworld.config import Checked, ConfigError, Count, Natural, Positive, Size
from colaworld.data.config import DataConfig
from colaworld.models.adapters import (
    ADAPTERS,
    ActionHeadConfig,
    AdapterConfig,
)
from colaworld.models.lora import LoRAConfig
from colaworld.runs.config import RunConfig
from colaworld.training.phases import Phase

RECIPE = "adapt"  # what `recipe` says in the configuration of such a run
BEFORE = "adapter.safetensors"  # in the run folder: the adapter before the world model moved
_RATE = 1e-3  # of the adapter alone: two layers, from scratch


@dataclass(frozen=True)
class AdaptConfig(Checked, at="--"):
    """How a world is adapted, besides data, loop and evaluation, which are as in the run it begins from."""

    kind: str = "auto"
    """mlp (the paper's two layers), table (classes: mean latent of each), attention (looks at the current
    frame), or one of your own; auto: table for classes, attention where the contract says that numbers are
    absolute, since a place to go to means no motion to one who does not look; else mlp."""
    hidden: Size = 256
    """Hidden width of the mlp, and of the head that goes back."""
    quantise: bool = False
    """Replace the adapter's outputs by the nearest codes."""
    steps: Natural = 3000
    """Steps of fine-tuning the world model (paper: 3000). 0: the adapter alone, for few labels."""
    adapter_steps: Count = 1000
    """Steps of the adapter alone, before."""
    learning_rate: Positive | None = None
    """Of fine-tuning; None: that of the last phase that trained the world. Take less for few labels."""
    lam: Literal["frozen", "trained"] = "frozen"
    """Whether the latent action model goes on learning from the same clips."""
    lora: Natural = 0
    """Rank of LoRA on the video model, whose own weights then stay as they are; 0: they train."""


def adapted_run(
    run: RunConfig,
    folder: Path,
    data: DataConfig,
    asked: AdaptConfig,
    contract: ActionContract,
) -> RunConfig:
    """The configuration that adapts the world of a run.

    Args:
        run: the configuration of the run it begins from.
        folder: of that run, finished.
        data: clips with recorded actions.
        asked: how.
        contract: what the actions of its clips are, all that lie between two frames.

    Raises ConfigError where the kind of adapter does not fit the actions.
    """
    discrete = contract.kind == "discrete"
    looks = contract.mode == "absolute"
    own = "table" if discrete else "attention" if looks else "mlp"
    kind = own if asked.kind == "auto" else asked.kind
    shared: dict[str, Any] = {"discrete": discrete, "size": contract.size}
    if not discrete and contract.normaliser.kind != "none":  # else they enter as recorded
        shift, scale = contract.normaliser.shift_and_scale()
        shared |= {"mean": shift, "std": scale}
    head = ActionHeadConfig(hidden=asked.hidden, **shared)
    adapter = _adapter(
        kind, {**shared, "quantise": asked.quantise, "hidden": asked.hidden}, contract
    )
    parts = {**run.model.parts, "adapter": adapter, "action_head": head}
    if asked.lora:
        parts["lora"] = LoRAConfig(rank=asked.lora)
    fit = Phase(
        "adapter",
        "adapter",
        ("adapter", "action_head"),
        steps=asked.adapter_steps,
        learning_rate=_RATE,
        lr_warmup_steps=0,
        cooldown_steps=asked.adapter_steps // 2,
        init_from=str(folder.resolve()),
    )
    phases = {"adapter": fit}
    if asked.steps:
        phases["adapted"] = _fine_tuning(run, asked)
    return replace(
        run,
        recipe=RECIPE,
        schedule=tuple(phases),
        phases=phases,
        backbone_weights=str(folder.resolve()),
        latents=None,
        data=data,
        model=replace(run.model, parts=parts),
        action_contract=contract,
    )


def _fine_tuning(run: RunConfig, asked: AdaptConfig) -> Phase:
    """The phase that trains the world under the adapter, at the rate of the last that trained it."""
    before = next(
        (p for p in reversed(run.scheduled()) if {"conditioner", "backbone"} & set(p.train)),
        run.scheduled()[-1],
    )
    world = ("lora",) if asked.lora else ("backbone",)
    lam = ("idm", "quantizer", "action_head") if asked.lam == "trained" else ()
    return Phase(
        "adapted",
        "adapted_lam" if lam else "adapted",
        ("adapter", "conditioner", *world, *lam),
        steps=asked.steps,
        learning_rate=asked.learning_rate or before.learning_rate,
        lr_warmup_steps=min(before.lr_warmup_steps, asked.steps // 10),
        cooldown_steps=before.cooldown_steps * asked.steps // before.steps
        if before.cooldown_steps < before.steps
        else 0,
    )


def _adapter(kind: str, values: dict[str, Any], contract: ActionContract) -> AdapterConfig:
    config = ADAPTERS[kind].config
    known = {f.name for f in fields(config)}  # type: ignore[arg-type]
    try:
        return config(**{k: v for k, v in values.items() if k in known})
    except ConfigError as error:
        raise ConfigError(
            f"--kind {kind}: the actions of column {contract.column!r} are {contract.kind}: {error}"
        ) from None
