"""The list of measures: what is in it is measured, tabled and shown, in this order."""

from __future__ import annotations

from colaworld.evaluation.measures.codebook import CodebookEntropy, CodebookUtilisation
from colaworld.evaluation.measures.controllability import Controllability
from colaworld.evaluation.measures.fidelity import Fidelity
from colaworld.evaluation.measures.linear_probe import LinearProbe
from colaworld.evaluation.measures.measure import Measure
from colaworld.evaluation.measures.nmse import NMSE
from colaworld.evaluation.measures.text_effect import TextEffect

MEASURES: tuple[type[Measure], ...] = (
    Controllability,
    CodebookEntropy,
    LinearProbe,
    Fidelity,
    CodebookUtilisation,
    NMSE,
    TextEffect,
)
