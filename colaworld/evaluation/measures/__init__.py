"""The measures: what is registered is measured, tabled and shown, in this order.

A measure of your own: subclass `Measure`, then `register_measure(YourMeasure)`; it comes last.
"""

from __future__ import annotations

from colaworld.evaluation.measures.codebook import CodebookEntropy, CodebookUtilisation
from colaworld.evaluation.measures.controllability import Controllability
from colaworld.evaluation.measures.fidelity import Fidelity
from colaworld.evaluation.measures.frechet import FrechetVideoDistance
from colaworld.evaluation.measures.information import ActionInformation
from colaworld.evaluation.measures.leakage import Leakage
from colaworld.evaluation.measures.linear_probe import LinearProbe
from colaworld.evaluation.measures.lpips import PerceptualDistance
from colaworld.evaluation.measures.measure import Measure
from colaworld.evaluation.measures.mlp_probe import MLPProbe
from colaworld.evaluation.measures.nmse import NMSE
from colaworld.evaluation.measures.real_rollouts import RealRollouts
from colaworld.evaluation.measures.segments import Segments
from colaworld.evaluation.measures.sensitivity import Sensitivity
from colaworld.evaluation.measures.text_effect import TextEffect
from colaworld.evaluation.measures.transfer import ActionTransfer, TransferProbe
from colaworld.registry import Registry

MEASURES: Registry[type[Measure]] = Registry("measure", ValueError)


def register_measure(measure: type[Measure]) -> None:
    """Make a measure known by the name of its class. Raises ValueError where another has this name."""
    MEASURES.add(measure.__name__, measure)


register_measure(Controllability)
register_measure(CodebookEntropy)
register_measure(LinearProbe)
register_measure(Fidelity)
register_measure(CodebookUtilisation)
register_measure(NMSE)
register_measure(PerceptualDistance)
register_measure(FrechetVideoDistance)
register_measure(RealRollouts)
register_measure(Sensitivity)
register_measure(ActionTransfer)
register_measure(TransferProbe)
register_measure(Leakage)
register_measure(Segments)
register_measure(MLPProbe)
register_measure(ActionInformation)
register_measure(TextEffect)
