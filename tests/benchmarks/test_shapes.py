"""Shapes: what the recipes need, by hand."""

from __future__ import annotations

import pytest

from colaworld.cli.bench import suite
from colaworld.config import ConfigError

shapes, DEFINITIONS = suite("shapes"), suite("ops").DEFINITIONS


def listed(op: str, config) -> list:
    return [*DEFINITIONS[op].shapes(config), *DEFINITIONS[op].named]


def test_nano_by_hand() -> None:
    config = shapes.run_config("nano.cola")  # 28x36 px: 7 x 9 tokens of 4 px
    by_name = {s.name: s for s in listed("st_attention", config)}
    assert by_name["nano.spatial"].sizes == {"B": 8, "T": 4, "S": 63, "H": 3, "D": 32}
    assert by_name["nano.idm.temporal"].sizes == {"B": 8, "T": 4, "S": 63, "H": 2, "D": 32}
    assert by_name["nano.temporal"].options["causal"] and by_name["nano.temporal"].options["rope"]
    assert by_name["stdit3-xl.temporal"].sizes == {"B": 1, "T": 16, "S": 256, "H": 16, "D": 72}
    assert by_name["goal.temporal"].sizes == {"B": 4, "T": 8, "S": 64, "H": 4, "D": 32}
    codes = {s.name: s for s in listed("vector_quantize", config)}
    assert codes["nano.codes"].sizes == {"N": 8 * 3 * 2, "K": 8, "d": 8}
    assert codes["goal.codes"].sizes == {"N": 65536, "K": 1024, "d": 32}
    assert codes["bounded.codes"].heavy
    assert {s.name: s.sizes for s in listed("adaln", config)}["nano.block"]["C"] == 96
    (step, *_) = suite("training").cases(suite("case").Request())
    assert step.shape == "nano.cola.joint"
    rollout = suite("rollout")
    whole = [shape for make, shape in rollout.listed(config) if make is rollout.whole]
    assert [shape.sizes["steps"] for shape in whole] == [3, 3, 6, 6, 10, 10]


def test_every_shape_has_a_name_of_its_own_and_a_reason() -> None:
    for name in ("nano.cola", "nano.pretrain"):
        config = shapes.run_config(name)
        for op in (op for op, definition in DEFINITIONS.items() if definition.shapes):
            found = listed(op, config)
            assert len({s.name for s in found}) == len(found)
            assert all(s.why and min(s.sizes.values()) > 0 for s in found)


def test_a_recipe_without_actions_has_no_shapes_of_them() -> None:
    names = {s.name for s in listed("st_attention", shapes.run_config("nano.pretrain"))}
    assert "nano.temporal" in names and not {"nano.idm.spatial", "nano.actions"} & names


def test_unknown_recipes_and_overrides_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'nano.col' .*did you mean 'nano.cola'"):
        shapes.run_config("nano.col")
    with pytest.raises(ConfigError, match="unknown key"):
        shapes.run_config("nano.cola", {"batch": 1})
