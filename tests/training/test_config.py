"""Training settings refuse nonsense by name and survive YAML."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from colaworld.config import ConfigError, from_dict, to_yaml
from colaworld.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accumulate", 0),
        ("max_steps", 0),
        ("ema_decay", 1.0),
        ("spike_factor", 0.5),
        ("clip_norm", -1.0),
        ("betas", (0.9, 1.0)),
        ("compile", "some"),
        ("recompute", "all"),
    ],
)
def test_nonsense_is_named(name, value):
    with pytest.raises(ConfigError, match=rf"training\.{name}.*: expected .*got"):
        TrainingConfig(**{name: value})


def test_yaml_round_trip():
    config = dataclasses.replace(TrainingConfig(), max_steps=7, betas=(0.5, 0.75))
    values = yaml.safe_load(to_yaml(config))
    values.pop("config_version")
    assert from_dict(TrainingConfig, values) == config


@pytest.mark.parametrize(("old", "new"), [(True, "full"), (False, "no")])
def test_compile_was_a_switch_once(old, new):
    assert from_dict(TrainingConfig, {"compile": old}) == TrainingConfig(compile=new)
    assert TrainingConfig(compile=old).compile == new
    assert yaml.safe_load(to_yaml(TrainingConfig(compile=old)))["compile"] == new
    with pytest.raises(ConfigError, match=r"training\.compile: expected one of 'no', 'full'"):
        from_dict(TrainingConfig, {"compile": "yes"}, where="training")
