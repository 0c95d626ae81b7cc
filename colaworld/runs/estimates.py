"""Real actions estimated of latent ones: what a world's head makes of an episode, and how wrong it is.

    Estimator(world, head_error_at(folder)).columns(vectors, valid)

Beside what `label` writes. Not here: the head (models/adapters/action_head.py), how its error is measured
(evaluation/adaptation.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colaworld.action_contract import ActionContract
from colaworld.action_differences import RATE, ActionMismatch, differences
from colaworld.config import to_dict
from colaworld.data.action_statistics import contract_of
from colaworld.data.clips import ClipSet
from colaworld.data.errors import DataError
from colaworld.data.labels import CONFIDENCE, ESTIMATE
from colaworld.evaluation.labelling import repeated
from colaworld.files import read_json
from colaworld.models.latent_action.identity import action_head_hash
from colaworld.models.world import World
from colaworld.runs.config import read_config
from colaworld.runs.provenance import provenance

log = logging.getLogger(__name__)
_ROWS = 4096  # given to the head at once
_ONE_RUN = ("weights", "weights_sha256", "global_step")  # of `provenance`: which weights


def head_error_at(folder: Path) -> dict[str, Any] | None:
    """How far the head's actions were from recorded ones on held-out clips: of a run what its
    `adaptation.json` says of these weights, of an export what came along. None: it was not measured.

    Keys: accuracy, chance and recall (of each class), or mae and std (of each number); clips, episodes.
    """
    if not (folder / "config.yaml").is_file():
        described = read_json(folder / "config.json")
        return described.get("action_head_error") if isinstance(described, dict) else None
    file = folder / "adaptation.json"
    said: Any = read_json(file) if file.is_file() else {}
    if not isinstance(said, dict) or "head" not in said:
        return None
    then, now = said.get("run", {}), provenance(folder, read_config(folder))
    if any(then.get(key) != now.get(key) for key in _ONE_RUN):
        log.warning(
            "%s: it was measured of other weights than the run has now, and says nothing of them; "
            "`colaworld adapt ... --resume` measures again",
            file,
        )
        return None
    return {**said["head"], **{key: said["counts"][key] for key in ("clips", "episodes")}}


def error_told(error: Mapping[str, Any] | None, names: tuple[str, ...] = ()) -> str:
    """In words; `names`: of the channels."""
    if error is None:
        return "error not measured"
    on = f" on {error['clips']} held-out clips" if "clips" in error else ""
    if "accuracy" in error:
        return (
            f"accuracy {error['accuracy']:.2f}{on} (always the most frequent class: "
            f"{error['chance']:.2f})"
        )
    labels = [f"{name} " for name in names] or [""] * len(error["mae"])
    trios = zip(labels, error["mae"], error["std"], strict=True)
    shown = ", ".join(f"{name}{mae:.3g} ({std:.3g})" for name, mae, std in trios)
    return f"mean error (standard deviation){on} {shown}"


@dataclass(frozen=True)
class Estimator:
    """The head of a world. Raises ValueError where it has none."""

    world: World
    error: Mapping[str, Any] | None
    """See `head_error_at`."""
    named: str = "the model"
    """What the world is called in messages: its folder."""

    def __post_init__(self) -> None:
        if self.world.actions is None or not hasattr(self.world.model, "action_head"):
            raise ValueError(
                "Estimator: world: it has no head that turns latent actions into real ones; "
                "`colaworld adapt` makes one"
            )

    @property
    def contract(self) -> ActionContract:
        """What the actions are: all that lie between two frames of the model's clips."""
        assert self.world.actions is not None
        return self.world.actions

    @cached_property
    def hash(self) -> str:
        """That of the head."""
        return action_head_hash(self.world.model)

    def check_rate(self, clips: ClipSet, episodes: list[int]) -> None:
        """ActionMismatch where rows of a set lead over another time than the model's steps: what is done
        within it is another action."""
        rate, path = self.contract.rate, clips.config.path
        if rate is None:
            log.warning(
                "%s: the actions of %s have no known rate, so nobody can tell whether a row of this set "
                "is as long as one of them",
                path,
                self.named,
            )
            return
        for fps in sorted({clips.fps(episode) for episode in episodes}):
            if abs(fps / rate - 1) > RATE:
                way = f"--data.stride 1 --data.fps {rate:g} takes that rate"
                if max(clips.source.episodes[e].fps for e in episodes) < rate * (1 - RATE):
                    way = "the frames in between were not recorded"
                raise ActionMismatch(
                    f"{path}: its rows lead over 1/{fps:g} s, but the real actions of {self.named} fill "
                    f"1/{rate:g} s ({self.contract.told()}); {way}"
                )

    def against(self, clips: ClipSet) -> dict[str, Any] | None:
        """The actions that a set has recorded, against those of the estimates; None: it has none. Warns,
        once, where they differ: the estimates are of the model's robot, whatever moves in the films.

        Returns:
            "contract": the hash of the set's, null where they cannot be compared; "differences": of each
            what, model and data in words, kind and note (action_differences.Difference).
        """
        spec = clips.source.action_spec
        if spec is None:
            return None
        ours = f"those of {self.named} (column {self.contract.column!r}, contract {self.contract.hash})"
        of = "estimated_action means the actions of that model's robot"
        try:
            data = contract_of(clips)
        except DataError as error:
            log.warning(
                "%s: its recorded actions cannot be compared with %s, and %s: %s",
                *(clips.config.path, ours, of, error),
            )
            return {"contract": None, "differences": []}
        found = differences(self.contract, data)
        if found:
            verb = "cannot all be compared with"
            if any(one.kind != "unknown" for one in found):
                verb = "are not"
            log.warning(
                "%s: its recorded actions (column %r, contract %s) %s %s, and %s:%s",
                *(clips.config.path, data.column, data.hash, verb, ours, of),
                "".join(f"\n  {one}" for one in found),
            )
        return {"contract": data.hash, "differences": [asdict(one) for one in found]}

    def columns(
        self, vectors: np.ndarray, valid: np.ndarray, *, device: torch.device | str = "cpu"
    ) -> dict[str, np.ndarray]:
        """The estimates of an episode, by column.

        Args:
            vectors: [n, N * d] float32, the codes of each row.
            valid: [n] bool.

        Returns:
            Classes int64 [n] and their probability float32 [n], or numbers float32 [n, A] in the units of
            the contract. Rows that are not valid repeat a valid one as the vectors do, else hold zeros.
        """
        model, held = self.world.model, repeated(valid)
        codes = torch.from_numpy(vectors).unflatten(1, (self.world.tokens, -1))[:, None]
        actions, confidence = [], []
        for part in codes.split(_ROWS):
            on = part.to(device)
            actions.append(self.world.decode_actions(on)[:, 0].cpu().numpy())
            if self.contract.kind == "discrete":
                with torch.no_grad():
                    most = model.action_head(on)[:, 0].softmax(-1).amax(-1)
                confidence.append(most.cpu().numpy())
        made = {ESTIMATE: np.concatenate(actions)}
        if confidence:
            made[CONFIDENCE] = np.concatenate(confidence)
        return {
            name: np.zeros_like(values) if held is None else values[held]
            for name, values in made.items()
        }

    def features(self) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
        """What info.json says of the columns: names of classes or channels, and more."""
        contract = self.contract
        names = list(contract.names)
        if contract.kind == "discrete" and not names:
            names = [str(i) for i in range(contract.size)]
        said = (
            "Estimated from video, not recorded: what a learned head makes of the latent action; "
            f"{error_told(self.error, contract.names)}. Look at latent_action.valid."
        )
        about: dict[str, dict[str, Any]] = {ESTIMATE: {"description": said}}
        facts = {"units": list(contract.units), "mode": contract.mode, "frame": contract.frame}
        about[ESTIMATE] |= {key: value for key, value in facts.items() if value}
        if contract.kind == "discrete":
            about[CONFIDENCE] = {"description": "The head's own probability of estimated_action."}
        return ({ESTIMATE: names} if names else {}), about

    def provenance(self, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        """For meta/latent_actions.json; `recorded`: what `against` said of the set."""
        contract = self.contract
        return {
            "what": "estimates, not recorded: made of latent_action.vector by a learned head",
            "holds": "row t: the recorded actions of one step of the model's clips, one after another, "
            "from frame t on",
            "contract": {"hash": contract.hash, **to_dict(contract)},
            "head": {"hash": self.hash, **to_dict(self.world.model.config.of("action_head"))},
            "recorded": recorded,
            "heldout_error": None if self.error is None else dict(self.error),
        }
