"""The study `remedies`: codebooks that really collapse, and what is done about them. A minute or two a run on one thread.

Not here: gate and alarm (training/codebook_monitor.py), which stabiliser prevents the collapse (`collapse` in nano.py).
"""

from __future__ import annotations

from typing import Any

from colaworld.studies.nano import BARE, GO_ON, RAW_IDM
from colaworld.studies.study import Arm, Study
from colaworld.studies.worlds import CRAFTER

# Most bare codebooks collapse within these 200 steps, and the gate does not open. What is timed in steps is
# named, so that the arms that follow the same warm-up have the same steps in it, bit for bit.
_SHORT_RAMP = {
    "phases.warmup.lr_warmup_steps": 25,
    "phases.joint.lr_warmup_steps": 7,
    "phases.joint.cooldown_steps": 46,
    "phases.warmup.gate.min_steps": 150,
    "phases.warmup.gate.window": 40,
}
_BARE: dict[str, Any] = {**BARE, **_SHORT_RAMP}
REMEDIES = Study(
    "remedies",
    "A warm-up ends with a collapsed codebook, or joint training makes one: what do gate and alarm do, and "
    "which remedy cures it?",
    arms=(
        Arm("stop", "nano.cola", _BARE, "the gate's default: the run stops"),
        # A warm-up that ends before the collapse, so that a healthy checkpoint is there.
        Arm(
            "alarm",
            "nano.cola",
            {
                **_BARE,
                "phases.warmup.steps": 60,
                "phases.warmup.gate.min_steps": 60,
                "phases.joint.steps": 340,
                "phases.joint.alarm.action": "rollback",
                "phases.joint.alarm.checks": 3,
            },
            "joint training collapses: the alarm rolls back once, and warms up again",
        ),
        Arm(
            "reseed",
            "nano.cola",
            {**_BARE, "phases.warmup.gate.missed": "reseed"},
            "joint training begins with a codebook from its latents",
        ),
        Arm("go_on", "nano.cola", {**_BARE, **GO_ON}, "joint training with what there is"),
        Arm(
            "extend",
            "nano.cola",
            {**_BARE, "phases.warmup.steps": 400},
            "the same warm-up for twice as long, as by --phases.warmup.steps 400 --resume",
        ),
        # Codes that are moved are in use, whatever they mean: a rule on entropy is deceived. Twice as long: a code
        # counts as unused some 230 steps after its last use (decay .99, a tenth of its share).
        Arm(
            "moved",
            "nano.cola",
            {
                **_BARE,
                "phases.warmup.steps": 400,
                "model.quantizer.reseed": True,
                "phases.warmup.gate.floor": 0.1,
                "phases.warmup.gate.control_floor": 0.01,
            },
            "unused codes are moved, and the gate asks for control, too",
        ),
        Arm(
            "standardise",
            "nano.cola",
            {**_BARE, "model.quantizer.normalise": True},
            "begun anew, with latents standardised",
        ),
        Arm(
            "stabilised",
            "nano.cola",
            {**RAW_IDM, **_SHORT_RAMP},
            "begun anew, with all stabilisers",
        ),
    ),
    data=(CRAFTER,),
    reference="stop",
    budget="own",  # that is what they differ in
    changes={
        "phases.warmup.steps": 200,
        "phases.joint.steps": 200,
        "training.control_every": 50,
        "training.checkpoint_every": 50,
        "evaluation.clips": 16,
    },
)
