"""Are these the actions that a model was trained on? Asked wherever data with actions meet a run or a world.

A run that learns from recorded actions takes the contract of its data when it begins; from then on data are
compared with it. Not here: what is compared (action_differences.py), or measured (data/action_statistics.py).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from colaworld.action_contract import ActionContract
from colaworld.action_differences import check_contract, telling
from colaworld.config import from_dict
from colaworld.data.action_statistics import contract_of
from colaworld.data.clips import ClipSet
from colaworld.data.loader import ClipLoader
from colaworld.files import read_json
from colaworld.models.world import World
from colaworld.runs.config import RunConfig, read_config

log = logging.getLogger(__name__)


def check_actions(
    model: World | RunConfig | ActionContract, clips: ClipSet, *, where: str = "the model"
) -> ActionContract:
    """The contract of a set's clips, once it is known to be that of `model`.

    Args:
        model: what was trained. One without a contract has met no actions: nothing is compared.
        clips: the data; how unlike their numbers may be is said by its `config.unlike_actions`.
        where: what the model is called in messages, as its run folder.

    Raises ActionMismatch (a ValueError), both sides printed, where they differ, DataError where the set
    has no actions or a `colaworld_actions.json` that is not of it; warns of what could not be compared.
    """
    if isinstance(model, World):
        known = model.actions
    else:
        known = model.action_contract if isinstance(model, RunConfig) else model
    data = contract_of(clips)
    if known is not None:
        _compare(known, data, clips, where=where)
    return data


def with_contract(config: RunConfig, loader: ClipLoader, *, resumed: bool = False) -> RunConfig:
    """The run with the contract of its actions, where it learns from any: its own, or that of its data,
    of the first set of a mixture. A `resumed` run that began without one goes on without.

    Raises ActionMismatch where a set, or a run that a phase starts from, has another one.
    """
    if not config.uses_actions() or (resumed and config.action_contract is None):
        return config
    contract, where = config.action_contract, "this run"
    for name, clips in loader.sets.items():
        data = contract_of(clips)
        if contract is None:
            contract, where = data, f"the first set, {name}" if config.data.mixture else "its data"
        else:
            _compare(contract, data, clips, where=where)
    assert contract is not None, "a loader has a set"
    log.info("actions: %s", contract.told())
    if not resumed and (missing := unknown(contract)):
        log.warning(
            "%s: of its actions (column %r) the %s are not known, so nobody can tell later whether other "
            "data mean the same; say them once: colaworld data stats %s --write ...",
            loader.clips.config.path,
            contract.column,
            ", ".join(missing),
            loader.clips.config.path,
        )
    for phase in config.scheduled():
        if (
            phase.init_from is not None
            and (before := contract_at(Path(phase.init_from))) is not None
        ):
            _compare(before, contract, loader.clips, where=phase.init_from)
    return replace(config, action_contract=contract)


def contract_at(path: Path) -> ActionContract | None:
    """That of a run folder, an exported world, or the folder of a safetensors file; None: it has none."""
    if (path / "config.yaml").is_file():
        return read_config(path).action_contract
    file = (path if path.is_dir() else path.parent) / "config.json"
    described: Any = read_json(file) if file.is_file() else {}
    inner = described.get("config", described) if isinstance(described, dict) else {}
    said = inner.get("action_contract") if isinstance(inner, dict) else None
    return None if said is None else from_dict(ActionContract, said, where=str(file))


def unknown(contract: ActionContract) -> list[str]:
    """What a contract does not say, in words."""
    continuous = contract.kind == "continuous"
    return [
        what
        for what, said, asked in (
            ("names", telling(contract.names) or contract.size == 1, True),
            ("units", all(contract.units) and contract.units, continuous),
            ("mode", contract.mode, continuous),
            ("frame of reference", contract.frame, continuous),
            ("rate", contract.rate, True),
        )
        if asked and not said
    ]


def _compare(model: ActionContract, data: ActionContract, clips: ClipSet, *, where: str) -> None:
    check_contract(
        model,
        data,
        where=where,
        data_where=str(clips.config.path),
        unlike=clips.config.unlike_actions,
    )
