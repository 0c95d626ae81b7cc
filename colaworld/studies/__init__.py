"""Studies by name. A study is a value: which runs answer a question, and how they are held against each other."""

from __future__ import annotations

from colaworld.studies import nano
from colaworld.studies.remedies import REMEDIES
from colaworld.studies.study import STUDIES, Arm, DataSet, Study, register_study

__all__ = ["STUDIES", "Arm", "DataSet", "Study", "register_study"]

for _study in (*nano.ALL, REMEDIES):
    register_study(_study)
