"""The data sets of the studies at nano size: the worlds, how each is recorded, and how plans are made in it."""

from __future__ import annotations

from colaworld.studies.study import DataSet, Planning

STICKY = ("--behaviour", "sticky-random", "--repeat", "0.3")
# As the demo records; the shipped generator saw other episodes of the same world.
_PLAYED = (
    *("crafter", "--episodes", "80", "--steps", "100", "--seed", "7", *STICKY),
    *("--start", "varied"),
)
CRAFTER = DataSet(
    "crafter",
    record=_PLAYED,
    # The same episodes in another look, and so the same ones held out.
    elsewhere={look: (*_PLAYED, "--vary", look) for look in ("colour", "texture")},
    # Other episodes, and enough for 10 000 labels beside those held out.
    labelled=(
        *("crafter", "--episodes", "150", "--steps", "100", "--seed", "8", *STICKY),
        *("--start", "varied"),
    ),
    # Where two moves lead, with up to six to get there. 96 model calls a decision. Combinations of codes
    # that no frame has are no plan: the world was not trained on them, and no action is known for them.
    plan=Planning(
        "crafter",
        (
            *("--task", "reach", "--goal-offset", "2", "--episodes", "20"),
            *("--mpc.horizon", "3", "--mpc.steps", "6"),
            *("--planner.kind", "shooting", "--planner.candidates", "32"),
        ),
        codes=("--codes", "seen"),
    ),
)
# A small thing moves in a still view, and actions are continuous. 32 px: the nano models' cells are of 4.
# Five steps between two frames, as those who plan in this world have it: in one, it moves hardly a pixel. Where
# the disc is sent is told from where it was sent before.
_EVERY_FIFTH = {"data.stride": 5, "data.actions": "relative"}
_PUSHED = ("pusht", "--size", "32", "--steps", "200", "--behaviour", "mixture", "--repeat", "0.9")
_SHOWN = (*_PUSHED, "--episodes", "160", "--seed", "7")
PUSHT = DataSet(
    "pusht",
    record=_SHOWN,
    elsewhere={look: (*_SHOWN, "--vary", look) for look in ("colour", "texture")},
    pretrain=(*_PUSHED, "--episodes", "400", "--seed", "1000"),
    pretrain_changes={
        "data.stride": 5,
        "phases.pretrain.steps": 2000,
        "phases.pretrain.cooldown_steps": 600,
    },
    # Latents of so small a thing shrink to nothing otherwise.
    changes={**_EVERY_FIFTH, "model.quantizer.scale_floor": 0.1},
)
# An arm moves before a table, and actions are continuous. A recorded step takes about 80 ms.
_ARM = ("robodesk", "--size", "32", "--steps", "60", "--behaviour", "mixture")
ROBODESK = DataSet(
    "robodesk",
    record=(*_ARM, "--episodes", "80", "--seed", "7"),
    pretrain=(*_ARM, "--episodes", "160", "--seed", "1000"),
    pretrain_changes={"phases.pretrain.steps": 2000, "phases.pretrain.cooldown_steps": 600},
)
# The own scene: a floor that scrolls under a square, with known fewest moves to each goal.
SCENE = DataSet(
    "scene",
    record=("scene", "--size", "32", "--episodes", "80", "--steps", "100", "--seed", "7"),
    pretrain=("scene", "--size", "32", "--episodes", "300", "--steps", "100", "--seed", "1000"),
    pretrain_changes={"phases.pretrain.steps": 1500, "phases.pretrain.cooldown_steps": 500},
    # As far as the goal is away, and twice as many moves to get there. 288 model calls a decision.
    plan=Planning(
        "scene",
        (
            *("--episodes", "20", "--mpc.horizon", "3", "--mpc.steps", "6"),
            *("--planner.candidates", "32", "--planner.iterations", "3"),
        ),
        codes=("--codes", "seen"),  # most combinations of codes stand for no move
    ),
)
WORLDS = (CRAFTER, SCENE, PUSHT, ROBODESK)
