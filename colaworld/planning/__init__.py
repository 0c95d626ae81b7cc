"""Planning: which actions lead to a goal, by rolling candidates out in a world and taking the best.

config.py      every planner's settings; imports no torch
contracts.py   what a dynamics, a cost and a plan are
search.py      one call for every planner
"""

from __future__ import annotations

from colaworld.planning.config import (
    PLANNERS,
    TASKS,
    BeamConfig,
    CategoricalConfig,
    CEMConfig,
    ICEMConfig,
    MPCConfig,
    MPPIConfig,
    PlannerConfig,
    ShootingConfig,
    register_planner,
)
from colaworld.registry import Later, lazy_names

register_planner(ShootingConfig, Later(f"{__name__}.shooting:shooting"), plans="any")
register_planner(CEMConfig, Later(f"{__name__}.cem:cem"), plans="continuous")
register_planner(ICEMConfig, Later(f"{__name__}.cem:icem"), plans="continuous")
register_planner(MPPIConfig, Later(f"{__name__}.mppi:mppi"), plans="continuous")
register_planner(CategoricalConfig, Later(f"{__name__}.categorical:categorical"), plans="discrete")
register_planner(BeamConfig, Later(f"{__name__}.beam:beam"), plans="discrete")

TASKS.add("crafter", Later(f"{__name__}.crafter_task:CrafterTask"))
TASKS.add("point-mass", Later(f"{__name__}.tasks:PointMassTask"))
TASKS.add("pusht", Later(f"{__name__}.pusht_task:PushTTask"))
TASKS.add("robodesk", Later(f"{__name__}.robodesk_task:RoboDeskTask"))
TASKS.add("scene", Later(f"{__name__}.tasks:SceneTask"))

__all__ = [
    "PLANNERS",
    "TASKS",
    "BeamConfig",
    "CEMConfig",
    "CategoricalConfig",
    "CodeBigram",
    "Continuous",
    "Discrete",
    "ICEMConfig",
    "MPCConfig",
    "MPPIConfig",
    "Objective",
    "Plan",
    "PlannerConfig",
    "ShootingConfig",
    "Start",
    "register_planner",
]
__getattr__ = lazy_names(
    __name__,
    CodeBigram="prior",
    Continuous="spaces",
    Discrete="spaces",
    Objective="contracts",
    Plan="contracts",
    Start="contracts",
)
