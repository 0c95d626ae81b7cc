"""What follows a run of a study: evaluations on other sets, adaptations to real actions, plans; their commands, and
what is read of them.

    seed-N-elsewhere-NAME/evaluation.json    numbers under "elsewhere.NAME."
    seed-N-labels-L/adaptation.json      numbers under "adapted.L."
    seed-N-plan-SPACE/plan.json          numbers under "planned.SPACE."

Not here: when they are run (folder.py), the row that holds them (rows.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colaworld.evaluation.layout import read_evaluation
from colaworld.files import FileError, read_json
from colaworld.studies.readings import clips_in, number_at
from colaworld.studies.study import ELSEWHERE, Adaptation, Planning

BOUNDS = ("oracle", "cloning", "random", "copy")


@dataclass(frozen=True)
class Following:
    """A command after a run, and the folder that it makes."""

    key: str
    """What its numbers begin with: "elsewhere.colour", "adapted.100", "planned.latent"."""
    out: Path
    call: tuple[str, ...]
    """Arguments of colaworld, without --device."""
    resumes: bool = False

    @property
    def file(self) -> Path:
        """What is there when it is done."""
        return self.out / _KINDS[self.call[0]][0]

    def command(self, *, device: str) -> list[str] | None:
        """What is left to do; None where it is done."""
        if self.file.is_file():
            return None
        resume = ["--resume"] if self.resumes and (self.out / "config.yaml").is_file() else []
        return [*self.call, "--out", str(self.out), "--device", device, *resume]

    def read(self) -> dict[str, Any]:
        """{numbers, clips}; FileError where its file does not say so."""
        read = _KINDS[self.call[0]][1]
        try:
            numbers, clips = read(self.file)
        except (KeyError, TypeError, IndexError) as error:
            raise FileError(
                f"{self.file}: expected what colaworld {self.call[0]} writes: {error!r}"
            ) from None
        return {
            "numbers": {f"{self.key}.{name}": of for name, of in numbers.items()},
            "clips": clips,
        }


def elsewhere(sets: Mapping[str, Path], base: Path) -> list[Following]:
    """Of a run in `base`: an evaluation on each of these sets, by name."""
    return [
        Following(
            f"elsewhere.{name}",
            _beside(base, f"{ELSEWHERE}{name}"),
            ("evaluate", str(base), "--data", str(path)),
        )
        for name, path in sets.items()
    ]


def adaptations(how: Adaptation, base: Path, labelled: Path, *, seed: int) -> list[Following]:
    """Of a run in `base`, with each number of labels."""
    shared = ("adapt", str(base), "--data", str(labelled), "--seed", str(seed))
    steps = ("--adapter-steps", str(how.adapter_steps), "--steps", str(how.steps))
    rate = ("--learning-rate", str(how.learning_rate))
    return [
        Following(
            f"adapted.{labels}",
            _beside(base, f"labels-{labels}"),
            (*shared, "--labels", str(labels), *steps, *rate),
            resumes=True,
        )
        for labels in how.labels
    ]


def plans(
    how: Planning, base: Path, labelled: Path, *, adapted: Adaptation | None
) -> list[Following]:
    """Of a run in `base`: in its codes, and in real actions after the adaptation with most labels."""
    latent = ("--run", str(base), "--data", str(labelled), *how.codes)
    of: dict[str, tuple[str, ...]] = {"latent": latent}
    if adapted is not None:
        of["real"] = ("--run", str(_beside(base, f"labels-{max(adapted.labels)}")))
    return [
        Following(
            f"planned.{space}",
            _beside(base, f"plan-{space}"),
            ("plan", how.env, *run, "--space", space, "--rows", "world", *how.arguments),
        )
        for space, run in of.items()
    ]


def bounds_call(how: Planning, labelled: Path) -> tuple[str, ...]:
    """The command that plays what plans are held against, once for all runs of a data set."""
    return ("plan", how.env, "--data", str(labelled), "--rows", *BOUNDS, *how.arguments)


def bounds_of(path: Path, plans: Sequence[Path] = ()) -> dict[str, Any]:
    """Success of each row of a plan.json but the world's: {row: {mean, low, high}}.

    plans: what they are to bound. Raises FileError where one of them is of other episodes.
    """
    held = read_json(path, made_by="colaworld plan")
    for plan in plans:
        goals = [_goals(of) for of in (read_json(plan, made_by="colaworld plan"), held)]
        if goals[0] != goals[1]:
            raise FileError(
                f"{plan}: expected the episodes of {path}, {goals[1]}, got {goals[0]} (protocol.goals); delete the "
                "folder of the one that is out of date, and --resume makes it again"
            )
    rows = held["rows"]
    return {name: dict(rows[name]["success"]) for name in BOUNDS if name in rows}


def _goals(found: Mapping[str, Any]) -> str | None:
    """The hash of the episodes of a plan.json."""
    return found.get("protocol", {}).get("goals")


def _beside(base: Path, name: str) -> Path:
    return base.with_name(f"{base.name}-{name}")


def _adaptation(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """PSNR (dB) of rollouts under real actions with the adapter alone ("adapter") and after fine-tuning
    ("psnr"), under inferred ones, what fine-tuning gained; use and entropy of the codebook at its end."""
    found = read_json(path, made_by="colaworld adapt")
    ways = {
        "adapter": found["before"]["real"],
        "psnr": found["after"]["real"],
        "inferred_before": found["before"]["inferred"],
        "inferred": found["after"]["inferred"],
    }
    numbers = {name: dict(way["psnr"]) for name, way in ways.items()}
    numbers["gain"] = dict(found["gain"]["psnr"])
    health = found["codebook"].get("adapted")  # continuous latents have none
    if health:
        for name in ("utilisation", "entropy"):
            numbers[name] = {"mean": health[name][-1], "low": None, "high": None}
    values = {
        name: [float(f"{v:.5g}") for v in way["per_clip"]["psnr"]] for name, way in ways.items()
    }
    values["gain"] = [after - b for after, b in zip(values["psnr"], values["adapter"], strict=True)]
    episode = found["counts"]["episode"]
    # One labelled set for all runs of a data set, and the same clips held out of it.
    return numbers, {"rolled": f"{len(episode)} clips", "episode": episode, "values": values}


def _plan(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The share of episodes that reached their goal ("success"), and seconds of a decision."""
    found = read_json(path, made_by="colaworld plan")
    row, said = found["rows"]["world"], found["protocol"]
    seconds = {"mean": row["seconds_per_decision"], "low": None, "high": None}
    asked = {k: said[k] for k in sorted(said) if k not in ("device", "threads", "batch", "shown")}
    return {"success": dict(row["success"]), "seconds": seconds}, {
        "rolled": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16],
        "episode": list(range(len(row["episodes"]))),
        "values": {"success": [float(one["success"]) for one in row["episodes"]]},
    }


def _evaluation(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Delta-PSNR over random codes and PSNR (dB) of rollouts, and the probe."""
    found = read_evaluation(path)
    keys = {"delta_psnr": "delta_psnr.random", "psnr": "rollout.psnr", "probe": "probe.score"}
    return {name: number_at(found, key) for name, key in keys.items()}, clips_in(found)


# What a verb leaves when it is done, and how that is read.
_KINDS: dict[str, tuple[str, Callable[[Path], tuple[dict[str, Any], dict[str, Any]]]]] = {
    "evaluate": ("evaluation.json", _evaluation),
    "adapt": ("adaptation.json", _adaptation),
    "plan": ("plan.json", _plan),
}
