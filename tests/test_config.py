"""Configuration in all its forms: strict, with messages that name the key; every recipe round-trips."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import importlib
import json
import math
import pkgutil
import random
import re
import sys
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import colaworld
from colaworld.config import (
    VERSION,
    Checked,
    ConfigError,
    Range,
    Share,
    Size,
    from_dict,
    load_yaml,
    to_dict,
    to_yaml,
)
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.quantizers import FSQConfig, ResidualConfig
from colaworld.recipes import RECIPES, recipe
from colaworld.runs.config import RunConfig
from colaworld.runs.lengths import check_gates


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


# -- one of several kinds ---------------------------------------------------


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


# -- values are checked where they are made ------------------------------------------------------


@dataclass(frozen=True)
class Ranged(Checked, at="here."):
    share: Share = 0.5
    switch: Annotated[float, Range(gt=1, off=0)] = 2.0
    sizes: tuple[Size, ...] = (1,)
    word: Literal["a", "b"] = "a"
    most: Annotated[int, Range(le=9)] | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1}, r"here\.share: expected < 1, got 1\.0"),
        ({"share": math.nan}, r"here\.share: expected a finite number, got nan"),
        ({"share": 10**400}, r"here\.share: expected a finite number, got a number of 1329 bits"),
        ({"switch": 0.5}, r"here\.switch: expected > 1, or 0 for off, got 0\.5"),
        ({"switch": math.inf}, r"here\.switch: expected a finite number, got inf"),
        ({"sizes": (4, 0)}, r"here\.sizes\[1\]: expected >= 1, got 0"),
        ({"word": "c"}, r"here\.word: expected one of 'a', 'b', got 'c'"),
        ({"most": 10}, r"here\.most: expected <= 9, got 10"),
        ({"most": 1.5}, r"here\.most: expected int, got 1\.5"),
    ],
)
def test_a_value_is_checked_however_the_configuration_is_made(values, message):
    with pytest.raises(ConfigError, match=rf"^{message}$"):
        Ranged(**values)
    with pytest.raises(ConfigError, match=rf"^{message}$"):
        replace(Ranged(), **values)
    with pytest.raises(ConfigError, match="^" + message.removeprefix(r"here\.")):
        from_dict(Ranged, values)


def test_an_off_value_beside_the_range_and_plain_types_are_taken():
    made = Ranged(switch=0, sizes=[3], most=None)
    assert made == Ranged(0.5, 0.0, (3,))
    assert (type(made.switch), type(made.sizes)) == (float, tuple)


def config_classes() -> list[type]:
    """Every configuration of the package: all that are checked, and what is called like one."""
    for module in pkgutil.walk_packages([str(Path(colaworld.__file__).parent)], "colaworld."):
        if module.name != "colaworld._native":  # a library, not a module
            importlib.import_module(module.name)
    found: set[type] = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("colaworld.") and not name.startswith("colaworld.benchmarks"):
            found |= {
                thing
                for thing in vars(module).values()
                if dataclasses.is_dataclass(thing)
                and isinstance(thing, type)
                and (issubclass(thing, Checked) or re.search("(Config|Options)$", thing.__name__))
            }
    return sorted(found, key=lambda cls: cls.__qualname__)


def bare_numbers(hint: object) -> bool:
    """Whether an annotation holds a number without a range."""
    if typing.get_origin(hint) is Annotated:
        inner, *marks = typing.get_args(hint)
        return bare_numbers(inner) and not any(isinstance(mark, Range) for mark in marks)
    return hint in (int, float) or any(bare_numbers(part) for part in typing.get_args(hint))


def test_every_number_of_every_configuration_has_a_range():
    classes = config_classes()
    assert {"RunConfig", "Phase", "VQConfig", "WanConfig", "RecordConfig"} <= {
        cls.__name__ for cls in classes
    }
    for cls in classes:
        hints = typing.get_type_hints(cls, include_extras=True)
        numbers = [f.name for f in dataclasses.fields(cls) if bare_numbers(hints[f.name])]
        assert not numbers, f"{cls.__name__}: no Range on {', '.join(numbers)}"
        ranged = [f for f in dataclasses.fields(cls) if "Range(" in str(hints[f.name])]
        assert not ranged or issubclass(cls, Checked), f"{cls.__name__} is not Checked"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("training.clip_norm", {"training": {"clip_norm": math.inf}}),
        ("training.spike_factor", {"training": {"spike_factor": math.nan}}),
        ("training.weight_decay", {"training": {"weight_decay": 10**400}}),
        ("phases.warmup.gate.max_drift", {"phases": {"warmup": {"gate": {"max_drift": math.inf}}}}),
        ("phases.joint.learning_rate", {"phases": {"joint": {"learning_rate": 1e10}}}),
        ("data.scene_cut_threshold", {"data": {"scene_cut_threshold": -math.inf}}),
        ("data.cache_mb", {"data": {"cache_mb": math.inf}}),
        ("data.workers", {"data": {"workers": 10**30}}),
        ("data.crop", {"data": {"crop": [0, 0, 0, 4]}}),
        ("sampler.steps", {"sampler": {"steps": 0}}),
        ("sampler.context_noise", {"sampler": {"history_noise": -1}}),
        ("model.tokenizer.std", {"model": {"tokenizer": {"std": 0}}}),
        ("model.conditioner.dropout", {"model": {"conditioner": {"dropout": -1}}}),
        ("model.conditioner.depth", {"model": {"conditioner": {"depth": -1}}}),
        ("model.quantizer.beta", {"model": {"quantizer": {"beta": -1}}}),
        ("model.quantizer.decay", {"model": {"quantizer": {"decay": 1e308}}}),
        ("model.quantizer.reseed_below", {"model": {"quantizer": {"reseed_below": -1}}}),
        ("objective.quantizer_weight", {"objective": {"quantizer_weight": -1}}),
        ("objective.times.std", {"objective": {"times": {"std": -1}}}),
        ("model.backbone.pixels_per_latent", {"model": {"backbone": {"pixels_per_latent": -1}}}),
        ("model.backbone.depth", {"model": {"backbone": {"depth": 10**30}}}),
        ("model.backbone.mlp_ratio", {"model": {"backbone": {"mlp_ratio": 0}}}),
        ("model.backbone.patch[1]", {"model": {"backbone": {"patch": [1, 0, 2]}}}),
        ("model.idm.dim", {"model": {"idm": {"dim": 0}}}),
    ],
)
def test_a_run_refuses_a_number_that_makes_no_sense(name, values):
    with pytest.raises(ConfigError, match=rf"^{re.escape(name)}: expected "):
        from_dict(RunConfig, values, base=recipe("nano.cola"))


def test_a_gate_that_cannot_open_is_refused_with_its_numbers():
    config = recipe("nano.cola")
    gate = config.phases["warmup"].gate
    with pytest.raises(
        ConfigError, match=r"^phases\.warmup\.gate\.window: .*health_every 20.*got 20"
    ):
        check_gates(config.with_phase("warmup", gate=replace(gate, window=20)))
    check_gates(config.with_phase("warmup", gate=replace(gate, window=21)))


def test_more_codes_than_an_index_counts_are_refused():
    with pytest.raises(ConfigError, match=r"codebook_size \*\* depth are 4294967296 codes"):
        ResidualConfig(codebook_size=65_536, depth=2)
    with pytest.raises(ConfigError, match=r"levels, multiplied, are"):
        FSQConfig(levels=(65_536, 65_536))


# -- files that are no configuration -------------------------------------------------------------

BOMB = "[&a [x, x, x, x, x, x, x, x, x], " + "".join(
    f"&{here} [*{there}, *{there}, *{there}, *{there}, *{there}, *{there}, *{there}], "
    for there, here in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "training: {seed: " + BOMB + "*i]}",
            "not valid YAML in line 1: aliases are not read here",
        ),
        ("a: &a [*a]", "aliases are not read here"),
        ("schedule: " + "[" * 20_000, "more than 50 levels deep"),
        ("seed: {? " * 3000, "more than 50 levels deep"),
        ("recipe: a\nrecipe: b\n", "the key 'recipe' is given twice"),
        ("training:\n  seed: 1\n  seed: 2\n", "in line 2: the key 'seed' is given twice"),
        ("model: {backbone: {kind: [1]}}", "model.backbone.kind: expected one of 'stdit3'"),
        ("model: {quantizer: {kind: {}}}", "model.quantizer.kind: expected one of 'vq'"),
        (
            "training: {weight_decay: 1" + "0" * 400 + "}",
            "expected a finite number, got a number of",
        ),
        ("training: {seed: 1" + "0" * 5000 + "}", "not valid YAML"),
        (
            "training: {seed: 0x1" + "0" * 5000 + "}",
            "seed: expected < 9.22337e+18, got a number of",
        ),
        (
            "training: {seed: [" + "x, " * 5000 + "]}",
            "training.seed: expected int, got ['x', 'x'",
        ),
        ("data: {path: 2001-99-99}", "not valid YAML: month must be in"),
        ("a: !!bool maybe", "not valid YAML: 'maybe'"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: 1" + ":1" * 300 + ".5", "not valid YAML"),
        ("nonsense", "RunConfig: expected a mapping, got 'nonsense'"),
        ("{[1]: 2}", "not valid YAML in line 1: found unhashable key"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        (b"\x80\x81\x00", "not valid YAML"),
        (b"\x00\x00\x00", "not valid YAML"),
        (b" " * (2**20 + 1), "cannot be read: more than 1 MiB"),
        ("x" * 900 + ": 1", "unknown key 'xxx"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_short_line(content, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as stop:
        load_yaml(path, RunConfig, base=recipe("nano.cola"))
    said = str(stop.value)
    assert said.startswith(f"{path}: ") and message in said
    assert "\n" not in said and len(said) < len(str(path)) + 300


def test_a_whole_configuration_of_before_a_key_says_what_it_now_is(tmp_path, caplog):
    base = recipe("nano.cola")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(base).replace("    standardise_frames: true\n", ""))
    assert load_yaml(path, RunConfig, base=base) == base
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        f"{path}: does not name model.idm.standardise_frames, which stays True; "
        "a run of this configuration has False"
    )
    caplog.clear()
    load_yaml(path, RunConfig)  # as --resume reads it
    lacking = to_yaml(base).replace("    name: joint\n", "")
    path.write_text(lacking)
    assert lacking != to_yaml(base) and load_yaml(path, RunConfig, base=base) == base
    path.write_text("model: {idm: {motion: true}}")
    load_yaml(path, RunConfig, base=base)  # a file of changes
    assert not caplog.records


def test_an_early_quantizer_without_a_codebook_is_read_and_says_what_it_passes_over(caplog):
    made = from_dict(ModelConfig, {"quantizer": {"kind": "fsq", "continuous_steps": 250}})
    assert made.quantizer == FSQConfig()
    assert "quantizer.continuous_steps: passed over, FSQConfig never had it" in caplog.text
    with pytest.raises(ConfigError, match=r"unknown key 'quantizer.unquantized_steps'"):
        from_dict(ModelConfig, {"quantizer": {"kind": "fsq", "unquantized_steps": 250}})


ODD = [None, True, 0, -1, 1.5, 10**30, 10**400, math.inf, math.nan, "", "x", "1e999", [], [1], {}]
ODD += [
    {"kind": [1]},
    {"kind": "x"},
    [[]],
    {1: 2},
    {None: 1},
    b"x",
    {"": {}},
    datetime.date.min,
    {1},
]


@pytest.mark.parametrize("name", RECIPES)
def test_any_change_of_a_configuration_is_taken_or_refused_by_name(name):
    """Values, keys and whole branches replaced at random places; nothing else than ConfigError."""
    draw = random.Random(name)
    whole = to_dict(recipe(name))
    taken = 0
    for _ in range(60):
        values = copy.deepcopy(whole)
        at: Any = values
        while True:
            key = draw.choice(list(at)) if isinstance(at, dict) else draw.randrange(len(at))
            if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.2:
                break
            at = at[key]
        if draw.random() < 0.2 and isinstance(at, dict):
            at[draw.choice([*list(whole), 1, None, "", ("a",)])] = at.pop(key)
        else:
            at[key] = draw.choice(ODD)
        try:
            made = from_dict(RunConfig, values)
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
        else:
            taken += 1
            json.dumps(to_dict(made), allow_nan=False)
    assert taken < 30
