"""Which run adapts a world: the adapter that fits the actions, and the phases that are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from colaworld.action_contract import ActionContract, Normaliser
from colaworld.data.config import DataConfig
from colaworld.recipes import RECIPES
from colaworld.runs.adaptation import AdaptConfig, adapted_run


def contract(**said) -> ActionContract:
    none, one, ten = (0.0, 0.0), (1.0, 1.0), (10.0, 10.0)
    scale = Normaliser("mean_std", 50, none, one, none, ten, none, ten)
    return ActionContract(
        "action", "continuous", 2, names=("x", "y"), rate=10.0, normaliser=scale, **said
    )


@pytest.mark.parametrize(
    ("mode", "kind"), [("absolute", "attention"), ("relative", "mlp"), (None, "mlp")]
)
def test_places_to_go_to_are_told_with_a_look_at_the_frame(mode, kind):
    said = {} if mode is None else {"mode": mode}
    run = RECIPES["nano.cola"]()
    made = adapted_run(run, Path("run"), DataConfig(), AdaptConfig(), contract(**said))
    assert made.model.parts["adapter"].kind == kind
    asked = adapted_run(run, Path("run"), DataConfig(), AdaptConfig(kind="mlp"), contract(**said))
    assert asked.model.parts["adapter"].kind == "mlp"


def test_the_rate_and_the_length_of_fine_tuning():
    run = RECIPES["nano.cola"]()

    def phases(**asked):
        how = AdaptConfig(**asked)
        return adapted_run(run, Path("run"), DataConfig(), how, contract()).phases

    assert phases()["adapted"].learning_rate == run.phases["joint"].learning_rate
    assert phases(learning_rate=1e-5)["adapted"].learning_rate == 1e-5
    assert "adapted" not in phases(steps=0)
