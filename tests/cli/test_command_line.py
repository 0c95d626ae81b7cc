"""Every field is an option: the command line of a configuration, and one of several kinds on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from colaworld.cli.command_line import from_command_line
from colaworld.cli.help import USUAL, usual_help
from colaworld.config import ConfigError
from colaworld.recipes import recipe
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
    path: Path | None = None
    """Where."""
    pairs: tuple[tuple[str, float], ...] = ()
    """Factors."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How to step."""


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


def test_an_earlier_name_of_a_flag_says_what_it_is_called_now():
    for earlier, now in (("generator", "backbone-weights"), ("sampler.slide", "sampler.on-slide")):
        with pytest.raises(ConfigError, match=rf"--{earlier} is called --{now} now"):
            from_command_line(RunConfig(), [f"--{earlier}=none"], program="train", description="")


def test_help_of_a_recipe_is_short_and_names_only_what_it_has(colaworld):
    said = colaworld("train", "nano.pretrain", "--help")
    lines = said.out.splitlines()
    assert said.status == 0 and len(lines) < 80 and max(map(len, lines)) <= 100
    assert "  --training.batch-size N             Clips per forward pass. [16]" in lines
    assert (
        "  --phases.pretrain.steps N           Optimizer steps; the maximum where there is a gate. [4500]"
        in lines
    )
    assert not any(word in said.out for word in ("idm", "quantizer", "warmup", "--evaluation"))
    assert "nano.cola" in colaworld("train", "--help-all").out  # without a recipe: which there are
    cola = colaworld("train", "nano.cola", "--help").out
    assert "--phases.joint.steps" in cola and "--model.quantizer.kind vq|ema|" in cola


def test_every_usual_option_of_the_short_help_is_one():
    shown = usual_help(recipe("nano.cola"), program="p", description="", also={})
    for name in " ".join(USUAL.values()).split():
        assert name.replace("*", "joint").replace("_", "-") + " " in shown


def test_a_file_in_place_of_a_recipe_is_told_where_files_go(colaworld):
    said = colaworld("train", "g.yaml", "--data", "x")
    assert said.status == 2 and "nano.cola --config g.yaml" in said.err
    assert "nano.two_stage" in colaworld("train", "nano.coal", "--data", "x").err
