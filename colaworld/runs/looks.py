"""What is looked at on held-out clips while a run trains: control, and a probe. They read; training never does.

Not here: how either is measured (training/control.py, code_probe.py), or when (training/trainer.py).
"""

from __future__ import annotations

import logging
from dataclasses import replace

from colaworld.config import ConfigError
from colaworld.contracts import ActionSpec, ClipBatch
from colaworld.data.clips import ClipSet
from colaworld.data.errors import DataError
from colaworld.data.once import iterate_once
from colaworld.models.world_model import WorldModel
from colaworld.runs.config import RunConfig
from colaworld.runs.preview import first_clips
from colaworld.training.code_probe import CodeProbe
from colaworld.training.control import ControlMeter
from colaworld.training.distributed import Distributed

log = logging.getLogger(__name__)


def control_meter(
    config: RunConfig, model: WorldModel, distributed: Distributed
) -> ControlMeter | None:
    """What measures control on held-out clips, where that is asked for and can be."""
    training = config.training
    gates = {phase.name: phase.gate for phase in config.scheduled() if phase.gate}
    asking = [name for name, gate in gates.items() if gate.control]
    why = None
    if not training.control_every:
        why = "training.control_every is 0"
    elif lacking := [part for part in ControlMeter.needs if part not in config.parts()]:
        why = f"the run has no {', '.join(lacking)}"
    else:
        clips = first_clips(config.data, clips=training.control_clips, splits=("heldout",))
        few = clips is None or len(clips.episode.unique()) < 2
        if not distributed.agree(few) and clips is not None:
            return ControlMeter(model, clips, config.objective, training)
        why = "there are no held-out clips of two episodes (data.holdout)"
        log.info("control is not measured: %s", why)
    if asking:
        raise ConfigError(
            f"phases.{asking[0]}.gate.control: expected 0, since control is not measured: {why}"
        )
    return None


def code_probe(config: RunConfig, model: WorldModel, distributed: Distributed) -> CodeProbe | None:
    """What probes held-out codes for recorded actions, where that is asked for and can be."""
    training = config.training
    if not (training.control_every and training.probe_clips):
        return None
    if any(part not in config.parts() for part in CodeProbe.needs):
        return None
    probe, why = None, ""
    try:
        clips, spec = _with_actions(config)
        probe = CodeProbe(model, clips, spec, training, config.evaluation.probe)
    except ValueError as error:  # a DataError, too: no held-out episodes, say
        why = str(error)
    if distributed.agree(probe is None):
        log.info("no probe while training: %s", why)
        return None
    return probe


def _with_actions(config: RunConfig) -> tuple[ClipBatch, ActionSpec]:
    """Held-out clips with their recorded actions. Raises DataError where there are none."""
    if config.data.mixture:
        raise DataError("the actions of several data sets are not one thing to read")
    data = replace(config.data, split="heldout", labels=None, workers=0)
    spec = ClipSet(data).matched_actions()
    if spec is None:
        raise DataError(f"{data.path}: its clips have no recorded actions")
    most = config.training.probe_clips
    batch = next(iterate_once(data, batch_size=most, limit=most, with_actions=True), None)
    if batch is None:
        raise DataError(f"{data.path}: there are no held-out clips (data.holdout)")
    return batch, spec
