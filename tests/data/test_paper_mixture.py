"""docs/paper-mixture.yaml: the paper's shares, as `--data` reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from colaworld.data.mixture import named_data

FILE = Path(__file__).resolve().parents[2] / "docs/paper-mixture.yaml"


def test_groups_have_the_shares_of_the_paper() -> None:
    data = named_data([str(FILE)])
    assert data is not None
    shares: Counter[str] = Counter()
    for name, share in data.shares().items():
        shares[name.split("-")[0]] += share
    assert shares == pytest.approx({"oxe": 0.3, "agibot": 0.2, "human": 0.5})
    sets = data.sets()
    assert len({one.path for one in sets.values()}) == len(sets) == 14
    assert sets["oxe-droid"].path == FILE.parent / "oxe/droid" and sets["oxe-droid"].fps == 5
