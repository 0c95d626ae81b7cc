"""The studies at nano size: minutes a run on one thread. Values, and the reasons for their numbers.

Runs of a study share data, generator, evaluation and, but where it says so, the clips that they train on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from colaworld.studies.study import Adaptation, Arm, DataSet, Study
from colaworld.studies.worlds import CRAFTER, PUSHT, ROBODESK, SCENE, STICKY, WORLDS

# An IDM that reads frames as they are, as the paper's does; and one with the motion path beside them.
RAW_IDM = {"model.idm.motion": False, "model.idm.standardise_frames": False}
_MOTION_PATH = {"model.idm.motion": True, "model.idm.standardise_frames": False}
# A warm-up that ends with a collapsed codebook would stop the run; here what follows is the question.
GO_ON = {"phases.warmup.gate.missed": "go_on"}
# The paper's quantizer as it stands: codes from U(-1/K, 1/K), no standardisation, no start from data, none
# moved, none passed by; and frames as they are.
BARE: dict[str, Any] = {
    **RAW_IDM,
    "model.quantizer.normalise": False,
    "model.quantizer.data_start": False,
    "model.quantizer.reseed": False,
    "model.quantizer.unquantized_steps": 0,
}
_ADDED: dict[str, tuple[dict[str, Any], str]] = {
    "bare": ({}, "the paper's quantizer alone"),
    "standardise": ({"model.quantizer.normalise": True}, "and latents standardised"),
    "reseed": ({"model.quantizer.reseed": True}, "and unused codes moved"),
    "data_start": ({"model.quantizer.data_start": True}, "and codes that start from latents"),
    # 250: as nano.cola. The codebook then starts from clusters of latents, whatever data_start says.
    "continuous": ({"model.quantizer.unquantized_steps": 250}, "and latents unquantised at first"),
    # The paper's IDM reads pixels alone, and a transition from the mean of both frames.
    "paper_idm": ({"model.idm.matching": 0, "model.idm.pair": "mean"}, "and the paper's IDM"),
}
_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "ema": ({**BARE, "model.quantizer.kind": "ema"}, "codes as running means"),
    "fsq": (
        {
            **RAW_IDM,
            "model.quantizer.kind": "fsq",
            "model.quantizer.levels": [4, 2],  # 8 codes, as the others have
            "model.quantizer.normalise": False,
            "model.idm.dim": 2,
        },
        "a fixed grid",
    ),
    "none": (
        {**RAW_IDM, "model.quantizer.kind": "none", "model.quantizer.normalise": False},
        "continuous latents",
    ),
}
# Most bare codebooks collapse by step 300, one of six at 640; what does not collapse has the time to find most moves.
_WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "naive": ("nano.naive_joint", {"phases.joint.steps": 1000}),
    "cola": ("nano.cola", {"phases.warmup.steps": 400, "phases.joint.steps": 600}),
}

COLLAPSE = Study(
    "collapse",
    "Does naive joint training collapse under the paper's own quantizer, does warm-up cure it, and which "
    "stabiliser alone does?",
    arms=tuple(
        Arm(f"{way}-{name}", recipe, {**length, **changes}, note)
        for way, (recipe, length) in _WAYS.items()
        for name, (changes, note) in {
            **{name: ({**BARE, **added}, note) for name, (added, note) in _ADDED.items()},
            **_KINDS,
        }.items()
    ),
    data=WORLDS,
    reference="naive-bare",
    changes=GO_ON,
)

# Half the clips of nano's evaluation, which takes as long as 200 steps: studies of many arms.
_FEWER_CLIPS = {"evaluation.clips": 24}
# Four times the clips a step keep the paper's codebook alive through a warm-up (`conditions`). Then it can be asked
# what the warm-up is good for.
LARGER_BATCH = Study(
    "larger_batch",
    "With 32 clips a step, does naive joint training collapse under the paper's own quantizer, and does a "
    "warm-up keep it from that?",
    arms=(
        Arm("naive-bare", "nano.naive_joint", {"phases.joint.steps": 600}, "joint alone"),
        Arm(
            "cola-bare",
            "nano.cola",
            {"phases.warmup.gate": None, "phases.warmup.steps": 400, "phases.joint.steps": 200},
            "warm-up, then joint",
        ),
    ),
    data=WORLDS,
    reference="naive-bare",
    # The rates fall over equally many steps, which nano.cola's 300 would not leave it here.
    changes={
        **BARE,
        **_FEWER_CLIPS,
        "training.batch_size": 32,
        "phases.joint.cooldown_steps": 100,
    },
)

CONDITIONS = Study(
    "conditions",
    "Under which conditions does a warm-up through the frozen generator keep the paper's own codebook alive?",
    # Warm-up alone: it is there that the codebook collapses. No ramp is named, so that it shrinks with frozen_world's
    # 1700 steps: the rate rises over 11 of 400 (longer: 47 of 1600), in `collapse` over 50.
    arms=(
        Arm("bare", "nano.frozen_world", note="the quantizer of `collapse`"),
        Arm("longer", "nano.frozen_world", {"phases.warmup.steps": 1600}, "four times the steps"),
        Arm(
            "batch_32",
            "nano.frozen_world",
            {"training.batch_size": 32},
            "four times the clips a step",
        ),
        Arm(
            "slower",
            "nano.frozen_world",
            {"phases.warmup.learning_rate": 2.5e-4},
            "a quarter of the rate",
        ),
        Arm(
            "faster",
            "nano.frozen_world",
            {"phases.warmup.learning_rate": 4e-3},
            "four times the rate",
        ),
        Arm(
            "nearer_noise",
            "nano.frozen_world",
            {"objective.times.shift": 64.0},
            "times nearer noise",
        ),
        Arm("unshifted", "nano.frozen_world", {"objective.times.shift": 1.0}, "times not shifted"),
        Arm(
            "commitment_1",
            "nano.frozen_world",
            {"objective.quantizer_weight": 1.0},
            "ten times the quantizer's loss",
        ),
        Arm(
            "commitment_0.01",
            "nano.frozen_world",
            {"objective.quantizer_weight": 0.01},
            "a tenth of it",
        ),
        Arm(
            "random_generator",
            "nano.frozen_world",
            {"backbone_weights": None},
            "a generator that was not trained",
        ),
        Arm(
            "standardise",
            "nano.frozen_world",
            {"model.quantizer.normalise": True},
            "latents standardised, which the paper does not",
        ),
    ),
    data=WORLDS,
    reference="bare",
    budget="own",  # longer and batch_32 cost more, which is what they ask
    changes={**BARE, **_FEWER_CLIPS, "phases.warmup.steps": 400, "phases.warmup.gate": None},
)

# Unquantised latents at first would be a warm-up of their own.
_AT_ONCE = {"model.quantizer.unquantized_steps": 0}
_AFTER = {"phases.joint.steps": 400}
_GRID: dict[str, tuple[str, dict[str, Any], str]] = {
    "random_idm": ("nano.naive_joint", {"phases.joint.steps": 800}, "a random IDM"),
    # Its own forward model pre-trains the IDM; then everything trains jointly.
    "pretrained_idm": (
        "nano.two_stage",
        {**_AFTER, "schedule": ["lam", "joint"]},
        "an IDM pre-trained for 400 steps",
    ),
}
_QUANTIZERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("", {}, ""),
    ("-bare", BARE, ", the paper's quantizer"),
)
_GENERATORS: dict[str, tuple[dict[str, Any], str]] = {
    "pretrained_generator": ({}, "the pre-trained generator"),
    "random_generator": ({"backbone_weights": None}, "a random one"),
}
MISMATCH = Study(
    "mismatch",
    "Is it the meeting of a random inverse dynamics model and a pre-trained generator that goes wrong?",
    arms=(
        *(
            Arm(
                f"{idm}-{generator}{mark}",
                recipe,
                {**length, **start, **quantizer},
                f"{what}, {beside}{note}",
            )
            for mark, quantizer, note in _QUANTIZERS
            for idm, (recipe, length, what) in _GRID.items()
            for generator, (start, beside) in _GENERATORS.items()
        ),
        *(
            Arm(
                f"cola{mark}",
                "nano.cola",
                {**_AFTER, **quantizer},
                f"warm-up through the frozen generator{note}",
            )
            for mark, quantizer, note in _QUANTIZERS
        ),
    ),
    data=WORLDS,
    reference="random_idm-pretrained_generator",
    changes={**_AT_ONCE, **_FEWER_CLIPS, **GO_ON},
)

JOINT_OR_TWO_STAGE = Study(
    "joint_or_two_stage",
    "Is a world trained jointly better than one in two stages, after equally many steps?",
    arms=(
        Arm("cola", "nano.cola", GO_ON, "warm-up, then joint"),
        Arm("two_stage", "nano.two_stage", note="a latent action model first, then the world"),
        Arm("frozen_world", "nano.frozen_world", note="warm-up alone"),
        Arm("naive_joint", "nano.naive_joint", note="joint alone"),
    ),
    data=(CRAFTER, PUSHT),  # with 10 000 labels to adapt with
    reference="two_stage",
    adapt=Adaptation(),
    elsewhere=True,
    changes=_MOTION_PATH,  # as in the rows that there are
)

PLANNING = Study(
    "planning",
    "Does planning reach more goals in a world trained jointly than in one of two stages?",
    arms=(
        Arm("cola", "nano.cola", GO_ON, "warm-up, then joint"),
        Arm("two_stage", "nano.two_stage", note="a latent action model first, then the world"),
    ),
    data=(SCENE, CRAFTER, ROBODESK),  # RoboDesk's seven tasks are planned by hand, docs/planning.md
    reference="two_stage",
    adapt=Adaptation(labels=(1000,)),
    plan=True,
    changes=_MOTION_PATH,
)

# FLOPs are counted before anything is recorded; frames of this size they have as recorded, too.
_SIZES = {"crafter": (28, 36), "scene": (32, 32), "pusht": (32, 32), "robodesk": (32, 32)}
EQUAL_FLOPS = replace(
    JOINT_OR_TWO_STAGE,
    name="equal_flops",
    question="Is a world trained jointly better than one in two stages, after equally many FLOPs?",
    data=tuple(
        replace(
            data,
            changes={
                **data.changes,
                "data.height": _SIZES[data.name][0],
                "data.width": _SIZES[data.name][1],
            },
        )
        for data in WORLDS
    ),
    budget="flops",
    adapt=None,
    elsewhere=False,
    changes={},
)

WARMUP = Study(
    "warmup",
    "How long a warm-up is right, and does the gate's rule find it?",
    arms=(
        Arm("steps_0", "nano.naive_joint", note="no warm-up"),
        *(
            Arm(
                f"steps_{steps}",
                "nano.cola",
                {
                    "phases.warmup.gate": None,
                    "phases.warmup.steps": steps,
                    "phases.joint.steps": 1700 - steps,
                },
                f"warm-up of {steps} steps",
            )
            for steps in (100, 400, 1600)
        ),
        # It may end at any step from 100 on; the joint phase stays as long, so that it may train less.
        Arm(
            "gate",
            "nano.cola",
            {"phases.warmup.gate.min_steps": 100, **GO_ON},
            "until the gate opens",
        ),
        # The reached entropy then says nothing, what codes do says all.
        Arm(
            "gate_control",
            "nano.cola",
            {
                "phases.warmup.gate.min_steps": 100,
                "phases.warmup.gate.entropy": 0.0,
                "phases.warmup.gate.control": 0.3,
                **GO_ON,
            },
            "until codes have control",
        ),
    ),
    data=WORLDS,
    reference="steps_0",
    changes={**_AT_ONCE, **_FEWER_CLIPS},
)

_ALIGNED: dict[str, Any] = {
    f"phases.{phase}.{key}": value
    for phase, parts in (("warmup", ()), ("joint", ("backbone",)))
    for key, value in (
        ("objective", "aligned"),
        ("train", ["idm", "quantizer", "conditioner", *parts, "aligner"]),
    )
}
_EVEN = {"model.idm.standardise_frames": True}
_NO_MATCHING = {"model.idm.matching": 0}
PRIOR = Study(
    "prior",
    "Without the motion path, which change alone lets the codes find the moves?",
    arms=(
        Arm("plain", "nano.cola", note="frames as they are, and no motion path"),
        Arm("motion", "nano.cola", _MOTION_PATH, "with it, to compare"),
        Arm("standardised_frames", "nano.cola", _EVEN, "frames whose brightness tells nothing"),
        Arm("no_matching", "nano.cola", _NO_MATCHING, "nor the matching volume"),
        Arm(
            "standardised-no_matching",
            "nano.cola",
            {**_EVEN, **_NO_MATCHING},
            "standardised frames without the matching volume",
        ),
        Arm(
            "naive",
            "nano.naive_joint",
            {"phases.joint.steps": 800},
            "no warm-up: everything learns from the start",
        ),
        # naive has it so, too: without it, its warm-up and its quantizer's start would be told apart by nothing.
        Arm("at_once", "nano.cola", _AT_ONCE, "a warm-up whose codes are codes from the start"),
        Arm("longer", "nano.cola", {"phases.joint.steps": 2800}, "four times the steps"),
        Arm("batch_32", "nano.cola", {"training.batch_size": 32}, "four times the clips a step"),
        Arm(
            "idm_rate",
            "nano.cola",
            {f"phases.{phase}.lr_multipliers": [["idm", 4.0]] for phase in ("warmup", "joint")},
            "the IDM learns four times faster",
        ),
        Arm("nearer_noise", "nano.cola", {"objective.times.shift": 64.0}, "times nearer to noise"),
        Arm("tubelet", "nano.cola", {"model.idm.input": "tubelet"}, "patches over both frames"),
        Arm("difference", "nano.cola", {"model.idm.input": "difference"}, "and frame differences"),
        Arm(
            "aligned", "nano.cola", _ALIGNED, "latents must tell how frozen latents (pixels) change"
        ),
        # Whole cells: what the shipped generator was trained on. Its own view stays as it is.
        Arm(
            "shifted_view",
            "nano.cola",
            {"objective.idm_view": "shift"},
            "the IDM sees the clip shifted by up to two patches",
        ),
        Arm(
            "cropped_view",
            "nano.cola",
            {"objective.idm_view": "crop"},
            "the IDM sees a scaled crop",
        ),
        Arm(
            "nested",
            "nano.cola",
            {"model.conditioner.nested_dropout": 0.5},
            "the second token left out half of the time",
        ),
    ),
    data=WORLDS,
    reference="plain",
    budget="own",  # longer and batch_32 cost more, which is what they ask
    # Half of nano.cola's steps: whether codes are moves shows in them.
    changes={
        **RAW_IDM,
        **_FEWER_CLIPS,
        **GO_ON,
        "phases.warmup.steps": 400,
        "phases.joint.steps": 400,
    },
)

# 600 steps: most bare codebooks collapse by step 300, and five runs take two cores about a quarter hour.
_SHORT = {"phases.warmup.steps": 200, "phases.joint.steps": 400}
_SHORT_NAIVE = {"phases.joint.steps": 600}
QUICK = Study(
    "quick",
    "A look in a quarter of an hour: does a bare codebook collapse, and is joint training better than two "
    "stages?",
    arms=(
        Arm("naive-bare", "nano.naive_joint", {**_SHORT_NAIVE, **BARE}, "the paper's quantizer"),
        Arm("cola-bare", "nano.cola", {**_SHORT, **BARE}, "and a warm-up"),
        Arm("cola", "nano.cola", _SHORT, "all stabilisers"),
        Arm("naive_joint", "nano.naive_joint", _SHORT_NAIVE, "the same without a warm-up"),
        Arm(
            "two_stage",
            "nano.two_stage",
            {"phases.lam.steps": 200, "phases.world.steps": 400},
            "a latent action model first, then the world",
        ),
    ),
    data=(CRAFTER,),
    reference="cola",
    changes=GO_ON,
)

# Ten times the parameters and four times the pixels, for one GPU: STDiT3Config.tiny(), 10.2 M, beside 8 M of
# conditioner and 1.1 M of IDM. Cells of 8 px keep Crafter's whole: 56x72 has as many pixels as 64x64 and no cell is
# cut. Rates are half of nano's, for the wider model; neither they nor the minutes were tried on a GPU.
_TINY: dict[str, Any] = {
    "model.backbone.depth": 6,
    "model.backbone.width": 256,
    "model.backbone.heads": 8,
    "training.batch_size": 64,
}
_TINY_LAM: dict[str, Any] = {
    "model.conditioner.heads": 8,
    "model.idm.patch": 8,  # a cell
    "model.idm.depth": 4,
    "model.idm.width": 128,
    "model.idm.heads": 4,
    "model.fdm.patch": 8,
    "model.fdm.width": 128,
    "model.fdm.heads": 4,
}
_CELLS_OF_8 = ("crafter", "--size", "8", "--steps", "100", *STICKY, "--start", "varied")
_RATES = {"warmup": 5e-4, "joint": 2.5e-4, "lam": 5e-4, "world": 2.5e-4}
GPU = Study(
    "gpu",
    "At ten times the size, on one GPU: does a bare codebook collapse, and is joint training better than two "
    "stages?",
    arms=(
        Arm("naive-bare", "nano.naive_joint", BARE, "the paper's quantizer"),
        Arm("cola-bare", "nano.cola", BARE, "and a warm-up"),
        Arm("cola", "nano.cola", note="all stabilisers"),
        Arm("naive_joint", "nano.naive_joint", note="the same without a warm-up"),
        Arm("two_stage", "nano.two_stage", note="a latent action model first, then the world"),
    ),
    data=(
        DataSet(
            "crafter",
            record=(*_CELLS_OF_8, "--episodes", "80", "--seed", "7"),
            pretrain=(*_CELLS_OF_8, "--episodes", "600", "--seed", "1000", "--workers", "4"),
            pretrain_changes={
                **_TINY,
                "phases.pretrain.steps": 3000,
                "phases.pretrain.learning_rate": 5e-4,
                "phases.pretrain.cooldown_steps": 800,
            },
        ),
    ),
    reference="cola",
    changes={
        **_TINY,
        **_TINY_LAM,
        **{f"phases.{phase}.learning_rate": rate for phase, rate in _RATES.items()},
        **GO_ON,
    },
)

ALL = (
    *(COLLAPSE, CONDITIONS, LARGER_BATCH, MISMATCH, JOINT_OR_TWO_STAGE, EQUAL_FLOPS, PLANNING),
    *(WARMUP, PRIOR, QUICK, GPU),
)
