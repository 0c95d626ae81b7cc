"""The folder of a study: what is there is used again where it is what is asked for, and refused where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from colaworld.config import ConfigError
from colaworld.studies import Arm, DataSet, Study
from colaworld.studies.folder import jobs_of


def study(**more) -> Study:
    return Study(
        **{
            "name": "s",
            "question": "?",
            "arms": (Arm("a", "nano.cola"),),
            "data": (DataSet("d", path=Path("d")),),
            "reference": "a",
            **more,
        }
    )


def test_a_run_from_before_an_option_goes_on(tmp_path) -> None:
    """Its configuration lacks the key, which says what it always did."""
    (job,) = jobs_of(study(), tmp_path, seeds=1)
    job.prepare()
    asked = job.base.with_name("seed-0.yaml")
    text = asked.read_text()
    asked.write_text(text.replace("    nested_dropout: 0.0\n", ""))
    assert asked.read_text() != text
    job.prepare()
    asked.write_text(text.replace("nested_dropout: 0.0", "nested_dropout: 0.5"))
    with pytest.raises(ConfigError, match=r"now \(model\.conditioner\.nested_dropout\)"):
        job.prepare()
