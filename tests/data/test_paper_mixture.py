"""docs/paper-mixture.yaml: the paper's shares, in words that the settings of a data set know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from colaworld.data.config import DataConfig

FILE = Path(__file__).resolve().parents[2] / "docs/paper-mixture.yaml"


def test_groups_have_the_shares_of_the_paper() -> None:
    sets = yaml.safe_load(FILE.read_text())["mixture"]
    weights: Counter[str] = Counter()
    for name, one in sets.items():
        weights[name.split("-")[0]] += one.pop("weight")
        assert DataConfig(**{**one, "path": Path(one["path"])}).path
    shares = {group: weight / weights.total() for group, weight in weights.items()}
    assert shares == pytest.approx({"oxe": 0.3, "agibot": 0.2, "human": 0.5})
    assert len({one["path"] for one in sets.values()}) == len(sets) == 14
