"""Configuration in all its forms: strict, with messages that name the key; every recipe round-trips."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from colaworld.config import (
    VERSION,
    ConfigError,
    from_command_line,
    from_dict,
    load_yaml,
    to_dict,
    to_yaml,
)
from colaworld.recipes import RECIPES, recipe
from colaworld.runs.config import RunConfig


@dataclass(frozen=True)
class Optimizer:
    rate: float = 1.0
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Moments."""


@dataclass(frozen=True)
class Config:
    steps: int = 3
    """How many."""
    method: Literal["euler", "heun"] = "euler"
    """Which."""
    quiet: bool = False
    """No output."""
    path: Path | None = None
    """Where."""
    crop: Literal["none"] | tuple[int, int] = "none"
    """Box."""
    pairs: tuple[tuple[str, float], ...] = ()
    """Factors."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How to step."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected >= 1, got {self.steps}")


def read(tmp_path: Path, text: str, **more) -> Config:
    (tmp_path / "c.yaml").write_text(text)
    return load_yaml(tmp_path / "c.yaml", Config, **more)


def test_values_become_their_types():
    values = {
        "steps": 7,
        "path": "a/b",
        "crop": [4, 6],
        "pairs": [["idm", 2], ["fdm", 0.5]],
        "optimizer": {"rate": 2, "betas": [0.5, 0]},
    }
    config = from_dict(Config, values)
    assert config == Config(
        steps=7,
        path=Path("a/b"),
        crop=(4, 6),
        pairs=(("idm", 2.0), ("fdm", 0.5)),
        optimizer=Optimizer(2.0, (0.5, 0.0)),
    )
    assert isinstance(config.optimizer.rate, float)
    assert from_dict(Config, to_dict(config)) == config


def test_absent_keys_keep_the_base_at_every_depth():
    base = Config(steps=9, optimizer=Optimizer(rate=5.0, betas=(0.1, 0.2)))
    config = from_dict(Config, {"optimizer": {"rate": 6.0}}, base=base)
    assert config == Config(steps=9, optimizer=Optimizer(rate=6.0, betas=(0.1, 0.2)))
    assert from_dict(Config, {"optimizer": {"rate": 6.0}}).steps == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stps": 3}, r"unknown key 'stps'; did you mean 'steps'\?"),
        ({"optimizer": {"rte": 1}}, r"unknown key 'optimizer.rte'; did you mean 'rate'\?"),
        ({"zzzz": 1}, r"unknown key 'zzzz'; known keys: steps, method, quiet"),
        ({"steps": "3"}, r"steps: expected int, got '3'"),
        ({"steps": 3.0}, r"steps: expected int, got 3.0"),
        ({"steps": True}, r"steps: expected int, got True"),
        ({"quiet": 1}, r"quiet: expected bool, got 1"),
        ({"method": "rk4"}, r"method: expected one of 'euler', 'heun', got 'rk4'"),
        ({"optimizer": 3}, r"optimizer: expected a mapping, got 3"),
        ({"optimizer": {"rate": "fast"}}, r"optimizer.rate: expected float, got 'fast'"),
        ({"optimizer": {"rate": True}}, r"optimizer.rate: expected float, got True"),
        ({"optimizer": {"betas": [1]}}, r"optimizer.betas: expected 2 values, got 1: \[1\]"),
        ({"optimizer": {"betas": 0.9}}, r"optimizer.betas: expected a list, got 0.9"),
        ({"pairs": [["idm", "x"]]}, r"pairs\[0\]\[1\]: expected float, got 'x'"),
        ({"crop": "all"}, r"crop: expected one of 'none', got 'all' or crop: expected a list"),
        ({"path": 3}, r"path: expected Path, got 3"),
        ([1], r"Config: expected a mapping, got \[1\]"),
    ],
)
def test_every_mistake_names_its_key(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Config, values)


def test_yaml_reads_scientific_notation_which_yaml_takes_for_text(tmp_path):
    assert read(tmp_path, "optimizer: {rate: 1e-3}").optimizer.rate == 1e-3
    assert read(tmp_path, "optimizer: {betas: [1e-1, 5e-1]}").optimizer.betas == (0.1, 0.5)


def test_yaml_errors_name_the_file_and_the_key(tmp_path):
    for text, message in (
        ("optimizer: {rat: 1}", r"c\.yaml: unknown key 'optimizer.rat'; did you mean 'rate'"),
        ("steps: [", r"c\.yaml: not valid YAML"),
        ("- 1", r"c\.yaml: Config: expected a mapping"),
        (f"config_version: {VERSION + 1}", rf"c\.yaml: config_version {VERSION + 1} is not"),
        ("steps: 0", r"c\.yaml: .*steps: expected >= 1, got 0"),  # the config's own check
    ):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path, text)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_yaml(tmp_path / "none.yaml", Config)
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load_yaml(tmp_path, Config)  # a folder


def test_a_nested_check_names_where_it_stands():
    @dataclass(frozen=True)
    class Outer:
        inner: Config = field(default_factory=Config)

    Outer.__annotations__["inner"] = Config  # a local class: its hint cannot be looked up by name
    with pytest.raises(ConfigError, match=r"^inner: steps: expected >= 1, got -1$"):
        from_dict(Outer, {"inner": {"steps": -1}})


def test_an_empty_file_is_the_base(tmp_path):
    assert read(tmp_path, "") == Config()
    assert read(tmp_path, "", base=Config(steps=8)) == Config(steps=8)


def test_yaml_text_says_its_version_and_reads_back(tmp_path):
    config = Config(path=Path("x"), crop=(1, 2), optimizer=Optimizer(rate=7.5e-5))
    text = to_yaml(config)
    assert text.startswith(f"config_version: {VERSION}\n")
    assert read(tmp_path, text) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_reads_back_equal(name, tmp_path):
    config = recipe(name)
    assert config.recipe == name
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert load_yaml(tmp_path / "run.yaml", RunConfig) == config


def line(arguments: list[str], default: Config | None = None) -> Config:
    return from_command_line(default or Config(), arguments, program="p", description="d")


def test_command_line_reaches_every_depth_and_keeps_the_default():
    base = Config(steps=9, pairs=(("idm", 2.0),), optimizer=Optimizer(rate=5.0))
    made = line(["--optimizer.betas", "0.1", "0.2", "--method", "heun", "--path", "a"], base)
    want = replace(base, method="heun", path=Path("a"), optimizer=Optimizer(5.0, (0.1, 0.2)))
    assert made == want
    assert line([], base) == base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--optimizer.rtae", "1"], "--optimizer.rate"), (["--steps", "x"], "x")],
)
def test_command_line_refuses_with_a_hint(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        line(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_help_shows_the_documentation_of_fields(capsys):
    with pytest.raises(SystemExit):
        line(["--help"])
    shown = capsys.readouterr().out
    assert "Learning rate." in shown and "--optimizer.rate" in shown


# -- one of several kinds, on the command line ---------------------------------------------------


@dataclass(frozen=True)
class Round:
    radius: float = 1.0
    colour: str = "red"
    kind: Literal["round"] = "round"


@dataclass(frozen=True)
class Square:
    side: float = 2.0
    colour: str = "blue"
    kind: Literal["square"] = "square"


@dataclass(frozen=True)
class Drawing:
    shape: Round | Square = field(default_factory=Round)


@dataclass(frozen=True)
class Page:
    drawing: Drawing = field(default_factory=Drawing)
    pages: int = 1


def test_a_kind_on_the_command_line_takes_that_dataclass():
    given = Page(Drawing(Round(colour="green")))

    def parse(*arguments):
        return from_command_line(given, arguments, program="draw", description="")

    assert parse("--drawing.shape.kind", "square") == Page(Drawing(Square(colour="green")))
    both = parse("--pages", "2", "--drawing.shape.kind=square", "--drawing.shape.side", "3")
    assert both == Page(Drawing(Square(3.0, "green")), 2)
    assert parse("--drawing.shape.kind", "round") == given
    with pytest.raises(ConfigError, match=r"drawing.shape.kind: expected one of 'round', 'square'"):
        parse("--drawing.shape.kind", "oval")


def test_another_kind_in_a_file_keeps_what_both_have():
    given = Page(Drawing(Round(radius=4.0, colour="green")))
    square = from_dict(Page, {"drawing": {"shape": {"kind": "square", "side": 3}}}, base=given)
    assert square == Page(Drawing(Square(3.0, "green")))
    back = from_dict(Page, {"drawing": {"shape": {"kind": "round", "colour": "pink"}}}, base=square)
    assert back == Page(Drawing(Round(1.0, "pink")))


@dataclass(frozen=True)
class Album:
    open: dict[str, Any] = field(default_factory=dict)


def test_open_keys_keep_the_rest_of_what_stood_there():
    given = Album({"a": Square(side=3.0, colour="green"), "b": 1})
    changed = from_dict(Album, {"open": {"a": {"side": 5}}}, base=given)
    assert changed == Album({"a": Square(side=5.0, colour="green"), "b": 1})
    with pytest.raises(ConfigError, match=r"unknown key 'open.a.sde'; did you mean 'side'\?"):
        from_dict(Album, {"open": {"a": {"sde": 5}}}, base=given)


def test_an_earlier_and_a_present_name_of_one_key_are_not_both_taken():
    with pytest.raises(ConfigError, match=r"backbone_weights: given twice, once by its earlier"):
        from_dict(RunConfig, {"generator": None, "backbone_weights": "nano"})


def test_an_earlier_name_of_a_flag_says_what_it_is_called_now():
    for earlier, now in (("generator", "backbone-weights"), ("sampler.slide", "sampler.on-slide")):
        with pytest.raises(ConfigError, match=rf"--{earlier} is called --{now} now"):
            from_command_line(RunConfig(), [f"--{earlier}=none"], program="train", description="")
