"""A shorter run keeps its shape, and says where its codes start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colaworld.recipes import RECIPES, recipe
from colaworld.runs.config import RunConfig
from colaworld.runs.lengths import codes_start, shortened

COLA = recipe("nano.cola")


def at_most(config: RunConfig, steps: int | None) -> RunConfig:
    return replace(config, training=replace(config.training, max_steps=steps))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_at_its_own_length_or_longer_stays_as_it_is(name) -> None:
    config = recipe(name)
    assert shortened(config, config, ()) == (config, [])
    longer = at_most(config.with_phase(config.schedule[0], steps=10**6), 10**5)
    assert shortened(longer, config, ()) == (longer, [])


def test_what_is_timed_in_steps_shrinks_with_its_phase() -> None:
    config, said = shortened(at_most(COLA, 100), COLA, ())
    warmup, joint = config.scheduled()  # of 400 and 1300 steps
    assert (warmup.lr_warmup_steps, warmup.gate.min_steps) == (12, 75)
    assert (joint.lr_warmup_steps, joint.cooldown_steps) == (3, 23)
    assert config.model.quantizer.unquantized_steps == 62  # of 250, as the warm-up
    assert warmup.gate.window == 40  # two checks of health lie in it, so that it can open
    assert "warmup.gate.min_steps 300 -> 75" in said
    assert "model.quantizer.unquantized_steps 250 -> 62" in said
    assert shortened(config, COLA, ())[0].phases["pretrain"] == COLA.phases["pretrain"]


def test_a_phase_shortened_alone_leaves_the_others() -> None:
    config, said = shortened(COLA.with_phase("joint", steps=3), COLA, ())
    assert config.phases["joint"].cooldown_steps == 0
    assert config.phases["warmup"] == COLA.phases["warmup"]
    assert config.model == COLA.model and all(line.startswith("joint.") for line in said)


def test_what_is_given_stays() -> None:
    given = {"phases.joint.cooldown_steps", "model.quantizer.unquantized_steps"}
    config, said = shortened(at_most(COLA, 650), COLA, given)
    assert config.phases["joint"].cooldown_steps == 300
    assert config.phases["joint"].lr_warmup_steps == 25 and len(said) == 1


def test_where_codes_start() -> None:
    def start(config: RunConfig, steps: int) -> str | None:
        quantizer = replace(config.model.quantizer, unquantized_steps=steps)
        return codes_start(replace(config, model=replace(config.model, quantizer=quantizer)))

    assert start(COLA, 0) is None
    assert start(COLA, 250) == "start at step 251 of warmup"
    assert start(COLA, 400) == "start at step 1 of joint: not within warmup, which has none"
    assert start(at_most(COLA, 200), 250).startswith("start at step 51 of joint: not within")
    never = start(at_most(COLA, 100), 250)
    assert never.startswith("NEVER") and "unquantized_steps 250" in never
    assert start(recipe("nano.two_stage"), 500).startswith("NEVER")  # `world` trains no quantizer
    assert codes_start(recipe("nano.pretrain")) is None
